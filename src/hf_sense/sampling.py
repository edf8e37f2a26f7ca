"""A uniform sample of the occurrences of each token, the same whatever the order of the texts and wherever it is drawn.

Each occurrence gets a priority by hashing (seed, text, position), and a token keeps those of the lowest priority. So a
sample of two corpora is the lowest of their two samples. It holds places, not vectors: the teacher is then run only where
the sample needs it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np

from hf_sense.corpus import EncodedCorpus

# Occurrences that are sorted at once.
_CHUNK = 8_000_000


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
        """The sample of both corpora; the texts of ``other`` must be numbered after those of this one."""
        joined = [
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in ("token_ids", "priorities", "texts", "positions", "weights")
        ]
        return _lowest(*joined, totals=self.totals + other.totals, max_occurrences=max_occurrences)

    def without_rare(self, min_count: int) -> OccurrenceSample:
        """The sample without tokens that occur fewer times in the corpus, as if it lacked them.

        Raises:
            ValueError: if no token is left.
        """
        if (most := int(self.totals.max())) < min_count:
            raise ValueError(f"No token occurs {min_count:,} times, the most frequent {most:,} times; lower min_count.")
        kept = self.totals[self.token_ids] >= min_count
        names = ("token_ids", "priorities", "texts", "positions", "weights")
        totals = np.where(self.totals >= min_count, self.totals, 0)
        return replace(self, totals=totals, **{name: getattr(self, name)[kept] for name in names})


def sample_occurrences(
    corpus: EncodedCorpus,
    vocab_size: int,
    *,
    max_occurrences: int,
    seed: int = 0,
    excluded_ids: tuple[int, ...] = (),
) -> OccurrenceSample:
    """Draws at most ``max_occurrences`` distinct occurrences of each token, uniformly and without replacement.

    Equal texts give a token equal vectors, so they are one occurrence with a weight, and the cap counts distinct ones.

    Args:
        corpus: the tokenized texts.
        vocab_size: token ids run below it.
        max_occurrences: the cap for each token.
        seed: another seed draws another sample.
        excluded_ids: tokens that get no senses, as the special ones.
    """
    excluded = np.zeros(vocab_size, bool)
    excluded[list(excluded_ids)] = True
    empty = np.zeros(0, np.int64)
    sample = OccurrenceSample(
        empty.astype(np.int32),
        empty.astype(np.uint64),
        empty,
        empty.astype(np.int32),
        empty,
        np.zeros(vocab_size, np.int64),
    )
    lengths = corpus.lengths
    ends = corpus.offsets[1:]
    begin_text = 0
    while begin_text < len(lengths):
        start = corpus.offsets[begin_text]
        end_text = max(begin_text + 1, int(np.searchsorted(ends, start + _CHUNK, side="right")))
        part = slice(int(start), int(corpus.offsets[end_text]))
        token_ids = corpus.input_ids[part]
        texts = np.repeat(np.arange(begin_text, end_text), lengths[begin_text:end_text])
        positions = (np.arange(part.start, part.stop) - corpus.offsets[texts]).astype(np.int32)
        digests = np.array([_digest(corpus, text, seed) for text in range(begin_text, end_text)], np.uint64)
        priorities = _mix(digests[texts - begin_text] + positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
        kept = ~excluded[token_ids]
        token_ids, texts, positions, priorities = (a[kept] for a in (token_ids, texts, positions, priorities))
        totals = np.bincount(token_ids, minlength=vocab_size).astype(np.int64)
        chunk = OccurrenceSample(token_ids, priorities, texts, positions, np.ones(len(texts), np.int64), totals)
        sample = sample.merge(chunk, max_occurrences)
        begin_text = end_text
    return sample


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
    token_ids, priorities, texts, positions, weights = (
        array[order] for array in (token_ids, priorities, texts, positions, weights)
    )
    if len(order):
        # Copies of one occurrence stand together now: the first stays, with the weight of all.
        first = np.ones(len(order), bool)
        first[1:] = (token_ids[1:] != token_ids[:-1]) | (priorities[1:] != priorities[:-1])
        starts = first.nonzero()[0]
        weights = np.add.reduceat(weights, starts)
        token_ids, priorities, texts, positions = (array[starts] for array in (token_ids, priorities, texts, positions))
        new_token = np.ones(len(starts), bool)
        new_token[1:] = token_ids[1:] != token_ids[:-1]
        begins = new_token.nonzero()[0]
        rank = np.arange(len(starts)) - np.repeat(begins, np.diff(np.append(begins, len(starts))))
        kept = rank < max_occurrences
        token_ids, priorities, texts, positions, weights = (
            array[kept] for array in (token_ids, priorities, texts, positions, weights)
        )
    return OccurrenceSample(token_ids, priorities, texts, positions, weights, totals)
