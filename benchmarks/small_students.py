"""Students without a transformer against their teacher: accuracy, megabytes, texts a second, and what training them costs.

    OMP_NUM_THREADS=1 python benchmarks/small_students.py --data FOLDER

The folder holds ``train.jsonl`` and ``test.jsonl`` with ``{"text": ..., "label": ...}`` a line. Dictionary and students see the
train texts without labels; accuracy is MTEB's protocol, as in ``banking77.py``. The teacher reads the train texts once, its
states are kept, and CPU seconds of training are those after that. It tunes nothing: ``--dev 2000`` measures on so many train
texts that dictionary and students have not seen, which is where learning rate, epochs and window were chosen.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

# The folder of this script is on the path: its neighbours' readers and clocks serve here too.
from banking77 import MAX_LENGTH, default_teacher, read_rows
from datasets import Dataset
from measure import by_turns, ratios, save, shown
from transformers import PreTrainedModel
from transformers.utils import logging

from hf_sense import SenseDistillationConfig, SenseDistillationTrainer, SenseModel, build_dictionary, load_teacher
from hf_sense.corpus import EncodedCorpus, encode_corpus
from hf_sense.dictionary import SenseDictionary
from hf_sense.evaluation import few_shot_accuracy
from hf_sense.small_students import SELECTIONS, token_mean_dictionary
from hf_sense.teacher import Teacher

POOLINGS = ("mean", "frequency")
LOSSES = {"selector": {}, "context": {"sense_weight": 0.0, "mse_weight": 1.0}}
BATCH = 64

Batch = dict[str, torch.Tensor]
Way = Callable[[Batch], torch.Tensor]


class Kept:
    """A teacher's states of the texts that it has read, in place of the teacher."""

    def __init__(self, teacher: Teacher, corpus: EncodedCorpus) -> None:
        self.states: dict[bytes, torch.Tensor] = {}
        for rows in corpus.batches(BATCH):
            batch = corpus.padded(rows, teacher.tokenizer.pad_token_id)
            for ids, mask, states in zip(*batch.values(), teacher.hidden_states(**batch), strict=True):
                self.states[ids[mask.bool()].numpy().tobytes()] = states[mask.bool()].clone()

    def hidden_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        """What ``Teacher.hidden_states`` gives, zeros under padding."""
        found = [
            self.states[ids[mask].numpy().tobytes()] for ids, mask in zip(input_ids, attention_mask.bool(), strict=True)
        ]
        result = found[0].new_zeros(*input_ids.shape, found[0].shape[1])
        result[attention_mask.bool()] = torch.cat(found)
        return result


class Benchmark:
    """The texts, and what a way of making hidden states is worth on them.

    Args:
        rows: of ``train`` and ``test``.
        teacher: its tokenizer counts.
        pooler: a model whose senses know how frequent each token is.
        shots: labelled texts a class.
    """

    def __init__(self, rows: dict[str, list[dict[str, Any]]], teacher: Teacher, pooler: SenseModel, shots: int) -> None:
        self.labels = {split: [row["label"] for row in part] for split, part in rows.items()}
        self.tokenizer = teacher.tokenizer
        self.pooler = pooler
        self.shots = shots
        self.batches = {split: self.read([row["text"] for row in part]) for split, part in rows.items()}

    def read(self, texts: list[str]) -> list[tuple[torch.Tensor, Batch]]:
        """Tokenized texts in batches of like length, each with its texts' numbers."""
        corpus = encode_corpus(texts, self.tokenizer, MAX_LENGTH, quiet=True, disable_tqdm=True)
        pad = self.tokenizer.pad_token_id
        return [(torch.from_numpy(rows), corpus.padded(rows, pad)) for rows in corpus.batches(BATCH)]

    @torch.inference_mode()
    def vectors(
        self, way: Way, batches: list[tuple[torch.Tensor, Batch]], poolings: Sequence[str] = POOLINGS
    ) -> dict[str, torch.Tensor]:
        """One vector a text for each pooling, in the order of the texts."""
        found: dict[str, list[torch.Tensor]] = {pooling: [] for pooling in poolings}
        for _, batch in batches:
            states = way(batch)
            for pooling, own in found.items():
                self.pooler.config.pooling = pooling
                own.append(self.pooler.pool(states, batch["input_ids"], batch["attention_mask"]))
        order = torch.cat([rows for rows, _ in batches]).argsort()
        return {pooling: torch.cat(own)[order] for pooling, own in found.items()}

    def accuracies(self, way: Way) -> dict[str, float]:
        """In percent, the mean over the draws, for each pooling."""
        train, test = (self.vectors(way, self.batches[split]) for split in ("train", "test"))
        return {
            pooling: 100
            * few_shot_accuracy(
                train[pooling], self.labels["train"], test[pooling], self.labels["test"], samples_per_label=self.shots
            ).mean
            for pooling in POOLINGS
        }


def train(
    kind: str,
    size: int,
    teacher: Teacher,
    dictionary: SenseDictionary,
    data: Dataset,
    folder: str,
    seed: int,
    **how: Any,
) -> tuple[SenseModel, float]:
    """A trained student, and the CPU seconds that its training took."""
    torch.manual_seed(seed)
    student = SenseModel.from_teacher(teacher, dictionary, backbone=kind, hidden_size=size, window=how["window"])
    args = SenseDistillationConfig(
        folder,
        num_train_epochs=how["epochs"],
        per_device_train_batch_size=how["batch_size"],
        learning_rate=how["learning_rate"],
        warmup_steps=30,
        lr_scheduler_type="cosine",
        max_length=MAX_LENGTH,
        save_strategy="no",
        logging_strategy="no",
        dataloader_pin_memory=False,
        report_to=[],
        seed=seed,
        disable_tqdm=True,
        target_cache_dir=folder,
        **LOSSES[kind],
    )
    trainer = SenseDistillationTrainer(student, args, teacher=teacher, train_dataset=data)
    begin = time.process_time()
    trainer.train()
    return student.eval(), time.process_time() - begin


def megabytes(model: SenseModel | PreTrainedModel | SenseDictionary) -> dict[str, float]:
    """Of the weights' file as it is saved, and when their floats are float16."""
    halved = model.to(torch.float16) if isinstance(model, SenseDictionary) else copy.deepcopy(model).half()
    sizes = {}
    for name, one in (("MB as saved", model), ("MB float16", halved)):
        with tempfile.TemporaryDirectory() as folder:
            one.save_pretrained(folder)
            sizes[name] = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")) / 1e6
    return sizes


def main() -> None:
    """Prints the tables, and with ``--output`` writes their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--shots", type=int, default=8, help="labelled texts a class")
    parser.add_argument("--dev", type=int, help="measure on so many train texts instead of the test texts")
    parser.add_argument("--kinds", nargs="+", default=list(SELECTIONS), choices=list(SELECTIONS))
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128], help="widths of the students")
    parser.add_argument("--seeds", type=int, default=3, help="how many times each student is trained")
    parser.add_argument("--max-senses", type=int, default=20, help="senses a token of the dictionary")
    parser.add_argument("--codes", type=int, help="codes a level that all tokens share; none if not given")
    parser.add_argument("--code-levels", type=int, default=1)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--learning-rate", type=float, default=5e-3)
    parser.add_argument("--window", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=9, help="how often each way is timed; 0 for not at all")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    logging.disable_progress_bar()
    rows = {split: read_rows(options.data / f"{split}.jsonl") for split in ("train", "test")}
    if options.dev:
        random.Random(7).shuffle(rows["train"])
        rows = {"train": rows["train"][options.dev :], "test": rows["train"][: options.dev]}
    teacher = load_teacher(options.teacher or default_teacher())
    texts = [row["text"] for row in rows["train"]]
    begin = time.process_time()
    kept = {name: getattr(options, name) for name in ("max_senses", "codes", "code_levels")}
    dictionary = build_dictionary(teacher, texts, max_length=MAX_LENGTH, disable_tqdm=True, **kept)
    built = time.process_time() - begin
    begin = time.process_time()
    corpus = encode_corpus(texts, teacher.tokenizer, MAX_LENGTH, quiet=True, disable_tqdm=True)
    reader = copy.copy(teacher)
    reader.hidden_states = Kept(teacher, corpus).hidden_states
    print(f"{dictionary}: {built:.0f} CPU seconds to build; reading the train texts {time.process_time() - begin:.0f}")
    table = token_mean_dictionary(dictionary)
    means = SenseModel.from_teacher(teacher, table, num_hidden_layers=1)
    bench = Benchmark(rows, teacher, means, options.shots)
    ways: dict[str, list[Way]] = {
        "teacher": [lambda batch: teacher.hidden_states(**batch)],
        "table of means": [lambda batch: means.table.token_means(batch["input_ids"])],
    }
    figures: dict[str, dict[str, Any]] = {"teacher": megabytes(teacher.model), "table of means": megabytes(table)}
    data = Dataset.from_dict({"text": texts})
    how = {name: getattr(options, name) for name in ("epochs", "batch_size", "learning_rate", "window")}
    with tempfile.TemporaryDirectory() as folder:
        for kind, size in itertools.product(options.kinds, options.sizes):
            seeds = range(options.seeds)
            made = [train(kind, size, reader, dictionary, data, folder, seed, **how) for seed in seeds]
            # What serves: a selector with its keys in its own width.
            served = [model.fold() if kind == "selector" else model for model, _ in made]
            name = f"{kind}, {size}"
            figures[name] = {**megabytes(served[0]), "CPU seconds": statistics.median(spent for _, spent in made)}
            ways[name] = [lambda batch, model=model: model(**batch).last_hidden_state for model in served]
    for name, own in ways.items():
        scores = [bench.accuracies(way) for way in own]
        for pooling in POOLINGS:
            figures[name][pooling] = statistics.mean(score[pooling] for score in scores)
            figures[name][f"{pooling}, of each seed"] = [score[pooling] for score in scores]
    if options.rounds:
        measure_speed(bench, ways, figures, [row["text"] for row in rows["test"][:256]], options.rounds)
    columns = [key for key in next(reversed(figures.values())) if not key.endswith("seed")]
    print("| | " + " | ".join(columns) + " |\n| --- |" + " --- |" * len(columns))
    for name, own in figures.items():
        print(f"| {name} | " + " | ".join(f"{own[key]:.4g}" if key in own else "" for key in columns) + " |")
    save(options.output, {"options": {**vars(options), "data": options.data.name, "output": None}, "figures": figures})


def measure_speed(
    bench: Benchmark, ways: dict[str, list[Way]], figures: dict[str, dict[str, Any]], texts: list[str], rounds: int
) -> None:
    """Texts a second of each way, with the tokenizer's work and without, over the teacher's in the same round."""
    ready = bench.read(texts)
    whole = {name: lambda way=own[0]: bench.vectors(way, bench.read(texts), ["mean"]) for name, own in ways.items()}
    alone = {name: lambda way=own[0]: bench.vectors(way, ready, ["mean"]) for name, own in ways.items()}
    for title, runs in (("end to end", whole), ("tokenized", alone)):
        seconds = by_turns(runs, rounds)
        for name, own in seconds.items():
            times = ratios(seconds["teacher"], own)
            figures[name][f"texts/s, {title}"] = len(texts) / statistics.median(own)
            figures[name][f"times, {title}"] = statistics.median(times)
            print(f"{name}, {title}: {shown(times, 'times the teacher')}")


if __name__ == "__main__":
    main()
