"""Text vectors of a teacher, of senses in its place, and of two-layer students, on Banking77 under MTEB's protocol.

    python benchmarks/banking77.py --data FOLDER

The folder holds ``train.jsonl`` and ``test.jsonl`` with ``{"text": ..., "label": ...}`` a line. It tunes nothing.
``--steps`` makes the students, and the run, shorter.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from hf_sense import SenseDistillationConfig, SenseDistillationTrainer, SenseModel, build_dictionary, load_teacher
from hf_sense.dictionary import SenseDictionary
from hf_sense.evaluation import embed, few_shot_accuracy
from hf_sense.teacher import Teacher

MAX_LENGTH = 64
LAYERS = 2
LOSSES = {
    "sense cross-entropy": {},
    "squared error": {"sense_weight": 0.0, "mse_weight": 1.0},
    "cosine": {"sense_weight": 0.0, "cosine_weight": 1.0},
}


class Benchmark:
    """The texts, and the scores so far."""

    def __init__(self, folder: Path, quiet: bool) -> None:
        self.rows = {name: read_rows(folder / f"{name}.jsonl") for name in ("train", "test")}
        self.texts = {name: [row["text"] for row in rows] for name, rows in self.rows.items()}
        self.labels = {name: [row["label"] for row in rows] for name, rows in self.rows.items()}
        self.quiet = quiet
        self.scores: list[dict[str, Any]] = []

    def measure(
        self, name: str, model: SenseModel, teacher: Teacher, *, seed: int | None = None, **fields: Any
    ) -> None:
        """Scores ``model`` with these fields of its configuration, and prints a row of the table."""
        for field, value in fields.items():
            setattr(model.config, field, value)
        model.table.metric = model.config.metric
        vectors = {
            split: embed(
                model, teacher.tokenizer, texts, max_length=MAX_LENGTH, batch_size=64, disable_tqdm=self.quiet or None
            )
            for split, texts in self.texts.items()
        }
        score = few_shot_accuracy(vectors["train"], self.labels["train"], vectors["test"], self.labels["test"])
        self.scores.append({"name": name, "seed": seed, **dataclasses.asdict(score)})
        title = name if seed is None else f"{name}, seed {seed}"
        print(f"| {title} | {score.mean:.2%} | {score.spread:.2%} |", flush=True)


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _sense_variants() -> Iterator[tuple[str, dict[str, Any]]]:
    yield "dot (the paper's)", {"metric": "dot", "pooling": "mean"}
    yield "cosine", {"metric": "cosine", "pooling": "mean"}
    yield "l2", {"metric": "l2", "pooling": "mean"}
    yield "l2, frequency pooling", {"metric": "l2", "pooling": "frequency"}


def measure_teacher(bench: Benchmark, teacher: Teacher) -> SenseDictionary:
    """The teacher's rows of the table; returns its dictionary of 20 senses a token."""
    options = {"max_length": MAX_LENGTH, "disable_tqdm": bench.quiet or None}
    texts = bench.texts["train"]
    dictionary = build_dictionary(teacher, texts, max_senses=20, **options)
    model = SenseModel.from_teacher(teacher, dictionary)
    for pooling in ("mean", "frequency"):
        bench.measure(f"teacher, continuous, {pooling} pooling", model, teacher, selection="none", pooling=pooling)
    single = SenseModel.from_teacher(teacher, build_dictionary(teacher, texts, max_senses=1, **options))
    bench.measure("one sense a token", single, teacher)
    for name, fields in _sense_variants():
        bench.measure(f"k-means 20, {name}", model, teacher, selection="hard", **fields)
    return dictionary


def measure_student(bench: Benchmark, name: str, model: SenseModel, teacher: Teacher, seed: int | None = None) -> None:
    """A student's three rows of the table."""
    name = f"{LAYERS} layers, {name}"
    bench.measure(f"{name}: continuous", model, teacher, seed=seed, selection="none", pooling="mean")
    bench.measure(f"{name}: replaced", model, teacher, seed=seed, selection="hard", pooling="mean")
    bench.measure(
        f"{name}: replaced, frequency pooling", model, teacher, seed=seed, selection="hard", pooling="frequency"
    )


def train(
    bench: Benchmark,
    teacher: Teacher,
    dictionary: SenseDictionary,
    losses: dict[str, Any],
    steps: int,
    seed: int,
    layers: int = LAYERS,
    targets: Path | None = None,
) -> SenseModel:
    """A student of the teacher's first layers, trained on the training texts without their labels.

    ``targets`` is where the teacher's choices are kept for the next student; they are thrown away if it is not given.
    """
    model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=layers)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    with tempfile.TemporaryDirectory() as folder:
        args = SenseDistillationConfig(
            folder,
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            temperature=1.0,  # that of the published table
            warmup_steps=min(30, steps // 2),
            lr_scheduler_type="cosine",
            freeze_embeddings=True,
            max_length=MAX_LENGTH,
            save_strategy="no",
            logging_strategy="no",
            dataloader_pin_memory=False,
            report_to=[],
            seed=seed,
            disable_tqdm=bench.quiet,
            target_cache_dir=str(targets or Path(folder) / "targets"),
            **losses,
        )
        dataset = Dataset.from_dict({"text": bench.texts["train"]})
        trainer = SenseDistillationTrainer(
            model=model, teacher=teacher, args=args, train_dataset=dataset, processing_class=teacher.tokenizer
        )
        trainer.train()
    return model.eval()


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--seeds", type=int, default=1, help="how many times each student is trained")
    parser.add_argument("--steps", type=int, default=936, help="training steps of 32 texts; 0 leaves the students out")
    parser.add_argument("--output", type=Path, help="write the scores to this JSON file")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args()
    bench = Benchmark(options.data, options.quiet)
    teacher = load_teacher(options.teacher or default_teacher())
    print("| | accuracy | spread over 10 draws |\n| --- | --- | --- |")
    dictionary = measure_teacher(bench, teacher)
    if options.steps:
        untrained = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=LAYERS)
        measure_student(bench, "untrained", untrained, teacher)
        for seed in range(options.seeds):
            for name, losses in LOSSES.items():
                model = train(bench, teacher, dictionary, losses, options.steps, seed)
                measure_student(bench, name, model, teacher, seed)
    if options.output:
        options.output.write_text(json.dumps({"steps": options.steps, "scores": bench.scores}, indent=2) + "\n")


def default_teacher() -> str:
    """The folder of all-MiniLM-L6-v2, as the examples find it."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
    from real_data import teacher_folder

    return str(teacher_folder())


if __name__ == "__main__":
    main()
