"""Works through a build's tokens part by part, shares the parts out among ranks, and keeps each part once it is done.

It does not know what is computed of a part.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_sense.sampled_vectors import SampledVectors
from hf_sense.unfinished import UnfinishedBuild

# Points times senses between two saves: a few seconds' work.
_PART_WORK = 4_000_000
# Nor many more bytes of vectors, so that a limit of memory has parts to choose from.
_PART_BYTES = 32_000_000


class Part(NamedTuple):
    """Some tokens in a row, and the rows of their vectors."""

    number: int
    first: int
    last: int
    rows: slice
    effort: int


def in_parts(
    compute: Callable[[int, int, slice, torch.Tensor], dict[str, torch.Tensor]],
    bounds: np.ndarray,
    senses: np.ndarray,
    vectors: SampledVectors,
    work: UnfinishedBuild,
    kind: str,
    title: str,
    *,
    rows_at_once: int | None = None,
    disable_tqdm: bool | None = None,
) -> list[dict[str, torch.Tensor]]:
    """What ``compute`` gives for each run of tokens, in order, on every rank; the runs take about the same work.

    Each rank computes its share of what is not done, by load; a rank takes as many parts at once as ``rows_at_once`` allows.

    Args:
        compute: gets the first token of a run, the one after its last, the rows of their vectors, and the vectors; returns
            tensors.
        bounds: int64 ``(vocab_size + 1,)``; token ``t`` owns the rows ``bounds[t]:bounds[t + 1]``.
        senses: int64 ``(vocab_size,)``, senses of each token: work is points times senses.
        vectors: of all rows.
        work: what is done already, and where it is kept.
        kind: names the parts' files.
        title: of the progress bar.
        rows_at_once: vectors that a rank holds, or those of one part if that is more; all if not given.
        disable_tqdm: ``True`` hides the bar.
    """
    ranks = work.ranks
    parts = _cut(bounds, senses, vectors.dim)
    done = work.parts_done(kind, len(parts))
    todo = [part for part in parts if part.number not in done]
    shares = _shared_out(todo, ranks.count)
    rounds = [list(_windows(share, rows_at_once)) for share in shares]
    own = shares[ranks.rank]
    bar = tqdm(
        desc=title, unit=" vectors", unit_scale=True, total=sum(part.rows.stop - part.rows.start for part in own),
        disable=disable_tqdm or (None if ranks.main else True),
    )  # fmt: skip
    with bar:
        for window in itertools.zip_longest(*rounds):
            # What each rank works on in this round; a rank without work still sends what others need.
            held = vectors.ranges([slice(p[0].rows.start, p[-1].rows.stop) if p else None for p in window])
            for part in window[ranks.rank] or ():
                start = window[ranks.rank][0].rows.start
                found = compute(
                    part.first, part.last, part.rows, held[part.rows.start - start : part.rows.stop - start]
                )
                work.save_part(part.number, found, kind)
                bar.update(part.rows.stop - part.rows.start)
            del held
    owner = {part.number: rank for rank, share in enumerate(shares) for part in share}
    return work.all_parts(kind, [owner.get(part.number, done.get(part.number, 0)) for part in parts])


def _cut(bounds: np.ndarray, senses: np.ndarray, dim: int) -> list[Part]:
    effort = np.cumsum(np.diff(bounds) * np.maximum(senses, 1))
    size = effort + np.diff(bounds).cumsum() * (4 * dim * _PART_WORK // _PART_BYTES)
    cuts = np.unique(np.searchsorted(size, np.arange(0, max(1, size[-1]), _PART_WORK), side="left"))
    before = np.concatenate([[0], effort])
    return [
        Part(number, first, last, slice(int(bounds[first]), int(bounds[last])), int(before[last] - before[first]))
        for number, (first, last) in enumerate(itertools.pairwise(np.append(cuts, len(senses)).tolist()))
    ]


def _shared_out(parts: list[Part], ranks: int) -> list[list[Part]]:
    """Runs of parts of about the same effort, one a rank."""
    efforts = np.cumsum([part.effort for part in parts], dtype=np.float64)
    middles = efforts - np.array([part.effort for part in parts]) / 2
    owners = (middles / max(1.0, efforts[-1] if len(efforts) else 1.0) * ranks).astype(np.int64)
    return [
        [part for part, owner in zip(parts, owners.tolist(), strict=True) if owner == rank] for rank in range(ranks)
    ]


def _windows(parts: list[Part], rows_at_once: int | None) -> Iterator[list[Part]]:
    """Runs of parts, next to each other, whose rows may be held together."""
    window: list[Part] = []
    for part in parts:
        full = window and rows_at_once is not None and part.rows.stop - window[0].rows.start > rows_at_once
        if window and (full or part.number != window[-1].number + 1):
            yield window
            window = []
        window.append(part)
    if window:
        yield window
