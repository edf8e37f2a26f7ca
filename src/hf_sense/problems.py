"""Lays many small problems out for clustering: duplicates merged, like-sized problems put together, cores put to work.

It clusters nothing; a problem is one token's vectors.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from hf_sense.duplicates import merge_duplicates
from hf_sense.kmeans import unit_vectors
from hf_sense.side_by_side import Runner, side_by_side

_CACHED = 2**17  # numbers: passes over so many find them in a core's own cache

# `(batch,)` problems, `(batch, width)` positions of their points, and which of these are no padding.
Batch: TypeAlias = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class Problems:
    """The distinct points of all problems, in a row.

    Attributes:
        kept: `(n,)` int64, the row of each distinct point among all vectors, rising.
        distinct: `(all,)` int64, for each vector the place in `kept` of the one that it equals.
        problem: `(n,)` int64, whose each distinct point is.
        mass: `(n,)` int64, the summed weights of the vectors that are this point.
        sizes: `(num_problems,)` int64, distinct points of each problem.
        starts: `(num_problems,)` int64, where they begin.
        occurrences: `(num_problems,)` int64, summed weights of each problem.
        rows_at_once: how many points a pass should look at together.
        take: gives the float32 points at rows of any shape, `(..., dim)`; unit vectors where asked for.
        run: what `side_by_side` gives.
    """

    kept: Tensor
    distinct: Tensor
    problem: Tensor
    mass: Tensor
    sizes: Tensor
    starts: Tensor
    occurrences: Tensor
    rows_at_once: int
    take: Callable[[Tensor], Tensor]
    run: Runner

    def batches(self, chosen: Tensor, numbers: Callable[[int], int], max_elements: int) -> list[Batch]:
        """Put chosen problems of like size together, the widest first.

        Args:
            chosen: `(num_problems,)` bool.
            numbers: how many numbers a problem of a given width takes.
            max_elements: most numbers in a batch, unless a single problem needs more.
        """
        which = chosen.nonzero()[:, 0]
        if not len(which):
            return []
        sizes, starts = self.sizes, self.starts
        rungs = [1]
        while rungs[-1] < int(sizes[which].max()):
            rungs.append(rungs[-1] + max(1, rungs[-1] // 8))
        ladder = torch.tensor(rungs, device=sizes.device)
        rung = torch.bucketize(sizes[which], ladder)
        batches = []
        for level in reversed(rung.unique().tolist()):
            position = torch.arange(rungs[level], device=sizes.device)
            for group in which[rung == level].split(max(1, max_elements // numbers(rungs[level]))):
                valid = position < sizes[group, None]
                batches.append((group, torch.where(valid, starts[group, None] + position, starts[group, None]), valid))
        return batches


@contextmanager
def laid_out(
    vectors: Tensor, offsets: Tensor, weights: Tensor | None, *, spherical: bool, max_elements: int
) -> Iterator[Problems]:
    """Merge equal vectors of a problem, and give all cores to `Problems.run` until the block ends.

    Call `check_layout` first.

    Args:
        vectors: `(n, dim)` floating, problem 0's points, then problem 1's, ...
        offsets: `(num_problems + 1,)` int64.
        weights: `(n,)` int64, at least 1; ones if not given.
        spherical: take points as unit vectors, and merge those of one direction.
        max_elements: most numbers that a pass on an accelerator looks at together.

    Raises:
        ValueError: `vectors` holds NaN or infinity.
    """
    device, dim, num_problems = vectors.device, vectors.shape[1], len(offsets) - 1
    offsets = offsets.to(device)
    weights = torch.ones(len(vectors), dtype=torch.int64, device=device) if weights is None else weights.to(device)
    # An accelerator wants long runs of rows, a core such as its own cache holds.
    rows_at_once = max(1, (min(max_elements, _CACHED) if device.type == "cpu" else max_elements) // dim)

    def take(rows: Tensor) -> Tensor:
        """The points at `rows` of any shape; a view of them where they stand in a row."""
        if rows.dim() == 1 and len(rows) and bool((rows.diff() == 1).all()):
            points = vectors[int(rows[0]) : int(rows[-1]) + 1].float()
        else:
            points = vectors.index_select(0, rows.flatten()).view(*rows.shape, dim).float()
        return unit_vectors(points) if spherical else points

    with side_by_side(device) as run:
        problem_of_point = torch.repeat_interleave(torch.arange(num_problems, device=device), offsets.diff())
        kept, distinct = merge_duplicates(take, problem_of_point, rows_at_once, run)
        problem = problem_of_point[kept]
        mass = torch.zeros_like(kept).index_add_(0, distinct, weights)
        sizes = torch.bincount(problem, minlength=num_problems)
        starts = sizes.cumsum(0) - sizes
        occurrences = torch.zeros_like(sizes).index_add_(0, problem, mass)
        yield Problems(kept, distinct, problem, mass, sizes, starts, occurrences, rows_at_once, take, run)


def check_layout(vectors: Tensor, offsets: Tensor, problem_ids: Tensor | None, weights: Tensor | None) -> None:
    """Refuse vectors, offsets, ids and weights that do not fit together; the errors say which and how."""
    if vectors.dim() != 2 or not vectors.is_floating_point() or vectors.shape[1] == 0:
        raise ValueError(
            f"vectors must be floating (n, dim), dim at least 1; got {vectors.dtype} {tuple(vectors.shape)}."
        )
    if offsets.dtype != torch.int64 or offsets.dim() != 1 or not len(offsets):
        raise ValueError(f"offsets must be int64 (num_problems + 1,); got {offsets.dtype} {tuple(offsets.shape)}.")
    falls = (offsets.diff() < 0).nonzero()
    if len(falls):
        at = int(falls[0, 0])
        fall = f"problem {at} goes from {int(offsets[at])} to {int(offsets[at + 1])}"
        raise ValueError(f"offsets must never fall; {fall}. Cumulate the sizes of the problems.")
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(vectors):
        ends = f"got {int(offsets[0])} to {int(offsets[-1])}"
        raise ValueError(f"offsets must run from 0 to the {len(vectors)} rows of vectors; {ends}.")
    for name, given, length in (("problem_ids", problem_ids, len(offsets) - 1), ("weights", weights, len(vectors))):
        if given is not None and (given.dtype != torch.int64 or given.shape != (length,)):
            raise ValueError(f"{name} must be int64 ({length},); got {given.dtype} {tuple(given.shape)}.")
    if weights is not None and bool((weights < 1).any()):
        raise ValueError(f"weights must be at least 1; got {int(weights.min())}. Leave points that do not count out.")
