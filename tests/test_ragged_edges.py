"""The ragged kernels at their edges: several gathers, large scores, no senses. ``test_ragged`` has the plain loop."""

import pytest
import torch

from hf_sense.ragged import (
    METRICS,
    NO_SENSE,
    RaggedIndex,
    check_metric,
    expected_sense,
    half_squared_norms,
    sense_cross_entropy,
    sense_log_probabilities,
    sense_scores,
    take_senses,
)

DTYPES = [torch.float32, torch.bfloat16]


def make(case, dtype=torch.float32):
    """Hidden states, index, senses and offsets of a case."""
    lengths, tokens, dim, seed = case
    random = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    senses = torch.randn(sum(lengths), dim, generator=random, dtype=exact).to(dtype)
    hidden = torch.randn(len(tokens), dim, generator=random, dtype=exact)
    return hidden, RaggedIndex.of(torch.tensor(tokens, dtype=torch.int64), offsets), senses, offsets


def loop_scores(hidden, tokens, senses, offsets, metric):
    """The scores of each token's senses, one tensor a token."""
    result = []
    for vector, token in zip(hidden, tokens):
        own = senses[offsets[token] : offsets[token + 1]].to(hidden.dtype)
        if metric == "dot":
            result.append((own * vector).sum(-1))
        elif metric == "cosine":
            result.append(torch.nn.functional.cosine_similarity(own, vector[None], dim=-1))
        else:
            result.append((vector.square().sum() - (own - vector).square().sum(-1)) / 2)
    return result


def joined(parts):
    """The parts in one tensor, though there may be none."""
    return torch.cat(parts) if parts else torch.zeros(0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_gathered_in_several_steps(monkeypatch, dtype):
    """A table larger than the gather buffer would lose or repeat pairs at the seams."""
    case = ([3, 0, 5, 1], [0, 2, 2, 1, 3, 0], 4, 3)
    hidden, index, senses, offsets = make(case, dtype)
    weights = torch.rand(len(index.rows), generator=torch.Generator().manual_seed(1))
    whole = expected_sense(weights, index, senses, hidden)
    monkeypatch.setattr("hf_sense.ragged._GATHER_BYTES", 2 * 4 * 4)
    for metric in METRICS:
        expected = joined(loop_scores(hidden, case[1], senses, offsets, metric))
        torch.testing.assert_close(sense_scores(hidden, index, senses, metric), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(expected_sense(weights, index, senses, hidden), whole)


def test_log_probabilities_of_large_scores():
    """exp of a score of 1000 is infinite: without the shift a confident student's loss is NaN."""
    index = RaggedIndex.of(torch.tensor([0, 1]), torch.tensor([0, 2, 3]))
    found = sense_log_probabilities(torch.tensor([1000.0, 0.0, -1000.0]), index)
    torch.testing.assert_close(found, torch.tensor([0.0, -1000.0, 0.0]))


def test_stale_norms_are_not_used_for_senses_that_train():
    """Norms kept from before an optimizer step would score senses that have moved since."""
    hidden, index, senses, _ = make(([2, 3], [0, 1], 3, 5))
    stale = half_squared_norms(senses) + 5
    senses.requires_grad_()
    scores = sense_scores(hidden, index, senses, "l2", stale)
    torch.testing.assert_close(scores, sense_scores(hidden, index, senses, "l2"))


def test_a_target_for_a_batch_without_senses_is_refused():
    """With no pair at all there is nothing to index, and the error must still say what is wrong."""
    index = RaggedIndex.of(torch.tensor([0]), torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="not senses of their token"):
        sense_cross_entropy(torch.zeros(0), index, torch.tensor([3]))


def test_loss_of_a_batch_without_senses_can_be_backpropagated():
    """One batch of unseen tokens must not stop a training run."""
    index = RaggedIndex.of(torch.tensor([0, 0]), torch.tensor([0, 0]))
    hidden = torch.ones(2, 3, requires_grad=True)
    loss = sense_cross_entropy(sense_scores(hidden, index, torch.zeros(0, 3)), index, torch.tensor([NO_SENSE] * 2))
    loss.sum().backward()
    assert loss.tolist() == [0.0, 0.0]
    assert hidden.grad.abs().sum() == 0


def test_take_senses_keeps_the_fallback():
    """A negative id indexes from the end in PyTorch: tokens without a sense would get the last one of the table."""
    fallback = torch.full((2, 2), 7.0)
    taken = take_senses(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([NO_SENSE, 0]), fallback)
    assert taken.tolist() == [[7.0, 7.0], [1.0, 2.0]]
    assert take_senses(torch.zeros(0, 2), torch.tensor([NO_SENSE] * 2), fallback) is fallback


def test_numbers_that_differ_and_unknown_metrics_are_refused():
    """Without the check a batch cut differently fails deep in a sparse kernel."""
    index = RaggedIndex.of(torch.tensor([0]), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="2 for 1 tokens"):
        sense_scores(torch.zeros(2, 3), index, torch.zeros(2, 3))
    with pytest.raises(ValueError, match="dot, cosine, l2, but is 'euclid'"):
        check_metric("euclid")
