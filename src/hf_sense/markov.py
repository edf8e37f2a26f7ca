"""Markov clustering over many small graphs at once (van Dongen 2000), and the two graphs it is run on.

It neither groups problems nor makes centres; `hf_sense.clustering` does.
"""

import torch
from torch import Tensor

from hf_sense.kmeans import unit_vectors

_PRUNE = 1e-3  # as markov_clustering.run_mcl, which the reference calls; a column's largest stays, or it would be empty


def markov_clusters(graph: Tensor, *, inflation: float = 1.65, max_iterations: int = 100) -> Tensor:
    """Cluster one weighted graph by Markov clustering (van Dongen, 2000) with expansion 2.

    Each column of the graph is scaled to sum to 1; then, until nothing changes, the matrix is squared, raised entry by
    entry to the power `inflation` and scaled again, and entries under 0.001 other than a column's largest are cut.
    Attractors that then feed each other are one cluster, and a point belongs to the cluster of its strongest attractor.

    Args:
        graph: `(n, n)` float32, symmetric, at least 0, with self loops (a positive diagonal).
        inflation: over 1; larger gives smaller clusters.
        max_iterations: most rounds.

    Returns:
        `(n,)` int64 labels 0, 1, ... in the order of the clusters' first points.

    Raises:
        ValueError: the graph is not square, has negative entries or an empty diagonal.
    """
    square = graph.dim() == 2 and graph.shape[0] == graph.shape[1]
    if not square or not bool((graph >= 0).all()) or not bool((graph.diagonal() > 0).all()):
        raise ValueError(
            "graph must be (n, n) with no negative entry and a positive diagonal, or a point has nowhere to flow to; "
            f"got shape {tuple(graph.shape)}, smallest entry {min(graph.flatten().tolist(), default=0):g}."
        )
    if not len(graph):
        return torch.zeros(0, dtype=torch.int64, device=graph.device)
    return torch.unique(markov_labels(graph.float()[None], inflation, max_iterations)[0], return_inverse=True)[1]


def neighbor_graph(points: Tensor, valid: Tensor, neighbors: int) -> Tensor:
    """Join each of the `(batch, n, dim)` points with its most cosine-similar ones, either way; below zero is none."""
    unit = unit_vectors(points) * valid[..., None]
    similarity = torch.bmm(unit, unit.transpose(1, 2)).clamp_min_(0)
    similarity.diagonal(dim1=1, dim2=2).zero_()
    top = similarity.topk(min(neighbors, similarity.shape[1]), dim=2)
    graph = torch.zeros_like(similarity).scatter_(2, top.indices, top.values)
    graph = graph.maximum(graph.transpose(1, 2))
    graph.diagonal(dim1=1, dim2=2).fill_(1)
    return graph


def full_graph(points: Tensor, valid: Tensor) -> Tensor:
    """Join all pairs of the `(batch, n, dim)` points, as the reference: `1 / (distance + 0.01)`, self loops of 1."""
    graph = (torch.cdist(points, points) + 0.01).reciprocal() * (valid[:, :, None] & valid[:, None])
    graph.diagonal(dim1=1, dim2=2).fill_(1)
    return graph


def markov_labels(graph: Tensor, inflation: float, max_iterations: int = 100) -> Tensor:
    """Markov-cluster `(batch, n, n)` graphs; a point's label is the lowest position in its cluster."""
    flow = graph / graph.sum(1, keepdim=True)
    limit = flow.clone()
    rows = torch.arange(len(graph), device=graph.device)
    for _ in range(max_iterations):
        new = _markov_round(flow, inflation)
        moving = ((new - flow).abs_() > 1e-6 + 1e-5 * flow).any(2).any(1)
        limit[rows] = new
        rows, flow = rows[moving], new[moving]
        if not len(rows):
            break
    n = graph.shape[1]
    position = torch.arange(n, device=graph.device)
    attractor = limit.diagonal(dim1=1, dim2=2) > 0
    joined = (limit > 0) & attractor[:, :, None] & attractor[:, None]
    joined.scatter_(1, limit.argmax(1)[:, None], True)
    joined = joined | joined.transpose(1, 2)
    labels = position.expand(len(graph), n)
    while True:
        lower = labels[:, :, None].where(joined, n).amin(1).minimum(labels)
        if torch.equal(lower, labels):
            return labels
        labels = lower


def _markov_round(flow: Tensor, inflation: float) -> Tensor:
    """Expand, inflate and prune `(batch, n, n)` flows, whose columns sum to 1."""
    flow = torch.bmm(flow, flow).pow_(inflation)
    flow /= flow.sum(1, keepdim=True)
    return flow.masked_fill_((flow < _PRUNE) & (flow < flow.amax(1, keepdim=True)), 0)
