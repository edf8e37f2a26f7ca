"""Pooling and the moving of padding: what stands under padding, and on which side, must not matter."""

import shutil

import pytest
import torch

from hf_sense.padding import RightAligned
from hf_sense.pooling import POOLINGS, check_pooling, frequency_weights, pool

LENGTHS = [5, 1, 3, 2]
WIDTH = 5


def batch(side):
    """Hidden states with NaN under padding on one side, mask and token weights."""
    random = torch.Generator().manual_seed(0)
    hidden = torch.full((len(LENGTHS), WIDTH, 4), float("nan"))
    mask = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.int64)
    weights = torch.full((len(LENGTHS), WIDTH), 9.0)
    for row, length in enumerate(LENGTHS):
        part = slice(0, length) if side == "right" else slice(WIDTH - length, WIDTH)
        hidden[row, part] = torch.randn(length, 4, generator=random)
        weights[row, part] = frequency_weights(torch.rand(length, generator=random))
        mask[row, part] = 1
    return hidden, mask, weights


def plain(vectors, weights, pooling):
    """The pooled vector of one text ``(length, dim)``, by its definition."""
    if pooling == "cls":
        return vectors[0]
    if pooling == "last_token":
        return vectors[-1]
    if pooling == "first_content_token":
        return vectors[min(1, len(vectors) - 1)]
    factors = {
        "mean": torch.ones(len(vectors)),
        "weighted_mean": torch.arange(1.0, len(vectors) + 1),
        "frequency": weights,
    }[pooling]
    return sum(factor * vector for factor, vector in zip(factors, vectors)) / factors.sum()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_padded_equals_the_text_alone(pooling, side):
    """A place counted from the first column, or NaN under padding, would make a vector depend on its batch."""
    hidden, mask, weights = batch(side)
    pooled = pool(hidden, mask, pooling, weights)
    for row in range(len(LENGTHS)):
        own = mask[row].bool()
        expected = plain(hidden[row, own], weights[row, own], pooling)
        torch.testing.assert_close(pooled[row], expected)
        alone = pool(hidden[row, own][None], torch.ones(1, LENGTHS[row]), pooling, weights[row, own][None])
        torch.testing.assert_close(alone[0], expected)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_text_without_tokens_is_zero(pooling):
    """0 / 0 is NaN, and one NaN row spoils a whole matrix of embeddings."""
    pooled = pool(torch.ones(1, 3, 2), torch.zeros(1, 3), pooling, torch.ones(1, 3))
    assert pooled.tolist() == [[0.0, 0.0]]


def test_dtype_is_kept_and_sums_are_float32():
    """A mean of 4096 ones summed in bfloat16 stops growing at 256."""
    pooled = pool(torch.ones(1, 4096, 1, dtype=torch.bfloat16), torch.ones(1, 4096))
    assert pooled.dtype == torch.bfloat16
    assert pooled.item() == 1.0


def test_unknown_pooling_and_missing_weights_are_refused():
    """A misspelt pooling should name the right ones, not fail with an unbound name."""
    with pytest.raises(ValueError, match=r"mean, weighted_mean.*but is 'average'"):
        pool(torch.ones(1, 1, 1), torch.ones(1, 1), "average")
    with pytest.raises(ValueError, match="'max'"):
        check_pooling("max")
    with pytest.raises(ValueError, match="token_weights"):
        pool(torch.ones(1, 1, 1), torch.ones(1, 1), "frequency")


def test_frequency_weights_by_hand():
    """The formula of the paper, a / (a + p)."""
    found = frequency_weights(torch.tensor([0.0, 1e-3, 1.0]))
    torch.testing.assert_close(found, torch.tensor([1.0, 0.5, 1e-3 / 1.001]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_restore_inverts_move(side):
    """Hidden states put back one column off would be paired with the wrong tokens."""
    hidden, mask, _ = batch(side)
    hidden = hidden.nan_to_num(-1.0)
    aligned = RightAligned(mask)
    assert aligned.move(mask).tolist() == batch("right")[1].tolist()
    torch.testing.assert_close(aligned.move(hidden), batch("right")[0].nan_to_num(-1.0))
    torch.testing.assert_close(aligned.restore(aligned.move(hidden)), hidden)
    torch.testing.assert_close(aligned.restore(aligned.move(mask)), mask)


def test_row_without_tokens_stays_in_place():
    """A row that is all padding has no first token to move to the front."""
    mask = torch.tensor([[0, 0, 0], [0, 1, 1]])
    aligned = RightAligned(mask)
    tensor = torch.tensor([[1, 2, 3], [4, 5, 6]])
    assert aligned.move(tensor).tolist() == [[1, 2, 3], [5, 6, 4]]
    assert torch.equal(aligned.restore(aligned.move(tensor)), tensor)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_padding_moves_in_compiled_code_as_it_does_without():
    """Code that is compiled for any batch and length finds the first token at another place, or past the end."""

    def both(mask):
        aligned = RightAligned(mask, always=True)
        return aligned.move(mask), aligned.restore(torch.arange(mask.shape[1]).expand(mask.shape))

    compiled = torch.compile(both, dynamic=True)
    torch.manual_seed(0)
    for batch_size, length in ((64, 31), (64, 34), (3, 9), (2, 64)):
        padding = torch.randint(0, length, (batch_size, 1)) * torch.randint(0, 2, (batch_size, 1))
        for mask in (torch.arange(length) >= padding, torch.arange(length) < length - padding):
            for found, expected in zip(compiled(mask.long()), both(mask.long())):
                assert torch.equal(found, expected)
