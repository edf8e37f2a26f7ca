"""Students without a transformer on texts of another kind than they were trained on: what they lose, and what wins it back.

    OMP_NUM_THREADS=1 python benchmarks/domain_students.py --data FOLDER

FOLDER is that of ``domains.py``. A student is trained on a mixed text that does not hold the target, and its token vectors are
pooled as there. *Seen* tokens are those that the mixed text holds. The row *teacher's states for unseen tokens* tells how much
of the loss is theirs. It tunes nothing.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

# The folder of this script is on the path: its neighbours serve here too.
from datasets import Dataset
from domain_texts import SHOTS, Domains, Texts, probabilities_of
from domains import SPLITS, mixed_parts, table
from measure import save
from small_students import train
from transformers.utils import logging

from hf_sense import SenseModel
from hf_sense.dictionary import SenseDictionary
from hf_sense.small_students import token_mean_dictionary
from hf_sense.unseen import cover_vocabulary

Vectors = dict[str, torch.Tensor]


@torch.inference_mode()
def run(model: SenseModel, texts: Texts) -> torch.Tensor:
    """A student's vector of each token, float32 ``(tokens, dim)``."""
    lengths, result = np.diff(texts.offsets), torch.zeros(len(texts.ids), model.config.sense_dim)
    for rows in np.array_split(np.argsort(lengths, kind="stable"), max(1, len(lengths) // 64)):
        columns = np.arange(lengths[rows].max())
        mask = torch.from_numpy(columns < lengths[rows, None])
        where = torch.from_numpy(texts.offsets[rows, None] + columns)[mask]
        ids = torch.zeros(mask.shape, dtype=torch.int64)
        ids[mask] = texts.ids[where]
        result[where] = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask]
    return result


def looked_up(dictionary: SenseDictionary, texts: Texts) -> torch.Tensor:
    """The one sense of each token; zeros where it has none."""
    result = torch.zeros(len(texts.ids), dictionary.dim)
    has = dictionary.offsets.diff()[texts.ids] > 0
    result[has] = dictionary.rows(dictionary.offsets[texts.ids[has]]).float()
    return result


class Target:
    """A set that no student has seen, and the rows of its table."""

    def __init__(self, domains: Domains, name: str) -> None:
        self.domains, self.name = domains, name
        self.states = {split: domains.states(name, split) for split in SPLITS}
        self.rows: dict[str, dict[str, Any]] = {}

    def row(self, name: str, vectors_of: Callable[[Texts], torch.Tensor], dictionary: SenseDictionary) -> None:
        """Scores a way to make vectors, with the frequencies of the dictionary's text."""
        vectors = {split: vectors_of(self.domains.of(self.name, split)) for split in SPLITS}
        weights = probabilities_of(dictionary)
        seen = {split: weights[self.domains.of(self.name, split).ids] > 0 for split in SPLITS}
        away = (vectors["test"] - self.states["test"]).square().sum(1)
        given = {split: torch.where(seen[split].unsqueeze(1), vectors[split], self.states[split]) for split in SPLITS}
        accuracies = self.domains.accuracies(self.name, given, weights)
        self.rows[name] = {
            **self.domains.accuracies(self.name, vectors, weights),
            **{f"{pooling}, teacher's states for unseen tokens": value for pooling, value in accuracies.items()},
            "% of tokens unseen": 100 * float((~seen["test"]).double().mean()),
            "squared error, seen": float(away[seen["test"]].mean()),
            "unseen": float(away[~seen["test"]].mean()),
        }

    def measure(self, kinds: list[str], steps: int, seed: int) -> None:
        """All rows, training what they need."""
        for text, broad in (("short texts", False), ("broad texts", True)):
            parts = mixed_parts(self.name, broad)
            texts = [one for part in parts for one in self.domains.of(*part).texts]
            dictionary = self.domains.dictionary(parts)
            tables = {
                "": dictionary,
                ", covered": cover_vocabulary(dictionary, self.domains.teacher, disable_tqdm=True),
            }
            self.row(f"teacher, frequencies of {text}", self._teacher, dictionary)
            for mark, own in tables.items():
                means = token_mean_dictionary(own)
                self.row(f"table of means, {text}{mark}", lambda one, means=means: looked_up(means, one), dictionary)
            wider = [(128, 5, ", covered")] if broad else []
            for kind in kinds:
                for size, window, mark in [(64, 3, ""), (64, 3, ", covered"), *wider]:
                    model = self._train(kind, size, window, tables[mark], texts, steps, seed)
                    name = f"{kind}, {size}, window {window}, {text}{mark}"
                    self.row(name, lambda one, model=model: run(model, one), dictionary)

    def _teacher(self, texts: Texts) -> torch.Tensor:
        return torch.from_numpy(np.array(texts.hidden)).float()

    def _train(
        self, kind: str, size: int, window: int, dictionary: SenseDictionary, texts: list[str], steps: int, seed: int
    ) -> SenseModel:
        how = {"window": window, "epochs": steps * 32 / len(texts), "batch_size": 32, "learning_rate": 5e-3}
        with tempfile.TemporaryDirectory() as folder:
            data = Dataset.from_dict({"text": texts})
            return train(kind, size, self.domains.reader(), dictionary, data, folder, seed, **how)[0]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data sets' folders")
    parser.add_argument("--states", type=Path, default=Path("runs/states"), help="where the teacher's states are kept")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--targets", nargs="+", default=["banking77", "r8", "20newsgroups"], choices=list(SHOTS))
    parser.add_argument("--kinds", nargs="+", default=["context"], choices=["context", "selector"])
    parser.add_argument("--steps", type=int, default=3600, help="training steps of 32 texts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    logging.disable_progress_bar()
    domains = Domains(options.data, options.states, options.teacher)
    figures = {}
    for name in options.targets:
        target = Target(domains, name)
        target.measure(options.kinds, options.steps, options.seed)
        print(f"### {name}\n")
        table(target.rows)
        figures[name] = target.rows
    save(options.output, {"steps": options.steps, "figures": figures})


if __name__ == "__main__":
    main()
