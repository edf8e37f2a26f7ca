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


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True, help="a folder; may be given again")
    parser.add_argument(
        "--labels", type=int, action="append", help="labelled texts a class, one a folder; 8 if not given"
    )
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--texts", type=int, help="only the first so many texts of each split")
    parser.add_argument("--rounds", type=int, default=15, help="how often each replacement is timed")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    labels = options.labels or [8] * len(options.data)
    if len(labels) != len(options.data):
        parser.error(f"--labels should be given once a folder, but came {len(labels)} times for {len(options.data)}.")
    teacher = load_teacher(options.teacher or default_teacher())
    figures: dict[str, dict[str, dict[str, float]]] = {}
    seconds: dict[str, list[float]] = {}
    for path, samples in zip(options.data, labels, strict=True):
        folder = Folder(teacher, path, samples, options.texts)
        ways = {"one sense": folder.build(max_senses=1), "20 senses": folder.build()}
        for levels, codes in SETTINGS:
            begin = time.perf_counter()
            ways[f"{levels} x {codes}"] = folder.build(max_senses=1, codes=codes, code_levels=levels)
            print(f"{folder.name}, {levels} x {codes}: built in {time.perf_counter() - begin:.0f} s", flush=True)
        models = {name: SenseModel.from_teacher(teacher, own) for name, own in ways.items()}
        whole = SenseModel.from_teacher(teacher, ways["one sense"], selection="none")
        for name, model in {"teacher": whole, **models}.items():
            mean, frequency = folder.accuracies(model)
            size = 0.0 if name == "teacher" else model.to_dictionary().summary()["megabytes"]
            figures.setdefault(name, {})[folder.name] = {"MB": size, "mean": mean, "frequency": frequency}
            print(folder.name, name, figures[name][folder.name], flush=True)
        if not seconds:
            student = SenseModel.from_teacher(teacher, ways["one sense"], num_hidden_layers=2).backbone
            test = folder.batches["test"]
            part = test.parts[:8]
            runs: dict[str, Any] = {
                "forward": lambda s=student, p=part: [s(input_ids=i, attention_mask=m) for i, _, m in p]
            }
            runs |= {name: lambda own=own, p=part: replacements(own, p) for name, own in models.items()}
            with torch.inference_mode():
                seconds = by_turns(runs, options.rounds)
    names = list(figures["teacher"])
    print(
        "| int8 | "
        + " | ".join(f"{name}, {of}" for name in names for of in ("MB", *POOLINGS))
        + " | kept | MB | time |"
    )
    print("| --- |" + " --- |" * (3 * len(names) + 3))
    for name, own in figures.items():
        best = [max(own[f][p] for p in POOLINGS) / max(figures["teacher"][f][p] for p in POOLINGS) for f in names]
        cells = [f"{own[f][key]:.2f}" for f in names for key in ("MB", *POOLINGS)]
        cells += [f"{100 * statistics.mean(best):.2f}", f"{statistics.mean(own[f]['MB'] for f in names):.2f}"]
        times = ratios(seconds[name], seconds["forward"]) if name in seconds else []
        print(f"| {name} | " + " | ".join([*cells, f"{statistics.median(times):.3f}" if times else ""]) + " |")
    save(options.output, {"figures": figures, "seconds": seconds})


if __name__ == "__main__":
    main()
