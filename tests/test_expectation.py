"""The expectation over a token's senses: both kinds of kernels against the plain loop, and models that use it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_fused import DTYPES, case, loop

from hf_sense import SenseModel, kernel_calls
from hf_sense.expectation import expect_senses
from hf_sense.fused import choose_senses
from hf_sense.ragged import NO_SENSE

pytest.importorskip("numba", reason="the compiled kernels need numba")


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def way(request, monkeypatch):
    """Each test runs with Numba's kernels and with PyTorch's."""
    monkeypatch.setenv("HF_SENSE_COMPILED", "1" if request.param == "compiled" else "0")
    return request.param


@pytest.mark.parametrize("metric", ["dot", "cosine", "l2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 10, 67])
def test_it_is_that_of_the_plain_loop(metric, dtype, dim, monkeypatch):
    """Shares are of another token or temperature, a narrow row is widened wrongly, or threads leave out a token."""
    monkeypatch.setattr(kernel_calls, "_WORTH_A_THREAD", 1)
    hidden, ids, places, senses, wide = case(dtype=dtype, dim=dim)
    replaced, best, scores = expect_senses(hidden, ids, places, senses, metric, 0.7, output_scores=True)
    bounds = senses.offsets.tolist()
    for place, own in zip(places.tolist(), loop(hidden, ids, places, senses, wide, metric)):
        rows = wide[bounds[ids[place]] : bounds[ids[place] + 1]].double()
        wanted = (own / 0.7).softmax(0) @ rows if len(own) else hidden[place].double()
        torch.testing.assert_close(replaced[place].double(), wanted, atol=2e-5, rtol=2e-5)
    elsewhere = torch.ones(len(ids), dtype=torch.bool)
    elsewhere[places] = False
    assert torch.equal(replaced[elsewhere], hidden[elsewhere])
    choice = choose_senses(hidden, ids, places, senses, metric, output_scores=True)
    assert torch.equal(best, choice.sense_ids)
    torch.testing.assert_close(scores, choice.scores, atol=1e-5, rtol=1e-5)


@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=8),
    tokens=st.integers(0, 150),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(DTYPES),
    metric=st.sampled_from(["dot", "cosine", "l2"]),
    temperature=st.sampled_from([1e-4, 0.3, 1.0, 20.0, 1e4]),
)
@settings(max_examples=60, deadline=None)
def test_both_ways_agree(lengths, tokens, seed, dtype, metric, temperature):
    """Text vectors depend on whether Numba is installed."""
    hidden, ids, places, senses, _ = case(seed, lengths, tokens, dtype=dtype)
    found = []
    for compiled in ("0", "1"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_SENSE_COMPILED", compiled)
            found.append(expect_senses(hidden, ids, places, senses, metric, temperature, output_scores=True))
    # At a temperature near 0 the last bits of a score decide.
    tolerance = 2e-2 if temperature < 0.01 else 1e-4
    torch.testing.assert_close(found[0].replaced, found[1].replaced, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(found[0].scores, found[1].scores, atol=1e-4, rtol=1e-4)


def test_temperatures_at_the_ends():
    """Towards 0 it is not the best sense, or towards infinity not the plain mean."""
    hidden, ids, places, senses, wide = case(lengths=(3, 2, 40))
    hard = choose_senses(hidden, ids, places, senses, "l2", output_replaced=True).replaced
    cold, hot = (expect_senses(hidden, ids, places, senses, "l2", at).replaced for at in (1e-6, 1e8))
    torch.testing.assert_close(cold, hard)
    bounds = senses.offsets.tolist()
    means = torch.stack([wide[bounds[token] : bounds[token + 1]].mean(0) for token in ids[places].tolist()])
    torch.testing.assert_close(hot[places], means, atol=1e-4, rtol=1e-4)


def test_what_is_not_finite_and_what_is_empty():
    """A NaN of the backbone becomes a vector of zeros, an empty batch fails, or a state narrower than float32 changes dtype."""
    hidden, ids, places, senses, _ = case(lengths=(3, 5))
    hidden[places[0]] = torch.nan
    replaced, best, _ = expect_senses(hidden, ids, places, senses, "l2", 1.0, output_scores=True)
    assert replaced[places[0]].isnan().all()
    assert best[places[0]] == NO_SENSE
    assert not replaced[places[1:]].isnan().any()
    hidden[places[0]] = 0.0
    nothing = expect_senses(hidden, ids, places[:0], senses, "l2", 1.0, output_scores=True)
    assert torch.equal(nothing.replaced, hidden)
    assert len(nothing.scores) == 0
    narrow = expect_senses(hidden.bfloat16(), ids, places, senses, "l2", 1.0)
    assert narrow.replaced.dtype == torch.bfloat16


def test_gradients_are_those_of_the_formula():
    """The compiled kernel, which has none, is asked for a gradient; or the gradient of states or rows is another's."""
    hidden, ids, places, senses, _ = case(lengths=(3, 5, 33, 2))
    for asks in ("hidden", "rows"):
        states, rows = hidden.clone(), senses.rows.clone()
        (states if asks == "hidden" else rows).requires_grad_(True)
        own = type(senses)(senses.offsets, rows)
        replaced = expect_senses(states, ids, places, own, "l2", 0.7).replaced
        weights = torch.linspace(-1, 1, replaced.shape[1])
        (replaced[places] * weights).sum().backward()
        plain_states, plain_rows = (tensor.detach().double().requires_grad_(True) for tensor in (states, rows))
        total = torch.zeros((), dtype=torch.float64)
        bounds = senses.offsets.tolist()
        for place in places.tolist():
            part = plain_rows[bounds[ids[place]] : bounds[ids[place] + 1]]
            scores = part @ plain_states[place] - part.square().sum(-1) / 2
            total = total + ((scores / 0.7).softmax(0) @ part * weights.double()).sum()
        total.backward()
        found, wanted = (states, plain_states) if asks == "hidden" else (rows, plain_rows)
        torch.testing.assert_close(found.grad.double(), wanted.grad, rtol=1e-4, atol=1e-4)


def test_a_model_answers_alike_trained_and_not(teacher, dictionary, texts):
    """A soft model's vectors differ between training, where PyTorch's kernels run, and serving."""
    student = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1, selection="soft")
    batch = teacher.tokenizer(texts[:4], padding=True, return_tensors="pt")
    trained = student(**batch).last_hidden_state
    assert trained.requires_grad
    with torch.no_grad():
        served = student(**batch, output_senses=True)
    torch.testing.assert_close(trained.detach(), served.last_hidden_state, atol=1e-5, rtol=1e-5)
    hard = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1).eval()
    with torch.no_grad():
        assert torch.equal(hard(**batch, output_senses=True).sense_ids, served.sense_ids)
