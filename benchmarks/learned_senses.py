"""Hard against soft selection, and frozen against learned senses, for a teacher and for students of its first layer.

    OMP_NUM_THREADS=1 python benchmarks/learned_senses.py --data FOLDER

The folder holds ``train.jsonl`` and ``test.jsonl`` with ``{"text": ..., "label": ...}`` a line. Dictionary and students see the
train texts without labels; ``--held-out`` of them are kept from both, to fit temperatures on. Accuracy is MTEB's
protocol, as in ``banking77.py``. The teacher reads the train texts once, and its states are kept. It tunes nothing: ``--dev
2000`` measures on so many train texts that dictionary and students have not seen, which is where the recipes were chosen.
"""

from __future__ import annotations

import argparse
import copy
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

# The folder of this script is on the path: its neighbours' readers and clocks serve here too.
from banking77 import MAX_LENGTH, default_teacher, read_rows
from datasets import Dataset
from measure import by_turns, ratios, save, shown
from small_students import POOLINGS, Batch, Benchmark, Kept, megabytes
from transformers.utils import logging

from hf_sense import SenseDistillationConfig, SenseDistillationTrainer, SenseModel, build_dictionary, load_teacher
from hf_sense.corpus import encode_corpus
from hf_sense.selection_temperature import fit_temperature

SOFT = {"sense_weight": 0.0, "replaced_weight": 1.0}
# Each student: fields of its configuration, of the trainer's, and how its vectors are made.
STUDENTS: dict[str, tuple[dict[str, Any], dict[str, Any], list[str]]] = {
    "squared error": ({}, {"sense_weight": 0.0, "mse_weight": 1.0, "learning_rate": 2e-3}, ["continuous", "soft, states"]),
    "cosine": ({}, {"sense_weight": 0.0, "cosine_weight": 1.0, "learning_rate": 2e-3}, ["continuous"]),
    "cross-entropy (the paper's)": (
        {}, {"learning_rate": 1e-3}, ["continuous", "hard", "soft, from the table", "soft, states", "soft, choices"],
    ),
    "frozen, straight-through": ({}, {**SOFT, "learning_rate": 2e-3}, ["hard", "soft, states"]),
    "learned, straight-through": ({"learned_senses": True}, {**SOFT, "learning_rate": 2e-3}, ["hard", "soft, states"]),
    "frozen, soft": ({"selection": "soft"}, {**SOFT, "learning_rate": 2e-3}, ["soft, from the table", "soft, states"]),
    "learned, soft": (
        {"selection": "soft", "learned_senses": True}, {**SOFT, "learning_rate": 2e-3},
        ["soft, from the table", "soft, states"],
    ),
    "learned, soft, and squared error": (
        {"selection": "soft", "learned_senses": True}, {**SOFT, "mse_weight": 1.0, "learning_rate": 2e-3},
        ["continuous", "hard", "soft, states"],
    ),
}  # fmt: skip


class Way:
    """A sense model asked for its states in one way; it runs the backbone once for all of its ways.

    Args:
        model: in evaluation mode.
        name: the selection, and after a comma where its temperature comes from.
        temperature: of soft selection.
        states: the model's states before replacement by the batch's address, shared by its ways.
    """

    def __init__(self, model: SenseModel, name: str, temperature: float, states: dict[int, torch.Tensor]) -> None:
        self.model = model
        self.selection = {"continuous": "none"}.get(name, name.split(",")[0])
        self.temperature = temperature
        self.states = states

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Hidden states ``(batch, sequence, dim)``."""
        ids, mask = batch["input_ids"], batch["attention_mask"]
        if id(batch) not in self.states:
            self.states[id(batch)] = self.model(**batch, output_contextual=True).contextual_hidden_state
        config = self.model.config
        config.selection, config.selection_temperature = self.selection, self.temperature
        return self.model.table.replace(self.states[id(batch)], ids, mask, config)[0]


def ways_of(
    model: SenseModel,
    names: list[str],
    teacher: Any,
    held_out: list[str],
    states: dict[int, torch.Tensor] | None = None,
) -> dict[str, Way]:
    """The named ways, with temperatures fitted on the texts where the name says by what."""
    start, found = model.config.selection_temperature, {}
    states = {} if states is None else states
    for name in names:
        temperature = start
        if name.endswith(("states", "choices")):
            model.config.selection_temperature = start
            criterion = name.split(", ")[1]
            temperature = fit_temperature(
                model, teacher, held_out, criterion=criterion, max_length=MAX_LENGTH, batch_size=64, disable_tqdm=True
            )
        found[name] = Way(model, name, temperature, states)
    return found


def train(teacher: Any, dictionary: Any, data: Dataset, folder: str, name: str, seed: int, **how: Any) -> SenseModel:
    """A trained student of one layer."""
    fields, losses, _ = STUDENTS[name]
    torch.manual_seed(seed)
    student = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1, **fields)
    for module in student.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    args = SenseDistillationConfig(
        folder,
        num_train_epochs=how["epochs"],
        max_steps=how["steps"] or -1,
        per_device_train_batch_size=32,
        warmup_steps=30,
        lr_scheduler_type="cosine",
        freeze_embeddings=True,
        train_sampling_strategy="group_by_length",
        max_length=MAX_LENGTH,
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=False,
        report_to=[],
        seed=seed,
        disable_tqdm=True,
        target_cache_dir=folder,
        **losses,
    )
    SenseDistillationTrainer(student, args, teacher=teacher, train_dataset=data).train()
    return student.eval()


def measure_speed(model: SenseModel, bench: Benchmark, rounds: int) -> None:
    """The step from states to replaced states alone, soft over hard, over 30 batches of test texts."""
    batches = [batch for _, batch in bench.batches["test"]][:30]
    with torch.no_grad():
        states = [model(**batch, output_contextual=True).contextual_hidden_state for batch in batches]

    def run(selection: str) -> None:
        model.config.selection = selection
        with torch.no_grad():
            for own, batch in zip(states, batches, strict=True):
                model.table.replace(own, batch["input_ids"], batch["attention_mask"], model.config)

    seconds = by_turns({name: lambda name=name: run(name) for name in ("hard", "soft")}, rounds)
    print(f"soft over hard: {shown(ratios(seconds['soft'], seconds['hard']), 'times the time')}")


def main() -> None:
    """Prints the table, and with ``--output`` writes its numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--shots", type=int, default=8, help="labelled texts a class")
    parser.add_argument("--dev", type=int, help="measure on so many train texts instead of the test texts")
    parser.add_argument(
        "--held-out", type=int, default=300, help="train texts to fit temperatures on, and nothing else"
    )
    parser.add_argument("--students", nargs="*", default=list(STUDENTS), choices=list(STUDENTS))
    parser.add_argument("--seeds", type=int, default=3, help="how many times each student is trained")
    parser.add_argument("--epochs", type=float, default=3)
    parser.add_argument("--steps", type=int, help="instead of epochs")
    parser.add_argument("--rounds", type=int, default=9, help="how often soft and hard are timed; 0 for not at all")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    logging.disable_progress_bar()
    rows = {split: read_rows(options.data / f"{split}.jsonl") for split in ("train", "test")}
    random.Random(7).shuffle(rows["train"])
    if options.dev:
        rows = {"train": rows["train"][options.dev :], "test": rows["train"][: options.dev]}
    teacher = load_teacher(options.teacher or default_teacher())
    texts = [row["text"] for row in rows["train"]]
    held_out = texts[: options.held_out]
    dictionary = build_dictionary(teacher, texts[options.held_out :], max_length=MAX_LENGTH, disable_tqdm=True)
    corpus = encode_corpus(texts, teacher.tokenizer, MAX_LENGTH, quiet=True, disable_tqdm=True)
    reader = copy.copy(teacher)
    reader.hidden_states = Kept(teacher, corpus).hidden_states
    whole = SenseModel.from_teacher(teacher, dictionary).eval()
    bench = Benchmark(rows, teacher, copy.deepcopy(whole), options.shots)
    figures: dict[str, dict[str, Any]] = {}

    def note(name: str, made: list[dict[str, Way]]) -> None:
        for way in made[0]:
            scores = [bench.accuracies(own[way]) for own in made]
            temperatures = [own[way].temperature for own in made]
            row: dict[str, Any] = {"temperature": statistics.mean(temperatures) if way.startswith("soft") else None}
            for pooling in POOLINGS:
                of_seeds = [score[pooling] for score in scores]
                row[pooling] = statistics.mean(of_seeds)
                row[f"{pooling}, of each seed"] = of_seeds
            figures[f"{name}; {way}"] = row
            shown_temperature = "" if row["temperature"] is None else f"{row['temperature']:.3g}"
            range_of = " | ".join(
                f"{row[p]:.2f} | {min(row[f'{p}, of each seed']):.2f} to {max(row[f'{p}, of each seed']):.2f}"
                for p in POOLINGS
            )
            print(f"| {name} | {way} | {shown_temperature} | {range_of} |", flush=True)

    print(f"{dictionary}, {len(rows['test'])} texts to test")
    print("| | vectors | temperature | mean | range | frequency | range |\n|" + " --- |" * 7)
    ways = ["continuous", "hard", "soft, from the table", "soft, states"]
    known = {id(batch): reader.hidden_states(**batch) for _, batch in bench.batches["train"]}
    note("teacher", [ways_of(whole, ways, reader, held_out, known)])
    data = Dataset.from_dict({"text": texts[options.held_out :]})
    how = {"epochs": options.epochs, "steps": options.steps}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.students:
            begin = time.process_time()
            made = [train(reader, dictionary, data, folder, name, seed, **how) for seed in range(options.seeds)]
            spent = (time.process_time() - begin) / options.seeds
            note(name, [ways_of(model, STUDENTS[name][2], reader, held_out) for model in made])
            size = megabytes(made[0])["MB as saved"]
            print(f"{name}: {spent:.0f} CPU seconds of training each, {size:.1f} MB as saved", flush=True)
    if options.rounds:
        measure_speed(whole, bench, options.rounds)
    save(options.output, {"options": {**vars(options), "data": options.data.name, "output": None}, "figures": figures})


if __name__ == "__main__":
    main()
