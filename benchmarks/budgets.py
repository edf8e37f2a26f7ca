"""Senses shared out under a budget beside fixed numbers a token and numbers by count: squared error and accuracy by size.

    python benchmarks/budgets.py --data FOLDER --plot FILE

The folder holds ``banking77`` and ``tweeteval_emotion``, each with ``train.jsonl`` and ``test.jsonl`` of
``{"text": ..., "label": ...}`` a line. Dictionaries are built from the train texts, stored as int8, and replace the teacher's
states; each fixed number and rule has a budget of exactly as many senses beside it, at most ``--most`` a token. Errors are
squared distances of states to what replaces them, a token on average: 0 for a token without senses. It tunes nothing.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# The folder of this script is on the path: its neighbours' readers and batches serve here too.
from banking77 import MAX_LENGTH, default_teacher, read_rows
from budgets_plot import draw
from measure import save
from small_dictionaries import POOLINGS, Batches

from hf_sense import SenseModel, build_dictionary, load_teacher
from hf_sense.dictionary import SenseDictionary
from hf_sense.evaluation import few_shot_accuracy
from hf_sense.teacher import Teacher

SETS = {"banking77": 8, "tweeteval_emotion": 16}  # labelled texts a class
FIXED = (1, 2, 3, 5, 10, 20)
RULES = ("n/80,100", "n/40,100", "n/20,100", "n/10,100")
RARE = (1, 2, 3, 5)


def remembered(compute: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The teacher's ``hidden_states`` that reads each text once, however often and in whatever batch it comes."""
    kept: dict[bytes, torch.Tensor] = {}

    def hidden_states(input_ids: torch.Tensor, attention_mask: torch.Tensor, **more: torch.Tensor) -> torch.Tensor:
        masks = attention_mask.bool()
        keys = [ids[mask].numpy().tobytes() for ids, mask in zip(input_ids, masks, strict=True)]
        if any(key not in kept for key in keys):
            states = compute(input_ids=input_ids, attention_mask=attention_mask, **more)
            kept.update({key: own[mask].clone() for key, own, mask in zip(keys, states, masks, strict=True)})
        states = torch.zeros(*input_ids.shape, kept[keys[0]].shape[-1])
        states[masks] = torch.cat([kept[key] for key in keys])
        return states

    return hidden_states


class Comparison:
    """One data set: the teacher's states, and what dictionaries make of them."""

    def __init__(self, folder: Path, name: str, teacher: Teacher, options: argparse.Namespace) -> None:
        rows = {split: read_rows(folder / name / f"{split}.jsonl")[: options.texts] for split in ("train", "test")}
        self.name, self.teacher, self.options = name, teacher, options
        self.labels = {split: [row["label"] for row in part] for split, part in rows.items()}
        self.texts = [row["text"] for row in rows["train"]]
        self.batches = {split: Batches(teacher, [row["text"] for row in part]) for split, part in rows.items()}
        self.rows: list[dict[str, Any]] = []

    def build(self, **options: Any) -> tuple[SenseDictionary, float]:
        """A float32 dictionary of the train texts, and the CPU seconds it took; the teacher's work is remembered."""
        begin = time.process_time()
        made = build_dictionary(self.teacher, self.texts, max_length=MAX_LENGTH, disable_tqdm=True, **options)
        return made, time.process_time() - begin

    def measure(self, kind: str, label: str, dictionary: SenseDictionary | None, seconds: float = 0.0) -> None:
        """Adds a row, and prints it; without a dictionary the teacher's own states are measured."""
        row: dict[str, Any] = {"kind": kind, "label": label, "CPU seconds": seconds}
        states = {split: [own for _, own, _ in part.parts] for split, part in self.batches.items()}
        if dictionary is None:
            model = SenseModel.from_teacher(self.teacher, self.smallest, selection="none")
        else:
            stored = dictionary.to(torch.int8)
            with tempfile.TemporaryDirectory() as folder:
                stored.save_pretrained(folder)
                row["MB"] = (Path(folder) / "sense_dictionary.safetensors").stat().st_size / 1e6
            row |= {"senses": stored.num_senses, "most": int(stored.offsets.diff().max())}
            model = SenseModel.from_teacher(self.teacher, stored)
            replaced = {split: part.replaced(model)[0] for split, part in self.batches.items()}
            row |= {f"error, {split}": self.error(split, replaced[split]) for split in replaced}
            row["without senses %"] = 100 * self.uncovered(stored)
            states = replaced
        for pooling in POOLINGS:
            model.config.pooling = pooling
            vectors = {split: part.vectors(model, states[split]) for split, part in self.batches.items()}
            score = few_shot_accuracy(
                vectors["train"], self.labels["train"], vectors["test"], self.labels["test"],
                samples_per_label=self.options.samples or SETS[self.name], draws=self.options.draws,
            )  # fmt: skip
            row |= {pooling: 100 * score.mean, f"{pooling}, draws": [100 * draw for draw in score.draws]}
        self.rows.append(row)
        shown = [f"{row[key]:.{digits}f}" if key in row else "" for key, digits in COLUMNS.items()]
        print(f"| {label} | " + " | ".join(shown) + " |", flush=True)

    def error(self, split: str, replaced: list[torch.Tensor]) -> float:
        """Mean squared distance of the states to what replaces them, over all tokens of the split."""
        parts = self.batches[split].parts
        summed = sum(
            float(((own - new).square().sum(-1) * mask).double().sum())
            for (_, own, mask), new in zip(parts, replaced, strict=True)
        )
        return summed / sum(int(mask.sum()) for _, _, mask in parts)

    def uncovered(self, dictionary: SenseDictionary) -> float:
        """The share of the test tokens that have no senses, and keep their states."""
        bare = dictionary.offsets.diff() == 0
        parts = self.batches["test"].parts
        return sum(int((bare[ids] & mask.bool()).sum()) for ids, _, mask in parts) / sum(
            int(m.sum()) for *_, m in parts
        )

    def run(self) -> None:
        """All rows of the data set."""
        print(f"\n{self.name}: {len(self.texts)} train texts")
        print("| | " + " | ".join(COLUMNS) + " |\n| --- |" + " --- |" * len(COLUMNS))
        built = {}
        for rule in (*self.options.fixed, *self.options.rules):
            built[rule] = self.build(max_senses=rule)
        self.smallest = next(iter(built.values()))[0]
        self.measure("teacher", "the teacher's states", None)
        for rule, (dictionary, seconds) in built.items():
            kind, label = ("fixed", f"{rule} a token") if isinstance(rule, int) else ("rule", f'"{rule}"')
            self.measure(kind, label, dictionary, seconds)
            if rule != 1:
                self.budget(f"budget of as many as {label}", dictionary.num_senses)
        for fewest in self.options.counts:
            self.budget(f"budget {self.options.size}, min_count={fewest}", self.options.size, min_count=fewest)
        self.budget("the last, at most 20 a token", self.options.size, min_count=self.options.counts[-1], max_senses=20)

    def budget(self, label: str, budget: int | str, **options: Any) -> None:
        """A row of a budget; one with options of its own is another kind, and one that is too small is told of."""
        kind = "budget, other options" if options else "budget"
        options = {
            "max_senses": self.options.most,
            **({"dtype": torch.int8} if isinstance(budget, str) else {}),
            **options,
        }
        try:
            made = self.build(budget=budget, **options)
        except ValueError as error:
            print(f"| {label} | {error} |", flush=True)
        else:
            self.measure(kind, label, *made)


COLUMNS = {
    "senses": 0, "MB": 2, "most": 0, "error, train": 3, "error, test": 3, "without senses %": 1, "mean": 2, "frequency": 2,
    "CPU seconds": 1,
}  # fmt: skip


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder for each data set")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--sets", nargs="+", default=list(SETS), choices=list(SETS), help="which data sets")
    parser.add_argument("--texts", type=int, help="only the first so many texts of each split")
    parser.add_argument("--samples", type=int, help="labelled texts a class; 8 and 16 if not given")
    parser.add_argument("--draws", type=int, default=10, help="random draws of labelled texts")
    parser.add_argument("--fixed", nargs="+", type=int, default=FIXED, help="numbers of senses a token")
    parser.add_argument("--rules", nargs="+", default=RULES, help="rules of the number of occurrences")
    parser.add_argument("--counts", nargs="+", type=int, default=RARE, help="min_count beside --size")
    parser.add_argument("--size", default="3MB", help="a budget that is measured beside the others")
    parser.add_argument("--most", type=int, default=100, help="most senses of a token under a budget")
    parser.add_argument("--plot", type=Path, help="draw the curves to this file")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    figures = {}
    for name in options.sets:
        teacher = load_teacher(options.teacher or default_teacher())
        teacher.hidden_states = remembered(teacher.hidden_states)  # type: ignore[method-assign]
        compared = Comparison(options.data, name, teacher, options)
        compared.run()
        figures[name] = compared.rows
    save(options.output, {"figures": figures})
    if options.plot:
        draw(figures, options.plot)


if __name__ == "__main__":
    main()
