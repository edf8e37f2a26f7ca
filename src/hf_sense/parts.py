"""Works through a build's tokens part by part, and keeps each part once it is done.

It does not know what is computed of a part.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_sense.unfinished import UnfinishedBuild

# Points times senses between two saves: a few seconds' work.
_PART_WORK = 4_000_000


def in_parts(
    compute: Callable[[int, int, slice], dict[str, torch.Tensor]],
    bounds: np.ndarray,
    senses: np.ndarray,
    work: UnfinishedBuild,
    kind: str,
    title: str,
    disable_tqdm: bool | None,
) -> list[dict[str, torch.Tensor]]:
    """What ``compute`` gives for each run of tokens, in order; the runs take about the same work.

    Args:
        compute: gets the first token of a run, the one after its last, and the rows of their vectors; returns tensors.
        bounds: int64 ``(vocab_size + 1,)``; token ``t`` owns the rows ``bounds[t]:bounds[t + 1]``.
        senses: int64 ``(vocab_size,)``, senses of each token: work is points times senses.
        work: what is done already, and where it is kept.
        kind: names the parts' files.
        title: of the progress bar.
        disable_tqdm: ``True`` hides it.
    """
    effort = np.cumsum(np.diff(bounds) * np.maximum(senses, 1))
    cuts = np.unique(np.searchsorted(effort, np.arange(0, effort[-1], _PART_WORK), side="left"))
    edges = np.append(cuts, len(senses))
    parts: list[dict[str, torch.Tensor]] = []
    bar = tqdm(
        desc=title, unit=" vectors", unit_scale=True, total=int(bounds[-1]),
        disable=disable_tqdm or (None if work.rank == 0 else True),
    )  # fmt: skip
    with bar:
        for number, (first, last) in enumerate(itertools.pairwise(edges.tolist())):
            rows = slice(int(bounds[first]), int(bounds[last]))
            part = work.part(number, kind)
            if part is None:
                part = compute(first, last, rows)
                work.save_part(number, part, kind)
            parts.append(part)
            bar.update(rows.stop - rows.start)
    return parts
