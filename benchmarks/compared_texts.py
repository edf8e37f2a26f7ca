"""The data sets of ``compare.py``: their texts, a teacher's states of them, and what text vectors are worth on them.

It makes no dictionary and trains nothing. A teacher reads each text once; its states lie as float16 in the work folder.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

# The folder of this script is on the path: its neighbours' readers serve here too.
from banking77 import MAX_LENGTH, read_rows

from hf_sense.corpus import EncodedCorpus, encode_corpus
from hf_sense.pooling import frequency_weights, pool
from hf_sense.scores import as_array, few_shot_hits, fit_regression, numbered
from hf_sense.teacher import Teacher

# Name on the page: folder, file of the test texts (CoLA's test labels are not public), labelled texts a class.
SETS = {
    "Banking77": ("banking77", "test", 8),
    "emotion": ("tweeteval_emotion", "test", 16),
    "SST-2": ("sst2", "test", 16),
    "CoLA": ("cola", "validation", 16),
    "R8": ("r8", "test", 16),
}
FOUR = ("Banking77", "emotion", "SST-2", "CoLA")
POOLINGS = ("mean", "frequency")
BATCH = 64

Batch = dict[str, torch.Tensor]
Way = Callable[[Batch], torch.Tensor]


@dataclass
class Part:
    """Labelled texts, tokenized."""

    texts: list[str]
    labels: list[str]
    corpus: EncodedCorpus

    def batches(self, pad_id: int) -> Iterable[tuple[np.ndarray, Batch]]:
        """Texts' numbers and their tokens, in batches of like length."""
        for rows in self.corpus.batches(BATCH):
            yield rows, self.corpus.padded(rows, pad_id)


class KeptStates:
    """A teacher's last hidden states of texts that it has read, found again by the texts' token ids."""

    def __init__(self) -> None:
        self.where: dict[bytes, tuple[int, int]] = {}
        self.files: list[torch.Tensor] = []

    def add(self, path: Path, teacher: Teacher, corpus: EncodedCorpus) -> None:
        """Takes the states of ``corpus`` from the file, which the teacher fills if it is not there."""
        if not path.is_file():
            states = np.zeros((len(corpus.input_ids), teacher.dim), np.float16)
            for rows in corpus.batches(BATCH):
                batch = corpus.padded(rows, teacher.tokenizer.pad_token_id)
                for row, mask, own in zip(rows, batch["attention_mask"].bool(), teacher.hidden_states(**batch)):
                    states[corpus.offsets[row] : corpus.offsets[row + 1]] = own[mask].numpy()
            temporary = path.with_suffix(".tmp.npy")
            np.save(temporary, states)
            temporary.replace(path)
        self.files.append(torch.from_numpy(np.load(path)))
        for begin, end in zip(corpus.offsets, corpus.offsets[1:]):
            self.where[corpus.input_ids[begin:end].tobytes()] = (len(self.files) - 1, int(begin))

    def take(self, other: KeptStates) -> None:
        """Also knows what another knows."""
        shift = len(self.files)
        self.files += other.files
        self.where = {ids: (file + shift, begin) for ids, (file, begin) in other.where.items()} | self.where

    def hidden_states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        """What ``Teacher.hidden_states`` gives, float32 and rounded to float16; zeros under padding on the right."""
        lengths = attention_mask.sum(1).tolist()
        result = torch.zeros(*input_ids.shape, self.files[0].shape[1])
        ids = input_ids.to(torch.int32).numpy()
        for row, length in enumerate(lengths):
            file, begin = self.where[ids[row, :length].tobytes()]
            result[row, :length] = self.files[file][begin : begin + length]
        return result


class TextSet:
    """One data set: texts to learn from without labels, and labelled ones to measure on.

    Args:
        name: one of ``SETS``.
        data: the folder of their folders; R8 is fetched by ``examples/real_data.py`` if it is not there.
        teacher: its tokenizer counts, and it reads the texts.
        work: where its states are kept.
        dev: measure on a fifth of the train texts, which then are no train texts.
        most: so many texts of each part at most.
        draws: of labelled texts.
    """

    def __init__(
        self,
        name: str,
        data: Path,
        teacher: Teacher,
        work: Path,
        dev: bool = False,
        most: int | None = None,
        draws: int = 10,
    ) -> None:
        self.tokenizer, self.draws, self.dev = teacher.tokenizer, draws, dev
        folder, test, self.shots = SETS[name]
        self.kept = KeptStates()
        parts = {split: _read(data / folder, split)[:most] for split in ("train", test)}
        for split in parts:
            # All of a split, so that a file of states serves both stages.
            self.kept.add(work / f"states-{folder}-{split}.npy", teacher, self._encoded([t for t, _ in parts[split]]))
        rows = list(parts["train"])
        measured = parts[test]
        if dev:
            random.Random(7).shuffle(rows)
            measured, rows = rows[: len(rows) // 5], rows[len(rows) // 5 :]
        # A dictionary that hardly saw a label's texts is measured on them; the few-shot draw needs enough of them.
        counts = {label: sum(own == label for _, own in rows) for _, label in rows}
        self.shots = min(self.shots, *counts.values())
        measured = [(text, label) for text, label in measured if label in counts]
        self.train, self.test = (self._part(pairs) for pairs in (rows, measured))

    def _encoded(self, texts: list[str]) -> EncodedCorpus:
        return encode_corpus(texts, self.tokenizer, MAX_LENGTH, quiet=True, disable_tqdm=True)

    def _part(self, rows: list[tuple[str, str]]) -> Part:
        texts, labels = [text for text, _ in rows], [label for _, label in rows]
        return Part(texts, labels, self._encoded(texts))

    def teacher_way(self, batch: Batch) -> torch.Tensor:
        """The teacher's own states."""
        return self.kept.hidden_states(**batch)

    @torch.no_grad()
    def vectors(
        self, base: Way, heads: dict[str, Callable[[torch.Tensor, Batch], torch.Tensor]], shares: torch.Tensor
    ) -> dict[str, dict[str, list[np.ndarray]]]:
        """One vector a text, of train and test, for each head and pooling.

        Args:
            base: a batch in, states ``(batch, sequence, dim)`` out; it runs once for all heads.
            heads: by name, what becomes of those states.
            shares: of each token id among the tokens, float32 ``(vocab_size,)``, by which ``frequency`` weighs.
        """
        found: dict[str, dict[str, list[np.ndarray]]] = {name: {pooling: [] for pooling in POOLINGS} for name in heads}
        for part in (self.train, self.test):
            own: dict[tuple[str, str], list[torch.Tensor]] = {}
            order = []
            for rows, batch in part.batches(self.tokenizer.pad_token_id):
                states = base(batch)
                weights = frequency_weights(shares[batch["input_ids"]])
                for name, head in heads.items():
                    replaced = head(states, batch)
                    for pooling in POOLINGS:
                        pooled = pool(replaced, batch["attention_mask"], pooling, weights)
                        own.setdefault((name, pooling), []).append(pooled)
                order.append(rows)
            places = np.concatenate(order).argsort()
            for (name, pooling), pieces in own.items():
                found[name][pooling].append(torch.cat(pieces).numpy()[places])
        return found

    def hits(self, train: Any, test: Any, probe: bool) -> tuple[np.ndarray, np.ndarray | None]:
        """Which test texts are classified rightly: few-shot, bool ``(draws, texts)``, and by all train labels ``(texts,)``."""
        labels = self.train.labels, self.test.labels
        shot = few_shot_hits(train, labels[0], test, labels[1], samples_per_label=self.shots, draws=self.draws)
        if not probe:
            return shot, None
        names, ids = numbered(labels[0])
        truth = np.array([names.index(label) for label in labels[1]])
        weight, bias = fit_regression(as_array(train), ids, 10.0)
        return shot, (as_array(test) @ weight.T + bias).argmax(1) == truth


def _read(folder: Path, split: str) -> list[tuple[str, str]]:
    if (folder / f"{split}.jsonl").is_file() or folder.name != "r8":
        return [(row["text"], row["label"]) for row in read_rows(folder / f"{split}.jsonl")]
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
    from real_data import reuters_r8

    return list(zip(*reuters_r8(split), strict=True))
