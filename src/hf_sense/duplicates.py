"""Finds equal vectors of a problem by hashing them, and merges them into one.

Nearly equal ones stay apart, and those of the same hash are compared number by number.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from hf_sense.kmeans import GOLDEN, mix_bits
from hf_sense.side_by_side import Runner

PASSES = 32  # so many runs of rows are a piece worth a thread


def merge_duplicates(
    take: Callable[[Tensor], Tensor], problem: Tensor, rows_at_once: int, run: Runner
) -> tuple[Tensor, Tensor]:
    """Find the first of each set of equal rows of a problem, and for each row which of these it equals.

    Args:
        take: gives the float32 `(m, dim)` points at `(m,)` int64 rows.
        problem: `(n,)` int64, never falling: whose row each is. Rows of two problems are never equal.
        rows_at_once: how many rows are looked at together.
        run: what `side_by_side` gives.

    Returns:
        `(kept,)` int64, the rows that stay, rising; `(n,)` int64, for each row the place in `kept` of the one it equals.

    Raises:
        ValueError: a row holds NaN or infinity.
    """
    position = torch.arange(len(problem), device=problem.device)
    hashes = torch.empty_like(position)
    wrong = torch.zeros_like(position, dtype=torch.bool)

    def look(piece: Tensor) -> None:
        for rows in piece.split(rows_at_once):
            points = take(rows) + 0.0  # makes -0.0 into 0.0, which it equals
            here = slice(int(rows[0]), int(rows[-1]) + 1)
            if not bool(points.sum().isfinite()):  # a finite sum has finite terms
                wrong[here] = ~points.abs().amax(1).isfinite()
            words = torch.nn.functional.pad(points, (0, points.shape[1] % 2)).view(torch.int64).mul_(GOLDEN)
            words ^= words >> 32  # brings the bits that matter in round numbers down, where a product keeps them
            hashes[here] = words.mul_(mix_bits(torch.arange(words.shape[1], device=words.device)) | 1).sum(1)

    if len(position):
        run(look, position.split(PASSES * rows_at_once))
    if bool(wrong.any()):
        first = int(problem[wrong.nonzero()[0, 0]])
        raise ValueError(
            f"vectors must be finite in float32; {int(wrong.sum())} of {len(wrong)} rows hold NaN or infinity, "
            f"the first in problem {first}. A teacher run in float16 overflows easily: run it in bfloat16 or float32."
        )
    order = hashes.argsort(stable=True)
    order = order[problem[order].argsort(stable=True)]
    new = torch.ones_like(wrong)
    new[1:] = (hashes[order].diff() != 0) | (problem[order].diff() != 0)
    equal = torch.empty_like(position)
    equal[order] = order[new][new.cumsum(0) - 1]
    for rows in (equal != position).nonzero()[:, 0].split(rows_at_once):
        if len(rows):
            same = (take(rows) == take(equal[rows])).all(1)
            equal[rows] = torch.where(same, equal[rows], rows)
    kept = equal == position
    return position[kept], (kept.cumsum(0) - 1)[equal]
