"""Senses on texts of another kind than their own: what is lost, why, and what wins it back.

    OMP_NUM_THREADS=1 python benchmarks/domains.py --data FOLDER

FOLDER holds ``banking77``, ``tweeteval_emotion``, ``sst2`` and ``cola``, each with ``train.jsonl`` and ``test.jsonl`` (or
``validation.jsonl``); Reuters R8 and 20 Newsgroups are fetched. The teacher's vectors are replaced by senses of a dictionary:
of each data set on each (``pairs``), and of a mixed text on a set that it does not hold (``mixed``). Accuracy is MTEB's
protocol, as in ``banking77.py``. Students without a transformer are in ``domain_students.py``. It tunes nothing.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

# The folder of this script is on the path: its neighbours serve here too.
from domain_texts import LONG, SHORT, SHOTS, Codes, Domains, probabilities_of, replaced, softly_replaced
from measure import save
from transformers.utils import logging

from hf_sense.coverage import CoverageMeter
from hf_sense.dictionary import SenseDictionary
from hf_sense.spread import expected_distances

POOLINGS = ("mean", "frequency")
SPLITS = ("train", "test")
Vectors = dict[str, torch.Tensor]


def table(rows: dict[str, dict[str, Any]]) -> None:
    """Prints rows as a table."""
    columns = list(dict.fromkeys(name for row in rows.values() for name in row))
    print("| | " + " | ".join(columns) + " |\n| --- |" + " --- |" * len(columns))
    for name, row in rows.items():
        cells = (row.get(column, "") for column in columns)
        print(
            f"| {name} | "
            + " | ".join(f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells)
            + " |"
        )
    print(flush=True)


def coverage_of(domains: Domains, dictionary: SenseDictionary, name: str) -> dict[str, float]:
    """What the dictionary is to the test texts."""
    meter = CoverageMeter(dictionary)
    for _, ids, hidden in domains.of(name, "test").pieces():
        meter.look_up(ids, hidden)
    found = meter.result()
    return {
        "% of tokens without senses": 100 * (1 - found.with_senses),
        "% of distinct tokens": 100 * (1 - found.types_with_senses),
        "distance": found.distance,
    }


def pairs(domains: Domains) -> dict[str, Any]:
    """A dictionary of each set on each set."""
    dictionaries = {name: domains.dictionary([(name, "train")]) for name in SHOTS}
    figures: dict[str, Any] = {}
    for target in SHOTS:
        states = {split: domains.states(target, split) for split in SPLITS}
        rows = {"teacher": domains.accuracies(target, states, probabilities_of(dictionaries[target]))}
        for name, dictionary in dictionaries.items():
            vectors = {split: replaced(dictionary, domains.of(target, split))[0] for split in SPLITS}
            rows[name] = {
                **domains.accuracies(target, vectors, probabilities_of(dictionary)),
                **coverage_of(domains, dictionary, target),
            }
        print(f"### {target}, by senses of\n")
        table(rows)
        figures[target] = rows
    return figures


def mixed_parts(target: str, broad: bool) -> list[tuple[str, str]]:
    """Names and splits of the short texts, and for a broad mix of the long ones too; never the target's."""
    names = [name for name in (*SHORT, *(LONG if broad else ())) if name != target]
    return [(name, "train") for name in names] + [(name, "more") for name in names if name in LONG]


class Mixed:
    """One target, and what mixed dictionaries make of it."""

    def __init__(self, domains: Domains, target: str) -> None:
        self.domains, self.target = domains, target
        self.states = {split: domains.states(target, split) for split in SPLITS}
        self.rows: dict[str, dict[str, Any]] = {}

    def row(self, name: str, vectors: Vectors, probabilities: torch.Tensor, **more: Any) -> None:
        """Scores vectors."""
        error = (vectors["test"] - self.states["test"]).square().sum(1).mean()
        self.rows[name] = {
            **self.domains.accuracies(self.target, vectors, probabilities),
            "squared error": float(error),
            **more,
        }

    def senses(self, dictionary: SenseDictionary) -> tuple[Vectors, Vectors]:
        """The replaced states, and the ids of the senses."""
        found = {split: replaced(dictionary, self.domains.of(self.target, split)) for split in SPLITS}
        return {split: pair[0] for split, pair in found.items()}, {split: pair[1] for split, pair in found.items()}

    def dictionary_row(self, name: str, dictionary: SenseDictionary) -> tuple[Vectors, Vectors]:
        """Scores a dictionary."""
        vectors, ids = self.senses(dictionary)
        covered = coverage_of(self.domains, dictionary, self.target)
        self.row(name, vectors, probabilities_of(dictionary), senses=f"{dictionary.num_senses:,}", **covered)
        return vectors, ids

    def causes(self, dictionary: SenseDictionary, vectors: Vectors, ids: Vectors, own: Vectors) -> None:
        """Where the loss comes from: each kind of token replaced as in its own domain, kept, or left out."""
        weights = probabilities_of(dictionary)

        def put(known: Vectors, unknown: Callable[[str], torch.Tensor]) -> Vectors:
            has = {split: (ids[split] >= 0).unsqueeze(1) for split in SPLITS}
            return {split: torch.where(has[split], known[split], unknown(split)) for split in SPLITS}

        nothing = torch.zeros(1, 1)
        self.row("known tokens by senses of their own texts, others kept", put(own, self.states.__getitem__), weights)
        self.row(
            "known tokens by mixed senses, others by senses of their own texts", put(vectors, own.__getitem__), weights
        )
        self.row("known tokens kept, others by senses of their own texts", put(self.states, own.__getitem__), weights)
        self.row("known tokens by mixed senses, others left out", put(vectors, lambda _: nothing), weights)
        self.row("known tokens kept, others left out", put(self.states, lambda _: nothing), weights)

    def keep_far(self, name: str, dictionary: SenseDictionary, vectors: Vectors, ids: Vectors, limit: float) -> None:
        """Scores ``max_distance``, as a model does it."""
        expected = expected_distances(dictionary.spread, dictionary.counts)
        kept, shares = {}, []
        for split in SPLITS:
            has = ids[split] >= 0
            far = torch.zeros_like(has)
            away = (vectors[split] - self.states[split])[has].square().sum(1)
            far[has] = away > limit * expected[ids[split][has]]
            kept[split] = torch.where(far.unsqueeze(1), self.states[split], vectors[split])
            shares.append(float(far.double().mean()))
        self.row(name, kept, probabilities_of(dictionary), **{"% of states kept": 100 * shares[1]})

    def measure(self, distances: list[float], added: list[int]) -> None:
        """All rows."""
        domains, target = self.domains, self.target
        own = domains.dictionary([(target, "train")])
        mixed = {broad: domains.dictionary(mixed_parts(target, broad)) for broad in (False, True)}
        for name, dictionary in (("own texts'", own), ("mixed text's", mixed[False])):
            self.row(f"teacher, {name} frequencies", self.states, probabilities_of(dictionary))
        own_vectors, _ = self.dictionary_row("senses of its own texts", own)
        self.dictionary_row(
            "one sense a token, of the mixed text", domains.dictionary(mixed_parts(target, False), max_senses=1)
        )
        vectors, ids = self.dictionary_row("senses of the mixed text", mixed[False])
        self.causes(mixed[False], vectors, ids, own_vectors)
        for texts in added:
            part = self._some(texts)
            self.dictionary_row(f"merged with senses of {texts} texts of its own", mixed[False].merge(part))
        vectors, ids = self.dictionary_row("senses of a broad text", mixed[True])
        self.dictionary_row(
            "of a broad text, a sense per 10 occurrences, at most 100",
            domains.dictionary(mixed_parts(target, True), max_senses="n/10,100"),
        )
        texts = {split: domains.of(target, split) for split in SPLITS}
        soft = {split: softly_replaced(mixed[True], texts[split]) for split in SPLITS}
        self.row("of a broad text, soft", soft, probabilities_of(mixed[True]))
        for broad, kind in ((False, "the mixed"), (True, "a broad")):
            parts = mixed_parts(target, broad)
            codes = Codes(domains, parts, domains.dictionary(parts, max_senses=1), 1024)
            coded = {split: codes.replaced(texts[split]) for split in SPLITS}
            self.row(f"one sense a token and 1,024 shared codes, of {kind} text", coded, probabilities_of(mixed[broad]))
        for limit in distances:
            self.keep_far(f"of a broad text, max_distance={limit:g}", mixed[True], vectors, ids, limit)
        for texts in added:
            part = self._some(texts)
            self.dictionary_row(f"broad, merged with senses of {texts} texts of its own", mixed[True].merge(part))

    def _some(self, texts: int) -> SenseDictionary:
        """Of the first texts of the target's train split, without labels."""
        return self.domains.dictionary([(self.target, "train")], first=texts)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets' folders")
    parser.add_argument("--states", type=Path, default=Path("runs/states"), help="where the teacher's states are kept")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--parts", nargs="+", default=["pairs", "mixed"], choices=["pairs", "mixed"])
    parser.add_argument("--targets", nargs="+", default=["banking77", "r8", "20newsgroups"], choices=list(SHOTS))
    parser.add_argument("--max-distance", type=float, nargs="*", default=[1.0, 1.5, 2.0])
    parser.add_argument("--added", type=int, nargs="*", default=[200, 500], help="texts of the target's own to merge")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    logging.disable_progress_bar()
    domains = Domains(options.data, options.states, options.teacher)
    figures: dict[str, Any] = {}
    if "pairs" in options.parts:
        figures["pairs"] = pairs(domains)
    for target in options.targets if "mixed" in options.parts else ():
        one = Mixed(domains, target)
        one.measure(options.max_distance, options.added)
        print(f"### {target}, by senses of other texts\n")
        table(one.rows)
        figures[target] = one.rows
    save(options.output, figures)


if __name__ == "__main__":
    main()
