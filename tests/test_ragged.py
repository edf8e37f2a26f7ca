"""The ragged kernels against a plain loop over tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_sense.ragged import (
    METRICS,
    NO_SENSE,
    RaggedIndex,
    best_sense,
    expected_sense,
    half_squared_norms,
    sense_cross_entropy,
    sense_log_probabilities,
    sense_scores,
    take_senses,
)

DIM = 6


def score(hidden, sense, metric):
    product = hidden @ sense
    if metric == "cosine":
        return product / hidden.norm() / sense.norm()
    return product - sense @ sense / 2 if metric == "l2" else product


@st.composite
def problems(draw):
    """Lengths of each token's senses (zero, one, many), and a batch of token ids with duplicates, perhaps empty."""
    lengths = draw(st.lists(st.integers(0, 5) | st.just(40), min_size=1, max_size=8))
    ids = draw(st.lists(st.integers(0, len(lengths) - 1), max_size=12))
    torch.manual_seed(draw(st.integers(0, 2**16)))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randn(len(ids), DIM), torch.tensor(ids, dtype=torch.int64), torch.randn(int(offsets[-1]), DIM), offsets


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from(METRICS), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]))
def test_scores_choice_and_loss_equal_a_plain_loop(problem, metric, dtype):
    """A kernel mixes up tokens at the seams: where one has no sense, or many, or stands twice."""
    hidden, ids, senses, offsets = problem
    senses = senses.to(dtype)
    exact = senses.float()
    hidden.requires_grad_(True)
    index = RaggedIndex.of(ids, offsets)
    scores = sense_scores(hidden, index, senses, metric, half_squared_norms(senses))
    best = best_sense(scores, index)
    replaced = take_senses(senses, best, hidden)
    targets = torch.tensor(
        [int(offsets[t + 1]) - 1 if offsets[t + 1] > offsets[t] else -100 for t in ids], dtype=torch.int64
    )
    losses = sense_cross_entropy(scores, index, targets)
    mean = expected_sense(sense_log_probabilities(scores, index).exp(), index, senses, hidden)
    pulled = torch.randn_like(hidden)
    gradient = torch.autograd.grad(losses.sum() + (mean * pulled).sum(), hidden)[0] if len(ids) else None

    looped = hidden.detach().clone().requires_grad_(True)
    total = looped.sum() * 0
    at = 0
    for row, token in enumerate(ids.tolist()):
        first, last = int(offsets[token]), int(offsets[token + 1])
        if first == last:
            assert best[row] == NO_SENSE
            assert torch.equal(replaced[row], hidden[row])
            assert losses[row] == 0
            total = total + looped[row] @ pulled[row]
            continue
        own = torch.stack([score(looped[row], exact[sense], metric) for sense in range(first, last)])
        torch.testing.assert_close(scores[at : at + last - first], own, atol=1e-4, rtol=1e-4)
        assert own[best[row] - first] >= own.max() - 1e-4
        assert torch.equal(replaced[row], exact[best[row]])
        loss = torch.nn.functional.cross_entropy(own.unsqueeze(0), targets[row : row + 1] - first)
        torch.testing.assert_close(losses[row], loss, atol=1e-4, rtol=1e-4)
        expected = own.softmax(0) @ exact[first:last]
        torch.testing.assert_close(mean[row], expected, atol=1e-4, rtol=1e-4)
        total = total + loss + expected @ pulled[row]
        at += last - first
    assert at == len(scores)
    if gradient is not None:
        torch.testing.assert_close(gradient, torch.autograd.grad(total, looped)[0], atol=1e-3, rtol=1e-3)


def test_ties_go_to_the_lowest_sense_id():
    """Two equal senses are picked by chance, so that a run does not repeat."""
    senses = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
    index = RaggedIndex.of(torch.tensor([0, 0]), torch.tensor([0, 4]))
    scores = sense_scores(torch.tensor([[0.0, 2.0], [0.5, 0.5]]), index, senses, "dot")
    assert best_sense(scores, index).tolist() == [1, 0]


@pytest.mark.parametrize("metric", METRICS)
def test_gradients_of_hidden_states_and_senses(metric):
    """A hand-written backward pass is wrong in a factor."""
    torch.manual_seed(0)
    index = RaggedIndex.of(torch.tensor([0, 2, 0]), torch.tensor([0, 3, 3, 5]))
    hidden = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    senses = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)

    def losses(hidden, senses):
        scores = sense_scores(hidden, index, senses, metric)
        mean = expected_sense(sense_log_probabilities(scores, index).exp(), index, senses, hidden)
        return sense_cross_entropy(scores, index, torch.tensor([1, 4, -100])), mean

    assert torch.autograd.gradcheck(losses, (hidden, senses))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    """NaN compares false with everything, and the first sense is returned as if it were the best."""
    hidden = torch.ones(3, 2)
    hidden[1, 0] = bad
    index = RaggedIndex.of(torch.tensor([0, 0, 0]), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"1 of 3 hidden states .* \(first at token 1\)"):
        sense_scores(hidden, index, torch.tensor([[1.0, 1.0], [2.0, 1.0]]), "dot")


def test_targets_of_another_dictionary_are_refused():
    """The loss reads the score of a neighbour's sense and falls on something else than the target."""
    index = RaggedIndex.of(torch.tensor([0, 1]), torch.tensor([0, 2, 4]))
    scores = torch.randn(4)
    for targets in ([2, 3], [0, 1], [0, 99]):
        with pytest.raises(ValueError, match="not senses of their token"):
            sense_cross_entropy(scores, index, torch.tensor(targets))


def test_another_width_is_refused():
    """A narrow student fails deep in a kernel."""
    index = RaggedIndex.of(torch.tensor([0]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="needs a projection"):
        sense_scores(torch.ones(1, 3), index, torch.ones(1, 4))
