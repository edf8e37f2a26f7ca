"""A uniform sample of the occurrences of each token, the same whatever the order of the texts and wherever it is drawn.

Each occurrence gets a priority by hashing (seed, text, position), and a token keeps those of the lowest priority. So a
sample of two corpora is the lowest of their two samples. It holds places, not vectors: the teacher is then run only where
the sample needs it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from hf_sense.corpus import EncodedCorpus

# Occurrences that are sorted at once.
_CHUNK = 8_000_000
_LARGEST = np.iinfo(np.uint64).max
# Of a sample, a number for each place.
_COLUMNS = ("token_ids", "priorities", "texts", "positions", "weights")
SAMPLE_COLUMNS = (*_COLUMNS, "totals")


@dataclass(frozen=True)
class OccurrenceSample:
    """Places in a corpus, ordered by token id and then by priority.

    Attributes:
        token_ids: int32 ``(n,)``.
        priorities: uint64 ``(n,)``.
        texts: int64 ``(n,)``, the number of the text.
        positions: int32 ``(n,)``, the place in the text.
        weights: int64 ``(n,)``, in how many copies of that text it stands: equal texts are one place with a weight.
        totals: int64 ``(vocab_size,)``, occurrences of each token in the whole corpus.
    """

    token_ids: np.ndarray
    priorities: np.ndarray
    texts: np.ndarray
    positions: np.ndarray
    weights: np.ndarray
    totals: np.ndarray

    def merge(self, other: OccurrenceSample, max_occurrences: int) -> OccurrenceSample:
        """The sample of both corpora, whose texts must have different numbers."""
        joined = [np.concatenate([getattr(self, name), getattr(other, name)]) for name in _COLUMNS]
        return _lowest(*joined, totals=self.totals + other.totals, max_occurrences=max_occurrences)

    def without_rare(self, min_count: int) -> OccurrenceSample:
        """The sample without tokens that occur fewer times in the corpus, as if it lacked them.

        Raises:
            ValueError: if no token is left.
        """
        if (most := int(self.totals.max())) < min_count:
            raise ValueError(f"No token occurs {min_count:,} times, the most frequent {most:,} times; lower min_count.")
        kept = self.totals[self.token_ids] >= min_count
        totals = np.where(self.totals >= min_count, self.totals, 0)
        return replace(self, totals=totals, **{name: getattr(self, name)[kept] for name in _COLUMNS})


class OccurrenceSampler:
    """Draws at most ``max_occurrences`` distinct occurrences of each token, uniformly and without replacement.

    Equal texts give a token equal vectors, so they are one occurrence with a weight, and the cap counts distinct ones. Memory
    is that of the sample and of some occurrences that wait to be sorted, whatever the length of the corpus: an occurrence whose
    token has enough lower ones is forgotten at once.

    Args:
        vocab_size: token ids run below it.
        max_occurrences: the cap for each token.
        seed: another seed draws another sample.
        excluded_ids: tokens that get no senses, as the special ones.
        chunk: occurrences that wait to be sorted with the sample, or a quarter of its own number if that is more.
    """

    def __init__(
        self,
        vocab_size: int,
        *,
        max_occurrences: int,
        seed: int = 0,
        excluded_ids: Sequence[int] = (),
        chunk: int | None = None,
    ) -> None:
        self._max, self._seed, self._chunk = max_occurrences, seed, _CHUNK if chunk is None else chunk
        self._totals = np.zeros(vocab_size, np.int64)
        # What a priority must not exceed to count; an excluded token's occurrences never do.
        self._most = np.full(vocab_size, _LARGEST, np.uint64)
        self._excluded = np.zeros(vocab_size, bool)
        self._excluded[list(excluded_ids)] = True
        self._sample = self._empty()
        self._waiting: list[tuple[np.ndarray, ...]] = []
        self._number = 0

    def add(self, corpus: EncodedCorpus, first_text: int = 0) -> None:
        """Takes further texts, of which the first has the number ``first_text``."""
        lengths, ends, begin = corpus.lengths, corpus.offsets[1:], 0
        while begin < len(lengths):
            end = max(begin + 1, int(np.searchsorted(ends, corpus.offsets[begin] + self._chunk, side="right")))
            self._add(corpus, begin, end, lengths, first_text)
            begin = end

    def _add(self, corpus: EncodedCorpus, begin: int, end: int, lengths: np.ndarray, first_text: int) -> None:
        part = slice(int(corpus.offsets[begin]), int(corpus.offsets[end]))
        token_ids = corpus.input_ids[part]
        texts = np.repeat(np.arange(begin, end), lengths[begin:end])
        positions = (np.arange(part.start, part.stop) - corpus.offsets[texts]).astype(np.int32)
        digests = np.array([_digest(corpus, text, self._seed) for text in range(begin, end)], np.uint64)
        priorities = _mix(digests[texts - begin] + positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        counted = ~self._excluded[token_ids]
        self._totals += np.bincount(token_ids[counted], minlength=len(self._totals))
        kept = counted & (priorities <= self._most[token_ids])
        self._waiting.append((token_ids[kept], priorities[kept], texts[kept] + first_text, positions[kept]))
        self._number += int(kept.sum())
        if self._number > max(self._chunk, len(self._sample.token_ids) // 4):
            self._sort()

    def _empty(self) -> OccurrenceSample:
        none = np.zeros(0, np.int64)
        columns = none.astype(np.int32), none.astype(np.uint64), none, none.astype(np.int32), none
        return OccurrenceSample(*columns, totals=np.zeros_like(self._totals))

    def _sort(self) -> None:
        # Neither the sample nor what waited is held beside the columns that join them: a build's memory goes up and down by this.
        weights = [np.ones(len(token_ids), np.int64) for token_ids, *_ in self._waiting]
        parts = [*zip(*self._waiting, strict=True), weights]
        sample, self._sample, self._waiting, self._number = self._sample, self._empty(), [], 0
        before, totals = [getattr(sample, name) for name in _COLUMNS], sample.totals
        del sample, weights
        joined = []
        while parts:
            joined.append(np.concatenate([before.pop(0), *parts.pop(0)]))
        self._sample = _lowest(*joined, totals=totals, max_occurrences=self._max)
        self._note_full()

    def _note_full(self) -> None:
        counts = np.bincount(self._sample.token_ids, minlength=len(self._totals))
        full = np.flatnonzero(counts == self._max)
        self._most[full] = self._sample.priorities[counts.cumsum()[full] - 1]

    def take(self, sample: OccurrenceSample) -> None:
        """Takes what was drawn from further texts, with the same settings."""
        self._totals += sample.totals
        self._sample = self._sample.merge(replace(sample, totals=np.zeros_like(self._totals)), self._max)
        self._note_full()

    def result(self) -> OccurrenceSample:
        """The sample of everything that was added so far."""
        if self._waiting:
            self._sort()
        return replace(self._sample, totals=self._totals)


def sample_occurrences(
    corpus: EncodedCorpus,
    vocab_size: int,
    *,
    max_occurrences: int,
    seed: int = 0,
    excluded_ids: Sequence[int] = (),
) -> OccurrenceSample:
    """The sample of a corpus in memory; arguments as for ``OccurrenceSampler``."""
    sampler = OccurrenceSampler(vocab_size, max_occurrences=max_occurrences, seed=seed, excluded_ids=excluded_ids)
    sampler.add(corpus)
    return sampler.result()


def _digest(corpus: EncodedCorpus, text: int, seed: int) -> int:
    part = slice(corpus.offsets[text], corpus.offsets[text + 1])
    content = corpus.input_ids[part].tobytes()
    if corpus.token_type_ids is not None:
        content += corpus.token_type_ids[part].tobytes()
    key = (seed % 2**64).to_bytes(8, "little")
    return int.from_bytes(hashlib.blake2b(content, digest_size=8, key=key).digest(), "little")


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele, Lea and Flood 2014): every input bit moves every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _lowest(
    token_ids: np.ndarray,
    priorities: np.ndarray,
    texts: np.ndarray,
    positions: np.ndarray,
    weights: np.ndarray,
    *,
    totals: np.ndarray,
    max_occurrences: int,
) -> OccurrenceSample:
    order = np.lexsort((texts, priorities, token_ids))
    if len(order):
        tokens, ranked = token_ids[order], priorities[order]
        # Copies of one occurrence stand together now: the first stays, with the weight of all.
        first = np.ones(len(order), bool)
        first[1:] = (tokens[1:] != tokens[:-1]) | (ranked[1:] != ranked[:-1])
        del ranked
        starts = first.nonzero()[0]
        tokens, weights = tokens[starts], np.add.reduceat(weights[order], starts)
        new_token = np.ones(len(starts), bool)
        new_token[1:] = tokens[1:] != tokens[:-1]
        begins = new_token.nonzero()[0]
        rank = np.arange(len(starts)) - np.repeat(begins, np.diff(np.append(begins, len(starts))))
        kept = rank < max_occurrences
        order, weights = order[starts[kept]], weights[kept]
    # Gathered once, at the end: whole sorted copies of all columns would be most of what a build holds.
    return OccurrenceSample(token_ids[order], priorities[order], texts[order], positions[order], weights, totals)
