"""What codes shared by all tokens add to one sense a token: accuracy, megabytes, time, for several numbers of codes and levels.

    python benchmarks/residual_codes.py --data FOLDER --labels 8 --data FOLDER --labels 16

A folder holds ``train.jsonl`` and ``test.jsonl`` (or ``validation.jsonl``) with ``{"text": ..., "label": ...}`` a line;
``--labels`` says how many labelled texts a class a regression gets, ten times. The teacher's states are replaced by int8 senses
and codes of the train texts, which the teacher reads once. ``kept`` is the better pooling's share
of the teacher's better figure, as a mean over the folders; ``time`` that of the replacement over a forward pass of the
teacher's first two layers. It tunes nothing.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch

# The folder of this script is on the path: its neighbours' readers and clocks serve here too.
from banking77 import MAX_LENGTH, default_teacher, read_rows
from measure import by_turns, ratios, save
from small_dictionaries import Batches
from small_students import Kept

from hf_sense import SenseModel, build_dictionary, load_teacher
from hf_sense.corpus import encode_corpus
from hf_sense.dictionary import SenseDictionary
from hf_sense.evaluation import few_shot_accuracy
from hf_sense.teacher import Teacher

SETTINGS = ((1, 256), (1, 1024), (2, 64), (2, 128), (2, 256), (3, 64), (3, 256))  # levels, codes
POOLINGS = ("mean", "frequency")


class Folder:
    """A data set: its texts as the teacher reads them, once, and the dictionaries that are built of them."""

    def __init__(self, teacher: Teacher, folder: Path, samples: int, most: int | None) -> None:
        self.name, self.samples = folder.name, samples
        test = next(name for name in ("test", "validation") if (folder / f"{name}.jsonl").is_file())
        rows = {
            split: read_rows(folder / f"{name}.jsonl")[:most] for split, name in (("train", "train"), ("test", test))
        }
        self.labels = {split: [row["label"] for row in part] for split, part in rows.items()}
        texts = {split: [row["text"] for row in part] for split, part in rows.items()}
        corpus = encode_corpus(
            texts["train"] + texts["test"], teacher.tokenizer, MAX_LENGTH, disable_tqdm=True, quiet=True
        )
        self.teacher, self.texts = copy.copy(teacher), texts["train"]
        self.teacher.hidden_states = Kept(teacher, corpus).hidden_states
        self.batches = {split: Batches(self.teacher, part) for split, part in texts.items()}

    def build(self, **options: Any) -> SenseDictionary:
        """A dictionary of the train texts, int8."""
        return build_dictionary(
            self.teacher, self.texts, max_length=MAX_LENGTH, dtype=torch.int8, disable_tqdm=True, **options
        )

    def accuracies(self, model: SenseModel) -> list[float]:
        """Percent right for each pooling."""
        model.table.metric = model.config.metric
        states = {split: part.replaced(model)[0] for split, part in self.batches.items()}
        found = []
        for model.config.pooling in POOLINGS:
            train, test = (self.batches[split].vectors(model, states[split]) for split in ("train", "test"))
            score = few_shot_accuracy(
                train, self.labels["train"], test, self.labels["test"], samples_per_label=self.samples
            )
            found.append(100 * score.mean)
        return found


def replacements(model: SenseModel, parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]) -> None:
    """Replaces the states of some batches."""
    for ids, states, mask in parts:
        model.table.replace(states, ids, mask, model.config)


def measure(folder: Folder, teacher: Teacher, rounds: int) -> dict[str, dict[str, Any]]:
    """Megabytes, accuracies and times of every way, printed as they come."""
    ways = {"one sense": folder.build(max_senses=1), "20 senses": folder.build()}
    for levels, codes in SETTINGS:
        begin = time.process_time()
        ways[f"{levels} x {codes}"] = folder.build(max_senses=1, codes=codes, code_levels=levels)
        print(f"{levels} x {codes}: {time.process_time() - begin:.0f} CPU seconds after the teacher's", flush=True)
    models = {name: SenseModel.from_teacher(teacher, own) for name, own in ways.items()}
    whole = SenseModel.from_teacher(teacher, ways["one sense"], selection="none")
    figures: dict[str, dict[str, Any]] = {}
    for name, model in {"teacher": whole, **models}.items():
        size = 0.0 if name == "teacher" else ways[name].summary()["megabytes"]
        figures[name] = {"MB": size, **dict(zip(POOLINGS, folder.accuracies(model), strict=True))}
        print(folder.name, name, figures[name], flush=True)
    student = SenseModel.from_teacher(teacher, ways["one sense"], num_hidden_layers=2).backbone
    parts = folder.batches["test"].parts[:8]
    runs: dict[str, Any] = {"forward": lambda: [student(input_ids=i, attention_mask=m) for i, _, m in parts]}
    runs |= {name: lambda own=own: replacements(own, parts) for name, own in models.items()}
    with torch.inference_mode():
        seconds = by_turns(runs, rounds)
    for name, own in seconds.items():
        if name in figures:
            figures[name]["time"] = statistics.median(ratios(own, seconds["forward"]))
    return figures


def show_table(figures: dict[str, dict[str, dict[str, Any]]]) -> None:
    """A row a way: each folder's figures, then the means over them.

    Args:
        figures: by folder, way and figure.
    """
    names, keys = list(figures), ("MB", *POOLINGS)
    print("| int8 | " + " | ".join(f"{name}, {key}" for name in names for key in keys) + " | kept | MB | time |")
    print("| --- |" + " --- |" * (3 * len(names) + 3))
    for way in figures[names[0]]:
        own = [figures[name][way] for name in names]
        shares = [
            max(o[p] for p in POOLINGS) / max(f["teacher"][p] for p in POOLINGS) for o, f in zip(own, figures.values())
        ]
        cells = [f"{o[key]:.2f}" for o in own for key in keys]
        cells += [f"{100 * statistics.mean(shares):.2f}", f"{statistics.mean(o['MB'] for o in own):.2f}"]
        times = [o["time"] for o in own if "time" in o]
        print(f"| {way} | " + " | ".join([*cells, f"{statistics.mean(times):.3f}" if times else ""]) + " |")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", default=[], help="a folder; may be given again")
    parser.add_argument(
        "--labels", type=int, action="append", help="labelled texts a class, one a folder; 8 if not given"
    )
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--texts", type=int, help="only the first so many texts of each split")
    parser.add_argument("--rounds", type=int, default=15, help="how often each replacement is timed")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--join", type=Path, nargs="+", default=[], help="such files of earlier runs, for the table")
    options = parser.parse_args()
    labels = options.labels or [8] * len(options.data)
    if len(labels) != len(options.data):
        parser.error(f"--labels should be given once a folder, but came {len(labels)} times for {len(options.data)}.")
    figures: dict[str, dict[str, dict[str, Any]]] = {}
    for path in options.join:
        figures |= json.loads(path.read_text(encoding="utf-8"))["figures"]
    if options.data:
        teacher = load_teacher(options.teacher or default_teacher())
    for path, samples in zip(options.data, labels, strict=True):
        figures[path.name] = measure(Folder(teacher, path, samples, options.texts), teacher, options.rounds)
    if not figures:
        parser.error("give --data, or --join.")
    show_table(figures)
    save(options.output, {"figures": figures})


if __name__ == "__main__":
    main()
