"""What a build will take, before it starts: tokens, time, memory, disk and the dictionary's size, from a sample of the corpus.

It measures the teacher on a few batches; it builds nothing.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_sense.build_checks import checked_length
from hf_sense.clustering import cluster, number_of_senses
from hf_sense.corpus import encode_corpus, iterate_texts
from hf_sense.memory import bytes_in_use, bytes_of, shown_bytes
from hf_sense.teacher import Teacher, load_teacher

# Texts that are looked at, and the seconds that the teacher is timed for.
_TEXTS = 2000
_SECONDS = 2.0
# A place of the sample: what is held of it, and what sorting takes beside it.
_BYTES_A_PLACE = 40
_BYTES_SORTING = 80
# Vectors to time the clustering with: tokens, occurrences of each.
_TIMED = (12, 300)


@dataclass(frozen=True)
class BuildPlan:
    """What a build is expected to take.

    Attributes:
        texts: of the corpus; of the sample, if the corpus's number is not known.
        known: whether it is.
        tokens: of the corpus.
        read_tokens: that the teacher reads: of texts that hold a place of the sample.
        places: of the sample, whose contextual embeddings are kept.
        tokens_per_second: of the teacher, as measured now.
        seconds: of the teacher and the clustering, shared by the ranks.
        memory: bytes at the most of a rank, with what the process holds now.
        disk: bytes under ``work_dir``.
        senses: at most.
        dictionary: bytes of the dictionary's file at most.
    """

    texts: int
    known: bool
    tokens: int
    read_tokens: int
    places: int
    tokens_per_second: float
    seconds: float
    memory: int
    disk: int
    senses: int
    dictionary: int

    def table(self) -> dict[str, str]:
        """The figures in words."""
        texts = f"{self.texts:,}" if self.known else f"{self.texts:,} or more; the figures are of these"
        return {
            "texts": texts,
            "tokens": f"about {self.tokens:,}",
            "tokens that the teacher reads": f"about {self.read_tokens:,}",
            "contextual embeddings": f"about {self.places:,}",
            "the teacher's tokens a second": f"{self.tokens_per_second:,.0f}",
            "time": shown_seconds(self.seconds),
            "memory": shown_bytes(self.memory),
            "disk": shown_bytes(self.disk),
            "dictionary": f"up to {self.senses:,} senses, {shown_bytes(self.dictionary)}",
        }


def plan_build(
    teacher: str | Teacher,
    texts: Iterable[Any],
    *,
    text_column: str | Sequence[str] = "text",
    number_of_texts: int | None = None,
    max_senses: int | str = 20,
    budget_senses: int | None = None,
    max_occurrences: int = 1000,
    max_length: int | None = None,
    batch_size: int = 32,
    dtype: torch.dtype = torch.float32,
    max_memory: int | str | None = None,
    processes: int = 1,
) -> BuildPlan:
    """Estimates what ``build_dictionary`` will take, within a few seconds.

    Args:
        teacher: a name, or what ``load_teacher`` returned.
        texts: as for ``build_dictionary``; the first 2,000 are read.
        text_column: as there.
        number_of_texts: of the corpus; ``len(texts)`` if it has one.
        max_senses: as there.
        budget_senses: the most senses of all tokens together.
        max_occurrences: as there.
        max_length: as there.
        batch_size: as there.
        dtype: as there.
        max_memory: as there.
        processes: that share the work.

    Raises:
        ValueError: if there are no texts, or an option does not fit.
    """
    first = list(itertools.islice(iterate_texts(texts, text_column), _TEXTS))
    teacher = load_teacher(teacher)
    limit = checked_length(max_length, teacher)
    corpus = encode_corpus(
        teacher.form.joined(first, teacher.tokenizer), teacher.tokenizer, limit, quiet=True, disable_tqdm=True
    )
    known = number_of_texts
    if known is None and isinstance(texts, Sized):
        known = len(texts)
    if known is None and len(first) < _TEXTS:
        known = len(first)
    count = len(first) if known is None else known
    times = count / len(first)
    expected = _expected(corpus.input_ids, len(teacher.tokenizer), times)
    kept = np.minimum(expected, max_occurrences)
    places = int(kept.sum())
    senses = number_of_senses(torch.from_numpy(kept).long(), max_senses)
    most = int(np.minimum(senses.numpy(), np.maximum(kept, 0)).sum())
    if budget_senses is not None:
        most = min(most, budget_senses)
    # A text is read if one of its places is among the lowest of its token.
    missed = np.log1p(-np.minimum(1 - 1e-9, kept / np.maximum(expected, 1e-9)))[corpus.input_ids]
    read = 1 - np.exp(np.add.reduceat(missed, corpus.offsets[:-1]))
    read_tokens = int((read * corpus.lengths).sum() * times)
    rate = _rate(teacher, corpus, batch_size)
    clustering = _seconds_a_vector(teacher.dim, max_senses) * places
    tokens = int(len(corpus.input_ids) * times)
    vectors = places * teacher.dim * 4
    size = most * (teacher.dim * dtype.itemsize + 12) + 8 * len(expected)
    held = places * (_BYTES_A_PLACE + _BYTES_SORTING) + most * teacher.dim * 4
    memory = bytes_in_use() + held + vectors // processes + tokens * 4 // processes
    if max_memory is not None:
        memory = min(memory, bytes_of(max_memory))
    return BuildPlan(
        texts=count,
        known=known is not None,
        tokens=tokens,
        read_tokens=read_tokens,
        places=places,
        tokens_per_second=rate,
        seconds=(read_tokens / rate + clustering) / processes,
        memory=memory,
        disk=vectors + places * 8 + tokens * 4 + count * 4 + most * (teacher.dim * 4 + 16),
        senses=most,
        dictionary=size,
    )


def shown_seconds(seconds: float) -> str:
    """A time in words.

    Example:
        >>> shown_seconds(42), shown_seconds(4000), shown_seconds(400000)
        ('42 seconds', '1.1 hours', '4.6 days')
    """
    for unit, size in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.05 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} seconds"


def _expected(token_ids: np.ndarray, vocab_size: int, times: float) -> np.ndarray:
    """How often each token will occur in so many times the text, float64 ``(vocab_size,)``.

    Tokens that were not seen share what those that were seen once stand for (Good and Turing's estimate).
    """
    counts = np.bincount(token_ids, minlength=vocab_size).astype(np.float64)
    if times <= 1:
        return counts * times
    once = float((counts == 1).sum())
    unseen = np.flatnonzero(counts == 0)
    expected = counts * times
    if len(unseen):
        expected[unseen] = once * (times - 1) / len(unseen)
    return expected


def _rate(teacher: Teacher, corpus: Any, batch_size: int) -> float:
    """Tokens a second, from some batches of the lengths that the corpus has."""
    batches = corpus.batches(batch_size)
    order = np.linspace(0, len(batches) - 1, min(len(batches), 16)).round().astype(int)
    pad = teacher.tokenizer.pad_token_id or 0
    teacher.hidden_states(**corpus.padded(batches[len(batches) // 2], pad))  # the first pass makes room
    tokens, begin = 0, time.perf_counter()
    for number in order.tolist():
        teacher.hidden_states(**corpus.padded(batches[number], pad))[0, 0].float().cpu()
        tokens += int(corpus.lengths[batches[number]].sum())
        if time.perf_counter() - begin > _SECONDS:
            break
    return tokens / (time.perf_counter() - begin)


def _seconds_a_vector(dim: int, max_senses: int | str) -> float:
    problems, each = _TIMED
    points = torch.randn(problems * each, dim, generator=torch.Generator().manual_seed(0))
    offsets = torch.arange(0, len(points) + 1, each)
    begin = time.perf_counter()
    cluster(points, offsets, max_senses=max_senses)
    return (time.perf_counter() - begin) / len(points)
