"""Checks the clustering against scikit-learn, plain loops and graphs small enough to do by hand.

It does not measure speed or how good the senses are; those need real data.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

from hf_sense import clustering, duplicates
from hf_sense.clustering import Clusters, cluster, number_of_senses
from hf_sense.kmeans import _GRAM_POINTS, _uniform, kmeans
from hf_sense.markov import _markov_round, markov_clusters

METHODS = ("kmeans", "spherical_kmeans", "markov", "markov_full", "paper")


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers that only `seed` decides."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def offsets_of(*sizes: int) -> Tensor:
    """Offsets of problems with these sizes."""
    return torch.tensor([0, *sizes]).cumsum(0)


def blobs(*sizes: int, dim: int = 6, groups: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Points around `groups` well separated places in each problem."""
    total = sum(sizes)
    places = 20 * draw(groups, dim, seed=seed + 1)
    return places[torch.arange(total) % groups] + draw(total, dim, seed=seed), offsets_of(*sizes)


def means(points: Tensor, weights: Tensor, members: Tensor, k: int) -> Tensor:
    """Weighted mean of each cluster, by a loop."""
    rows = [(points[members == j] * weights[members == j, None]).sum(0) / weights[members == j].sum() for j in range(k)]
    return torch.stack(rows)


def inertia(found: Clusters) -> float:
    """Weighted squared distance to the own centre, summed over all points."""
    return float((found.spread.double() * found.weights).sum())


def same_bytes(a: Clusters, b: Clusters) -> bool:
    """Equal to the last bit, in every field."""
    return all(
        getattr(a, name).numpy().tobytes() == getattr(b, name).numpy().tobytes()
        for name in ("centers", "offsets", "labels", "weights", "spread")
    )


# k-means


@pytest.mark.parametrize("method", ["kmeans", "spherical_kmeans"])
def test_restarts_keep_the_best_start_of_each_problem(method):
    """More starts give a worse clustering, or one problem's best start is taken for all."""
    points, offsets = draw(1500, 5), offsets_of(300, 250, 350, 280, 320)
    options = {"method": method, "max_senses": 12, "tolerance": 0.0, "max_iterations": 100}

    def losses(found: Clusters) -> list[float]:
        return [float((found.spread * found.weights)[a:b].sum()) for a, b in zip(found.offsets, found.offsets[1:])]

    single = [losses(cluster(points, offsets, seed=seed, **options)) for seed in range(3, 7)]
    best = cluster(points, offsets, seed=3, restarts=4, **options)
    assert len({column.index(min(column)) for column in zip(*single)}) > 1
    assert losses(best) == pytest.approx([min(column) for column in zip(*single)], rel=1e-5)


@pytest.mark.parametrize("n", [40, _GRAM_POINTS + 44])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("iterations", [1, 3, 200])
def test_kmeans_equals_scikit_learn_from_the_same_start(n: int, weighted: bool, iterations: int) -> None:
    """A slip in the distances, the weights, the update or the stopping rule, on either of the two arithmetic paths."""
    points = draw(n, 12, seed=n) + 3
    weights = (
        torch.randint(1, 6, (n,), generator=torch.Generator().manual_seed(1)) if weighted else torch.ones(n).long()
    )
    start = points[:7].clone()
    labels, members, _ = kmeans(
        points[None], weights[None], 7, start=start[None], max_iterations=iterations, tolerance=0
    )
    reference = KMeans(7, init=start.numpy(), n_init=1, algorithm="lloyd", max_iter=iterations, tol=0)
    reference.fit(points.numpy(), sample_weight=weights.numpy())
    centers = means(points, weights, members[0], 7)
    assert labels[0].tolist() == reference.labels_.tolist()
    np.testing.assert_allclose(centers, reference.cluster_centers_, atol=1e-5)
    ours = float(((points - centers[labels[0]]).square().sum(1) * weights).sum())
    assert ours == pytest.approx(reference.inertia_, rel=1e-5)


def test_tolerance_stops_where_scikit_learn_stops() -> None:
    """A tolerance not scaled by the variance would stop far too early on small vectors and never on large ones."""
    points = 100 * draw(400, 2)
    start = points[:9].clone()
    for tolerance in (0.05, 0.5):
        reference = KMeans(9, init=start.numpy(), n_init=1, algorithm="lloyd", max_iter=300, tol=tolerance)
        reference.fit(points.numpy())
        _, settled, _ = kmeans(points[None], torch.ones(1, 400), 9, start=start[None], max_iterations=300, tolerance=0)
        loose = kmeans(points[None], torch.ones(1, 400), 9, start=start[None], max_iterations=300, tolerance=tolerance)
        labels, members, _ = loose
        assert not torch.equal(members, settled)
        assert labels[0].tolist() == reference.labels_.tolist()
        np.testing.assert_allclose(means(points, torch.ones(400), members[0], 9), reference.cluster_centers_, atol=1e-3)


def test_a_shared_offset_costs_no_accuracy() -> None:
    """Contextual embeddings share a large mean; float32 products around zero would drown the differences."""
    points = draw(60, 5)
    near, far = (
        kmeans((points + shift)[None], torch.ones(1, 60), 5, start=(points[:5] + shift)[None]) for shift in (0, 512)
    )
    assert torch.equal(near.labels, far.labels)


def test_weights_are_multiplicities() -> None:
    """A text sampled once with weight 3 must count as three texts, in the draws of k-means++ too."""
    points, weights = draw(50, 8), torch.randint(1, 4, (50,), generator=torch.Generator().manual_seed(3))
    once = cluster(points, offsets_of(50), max_senses=6, weights=weights)
    spelt_out = cluster(points.repeat_interleave(weights, dim=0), offsets_of(int(weights.sum())), max_senses=6)
    assert once.labels.repeat_interleave(weights).tolist() == spelt_out.labels.tolist()
    assert once.weights.tolist() == spelt_out.weights.tolist()
    torch.testing.assert_close(once.centers, spelt_out.centers)
    torch.testing.assert_close(once.spread, spelt_out.spread)


def test_inertia_is_on_a_par_with_scikit_learn() -> None:
    """A k-means++ that draws badly gives valid but poor clusters, which no equality from a given start shows."""
    points, offsets = draw(1500, 16), offsets_of(*[50] * 30)
    theirs = sum(KMeans(10, n_init=1, random_state=0).fit(each.numpy()).inertia_ for each in points.split(50))
    assert inertia(cluster(points, offsets, max_senses=10)) < 1.02 * theirs


def test_plus_plus_finds_every_distant_group() -> None:
    """Candidates drawn without regard to the distance would leave some of twenty far groups without a centre."""
    points, offsets = blobs(*[100] * 10, groups=20, dim=10)
    found = cluster(points, offsets, max_senses=20)
    assert found.offsets.diff().tolist() == [20] * 10
    assert set(found.weights.tolist()) == {5}


def test_an_empty_cluster_takes_the_farthest_point() -> None:
    """A start with a centre that nobody is near must still give k clusters, the same as scikit-learn's."""
    points = torch.tensor([[0.0], [1.0], [2.0], [10.0], [11.0], [30.0]])
    start = torch.tensor([[1.0], [11.0], [500.0]])
    labels, _, _ = kmeans(points[None], torch.ones(1, 6), 3, start=start[None])
    reference = KMeans(3, init=start.numpy(), n_init=1).fit(points.numpy())
    assert labels[0].tolist() == [0, 0, 0, 1, 1, 2] == reference.labels_.tolist()


def test_refilling_never_robs_a_lone_point() -> None:
    """The farthest point may be alone in its cluster; taking it there only moves the hole."""
    points = torch.tensor([[0.0], [1.0], [3.0], [100.0]])
    labels, _, _ = kmeans(points[None], torch.ones(1, 4), 3, start=torch.tensor([[[1.0], [900.0], [60.0]]]))
    assert labels[0].tolist() == [0, 0, 1, 2]


def test_more_clusters_than_points_ends() -> None:
    """With more clusters than points no refill is possible; a loop that insists would never return."""
    labels, _, _ = kmeans(draw(1, 3, 2), torch.ones(1, 3), 5)
    assert len(set(labels[0].tolist())) == 3


@pytest.mark.parametrize("scale", [0.01, 1.0])
def test_spherical_equals_a_plain_loop(scale: float) -> None:
    """Distances or means taken on the raw vectors instead of on their directions."""
    points = torch.nn.functional.normalize(draw(60, 5) + scale, dim=1)
    weights = torch.randint(1, 4, (60,), generator=torch.Generator().manual_seed(2)).float()
    centers = points[:4].clone()
    for _ in range(100):
        expected = (points @ centers.T).argmax(1)
        centers = torch.nn.functional.normalize(means(points, weights, expected, 4), dim=1)
    start = points[None, :4]
    labels, _, _ = kmeans(points[None], weights[None], 4, start=start, spherical=True, max_iterations=100, tolerance=0)
    assert torch.equal(labels[0], expected)


def test_spherical_reports_unit_centres_and_ignores_length() -> None:
    """A sense of `spherical_kmeans` is a direction: a vector's length must not sway it, nor a zero vector give NaN."""
    points, offsets = blobs(30, dim=4)
    points[7] = 0
    short = cluster(points, offsets, method="spherical_kmeans", max_senses=4)
    long = cluster(points * torch.linspace(0.1, 1e30, 30)[:, None], offsets, method="spherical_kmeans", max_senses=4)
    assert short.labels.tolist() == long.labels.tolist()
    assert short.centers.isfinite().all()
    assert short.spread.isfinite().all()
    alone = short.labels[7]
    norms = short.centers.norm(dim=1)
    torch.testing.assert_close(norms[torch.arange(4) != alone], torch.ones(3))
    units = torch.nn.functional.normalize(points, dim=1)
    squared = (units - short.centers[short.labels]).square().sum(1)
    for sense in range(4):
        assert float(short.spread[sense]) == pytest.approx(float(squared[short.labels == sense].mean()), abs=1e-5)


# all methods


@pytest.mark.parametrize("method", METHODS)
def test_batched_equals_alone(method: str) -> None:
    """Padding or a neighbour in the batch that leaks into a problem's senses or into its random draws."""
    sizes = (31, 0, 1, 64, 33, 2, 90, 31, 300)
    vectors, ids = draw(sum(sizes), 8), torch.tensor([5, 9, 2, 70_000, 4, 1, 8, 6, 3])
    vectors = vectors + draw(552 // 4, 8, seed=4).repeat_interleave(4, dim=0) * 2
    offsets = offsets_of(*sizes)
    together = cluster(vectors, offsets, method=method, max_senses=7, problem_ids=ids)
    assert together.offsets[-1] == len(together.centers)
    for i in range(len(sizes)):
        mine, senses = slice(offsets[i], offsets[i + 1]), slice(together.offsets[i], together.offsets[i + 1])
        alone = cluster(vectors[mine], offsets_of(sizes[i]), method=method, max_senses=7, problem_ids=ids[i : i + 1])
        assert (together.labels[mine] - together.offsets[i]).tolist() == alone.labels.tolist()
        torch.testing.assert_close(together.centers[senses], alone.centers, atol=1e-5, rtol=0)
        assert together.weights[senses].tolist() == alone.weights.tolist()


def test_batched_equals_alone_with_different_numbers_of_clusters() -> None:
    """Problems of one padded width but another k: the larger k must not lend the smaller its slots or its draws."""
    sizes = (63, 64, 58, 60, 64, 63) * 4
    vectors, offsets = draw(sum(sizes), 3), offsets_of(*sizes)
    together = cluster(vectors, offsets, max_senses="n/8")
    for i, size in enumerate(sizes):
        mine = slice(offsets[i], offsets[i + 1])
        alone = cluster(vectors[mine], offsets_of(size), max_senses="n/8", problem_ids=torch.tensor([i]))
        assert (together.labels[mine] - together.offsets[i]).tolist() == alone.labels.tolist()


@pytest.mark.parametrize("method", METHODS)
def test_the_memory_bound_changes_nothing(method: str) -> None:
    """A small `max_elements` cuts everything into many batches; a row lost at a cut changes the senses."""
    vectors, offsets = draw(400, 8), offsets_of(40, 41, 0, 120, 99, 1, 99)
    wide, narrow = (cluster(vectors, offsets, method=method, max_senses=5, max_elements=m) for m in (2**22, 100))
    assert wide.labels.tolist() == narrow.labels.tolist()
    torch.testing.assert_close(wide.centers, narrow.centers, atol=1e-5, rtol=0)
    torch.testing.assert_close(wide.spread, narrow.spread)


@pytest.mark.parametrize("method", METHODS)
def test_the_same_inputs_give_the_same_bytes(method: str) -> None:
    """A draw from a global generator, or an unstable order, would make two builds differ."""
    vectors, offsets = draw(500, 8), offsets_of(200, 100, 200)
    first = cluster(vectors, offsets, method=method, max_senses=7)
    torch.manual_seed(99)
    assert same_bytes(first, cluster(vectors, offsets, method=method, max_senses=7))


def test_seeds_and_problem_ids_decide_the_draws() -> None:
    """A seed that is ignored, or one draw shared by all tokens."""
    vectors, offsets = draw(200, 8).repeat(3, 1), offsets_of(200, 200, 200)
    found = cluster(vectors, offsets, max_senses=9)
    assert same_bytes(found, cluster(vectors, offsets, max_senses=9, seed=-(2**70)))  # 0 modulo 2**64
    other = cluster(vectors, offsets, max_senses=9, seed=1)
    assert found.labels.tolist() != other.labels.tolist()
    first, second, _ = (found.labels.view(3, 200) - found.offsets[:3, None]).tolist()
    assert first != second
    shared = cluster(vectors, offsets, max_senses=9, problem_ids=torch.tensor([4, 4, 5]))
    first, second, third = (shared.labels.view(3, 200) - shared.offsets[:3, None]).tolist()
    assert first == second != third


def test_draws_are_uniform_and_independent() -> None:
    """A weak hash would give neighbouring token ids or steps related draws."""
    draws = _uniform(7, torch.arange(2000), 4, 5).transpose(0, 1)
    assert ((draws >= 0) & (draws < 1)).all()
    assert float(draws.mean()) == pytest.approx(0.5, abs=0.01)
    assert float(draws.var()) == pytest.approx(1 / 12, abs=0.003)
    assert len(draws.unique()) > 0.99 * draws.numel()
    series = draws.permute(1, 0, 2).reshape(2000, 20)
    across = torch.corrcoef(torch.cat([series.T, series.roll(1, 0).T]))
    assert float((across - torch.eye(40)).abs().max()) < 0.12


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 30), max_size=6),
    spread=st.integers(1, 4),
    method=st.sampled_from(METHODS),
    limit=st.integers(1, 6),
    seed=st.integers(0, 2**63 - 1),
)
def test_the_table_is_always_consistent(sizes: list[int], spread: int, method: str, limit: int, seed: int) -> None:
    """Lost points, empty senses, a wrong order, NaN: on tied and repeated points too, which integers give in plenty."""
    total = sum(sizes)
    generator = torch.Generator().manual_seed(seed % 1000)
    vectors = torch.randint(-spread, spread + 1, (total, 2), generator=generator).double()
    weights = torch.randint(1, 4, (total,), generator=generator)
    found = cluster(vectors, offsets_of(*sizes), method=method, max_senses=limit, weights=weights, seed=seed)
    assert found.centers.dtype == found.spread.dtype == torch.float32
    assert found.centers.isfinite().all()
    assert (found.spread.isfinite() & (found.spread >= 0)).all()
    assert found.weights.tolist() == torch.zeros_like(found.weights).index_add_(0, found.labels, weights).tolist()
    assert (found.weights >= 1).all()
    begin = 0
    for i, size in enumerate(sizes):
        low, high = found.offsets[i : i + 2].tolist()
        assert min(size, 1) <= high - low <= limit
        labels = found.labels[begin : begin + size].tolist()
        assert all(low <= label < high for label in labels)
        keys = [(-int(found.weights[j]), labels.index(j)) for j in range(low, high)]
        assert keys == sorted(keys)
        begin += size
    assert int(found.offsets[-1]) == len(found.centers)


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 400), k=st.integers(1, 12), iterations=st.integers(1, 50), seed=st.integers(0, 1000))
def test_labels_are_the_nearest_centres(n: int, k: int, iterations: int, seed: int) -> None:
    """Labels of one step reported with the centres of another, as when Lloyd runs out of iterations."""
    vectors = draw(n, 4, seed=seed).double()
    found = cluster(vectors, offsets_of(n), max_senses=k, max_iterations=iterations, seed=seed)
    squared = torch.cdist(vectors, found.centers.double()).square()
    own = squared.gather(1, found.labels[:, None])[:, 0]
    assert (own <= squared.amin(1) + 1e-5).all()
    spread = torch.zeros(len(found.centers)).double().index_add_(0, found.labels, own) / found.weights
    torch.testing.assert_close(found.spread.double(), spread, atol=1e-5, rtol=1e-4)


def test_few_points_stay_exactly_themselves() -> None:
    """A rare token's vector comes back unchanged, repeats as one, minus zero as zero, by weight."""
    vectors = torch.tensor([[0.1, 0.0], [0.7, 0.3], [0.1, -0.0], [0.3, 0.3], [0.7, 0.3], [0.7, 0.3]])
    found = cluster(vectors, offsets_of(6), max_senses=3, weights=torch.tensor([1, 1, 1, 7, 1, 1]))
    assert torch.equal(found.centers, torch.tensor([[0.3, 0.3], [0.7, 0.3], [0.1, 0.0]]))
    assert found.labels.tolist() == [2, 1, 2, 0, 1, 1]
    assert found.weights.tolist() == [7, 3, 2]
    assert found.spread.tolist() == [0, 0, 0]
    assert cluster(vectors, offsets_of(6), max_senses=9).weights.tolist() == [3, 2, 1]
    assert cluster(torch.ones(5, 3), offsets_of(1, 1, 3)).weights.tolist() == [1, 1, 3]


def test_rows_with_the_same_hash_are_not_merged_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hash is no proof: two different vectors that share one must stay two senses."""
    monkeypatch.setattr(duplicates, "GOLDEN", 0)  # every row hashes to 0
    vectors = draw(6, 3)[[0, 1, 0, 2, 3, 0, 4, 5]]
    found = cluster(vectors, offsets_of(8), max_senses=9)
    assert torch.equal(found.centers[found.labels], vectors)
    assert found.weights[0] == 3


def test_a_lost_cluster_leaves_no_trace() -> None:
    """A centre whose points all went to nearer ones is dropped; its points must not enter the mean of another."""
    vectors = torch.tensor([[0.0], [2.0], [7.0], [50.0]])
    order, none = torch.arange(4), torch.zeros(4).long()
    labels, members = torch.tensor([0, 0, 0, 2]), torch.tensor([0, 0, 1, 2])
    found = clustering._summarise(
        lambda rows: vectors[rows],
        order,
        order,
        none,
        none + 1,
        labels,
        members,
        torch.tensor([0]),
        9,
        False,
        lambda work, pieces: [work(piece) for piece in pieces],
    )
    assert found.centers.tolist() == [[1.0], [50.0]]
    assert found.labels.tolist() == [0, 0, 0, 1]


@pytest.mark.parametrize("dim", [1, 2, 7])
def test_many_duplicates_are_one_point(dim: int) -> None:
    """Round numbers are mostly zero bits, which a careless hash confuses; equal rows of two problems stay two."""
    vectors = torch.randint(0, 3, (3000, dim), generator=torch.Generator().manual_seed(dim)).half()
    found = cluster(vectors, offsets_of(1000, 0, 2000), max_senses=3000)
    distinct = [len(part.unique(dim=0)) for part in (vectors[:1000], vectors[1000:])]
    assert found.offsets.diff().tolist() == [distinct[0], 0, distinct[1]]
    assert torch.equal(found.centers[found.labels], vectors.float())


@pytest.mark.parametrize("method", METHODS)
def test_no_problems_and_empty_problems(method: str) -> None:
    """A vocabulary of which nothing occurs is an empty dictionary, not a crash."""
    for sizes in ((), (0,), (0, 0, 0)):
        found = cluster(torch.zeros(0, 4), offsets_of(*sizes), method=method)
        assert found.centers.shape == (0, 4)
        assert found.offsets.tolist() == [0] * (len(sizes) + 1)
        assert len(found.labels) == len(found.weights) == len(found.spread) == 0


@pytest.mark.parametrize("method", METHODS)
def test_rare_tokens_keep_their_vectors(method: str) -> None:
    """`min_occurrences` counts occurrences, not distinct points, and beats `max_senses`."""
    vectors, offsets = draw(18, 3), offsets_of(9, 9)
    weights = torch.ones(18, dtype=torch.int64)
    weights[9] = 2
    found = cluster(vectors, offsets, method=method, max_senses=2, min_occurrences=10, weights=weights)
    assert found.offsets.diff()[0] == 9
    assert found.offsets.diff()[1] <= 2
    expected = torch.nn.functional.normalize(vectors, dim=1) if method == "spherical_kmeans" else vectors
    torch.testing.assert_close(found.centers[found.labels[:9]], expected[:9])


def test_a_rule_gives_each_token_its_own_number() -> None:
    """A batch that shares one k would give rare tokens as many senses as frequent ones."""
    found = cluster(draw(500, 5), offsets_of(30, 31, 39, 400), max_senses="n/10,25")
    assert found.offsets.diff().tolist() == [3, 3, 3, 25]


# Markov clustering

# Two triangles, 0-1-2 and 3-4-5, with weight 1 inside, and one weak edge of 0.1 between 2 and 3.
TRIANGLES = torch.eye(6)
TRIANGLES[:3, :3] = TRIANGLES[3:, 3:] = 1
TRIANGLES[2, 3] = TRIANGLES[3, 2] = 0.1


def test_markov_parts_two_triangles() -> None:
    """By hand: a column keeps over 96 % of its flow in its own triangle, and inflation removes the rest."""
    assert markov_clusters(TRIANGLES, inflation=2.0).tolist() == [0, 0, 0, 1, 1, 1]
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    assert markov_clusters(TRIANGLES[order][:, order], inflation=2.0).tolist() == [0, 1, 0, 1, 1, 0]


def test_one_markov_round_by_hand() -> None:
    """Rows taken for columns, or the inflation left out, on a chain whose first round is written out here.

    Columns of the scaled chain 0-1-2 (self loops 1): (1/2, 1/2, 0), (1/3, 1/3, 1/3), (0, 1/2, 1/2).
    Squared: (5/12, 5/12, 2/12), (5/18, 8/18, 5/18), (2/12, 5/12, 5/12).
    Inflated by 2: (25, 25, 4)/54, (25, 64, 25)/114, (4, 25, 25)/54: point 1 attracts, and in the end holds all.
    """
    chain = torch.tensor([[1.0, 1, 0], [1, 1, 1], [0, 1, 1]])
    after = _markov_round(chain[None] / chain.sum(0), 2.0)[0]
    expected = torch.tensor([[25 / 54, 25 / 114, 4 / 54], [25 / 54, 64 / 114, 25 / 54], [4 / 54, 25 / 114, 25 / 54]])
    torch.testing.assert_close(after, expected)
    assert markov_clusters(chain, inflation=2.0).tolist() == [0, 0, 0]


def test_markov_leaves_what_is_apart_apart() -> None:
    """Unconnected points are never one sense, whatever the inflation."""
    graph = torch.block_diag(torch.ones(3, 3), torch.ones(1, 1), torch.ones(2, 2))
    assert markov_clusters(graph, inflation=1.1).tolist() == [0, 0, 0, 1, 2, 2]
    assert markov_clusters(torch.zeros(0, 0)).tolist() == []


def test_markov_equals_a_plain_loop() -> None:
    """Batching, pruning or dropping settled problems that changes the limit; the loop is the definition."""
    vectors, offsets = blobs(25, 60, 41, dim=5, groups=4)
    vectors = vectors / 8 + 3
    found = cluster(vectors, offsets, method="markov", max_senses=100, neighbors=6)
    for i in range(3):
        points = vectors[offsets[i] : offsets[i + 1]].double()
        unit = torch.nn.functional.normalize(points, dim=1)
        similar = (unit @ unit.T).clamp_min(0).fill_diagonal_(-1)
        graph = torch.zeros_like(similar)
        for row in range(len(points)):
            for column in similar[row].argsort(descending=True)[:6].tolist():
                graph[row, column] = graph[column, row] = similar[row, column]
        flow = graph.fill_diagonal_(1) / graph.sum(0)
        for _ in range(100):
            flow = (flow @ flow) ** 1.65
            flow = flow / flow.sum(0)
            flow[(flow < 1e-3) & (flow < flow.amax(0))] = 0
        labels = (found.labels[offsets[i] : offsets[i + 1]] - found.offsets[i]).tolist()
        pairs = {(labels[column], int(flow[:, column].argmax())) for column in range(len(points))}
        assert len(pairs) == len({sense for sense, _ in pairs}) == len({attractor for _, attractor in pairs}) > 1


def test_the_neighbour_graph_finds_groups_and_averages_them() -> None:
    """Negative similarity taken for closeness, or centres that are not the means of the members."""
    vectors = torch.cat([torch.eye(3).repeat_interleave(8, 0) + 0.05 * draw(24, 3), -torch.eye(3)[:1]])
    found = cluster(vectors, offsets_of(25), method="markov", neighbors=4)
    assert found.labels.tolist() == [0] * 8 + [1] * 8 + [2] * 8 + [3]
    for sense in range(4):
        torch.testing.assert_close(found.centers[sense], vectors[found.labels == sense].mean(0))


def test_the_neighbour_graph_by_hand() -> None:
    """A join that goes one way only, a negative similarity, or a self loop of another weight."""
    points = torch.tensor([[[1.0, 0], [4, 3], [0, 2], [-1, 0]]])
    graph = clustering.neighbor_graph(points, torch.ones(1, 4).bool(), 1)[0]
    expected = torch.tensor([[1, 0.8, 0, 0], [0.8, 1, 0.6, 0], [0, 0.6, 1, 0], [0, 0, 0, 1]])
    torch.testing.assert_close(graph, expected)


def test_the_full_graph_depends_on_scale() -> None:
    """The reference's weight 1 / (distance + 0.01): one sense for close points, one a point for far ones."""
    vectors = draw(12, 4)
    senses = [len(cluster(vectors * scale, offsets_of(12), method="markov_full").centers) for scale in (0.01, 100)]
    assert senses == [1, 12]
    graph = clustering.full_graph(torch.tensor([[[0.0], [2.0], [9.0]]]), torch.tensor([[True, True, False]]))
    torch.testing.assert_close(graph[0], torch.tensor([[1, 1 / 2.01, 0], [1 / 2.01, 1, 0], [0, 0, 1]]))


@pytest.mark.parametrize("method", ["markov", "markov_full"])
def test_max_senses_caps_markov(method: str) -> None:
    """A token that falls into hundreds of Markov clusters would blow the dictionary up."""
    vectors, offsets = 100 * draw(80, 4), offsets_of(60, 20)
    free = cluster(vectors, offsets, method=method, max_senses=1000, inflation=4.0, neighbors=3)
    assert (free.offsets.diff() > 4).all()
    exact = cluster(
        vectors, offsets, method=method, max_senses=int(free.offsets.diff().max()), inflation=4.0, neighbors=3
    )
    assert same_bytes(exact, free)
    capped = cluster(vectors, offsets, method=method, max_senses=4, inflation=4.0, neighbors=3)
    assert same_bytes(capped, cluster(vectors, offsets, method="kmeans", max_senses=4))


def test_the_paper_takes_a_share_of_the_markov_clusters() -> None:
    """The share, the floor of five and the cap, each of which can be lost without any other test noticing."""
    vectors, offsets = 100 * draw(60, 4), offsets_of(60)  # far apart: Markov finds 60 clusters
    number = {
        (share, most): len(cluster(vectors, offsets, method="paper", markov_share=share, max_senses=most).centers)
        for share, most in ((0.5, 100), (0.25, 100), (0.01, 100), (0.5, 20), (0.5, 3))
    }
    assert number == {(0.5, 100): 30, (0.25, 100): 15, (0.01, 100): 5, (0.5, 20): 20, (0.5, 3): 3}
    expected = cluster(vectors, offsets, method="kmeans", max_senses=15)
    assert same_bytes(expected, cluster(vectors, offsets, method="paper", markov_share=0.25, max_senses=100))


# what the caller may get wrong


def test_rules_for_the_number_of_senses() -> None:
    """Off by one at a boundary, a cap not applied, or senses for a token that never occurs."""
    occurrences = torch.tensor([0, 1, 9, 10, 25, 400, 999_999])
    assert number_of_senses(occurrences, 20).tolist() == [0, 20, 20, 20, 20, 20, 20]
    assert number_of_senses(occurrences, "20").tolist() == [0, 20, 20, 20, 20, 20, 20]
    assert number_of_senses(occurrences, "n/10").tolist() == [0, 1, 1, 1, 2, 40, 99_999]
    assert number_of_senses(occurrences, "n/10, 30").tolist() == [0, 1, 1, 1, 2, 30, 30]
    assert number_of_senses(occurrences, "sqrt").tolist() == [0, 1, 3, 3, 5, 20, 999]
    assert number_of_senses(occurrences, "sqrt,4").tolist() == [0, 1, 3, 3, 4, 4, 4]


@pytest.mark.parametrize("rule", [0, -3, True, 2.5, None, "", "n/0", "n", "log", "sqrt,", "sqrt,0", "20,5", "n/10,x"])
def test_a_bad_rule_says_what_is_accepted(rule: object) -> None:
    """A typing slip in a command line must not silently give one sense to every token."""
    with pytest.raises(ValueError, match=r'"n/10", "sqrt".*got'):
        number_of_senses(torch.tensor([3]), rule)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("method", ["kmeans", "spherical_kmeans"])
def test_bad_numbers_name_the_rows_and_the_problem(value: float, method: str) -> None:
    """One NaN from a float16 teacher would spread to all senses of the token without a word."""
    vectors = draw(9, 3)
    vectors[5, 1] = vectors[7, 0] = value
    with pytest.raises(ValueError, match=r"2 of 9 rows .* problem 2"):
        cluster(vectors, offsets_of(4, 0, 3, 2), method=method)


def test_numbers_past_float32_are_refused() -> None:
    """A finite float64 that becomes infinite in float32."""
    with pytest.raises(ValueError, match="1 of 2 rows"):
        cluster(torch.tensor([[1.0], [1e200]], dtype=torch.float64), offsets_of(2))


GOOD = {"vectors": torch.zeros(3, 2), "offsets": torch.tensor([0, 1, 3])}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "dbscan"}, "kmeans, spherical_kmeans, markov, markov_full, paper; got 'dbscan'"),
        ({"vectors": torch.zeros(3)}, r"\(n, dim\).*\(3,\)"),
        ({"vectors": torch.zeros(3, 0)}, r"\(n, dim\).*\(3, 0\)"),
        ({"vectors": torch.zeros(3, 2).long()}, "floating.*int64"),
        ({"offsets": torch.tensor([0, 1, 3]).int()}, "int64.*int32"),
        ({"offsets": torch.zeros(0).long()}, r"num_problems \+ 1"),
        ({"offsets": torch.tensor([0, 2, 1, 3])}, "problem 1 goes from 2 to 1"),
        ({"offsets": torch.tensor([0, 1, 2])}, "from 0 to the 3 rows.*got 0 to 2"),
        ({"offsets": torch.tensor([1, 3])}, "from 0 to the 3 rows.*got 1 to 3"),
        ({"weights": torch.ones(2).long()}, r"weights must be int64 \(3,\).*\(2,\)"),
        ({"weights": torch.ones(3)}, "weights must be int64.*float32"),
        ({"weights": torch.tensor([1, 0, 1])}, "at least 1.*got 0"),
        ({"problem_ids": torch.arange(3)}, r"problem_ids must be int64 \(2,\).*\(3,\)"),
        ({"inflation": 1.0}, "inflation over 1.*inflation=1.0"),
        ({"markov_share": 0.0}, "markov_share=0.0"),
        ({"tolerance": -1.0}, "tolerance=-1.0"),
        ({"max_iterations": 0}, "max_iterations=0"),
        ({"neighbors": 0}, "neighbors=0"),
        ({"max_elements": 0}, "max_elements=0"),
        ({"max_senses": 0}, "whole number.*got 0"),
    ],
)
def test_a_wrong_argument_says_what_was_expected_and_what_came(change: dict, message: str) -> None:
    """A shape or dtype slip that surfaces as an index error deep inside, or not at all."""
    with pytest.raises(ValueError, match=message):
        cluster(**{**GOOD, **change})


@pytest.mark.parametrize("graph", [torch.ones(2, 3), torch.tensor([[1.0, -1], [-1, 1]]), torch.zeros(2, 2)])
def test_a_graph_without_flow_is_refused(graph: Tensor) -> None:
    """A column that sums to nothing divides by zero."""
    with pytest.raises(ValueError, match="positive diagonal"):
        markov_clusters(graph)
