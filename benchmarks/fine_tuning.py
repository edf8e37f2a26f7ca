"""Fine-tuning a two-layer student with labels, for each selection of senses, against its head alone on a frozen backbone.

    python benchmarks/fine_tuning.py --data FOLDER

The folder holds ``train.jsonl`` and ``test.jsonl`` with ``{"text": ..., "label": ...}`` a line. Dictionary and distillation
see all train texts without labels; ``--texts`` of them are fine-tuned on, and 500 others choose the learning rate.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from banking77 import default_teacher
from datasets import Dataset
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments

from hf_sense import (
    SenseDistillationConfig,
    SenseDistillationTrainer,
    SenseModelForSequenceClassification,
    build_dictionary,
    load_teacher,
)
from hf_sense.evaluation import evaluate_classifier, fit_linear_head
from hf_sense.teacher import Teacher

MAX_LENGTH = 64
LAYERS = 2
HELD_OUT = 500
SELECTIONS = {"hard senses": "straight_through", "soft senses": "soft", "continuous": "none"}

Rows = tuple[list[str], list[str]]


class Benchmark:
    """The texts with their labels, the teacher, and what a run may cost."""

    def __init__(self, options: argparse.Namespace) -> None:
        texts, labels = _read(options.data / "train.jsonl")
        if len(texts) < options.texts + HELD_OUT:
            raise ValueError(
                f"train.jsonl has {len(texts)} texts, and {options.texts} and {HELD_OUT} others are needed."
            )
        order = random.Random(0).sample(range(len(texts)), options.texts + HELD_OUT)
        self.unlabelled = texts
        self.train, self.held_out = (
            ([texts[n] for n in part], [labels[n] for n in part])
            for part in (order[: options.texts], order[options.texts :])
        )
        self.test = _read(options.data / "test.jsonl")
        self.teacher: Teacher = load_teacher(options.teacher or default_teacher())
        self.options = options

    def fit(self, model: SenseModelForSequenceClassification, rows: Rows) -> None:
        """The head alone, by logistic regression."""
        fit_linear_head(model, self.teacher.tokenizer, *rows, max_length=MAX_LENGTH, disable_tqdm=True)

    def accuracy(self, model: SenseModelForSequenceClassification, rows: Rows) -> float:
        """From 0 to 1."""
        tokenizer = self.teacher.tokenizer
        return evaluate_classifier(model, tokenizer, *rows, max_length=MAX_LENGTH, disable_tqdm=True)["accuracy"]


def _read(path: Path) -> Rows:
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [row["text"] for row in rows], [str(row["label"]) for row in rows]


def distilled(bench: Benchmark) -> SenseModelForSequenceClassification:
    """The student that all runs start from: it has learned the teacher's senses, and saw no label."""
    options = bench.options
    dictionary = build_dictionary(bench.teacher, bench.unlabelled, max_length=MAX_LENGTH, disable_tqdm=True)
    student = SenseModelForSequenceClassification.from_teacher(
        bench.teacher, dictionary, num_hidden_layers=LAYERS, pooling="frequency"
    )
    with tempfile.TemporaryDirectory() as folder:
        args = SenseDistillationConfig(
            folder,
            max_steps=options.steps,
            per_device_train_batch_size=32,
            learning_rate=1e-3,
            warmup_steps=min(30, options.steps // 2),
            lr_scheduler_type="cosine",
            freeze_embeddings=True,
            max_length=MAX_LENGTH,
            target_cache_dir=str(Path(folder) / "targets"),
            **_silent(),
        )
        data = Dataset.from_dict({"text": bench.unlabelled})
        SenseDistillationTrainer(student, args, teacher=bench.teacher, train_dataset=data).train()
    student.requires_grad_(True)
    return student.eval()


def _silent() -> dict[str, Any]:
    return {
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }


def fine_tuned(
    bench: Benchmark, start: SenseModelForSequenceClassification, learning_rate: float, seed: int
) -> SenseModelForSequenceClassification:
    """A copy of ``start`` after the plain ``Trainer``."""
    model, tokenizer = copy.deepcopy(start), bench.teacher.tokenizer
    texts, labels = bench.train
    encoded = tokenizer(texts, truncation=True, max_length=MAX_LENGTH)
    data = Dataset.from_dict({**encoded, "labels": [model.config.label2id[label] for label in labels]})
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            num_train_epochs=bench.options.epochs,
            per_device_train_batch_size=32,
            learning_rate=learning_rate,
            warmup_steps=0.1,
            seed=seed,
            **_silent(),
        )
        Trainer(model, args, train_dataset=data, data_collator=DataCollatorWithPadding(tokenizer)).train()
    return model.eval()


def measure(bench: Benchmark, start: SenseModelForSequenceClassification, name: str) -> dict[str, Any]:
    """One row of the table: the head alone, and fine-tuned at the rate that the held-out texts choose."""
    options = bench.options
    start.config.selection = SELECTIONS[name]
    bench.fit(start, bench.train)
    head = bench.accuracy(start, bench.test)
    chosen, seconds = [], []
    for seed in range(options.seeds):
        runs = []
        for rate in options.learning_rates:
            begin = time.perf_counter()
            model = fine_tuned(bench, start, rate, seed)
            seconds.append(time.perf_counter() - begin)
            runs.append((bench.accuracy(model, bench.held_out), rate, model))
        best = max(runs, key=lambda run: run[0])
        chosen.append({"learning_rate": best[1], "held_out": best[0], "test": bench.accuracy(best[2], bench.test)})
    tests = [run["test"] for run in chosen]
    rates = ", ".join(f"{rate:g}" for rate in sorted({run["learning_rate"] for run in chosen}))
    spread = f"{min(tests):.1%} to {max(tests):.1%}" if len(tests) > 1 else ""
    print(
        f"| {name} (`{SELECTIONS[name]}`) | {head:.1%} | {statistics.mean(tests):.1%} | {spread} | {rates} | "
        f"{statistics.median(seconds):.0f} |",
        flush=True,
    )
    return {"name": name, "head": head, "runs": chosen, "seconds": seconds}


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--texts", type=int, default=2000, help="labelled texts to fine-tune on")
    parser.add_argument("--epochs", type=float, default=2.0, help="times that they are read")
    parser.add_argument("--steps", type=int, default=300, help="steps of 32 texts of the distillation before")
    parser.add_argument("--seeds", type=int, default=2, help="runs of each selection")
    parser.add_argument(
        "--learning-rates", type=float, nargs="+", default=[5e-4, 1e-3], help="the held-out texts choose"
    )
    parser.add_argument("--output", type=Path, help="write the scores to this JSON file")
    options = parser.parse_args()
    torch.manual_seed(0)
    bench = Benchmark(options)
    student = distilled(bench)
    whole = SenseModelForSequenceClassification.from_teacher(
        bench.teacher, student.to_dictionary(), selection="none", pooling="frequency"
    )
    bench.fit(whole, bench.train)
    print(
        "| | head alone | fine-tuned | range | learning rate | seconds a run |\n| --- | --- | --- | --- | --- | --- |"
    )
    layers = bench.teacher.model.config.num_hidden_layers
    print(f"| teacher, {layers} layers, continuous | {bench.accuracy(whole, bench.test):.1%} | | | | |", flush=True)
    rows = [measure(bench, student, name) for name in SELECTIONS]
    if options.output:
        options.output.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
