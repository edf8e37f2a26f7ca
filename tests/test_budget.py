"""Budgets: the shares against every possible one, the curves against k-means itself, builds of a given size."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import hf_sense.parts
from hf_sense import SenseDictionary, build_dictionary
from hf_sense.budget import senses_within, shared_senses
from hf_sense.cli import main
from hf_sense.clustering import cluster
from hf_sense.error_curves import error_curves
from hf_sense.kmeans import kmeans, kmeans_inertia
from hf_sense.ranks import Ranks
from hf_sense.sampled_vectors import SampledVectors
from hf_sense.sampling import OccurrenceSample
from hf_sense.shares import share_out
from hf_sense.teacher import Teacher
from hf_sense.unfinished import UnfinishedBuild


def best_of_all(levels, errors, budget):
    """The least summed error of all ways to stay within the budget, by trying each."""
    ways = itertools.product(*(range(len(row)) for row in levels))
    return min(
        sum(row[place] for row, place in zip(errors, way))
        for way in ways
        if sum(row[place] for row, place in zip(levels, way)) <= budget
    )


def summed(levels, errors, shares):
    """The summed error of shares that stand among the levels."""
    return sum(row[own.index(share)] for own, row, share in zip(levels, errors, shares))


def edges_by_a_loop(levels, errors):
    """The lower convex hull of one curve, corner by corner: (gain a sense, length) of each edge."""
    found, at = [], 0
    while True:
        steeper = [
            ((errors[at] - errors[to]) / (levels[to] - levels[at]), to)
            for to in range(len(levels))
            if levels[to] > levels[at] and errors[to] < errors[at]
        ]
        if not steeper:
            return found
        gain, to = max(steeper)
        found.append((gain, levels[to] - levels[at]))
        at = to


@st.composite
def convex_curves(draw):
    """Up to four tokens of up to six numbers of senses, whose gains never rise; and a budget."""
    width = draw(st.integers(1, 6))
    first = draw(st.lists(st.integers(0, 2), min_size=1, max_size=4))
    errors = []
    for _ in first:
        gains = sorted(draw(st.lists(st.integers(0, 9), min_size=width - 1, max_size=width - 1)), reverse=True)
        errors.append([float(sum(gains[place:])) for place in range(width)])
    levels = [list(range(low, low + width)) for low in first]
    return levels, errors, sum(first) + draw(st.integers(0, 4 * width))


@settings(max_examples=200, deadline=None)
@given(convex_curves())
def test_no_shares_of_convex_curves_are_better(case):
    """The next sense goes to the wrong token, or senses are left although they would help."""
    levels, errors, budget = case
    shares = share_out(torch.tensor(levels), torch.tensor(errors), budget).tolist()
    assert sum(shares) <= budget
    assert summed(levels, errors, shares) == best_of_all(levels, errors, budget)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 4).flatmap(
        lambda count: st.tuples(
            st.lists(st.lists(st.integers(0, 40), min_size=5, max_size=5), min_size=count, max_size=count),
            st.integers(0, 16),
        )
    )
)
def test_other_curves_are_shared_as_the_docstring_promises(case):
    """Of a curve that is not convex more is lost than one edge, or something is lost at a corner."""
    rows, extra = case
    errors = [[float(min(row[: place + 1])) for place in range(5)] for row in rows]
    levels = [[1, 2, 3, 4, 5]] * len(rows)
    budget = len(rows) + extra
    shares = share_out(torch.tensor(levels), torch.tensor(rows).double(), budget).tolist()
    assert sum(shares) <= budget
    assert all(1 <= share <= 5 for share in shares)
    ends, spent, open_edge = [budget], len(rows), 0.0
    edges = sorted((edge for row in errors for edge in edges_by_a_loop(levels[0], row)), reverse=True)
    for gain, length in edges:
        if spent < budget < spent + length:
            open_edge = gain * length
        spent += length
        ends.append(spent)
    best = best_of_all(levels, errors, budget)
    assert best <= summed(levels, errors, shares) <= best + open_edge + 1e-9
    for end in ends[1:]:  # equal gains may end elsewhere, but lose nothing there
        at_a_corner = share_out(torch.tensor(levels), torch.tensor(rows).double(), end).tolist()
        gains_here = [gain for gain, _ in edges]
        if len(set(gains_here)) == len(gains_here):
            assert summed(levels, errors, at_a_corner) == best_of_all(levels, errors, end)


def test_levels_may_leave_numbers_out():
    """An edge that the budget cuts gives its token too much, too little, or another token's senses."""
    levels = torch.tensor([[1, 4, 10], [1, 4, 4], [2, 2, 2]])
    errors = torch.tensor([[90.0, 30.0, 0.0], [50.0, 8.0, 8.0], [7.0, 7.0, 7.0]])
    # Falls a sense: 20 and 5 of the first token, 14 of the second, none of the third.
    for budget, expected in ((4, [1, 1, 2]), (6, [3, 1, 2]), (9, [4, 3, 2]), (12, [6, 4, 2]), (99, [10, 4, 2])):
        assert share_out(levels, errors, budget).tolist() == expected


def test_a_rise_counts_as_what_fewer_senses_reached():
    """A k-means that did worse with more senses makes a curve fall twice over the same stretch."""
    levels = torch.tensor([[1, 2, 3]])
    assert share_out(levels, torch.tensor([[5.0, 9.0, 9.0]]), 3).tolist() == [1]
    assert share_out(levels, torch.tensor([[5.0, 2.0, 9.0]]), 3).tolist() == [2]


@pytest.mark.parametrize(
    ("levels", "errors", "budget", "message"),
    [
        ([[1, 2]], [[2.0, 1.0, 0.0]], 2, "same shape"),
        ([[1.0, 2.0]], [[2.0, 1.0]], 2, "int64"),
        ([[1, 2]], [[2, 1]], 2, "floating and finite"),
        ([[1, 2]], [[float("nan"), 1.0]], 2, "floating and finite"),
        ([[2, 1]], [[2.0, 1.0]], 2, "rise along a row"),
        ([[1, 1, 2]], [[2.0, 2.0, 1.0]], 2, "then stay"),
        ([[-1, 2]], [[2.0, 1.0]], 2, "at least 0"),
        ([[1, 2], [1, 2]], [[2.0, 1.0], [2.0, 1.0]], 1, "need 2 senses before any"),
    ],
)
def test_shares_refuse_what_is_no_curve(levels, errors, budget, message):
    """A slip gives shares of something else."""
    with pytest.raises(ValueError, match=message):
        share_out(torch.tensor(levels), torch.tensor(errors), budget)


def problems(*sizes, dim=6, seed=0):
    """Normal points and their offsets."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(sizes), dim, generator=generator), torch.tensor([0, *sizes]).cumsum(0)


def by_problem(found):
    """The summed squared distance of each problem of a clustering."""
    owner = torch.repeat_interleave(torch.arange(len(found.offsets) - 1), found.offsets.diff())
    losses = found.spread.double() * found.weights
    return torch.zeros(len(found.offsets) - 1, dtype=torch.float64).index_add_(0, owner, losses)


@pytest.mark.parametrize("method", ["kmeans", "spherical_kmeans"])
def test_a_curve_is_what_k_means_reaches(method):
    """A curve of other clusters than those that are built shares senses out by numbers that are not theirs."""
    vectors, offsets = problems(30, 0, 1, 40, 300, 12)
    weights = torch.randint(1, 4, (len(vectors),), generator=torch.Generator().manual_seed(2))
    most = torch.tensor([13, 13, 13, 9, 13, 20])
    levels, errors = error_curves(vectors, offsets, max_senses=most, method=method, weights=weights)
    assert levels[0].tolist() == [1, 2, 3, 4, 6, 9, 12, 12] or levels[0].tolist() == [1, 2, 3, 4, 6, 9, 13]
    assert levels[1].unique().tolist() == [0]
    assert levels[2].unique().tolist() == [1]
    assert errors[5, -1] == 0  # each of the twelve points its own
    assert bool((errors.diff(dim=1) <= 0).all())
    for column in range(levels.shape[1]):
        wanted = levels[:, column].clamp_min(1)
        found = cluster(vectors, offsets, max_senses=wanted, method=method, weights=weights)
        # Three steps from one start are not fifty from another, but tell as much of a token.
        torch.testing.assert_close(errors[:, column], by_problem(found), rtol=0.15, atol=1e-3)
        assert float(errors[:, column].sum()) == pytest.approx(float(by_problem(found).sum()), rel=0.06)
    torch.testing.assert_close(
        errors[:, 0],
        by_problem(cluster(vectors, offsets, max_senses=1, method=method, weights=weights)),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize("size", [40, 300])
@pytest.mark.parametrize("spherical", [False, True])
def test_the_numbers_of_a_curve_start_from_one_run(size, spherical):
    """A number of clusters is measured from another's start, or for another problem."""
    points = problems(3 * size)[0].view(3, size, 6)
    points = points / points.norm(dim=-1, keepdim=True) if spherical else points
    weights, ids = torch.ones(3, size, dtype=torch.int64), torch.tensor([5, 7, 9])
    weights[1, size // 2 :] = 0
    levels = torch.tensor([[1, 2, 3, 4, 6, 9], [1, 2, 3, 3, 3, 3], [1, 2, 3, 4, 6, 6]])
    shared = {"seed": 4, "tolerance": 0.0, "spherical": spherical, "problem_ids": ids}
    found = kmeans_inertia(points, weights, levels, steps=50, **shared)
    last = kmeans(points, weights, levels[:, -1], max_iterations=50, **shared).inertia
    torch.testing.assert_close(found[:, -1], last, rtol=1e-5, atol=1e-5)
    for row in range(3):
        alone = kmeans_inertia(
            points[row : row + 1],
            weights[row : row + 1],
            levels[row : row + 1],
            steps=50,
            **{**shared, "problem_ids": ids[row : row + 1]},
        )
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-4, atol=1e-4)
    assert found[1, 3:].tolist() == [float(found[1, 2])] * 3
    centre = kmeans(points, weights, 1, **shared).inertia
    torch.testing.assert_close(found[:, 0], centre, rtol=1e-5, atol=1e-5)


def test_a_budget_finds_the_groups():
    """Senses go to tokens with many occurrences, not to those with many meanings."""
    places = 50 * torch.eye(6)
    noise = 0.01 * problems(100)[0]
    groups = [torch.zeros(60, dtype=torch.int64), torch.arange(24) % 4, torch.arange(16) % 2]
    vectors = places[torch.cat(groups)] + noise
    found = cluster(vectors, torch.tensor([0, 60, 84, 100]), budget=7)
    assert found.offsets.diff().tolist() == [1, 4, 2]


@pytest.mark.parametrize("budget", [5, 30, 77, 200, 10**6])
def test_a_budget_is_kept_and_beats_an_equal_share(budget):
    """More senses than asked for, or no less error than the same number of senses for each token."""
    vectors, offsets = problems(200, 5, 3, 90, 40)
    vectors[:200] *= 3
    shared = cluster(vectors, offsets, budget=budget, max_senses=100)
    assert len(shared.centers) <= budget
    assert int(shared.offsets.diff().max()) <= 100
    fixed = cluster(vectors, offsets, max_senses=max(1, budget // 5))
    if 5 < budget <= 200:
        assert len(shared.centers) > 0.97 * min(budget, 238)
        assert by_problem(shared).sum() < by_problem(fixed).sum()


def test_rare_problems_keep_their_points_under_a_budget():
    """Tokens under min_occurrences lose their vectors to the budget, or are not counted in it."""
    vectors, offsets = problems(4, 50, 3)
    found = cluster(vectors, offsets, budget=12, min_occurrences=5)
    assert found.offsets.diff().tolist() == [4, 5, 3]
    with pytest.raises(ValueError, match="need 8 senses before any"):
        cluster(vectors, offsets, budget=7, min_occurrences=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 9, "method": "markov"}, "markov finds the number of senses itself"),
        ({"budget": 0}, "at least 1; got 0"),
        ({"budget": "3MB"}, "whole number"),
        ({"max_senses": torch.ones(2, dtype=torch.int64)}, r"int64 \(3,\)"),
        ({"max_senses": torch.zeros(3, dtype=torch.int64)}, "at least 1"),
    ],
)
def test_clustering_refuses_a_budget_that_it_cannot_keep(options, message):
    """A slip is taken for another number."""
    vectors, offsets = problems(4, 5, 3)
    with pytest.raises(ValueError, match=message):
        cluster(vectors, offsets, **options)


def test_threads_and_memory_change_nothing():
    """The shares depend on how many cores a machine has, or on how problems were put together."""
    vectors, offsets = problems(*[90] * 8, *[17] * 30, 400)
    found = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(cluster(vectors, offsets, budget=300, max_elements=2**16))
    finally:
        torch.set_num_threads(before)
    assert found[0].centers.numpy().tobytes() == found[1].centers.numpy().tobytes()
    assert torch.equal(found[0].offsets, found[1].offsets)


def held(vectors):
    """Vectors as a build that holds them in memory has them, and that build's work."""
    work = UnfinishedBuild(None, {}, Ranks())
    work.allocate(*vectors.shape)
    work.whole.copy_(vectors)
    return SampledVectors(work, *vectors.shape), work


def test_a_token_counts_as_often_as_it_occurs():
    """A token whose sample was cut weighs like a rare one."""
    vectors, _ = problems(40)
    twice = torch.cat([vectors, vectors])
    bounds = np.array([0, 40, 80])
    sample = OccurrenceSample(
        np.repeat([0, 1], 40).astype(np.int32), np.arange(80, dtype=np.uint64), np.arange(80), np.zeros(80, np.int32),
        np.ones(80, np.int64), np.array([40, 4000]),
    )  # fmt: skip
    options = {"method": "kmeans", "max_senses": 40, "min_occurrences": 1}
    vectors, work = held(twice)
    shares = shared_senses(vectors, bounds, sample, options, 24, 0, work, disable_tqdm=True).tolist()
    assert sum(shares) == 24
    assert shares[1] > 5 * shares[0]
    even = OccurrenceSample(**{**vars(sample), "totals": np.array([4000, 4000])})
    shares = shared_senses(vectors, bounds, even, options, 24, 0, held(twice)[1], disable_tqdm=True).tolist()
    assert abs(shares[0] - shares[1]) <= 4


@pytest.mark.parametrize("codes", [{}, {"codes": 6, "code_levels": 2}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8])
def test_the_file_has_the_size_that_was_asked_for(teacher, texts, tmp_path, dtype, codes):
    """A dictionary is larger than the budget, or leaves much of it."""
    size = {torch.float32: 14_000, torch.float16: 9_000, torch.int8: 8_000}[dtype]
    made = build_dictionary(teacher, texts, budget=f"{size / 1000}kB", max_senses=50, dtype=dtype, **codes)
    made.save_pretrained(tmp_path)
    file = (tmp_path / "sense_dictionary.safetensors").stat().st_size
    assert size - 1200 < file <= size
    described = json.loads((tmp_path / "sense_dictionary.json").read_text())["clustering"]
    assert described["budget"] == f"{size / 1000}kB"
    assert described["budget_senses"] >= made.num_senses > 0.97 * described["budget_senses"]
    assert SenseDictionary.from_pretrained(tmp_path).metadata["clustering"] == described


def test_a_build_of_so_many_senses(teacher, texts):
    """A budget changes what is not its own: tokens that have senses, counts, or the error for the worse."""
    fixed = build_dictionary(teacher, texts, max_senses=2)
    shared = build_dictionary(teacher, texts, budget=fixed.num_senses)
    assert shared.num_senses <= fixed.num_senses
    assert torch.equal(shared.offsets.diff() > 0, fixed.offsets.diff() > 0)
    assert int(shared.counts.sum()) == int(fixed.counts.sum())
    assert shared.summary()["mean_spread"] < fixed.summary()["mean_spread"]
    again = build_dictionary(teacher, texts, budget=str(fixed.num_senses))
    assert again.fingerprint == shared.fingerprint
    assert "budget" not in fixed.metadata["clustering"]


def test_stopped_while_it_measures(teacher, texts, tmp_path, monkeypatch):
    """Curves that were measured are measured again, or work under another budget goes on from them."""
    import hf_sense.budget as budget

    monkeypatch.setattr(hf_sense.parts, "_PART_WORK", 800)
    whole = build_dictionary(teacher, texts, budget=120)
    original, calls = budget.error_curves, []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(budget, "error_curves", stopping)
    work = tmp_path / "work"
    with pytest.raises(KeyboardInterrupt):
        build_dictionary(teacher, texts, budget=120, work_dir=work)
    assert len(list(work.glob("curves-*"))) == 2
    for other in ({"budget": 121}, {"budget": "90kB"}, {}):
        with pytest.raises(ValueError, match="another build"):
            build_dictionary(teacher, texts, work_dir=work, **other)
    monkeypatch.setattr(Teacher, "hidden_states", lambda *a, **k: pytest.fail("the teacher ran again"))
    resumed = build_dictionary(teacher, texts, budget=120, work_dir=work)
    assert resumed.fingerprint == whole.fingerprint
    assert not work.exists()


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("3 parsecs", "a number of senses, or a size"),
        (0, "at least one sense"),
        (-3, "a number of senses"),
        (2.5, "a number of senses"),
        (True, "a number of senses"),
        ("1kB", "without a sense"),
        (10, r"budget=10 is 10 senses, but the texts hold 37 different tokens.*from 37 senses.*min_count=\d+\."),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused_before_the_teacher_runs(teacher, texts, monkeypatch, budget, message):
    """A slip is found out after an hour's work."""
    monkeypatch.setattr(Teacher, "hidden_states", lambda *a, **k: pytest.fail("the teacher ran"))
    with pytest.raises(ValueError, match=message):
        build_dictionary(teacher, texts, budget=budget)


def test_rare_tokens_get_no_senses(teacher, texts, monkeypatch):
    """min_count leaves out frequent tokens, keeps rare ones, or the advice to give it does not help."""
    every = build_dictionary(teacher, texts, max_senses=2)
    ids = np.concatenate(teacher.tokenizer(texts)["input_ids"])
    occurrences = torch.from_numpy(np.bincount(ids, minlength=every.vocab_size))
    frequent = build_dictionary(teacher, texts, max_senses=2, min_count=25)
    assert torch.equal(frequent.offsets.diff() > 0, occurrences >= 25)
    assert 0 < int((occurrences >= 25).sum()) < int((occurrences > 0).sum())
    token = int(occurrences.argmax())
    assert torch.equal(frequent.senses_of(token).vectors, every.senses_of(token).vectors)
    assert frequent.metadata["sampling"]["min_count"] == 25
    with pytest.raises(ValueError, match=r"min_count=\d+\.") as refused:
        build_dictionary(teacher, texts, budget=20)
    advised = int(str(refused.value).rpartition("=")[2].rstrip("."))
    assert 0 < build_dictionary(teacher, texts, budget=20, min_count=advised).num_senses <= 20
    with pytest.raises(ValueError, match="20 senses"):
        build_dictionary(teacher, texts, budget=20, min_count=int(occurrences.sort(descending=True).values[20]))
    monkeypatch.setattr(Teacher, "hidden_states", lambda *a, **k: pytest.fail("the teacher ran"))
    with pytest.raises(ValueError, match="No token occurs 9,999 times, the most frequent"):
        build_dictionary(teacher, texts, min_count=9999)
    with pytest.raises(ValueError, match="min_count should be a whole number from 1"):
        build_dictionary(teacher, texts, min_count=0)


def test_what_a_budget_allows():
    """Megabytes are taken for mebibytes, or counts, spread, scales and offsets are forgotten."""
    of = {"dim": 384, "vocab_size": 30_522}
    fixed = 8 * 30_523 + 1024
    assert senses_within(5000, **of, dtype=torch.int8) == 5000
    assert senses_within("5000", **of, dtype=torch.float32) == 5000
    assert senses_within("3MB", **of, dtype=torch.int8) == (3_000_000 - fixed) // (384 + 16)
    assert senses_within("3 mb", **of, dtype=torch.float32) == (3_000_000 - fixed) // (4 * 384 + 12)
    assert senses_within("1.5GB", **of, dtype=torch.bfloat16) == (1_500_000_000 - fixed) // (2 * 384 + 12)


def test_the_command_takes_a_budget(tiny_teacher_folder, texts, tmp_path, capsys):
    """hf-sense build --budget is not what build_dictionary(budget=...) is."""
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(texts), encoding="utf-8")
    output = tmp_path / "made"
    arguments = ["build", "--teacher", str(tiny_teacher_folder), "--dataset", str(data), "--output", str(output)]
    assert main([*arguments, "--budget", "9kB", "--min-count", "2"]) == 0
    assert (output / "sense_dictionary.safetensors").stat().st_size <= 9_000
    assert main([*arguments[:-1], str(tmp_path / "other"), "--budget", "lots"]) == 2
    assert "a number of senses, or a size" in capsys.readouterr().err
