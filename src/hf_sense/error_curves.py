"""How a token's error falls with its number of senses: k-means at a ladder of numbers, all tokens at once.

It decides nothing; `hf_sense.shares` does, and `hf_sense.clustering` clusters with what was decided.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_sense.kmeans import kmeans_inertia
from hf_sense.problems import Batch, Problems, check_layout, laid_out

# A curve needs to be right in its shape, and Lloyd's first steps bring most of what it brings.
_STEPS = 3


class ErrorCurves(NamedTuple):
    """Each problem's summed squared distance at a few numbers of clusters.

    Attributes:
        levels: `(num_problems, num_levels)` int64, rising along a row up to the most that the problem may have, and then
            staying there; 0 for a problem without points.
        errors: `(num_problems, num_levels)` float64, weighted squared distances to the nearest centre, summed; never
            rising, and 0 where each distinct point is its own cluster.
    """

    levels: Tensor
    errors: Tensor


def error_curves(
    vectors: Tensor,
    offsets: Tensor,
    *,
    max_senses: Tensor,
    method: str = "kmeans",
    min_occurrences: int = 1,
    seed: int = 0,
    problem_ids: Tensor | None = None,
    weights: Tensor | None = None,
    tolerance: float = 1e-4,
    max_elements: int = 2**22,
) -> ErrorCurves:
    """Measure the curves that `share_out` takes; to cluster under a budget at once, call `cluster` with it.

    The numbers tried are 1, 2, 3, 4, 6, 9, 13, 19, ..., and each problem's largest.

    Args:
        vectors: `(n, dim)` floating, as for `cluster`.
        offsets: `(num_problems + 1,)` int64.
        max_senses: `(num_problems,)` int64, the most clusters of each problem.
        method: `kmeans`, or `spherical_kmeans` on unit vectors and centres.
        min_occurrences: problems of a smaller summed weight keep each distinct point: their one level is that number.
        seed: of the k-means++ draws, with `problem_ids`.
        problem_ids: `(num_problems,)` int64, by default 0, 1, ...
        weights: `(n,)` int64, at least 1.
        tolerance: as for `cluster`; Lloyd stops after three steps at the latest.
        max_elements: most numbers in a padded batch, unless a single problem needs more.

    Raises:
        ValueError: an argument has another shape, dtype or range than stated, or `vectors` holds NaN or infinity.
    """
    check_layout(vectors, offsets, problem_ids, weights)
    spherical = method == "spherical_kmeans"
    with laid_out(vectors, offsets, weights, spherical=spherical, max_elements=max_elements) as problems:
        ids = torch.arange(len(offsets) - 1) if problem_ids is None else problem_ids
        chosen = (problems.occurrences >= min_occurrences) & (problems.sizes > 1)
        limit = max_senses.to(vectors.device)
        return measured(problems, limit, chosen, ids.to(vectors.device), seed, tolerance, spherical, max_elements)


def measured(
    problems: Problems, limit: Tensor, chosen: Tensor, ids: Tensor, seed: int, tolerance: float, spherical: bool,
    max_elements: int,
) -> ErrorCurves:  # fmt: skip
    """The curves of problems that are laid out; those not `chosen` keep each distinct point."""
    sizes = problems.sizes
    most = torch.where(chosen, limit.minimum(sizes), sizes)
    ladder = [1]
    while ladder[-1] < int(most[chosen].max() if bool(chosen.any()) else 1):
        ladder.append(ladder[-1] + max(1, ladder[-1] // 2))
    levels = torch.tensor(ladder, device=sizes.device).minimum(most[:, None])
    levels = torch.where(chosen[:, None], levels, most[:, None])
    errors = torch.zeros(levels.shape, dtype=torch.float64, device=sizes.device)
    # Where each distinct point is its own cluster, nothing is to be measured.
    zero = levels == sizes[:, None]
    tried = levels.masked_fill(zero, 0).cummax(1).values

    def measure(batch: Batch) -> None:
        which, index, valid = batch
        errors[which] = kmeans_inertia(
            problems.take(problems.kept[index]), problems.mass[index] * valid, tried[which], seed=seed, problem_ids=ids[which],
            steps=_STEPS, tolerance=tolerance, spherical=spherical,
        ).double()  # fmt: skip

    widest = int(tried.max()) if len(tried) else 1
    dim = problems.take(problems.kept[:1]).shape[-1]
    problems.run(measure, problems.batches(tried[:, 0] > 0, lambda n: n * (2 * dim + 6 * widest), max_elements))
    errors = errors.clamp_min_(0).masked_fill_(zero, 0).cummin(1).values  # rounding takes none below 0
    return ErrorCurves(levels, errors)
