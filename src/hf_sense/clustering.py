"""Clusters many small sets of vectors at once: each vocabulary token's contextual embeddings into its senses.

It does not run a teacher, read text or store a dictionary, and it loops over groups of like-sized problems, not tokens.

How it is fast: exact duplicates are merged first; problems are padded to a ladder of widths, by their own size alone,
and solved in batches, each on one thread and several at once. A centre of k-means is an average of points, so up to
256 points k-means runs on their inner products, computed once: a step costs `n * n * k`, not `n * k * dim`, and a
k-means++ candidate a look-up.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from hf_sense.duplicates import PASSES
from hf_sense.error_curves import measured
from hf_sense.kmeans import Partition, kmeans, unit_vectors
from hf_sense.markov import full_graph, markov_labels, neighbor_graph
from hf_sense.problems import Batch, check_layout, laid_out
from hf_sense.shares import share_out
from hf_sense.side_by_side import Runner

Method = Literal["kmeans", "spherical_kmeans", "markov", "markov_full", "paper"]

_PAPER_MINIMUM = 5  # the paper gives no token fewer senses than this


@dataclass(frozen=True)
class Clusters:
    """The senses of all problems, as one ragged table.

    Within a problem the clusters stand by weight, heaviest first, then by their first member.

    Attributes:
        centers: `(num_clusters, dim)` float32.
        offsets: `(num_problems + 1,)` int64; problem `i` owns the rows `offsets[i]:offsets[i + 1]` of `centers`.
        labels: `(n,)` int64, for each point the row of `centers` it belongs to, counted over all problems.
        weights: `(num_clusters,)` int64, the summed weights of the points behind each centre, at least 1.
        spread: `(num_clusters,)` float32, weighted mean squared distance of the points to their centre
            (of the unit vectors to the unit centre for `spherical_kmeans`).
    """

    centers: Tensor
    offsets: Tensor
    labels: Tensor
    weights: Tensor
    spread: Tensor


def cluster(
    vectors: Tensor,
    offsets: Tensor,
    *,
    method: Method = "kmeans",
    max_senses: int | str | Tensor = 20,
    budget: int | None = None,
    min_occurrences: int = 1,
    seed: int = 0,
    problem_ids: Tensor | None = None,
    weights: Tensor | None = None,
    restarts: int = 1,
    max_iterations: int = 50,
    tolerance: float = 1e-4,
    inflation: float = 1.65,
    neighbors: int = 10,
    markov_share: float = 0.5,
    max_elements: int = 2**22,
) -> Clusters:
    """Cluster each problem's points; problems do not influence each other beyond rounding.

    Same inputs, same bytes, on CPU, whatever the number of threads where there is more than one batch; on CUDA call
    `torch.use_deterministic_algorithms(True)` for that.

    Methods:
        `kmeans`: greedy k-means++ and Lloyd, as scikit-learn. Centres are weighted means.
        `spherical_kmeans`: the same on unit vectors, by cosine. A centre is the mean of its members' unit vectors,
            scaled to norm 1 (zero where they cancel or are zero). A token that keeps its vectors keeps them as units.
        `markov`: Markov clustering of the graph that joins each point with its `neighbors` most cosine-similar ones.
            It finds the number of senses.
        `markov_full`: Markov clustering of the full graph with weight `1 / (distance + 0.01)`, as the paper's reference
            code runs it. It depends on the vectors' scale: mostly one cluster for small ones, one a point for large.
            Prefer `markov`.
        `paper`: Wang et al., Findings of ACL 2025, arXiv 2504.06036: `markov_full` counts the clusters, then k-means
            with `markov_share` of that number, at least 5, at most `max_senses`.
    The Markov graphs hold each distinct point once; weights count in the means and the order. Where Markov finds more
    than `max_senses` clusters, k-means with `max_senses` takes its place on that problem.

    Args:
        vectors: `(n, dim)` of any floating dtype, problem 0's points, then problem 1's, ...; computed in float32.
        offsets: `(num_problems + 1,)` int64; problem `i` owns the rows `offsets[i]:offsets[i + 1]`, which may be none.
        method: see above.
        max_senses: most clusters of a problem, a rule of `number_of_senses` applied to its summed weight, or int64
            `(num_problems,)`, at least 1, each problem's own.
            In the k-means methods, where the distinct points are no more than that, each is its own cluster.
        budget: most clusters of all problems together, for the k-means methods: they are shared out so that the summed
            squared distance is least, by `error_curves` and `share_out`. `max_senses` stays the most of each.
        min_occurrences: problems of a smaller summed weight keep their own vectors: each distinct point is a cluster.
        seed: any integer, taken modulo 2**64; the k-means++ draws hash it with the problem's id.
        problem_ids: `(num_problems,)` int64, by default 0, 1, ...; pass token ids, so that a token's senses do not
            depend on which other tokens are here.
        weights: `(n,)` int64, at least 1: how many times each point counts. By default 1.
        restarts: k-means runs from so many starts, those of `seed`, `seed + 1`, ..., and keeps for each problem the one
            with the least summed squared distance. Time grows with it.
        max_iterations: most Lloyd steps.
        tolerance: Lloyd stops when the centres' summed squared shift is under this share of a feature's mean variance.
        inflation: Markov clustering's inflation, over 1; larger gives more and smaller clusters.
        neighbors: `markov` joins each point with this many others.
        markov_share: `paper` takes this share, in (0, 1], of the Markov clusters. Neither the paper's abstract nor the
            published code that we could read states it: 0.5 is our choice.
        max_elements: most numbers in a padded batch, unless a single problem needs more.

    Raises:
        ValueError: an argument has another shape, dtype or range than stated, or `vectors` holds NaN or infinity.

    Example:
        >>> vectors = torch.tensor([[0.0, 0.0], [0.0, 2.0], [9.0, 9.0], [5.0, 5.0]])
        >>> found = cluster(vectors, torch.tensor([0, 3, 4]), max_senses=2)
        >>> found.centers.tolist(), found.offsets.tolist(), found.labels.tolist()
        ([[0.0, 1.0], [9.0, 9.0], [5.0, 5.0]], [0, 2, 3], [0, 0, 1, 2])
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}; got {method!r}.")
    counts = min(restarts, max_iterations, neighbors, max_elements)
    if not (tolerance >= 0 and 1 < inflation < math.inf and 0 < markov_share <= 1 and counts >= 1):
        raise ValueError(
            "tolerance must be at least 0, inflation over 1 and finite, markov_share in (0, 1], "
            "restarts, max_iterations, neighbors and max_elements at least 1; got "
            f"{tolerance=}, {inflation=}, {markov_share=}, {restarts=}, {max_iterations=}, {neighbors=}, {max_elements=}."
        )
    check_layout(vectors, offsets, problem_ids, weights)
    device, dim, num_problems = vectors.device, vectors.shape[1], len(offsets) - 1
    ids = torch.arange(num_problems, device=device) if problem_ids is None else problem_ids.to(device)
    spherical = method == "spherical_kmeans"
    _check_numbers(max_senses, budget, method, num_problems)

    with laid_out(vectors, offsets, weights, spherical=spherical, max_elements=max_elements) as problems:
        kept, problem, mass, sizes, starts = (
            problems.kept, problems.problem, problems.mass, problems.sizes, problems.starts,
        )  # fmt: skip
        position = torch.arange(len(kept), device=device) - starts[problem]
        rule = max_senses
        limit = rule.to(device) if isinstance(rule, Tensor) else number_of_senses(problems.occurrences, rule)
        chosen = (problems.occurrences >= min_occurrences) & (sizes > 1)
        if budget is not None:
            curves = measured(problems, limit, chosen, ids, seed, tolerance, spherical, max_elements)
            limit = share_out(*curves, budget)
        labels = position.clone()  # each distinct point its own cluster, until a method says otherwise
        found = sizes  # how many clusters a problem has so far

        if method in ("markov", "markov_full", "paper"):

            def flow(batch: Batch) -> None:
                _, index, valid = batch
                points = problems.take(kept[index])
                graph = neighbor_graph(points, valid, neighbors) if method == "markov" else full_graph(points, valid)
                labels[index[valid]] = markov_labels(graph, inflation)[valid]

            problems.run(flow, problems.batches(chosen, lambda n: n * (dim + 8 * n), max_elements))
            found = torch.zeros_like(sizes).index_add_(0, problem, (labels == position).long())
            if method == "paper":
                limit = limit.minimum((found * markov_share).ceil().long().clamp_min(_PAPER_MINIMUM))
                labels, found = position.clone(), sizes

        members = labels.clone()
        too_many = chosen & (found > limit)
        most = int(limit[too_many].max()) if bool(too_many.any()) else 0

        def lloyd(batch: Batch) -> None:
            which, index, valid = batch
            points, counted = problems.take(kept[index]), mass[index] * valid
            starts_tried = (
                kmeans(
                    points, counted, limit[which], seed=seed + start, problem_ids=ids[which],
                    max_iterations=max_iterations, tolerance=tolerance, spherical=spherical,
                )
                for start in range(restarts)
            )  # fmt: skip
            best = reduce(Partition.better, starts_tried)
            labels[index[valid]] = best.labels[valid]
            members[index[valid]] = best.members[valid]

        problems.run(lloyd, problems.batches(too_many, lambda n: n * (2 * dim + 6 * most), max_elements))
        return _summarise(
            problems.take, kept, problems.distinct, problem, mass, labels, members, starts, problems.rows_at_once,
            spherical, problems.run,
        )  # fmt: skip


def _check_numbers(max_senses: int | str | Tensor, budget: int | None, method: Method, num_problems: int) -> None:
    if isinstance(max_senses, Tensor):
        given = f"{max_senses.dtype} {tuple(max_senses.shape)}"
        if max_senses.dtype != torch.int64 or max_senses.shape != (num_problems,) or bool((max_senses < 1).any()):
            raise ValueError(
                f"max_senses must be int64 ({num_problems},), at least 1, a number or a rule; got {given}."
            )
    if budget is None:
        return
    if method not in ("kmeans", "spherical_kmeans"):
        raise ValueError(
            f"A budget is for kmeans and spherical_kmeans; {method} finds the number of senses itself. Leave budget out."
        )
    if isinstance(budget, bool) or not isinstance(budget, int) or budget < 1:
        raise ValueError(f"budget must be a whole number of clusters, at least 1; got {budget!r}.")


def number_of_senses(occurrences: Tensor, rule: int | str) -> Tensor:
    """Say how many senses each token may have at most.

    Args:
        occurrences: int64 of any shape, how often each token occurs.
        rule: a number (20 or "20"); "n/10" for one sense per 10 occurrences; "sqrt" for their square root, both rounded
            down; either with a cap, "n/10,100" or "sqrt,50".

    Returns:
        int64 of the same shape; at least 1 where a token occurs, 0 where it does not.

    Raises:
        ValueError: the rule is none of these, or `occurrences` is not int64 and at least 0.

    Example:
        >>> number_of_senses(torch.tensor([0, 7, 80, 5000]), "n/10,100").tolist()
        [0, 1, 8, 100]
    """
    if occurrences.dtype != torch.int64 or bool((occurrences < 0).any()):
        low = int(occurrences.min()) if occurrences.numel() else 0
        raise ValueError(f"occurrences must be int64 counts, at least 0; got {occurrences.dtype}, the smallest {low}.")
    pattern = r"(?P<fixed>\d+)|(?:n/(?P<divisor>\d+)|sqrt)(?:,(?P<cap>\d+))?"
    match = re.fullmatch(pattern, str(rule).replace(" ", ""), flags=re.ASCII)
    if match is None or isinstance(rule, bool) or any(part is not None and int(part) < 1 for part in match.groups()):
        raise ValueError(
            'The number of senses must be a whole number from 1, "n/10", "sqrt", or one of the last two with a cap, '
            f'"n/10,100" or "sqrt,50"; got {rule!r}.'
        )
    if match["fixed"]:
        senses = torch.full_like(occurrences, int(match["fixed"]))
    elif match["divisor"]:
        senses = occurrences // int(match["divisor"])
    else:
        senses = occurrences.double().sqrt().long()
    senses = senses.clamp(1, int(match["cap"]) if match["cap"] else None)
    return senses.masked_fill(occurrences == 0, 0)


def _summarise(
    take: Callable[[Tensor], Tensor], kept: Tensor, distinct: Tensor, problem: Tensor, mass: Tensor, labels: Tensor,
    members: Tensor, starts: Tensor, rows_at_once: int, spherical: bool, run: Runner,
) -> Clusters:  # fmt: skip
    """Number the clusters of all problems, and compute their centres, weights and spread."""
    n, position = len(kept), torch.arange(len(kept), device=kept.device)
    width = 1 + max(int(labels.max()), int(members.max())) if n else 1
    names, label = torch.unique(problem * width + labels, return_inverse=True)
    weights = torch.zeros_like(names).index_add_(0, label, mass)
    first = torch.full_like(names, n).scatter_reduce_(0, label, position, "amin")
    order = first.argsort()
    order = order[weights[order].argsort(descending=True, stable=True)]
    order = order[(names[order] // width).argsort(stable=True)]
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    label, weights, first, owner = rank[label], weights[order], first[order], names[order] // width
    offsets = torch.searchsorted(owner, torch.arange(len(starts) + 1, device=kept.device))
    name = problem * width + members
    at = torch.searchsorted(names, name).clamp_max(max(0, len(names) - 1))
    # A cluster that lost its last point to a nearer centre is gone; what was averaged into it counts nowhere.
    member, share = rank[at], mass * (names[at] == name)

    dim = take(kept[:1]).shape[1]
    centers = torch.empty(len(names), dim, device=kept.device)
    spread = torch.empty(len(names), device=kept.device)
    held = torch.zeros_like(weights).index_add_(0, member, share).float()

    def average(piece: list[int]) -> None:
        for low, high in pairwise(piece):
            rows = slice(int(starts[low]), int(starts[high]) if high < len(starts) else n)
            mine = slice(int(offsets[low]), int(offsets[high]))
            points, anchors = take(kept[rows]), take(kept[first[mine]])
            # Summing differences to one of the points keeps float32 accurate, and a lone or repeated vector exactly itself.
            own = member[rows] - mine.start
            moves = anchors.index_select(0, own)
            torch.sub(points, moves, out=moves).mul_(share[rows, None])
            center = anchors + torch.zeros_like(anchors).index_add_(0, own, moves) / held[mine, None]
            centers[mine] = center = unit_vectors(center) if spherical else center
            own = label[rows] - mine.start
            torch.index_select(center, 0, own, out=moves)
            away = torch.sub(points, moves, out=moves).square_().sum(1) * mass[rows]
            spread[mine] = torch.zeros_like(held[mine]).index_add_(0, own, away) / weights[mine]

    cuts = [*problem[::rows_at_once].unique().tolist(), len(starts)]
    run(average, [cuts[at : at + PASSES + 1] for at in range(0, len(cuts) - 1, PASSES)])
    return Clusters(centers, offsets, label[distinct], weights, spread)
