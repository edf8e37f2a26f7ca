"""Which sense has this word? CoarseWSD-20 as a task of token classification: a teacher, its senses, students of its first layers.

    OMP_NUM_THREADS=1 python benchmarks/token_classification.py --data FOLDER

The folder holds a folder a word, as for ``word_senses.py``. One token of a sentence has a label, the sense of its word; one
linear head for the senses of all words is fitted on frozen states (``fit_token_head``). Dictionaries and students see the train
sentences without labels. It tunes nothing; ``--most`` takes fewer sentences of the words that have many.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from banking77 import default_teacher, read_rows, train
from measure import save

from hf_sense import SenseModelForTokenClassification, build_dictionary, load_teacher
from hf_sense.teacher import Teacher
from hf_sense.token_evaluation import evaluate_token_classifier, fit_token_head

LAYERS = 2
MAX_LENGTH = 128
# How the dictionary's senses are found, and how a state picks one.
RECIPES = (("kmeans", "l2"), ("spherical_kmeans", "cosine"))
LOSSES: dict[str, dict[str, Any]] = {
    "senses": {},
    "squared error": {"sense_weight": 0.0, "mse_weight": 1.0},
}


class Benchmark:
    """The sentences of all words, and the scores so far."""

    def __init__(self, folder: Path, most: int, max_length: int) -> None:
        self.max_length = max_length
        self.rows: dict[str, dict[str, list[dict[str, Any]]]] = {
            path.parent.name: {split: read_rows(path.with_name(f"{split}.jsonl"))[:most] for split in ("train", "test")}
            for path in sorted(folder.glob("*/train.jsonl"))
        }
        self.scores: dict[str, dict[str, float]] = {}

    def sentences(self, split: str, word: str | None = None) -> tuple[list[list[str]], list[list[str | None]]]:
        """Words, and a label where the sense is known; of all words, or of one."""
        rows = [row for name, own in self.rows.items() if word in (None, name) for row in own[split]]
        labels = [[row["sense"] if at == row["position"] else None for at in range(len(row["tokens"]))] for row in rows]
        return [row["tokens"] for row in rows], labels

    def show(self, name: str, scores: dict[str, float]) -> None:
        """Keeps accuracies by word and prints a row of the table."""
        self.scores[name] = scores
        print(f"| {name} | {100 * statistics.mean(scores.values()):.1f} |", flush=True)

    def most_frequent(self) -> None:
        """The accuracy of each word's sense that is most frequent in train."""
        guess = {
            word: Counter(row["sense"] for row in own["train"]).most_common(1)[0][0] for word, own in self.rows.items()
        }
        self.show(
            "most frequent sense",
            {
                word: statistics.mean(row["sense"] == guess[word] for row in own["test"])
                for word, own in self.rows.items()
            },
        )

    def measure(self, name: str, model: SenseModelForTokenClassification, tokenizer: Any, selection: str) -> None:
        """Fits the head with this selection and scores it word by word."""
        model.config.selection = selection
        options: dict[str, Any] = {"max_length": self.max_length, "disable_tqdm": True}
        fit_token_head(model, tokenizer, *self.sentences("train"), **options)
        self.show(
            name,
            {
                word: evaluate_token_classifier(model, tokenizer, *self.sentences("test", word), **options)["accuracy"]
                for word in self.rows
            },
        )


def measure_all(bench: Benchmark, teacher: Teacher, options: argparse.Namespace) -> None:
    """Every row of the table; students are of the first recipe."""
    texts = [" ".join(words) for words in bench.sentences("train")[0]]
    bench.most_frequent()
    make = SenseModelForTokenClassification.from_teacher
    students: list[tuple[str, SenseModelForTokenClassification, str]] = []
    for method, metric in RECIPES:
        dictionary = build_dictionary(
            teacher,
            texts,
            max_senses=options.senses,
            method=method,
            metric=metric,
            max_length=bench.max_length,
            disable_tqdm=True,
        )
        whole = make(teacher, dictionary)
        first = metric == RECIPES[0][1]
        if first:
            bench.measure("teacher, continuous", whole, teacher.tokenizer, "none")
        for selection in ("hard", "soft"):
            bench.measure(f"teacher, {selection} senses, {metric}", whole, teacher.tokenizer, selection)
        for loss, weights in LOSSES.items() if first and options.steps else ():
            data: Any = SimpleNamespace(texts={"train": texts}, quiet=True)
            with contextlib.redirect_stdout(sys.stderr):  # the trainer prints its losses
                trained = train(data, teacher, dictionary, weights, options.steps, 0, LAYERS)
            student = make(teacher, dictionary, num_hidden_layers=LAYERS)
            student.model.load_state_dict(trained.state_dict())
            name = f"{LAYERS} layers of {loss}"
            students.append((f"{name}, continuous", student, "none"))
            if not weights:
                students += [(f"{name}, {selection} senses", student, selection) for selection in ("hard", "soft")]
    for name, student, selection in students:
        bench.measure(name, student, teacher.tokenizer, selection)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder a word")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--senses", type=int, default=20, help="most senses a token")
    parser.add_argument("--steps", type=int, default=150, help="of 32 sentences, of each student; 0 leaves them out")
    parser.add_argument("--most", type=int, default=150, help="sentences of a word and split")
    parser.add_argument("--output", type=Path, help="write the accuracies, word by word, to this JSON file")
    options = parser.parse_args()
    teacher = load_teacher(options.teacher or default_teacher())
    bench = Benchmark(options.data, options.most, min(MAX_LENGTH, teacher.max_length))
    if not bench.rows:
        parser.error(f"{options.data} holds no folder with a train.jsonl; it should hold one a word.")
    print("| | accuracy |\n| --- | --- |")
    measure_all(bench, teacher, options)
    counts = [sum(len(own[split]) for own in bench.rows.values()) for split in ("train", "test")]
    error = 50 * (statistics.mean(1 / len(own["test"]) for own in bench.rows.values()) / len(bench.rows)) ** 0.5
    print(
        f"\nIn %, means over {len(bench.rows)} words; {counts[0]} train and {counts[1]} test sentences; at most "
        f"{options.senses} senses a token; students distilled in {options.steps} steps of 32. The standard error of such a mean "
        f"is at most about {error:.1f}."
    )
    save(options.output, {"steps": options.steps, "senses": options.senses, "scores": bench.scores})


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
