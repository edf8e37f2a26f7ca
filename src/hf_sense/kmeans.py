"""k-means over many small problems at once, padded to one width, and the draws that start it.

It neither groups problems nor sums up clusters; `hf_sense.clustering` does.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

_GRAM_POINTS = 256  # past this many points the inner products of all pairs cost more than they save
# The constants of splitmix64 as signed int64.
GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15
_TINY = 1e-30


class Partition(NamedTuple):
    """What `kmeans` finds: each point's cluster, and the clusters whose weighted means are the centres.

    The two differ only where Lloyd stopped before it settled, or where a refilled cluster drew a tie and lost it.

    Attributes:
        labels: `(batch, n)` int64, the nearest centre of each point; meaningless at padding.
        members: `(batch, n)` int64; centre `j` is the weighted mean of the points with `members == j`.
        inertia: `(batch,)`, the weighted squared distances of the points to their centres, summed.
    """

    labels: Tensor
    members: Tensor
    inertia: Tensor

    def better(self, other: "Partition") -> "Partition":
        """For each problem, the one of less inertia; this one in a tie."""
        wins = other.inertia < self.inertia
        return Partition(*(torch.where(wins.view(-1, *[1] * (a.dim() - 1)), b, a) for a, b in zip(self, other)))


def kmeans(
    points: Tensor,
    weights: Tensor,
    k: int | Tensor,
    *,
    start: Tensor | None = None,
    seed: int = 0,
    problem_ids: Tensor | None = None,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    spherical: bool = False,
) -> Partition:
    """Run weighted Lloyd k-means on a padded batch of problems; for ragged data, duplicates and checks use `cluster`.

    Stops a problem as scikit-learn does: when no label changes, or when the centres' summed squared shift is under
    `tolerance` times the mean variance of a feature. Of equally near centres a point takes the lowest.
    An empty cluster takes the point farthest from its centre, out of a cluster that can spare it.

    Args:
        points: `(batch, n, dim)` float32; unit or zero vectors if `spherical`.
        weights: `(batch, n)` integer or floating, at least 0; 0 marks padding.
        k: number of clusters, or `(batch,)` int64 if it differs.
        start: `(batch, k, dim)` float32 first centres; greedy k-means++ (Arthur and Vassilvitskii, 2007) if not given.
        seed: with `problem_ids`, decides the draws.
        problem_ids: `(batch,)` int64, by default 0, 1, ...
        max_iterations: most updates of the centres.
        tolerance: see above; 0 waits until no label changes.
        spherical: nearest by cosine to the mean direction (Dhillon and Modha, 2001).

    Returns:
        `Partition` of `(batch, n)` labels and members and `(batch,)` inertia.
    """
    space, origin, centered = _space(points, weights, tolerance, spherical)
    sizes = torch.as_tensor(k, device=points.device).expand(len(points))
    if start is None:
        ids = torch.arange(len(points), device=points.device) if problem_ids is None else problem_ids
        labels, distance = _plus_plus(space, sizes, [int(sizes.max())], seed, ids)[0]
    else:
        centers = unit_vectors(start) if spherical else start - origin
        products = torch.bmm(centers, centered.transpose(1, 2))
        labels, distance = _nearest(products, centers.square().sum(2), space.square)
    return _lloyd(space, labels, distance, sizes, max_iterations, spherical)


def kmeans_inertia(
    points: Tensor,
    weights: Tensor,
    levels: Tensor,
    *,
    seed: int,
    problem_ids: Tensor,
    steps: int,
    tolerance: float,
    spherical: bool,
) -> Tensor:
    """Measure the inertia at several numbers of clusters; `kmeans` finds the clusters of one number.

    The starts of all numbers are the first centres of one k-means++ run, and the products of the points are computed once.

    Args:
        points: `(batch, n, dim)` float32, as for `kmeans`.
        weights: `(batch, n)`, 0 marks padding.
        levels: `(batch, num_levels)` int64, at least 1: each row rises and then may stay, and row by row they are one ladder
            up to the row's last. What stays is not computed again.
        seed: with `problem_ids`, decides the draws.
        problem_ids: `(batch,)` int64.
        steps: of Lloyd, at most.
        tolerance: as for `kmeans`.
        spherical: as for `kmeans`.

    Returns:
        `(batch, num_levels)` float32.
    """
    space, _, _ = _space(points, weights, tolerance, spherical)
    inertia = torch.empty(levels.shape, dtype=points.dtype, device=points.device)
    starts = _plus_plus(space, levels[:, -1], levels.max(0).values.tolist(), seed, problem_ids)
    rows = torch.arange(len(points), device=points.device)
    for column, (labels, distance) in enumerate(starts):
        if column:
            inertia[:, column] = inertia[:, column - 1]
            rising = (levels[rows, column] > levels[rows, column - 1]).nonzero()[:, 0]
            if len(rising) < len(rows):
                rows, space = rows[rising], space.at(rising)
        if len(rows):
            found = _lloyd(space, labels[rows], distance[rows], levels[rows, column], steps, spherical)
            inertia[rows, column] = found.inertia
    return inertia


class _Space(NamedTuple):
    """Points as Lloyd needs them: `(batch, n, n)` products, or `(batch, n, dim)` vectors around their mean."""

    kernel: Tensor
    by_gram: bool
    square: Tensor
    mass: Tensor
    weighted: Tensor | None
    enough: Tensor

    def at(self, rows: Tensor) -> "_Space":
        """Some of the problems."""
        kernel, by_gram, square, mass, weighted, enough = self
        return _Space(
            kernel[rows], by_gram, square[rows], mass[rows], None if weighted is None else weighted[rows], enough[rows]
        )


def _space(points: Tensor, weights: Tensor, tolerance: float, spherical: bool) -> tuple[_Space, Tensor, Tensor]:
    """The space, the origin `(batch, 1, dim)` and the points around it."""
    n, dim = points.shape[1:]
    mass = weights.to(points.dtype)
    total = mass.sum(1, keepdim=True).clamp_min(_TINY)
    # Distances survive a shift, and float32 products are far more accurate around the mean. Cosines do not survive it.
    origin = torch.zeros_like(points[:, :1]) if spherical else torch.bmm((mass / total)[:, None], points)
    centered = (points - origin).mul_((mass > 0)[..., None])
    by_gram = n <= _GRAM_POINTS
    kernel = torch.bmm(centered, centered.transpose(1, 2)) if by_gram else centered
    square = kernel.diagonal(dim1=1, dim2=2).clone() if by_gram else centered.square().sum(2)
    # Padding is at the origin, where it adds nothing.
    weighted = None if by_gram or bool((mass <= 1).all() & (mass % 1 == 0).all()) else centered * mass[..., None]
    enough = tolerance * (mass * square).sum(1) / (total[:, 0] * dim)
    return _Space(kernel, by_gram, square, mass, weighted, enough), origin, centered


def _lloyd(
    space: _Space, labels: Tensor, distance: Tensor, sizes: Tensor, max_iterations: int, spherical: bool
) -> Partition:
    """Move centres and points by turns, from `(batch, n)` labels and distances."""
    kernel, by_gram, square, mass, weighted, enough = space
    batch, n, dim = len(mass), mass.shape[1], kernel.shape[2]
    slots = int(sizes.max())
    result = Partition(labels.clone(), labels.clone(), (distance * mass).sum(1))
    rows = torch.arange(batch, device=mass.device)
    running = torch.ones(batch, dtype=torch.bool, device=mass.device)
    mean = products = torch.zeros(())
    for iteration in range(max_iterations):
        members = _refill(labels, distance, mass, sizes, slots)
        held = torch.zeros_like(mass[:, :1]).repeat(1, slots).scatter_add_(1, members, mass)
        mean_before, products_before = mean, products
        # A mean is kept as its points' shares, whose products are those of the kernel, or as the vector itself.
        if by_gram:
            mean = mass.new_zeros(len(rows), slots, n).scatter_(1, members[:, None], mass[:, None])
            mean /= held.clamp_min(_TINY)[..., None]
            products = torch.bmm(mean, kernel)
            norms = (mean * products).sum(2)
        else:
            slot = (members + slots * torch.arange(len(rows), device=mass.device)[:, None]).flatten()
            sums = mass.new_zeros(len(rows) * slots, dim).index_add_(
                0, slot, (kernel if weighted is None else weighted).view(-1, dim)
            )
            mean = sums.view(-1, slots, dim).div_(held.clamp_min(_TINY)[..., None])
            products = torch.bmm(mean, kernel.transpose(1, 2))
            norms = mean.square().sum(2)
        if spherical:
            scale = norms.clamp_min(_TINY).rsqrt()[..., None]
            mean, products, norms = mean * scale, products * scale, norms * scale[..., 0].square()
        new, distance = _nearest(products, norms.masked_fill(held == 0, math.inf), square)
        finished = ((new == labels) | (mass == 0)).all(1)
        if iteration:
            moved = mean - mean_before
            finished |= (moved * (products - products_before if by_gram else moved)).sum((1, 2)).abs() < enough
        labels = new
        done = running & (finished | (iteration == max_iterations - 1))
        result.labels[rows[done]], result.members[rows[done]] = labels[done], members[done]
        result.inertia[rows[done]] = (distance[done] * mass[done]).sum(1)
        running = running & ~finished
        if 4 * int(running.sum()) <= 3 * len(rows):  # copying costs about a step: not for each problem that settles
            keep = running.nonzero()[:, 0]
            if not len(keep):
                break
            rows, running, square, mass, enough = (each[keep] for each in (rows, running, square, mass, enough))
            sizes, labels, distance, mean, products = (each[keep] for each in (sizes, labels, distance, mean, products))
            kernel, weighted = kernel[keep], None if weighted is None else weighted[keep]
    return result


def _nearest(products: Tensor, norms: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """Label `(batch, n)` points by `|x|^2 - 2 x.c + |c|^2` from `(batch, k, n)` products; also return that distance."""
    least = torch.add(norms[..., None], products, alpha=-2).min(1)
    return least.indices, least.values + square


def _plus_plus(space: _Space, sizes: Tensor, rungs: list[int], seed: int, ids: Tensor) -> list[tuple[Tensor, Tensor]]:
    """Draw weighted greedy k-means++ centres, `2 + log k` candidates a step as scikit-learn; label the points.

    Returns labels and distances to the nearest of the first centres, as many as each of the rising `rungs` says.
    """
    kernel, by_gram, square, mass, _, _ = space
    found = []
    batch, n = mass.shape
    flat = kernel.reshape(batch * n, -1)
    first_row = torch.arange(0, batch * n, n, device=mass.device)[:, None]
    tries = 2 + sizes.double().log().long()
    labels = torch.zeros_like(mass, dtype=torch.int64)
    closest = torch.ones_like(mass)
    most = int(tries.max())
    draws = _uniform(seed, ids, rungs[-1], most)
    excess = torch.arange(most, device=mass.device) >= tries[:, None]
    for step in range(rungs[-1]):
        candidates = 1 if step == 0 else most
        cumulative = (mass * closest).cumsum(1)
        drawn = draws[:, step, :candidates] * cumulative[:, -1:]
        picked = torch.searchsorted(cumulative, drawn, right=True).clamp_max(n - 1)
        rows = flat.index_select(0, (first_row + picked).flatten()).view(batch, candidates, -1)
        products = rows if by_gram else torch.bmm(rows, kernel.transpose(1, 2))
        distance = (square.gather(1, picked)[..., None] + square[:, None] - 2 * products).clamp_min_(0)
        distance.scatter_(2, picked[..., None], 0)  # rounding must not let a centre be drawn again
        if step > 0:
            distance = distance.minimum(closest[:, None])
            potential = (distance @ mass[..., None])[..., 0]
            potential.masked_fill_(excess, math.inf)
            best = potential.argmin(1)[:, None, None].expand(-1, 1, n)
            distance = distance.gather(1, best)
            labels = labels.masked_fill((distance[:, 0] < closest) & (step < sizes[:, None]), step)
            distance = torch.where(step < sizes[:, None], distance[:, 0], closest)
        else:
            distance = distance[:, 0]
        closest = distance
        found += [(labels, closest)] * rungs.count(step + 1)
    return found


def _refill(labels: Tensor, distance: Tensor, mass: Tensor, sizes: Tensor, slots: int) -> Tensor:
    """Give each empty cluster the point farthest from its centre, out of a cluster with other points."""
    real = (mass > 0).long()
    wanted = torch.arange(slots, device=labels.device) < sizes[:, None]
    for _ in range(slots):
        points = torch.zeros_like(wanted, dtype=torch.int64).scatter_add_(1, labels, real)
        empty = wanted & (points == 0)
        spare = distance.masked_fill((real == 0) | (points.gather(1, labels) < 2), -math.inf)
        farthest = spare.max(1)
        rows = (empty.any(1) & farthest.values.isfinite()).nonzero()[:, 0]
        if not len(rows):
            break
        labels, distance = labels.clone(), distance.clone()
        labels[rows, farthest.indices[rows]] = empty[rows].long().argmax(1)
        distance[rows, farthest.indices[rows]] = 0
    return labels


def unit_vectors(points: Tensor) -> Tensor:
    """`(..., dim)` at unit length; a zero vector stays zero."""
    # Scaled by the largest coordinate first, so that the norm of a huge or tiny vector neither overflows nor vanishes.
    points = points / points.abs().amax(-1, keepdim=True).clamp_min(_TINY)
    return points / points.norm(dim=-1, keepdim=True).clamp_min(_TINY)


def mix_bits(bits: Tensor) -> Tensor:
    """Splitmix64's finaliser (Steele, Lea and Flood, 2014) on int64; the masks make its shifts logical."""
    bits = (bits ^ ((bits >> 30) & (2**34 - 1))) * _MIX_1
    bits = (bits ^ ((bits >> 27) & (2**37 - 1))) * _MIX_2
    return bits ^ ((bits >> 31) & (2**33 - 1))


def _uniform(seed: int, ids: Tensor, steps: int, candidates: int) -> Tensor:
    """Draw `(batch, steps, candidates)` float32 in [0, 1): of 23 bits, a draw times a total never rounds up to it."""
    key = mix_bits(ids * GOLDEN + ((seed + 2**63) % 2**64 - 2**63))
    counter = torch.arange(steps, device=ids.device)[:, None] * 64 + torch.arange(1, candidates + 1, device=ids.device)
    return ((mix_bits(key[:, None, None] + counter * GOLDEN) >> 41) & (2**23 - 1)).float() * 2.0**-23
