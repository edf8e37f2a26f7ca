"""Hidden states and a mask in, one vector a text out. It reads no model and no dictionary."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Pooling = Literal["mean", "weighted_mean", "frequency", "cls", "last_token", "first_content_token"]
POOLINGS: tuple[str, ...] = get_args(Pooling)


def check_pooling(pooling: str) -> Pooling:
    """Returns ``pooling`` if it is one of ``POOLINGS``; raises ``ValueError`` naming them otherwise."""
    if pooling not in POOLINGS:
        raise ValueError(f"pooling must be one of {', '.join(POOLINGS)}, but is {pooling!r}.")
    return pooling  # type: ignore[return-value]


def frequency_weights(probabilities: torch.Tensor, smoothing: float = 1e-3) -> torch.Tensor:
    """Smooth inverse frequency, ``a / (a + p)`` (Arora, Liang and Ma 2017), of token probabilities of any shape."""
    return smoothing / (smoothing + probabilities)


def pooling_weights(
    attention_mask: torch.Tensor, pooling: Pooling = "mean", token_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """What each token weighs in its text's vector: float32 ``(batch, sequence)``, 1 in sum, 0 under padding.

    Arguments as for ``pool``; the weights of a text without tokens are zeros.

    Raises:
        ValueError: if the pooling is unknown or its weights are missing.
    """
    mask = attention_mask.to(torch.float32)
    place = mask.cumsum(-1) * mask  # 1 for the first token, 2 for the second, ...; 0 under padding
    if pooling == "mean":
        weights = mask
    elif pooling == "weighted_mean":
        weights = place
    elif pooling == "frequency":
        if token_weights is None:
            raise ValueError("pooling 'frequency' needs token_weights; frequency_weights makes them.")
        weights = token_weights.to(torch.float32) * mask
    elif pooling == "cls":
        weights = (place == 1).to(torch.float32)
    elif pooling == "last_token":
        weights = ((place == place.amax(-1, keepdim=True)) & (place > 0)).to(torch.float32)
    elif pooling == "first_content_token":
        weights = (place == place.amax(-1, keepdim=True).clamp(max=2)).to(torch.float32) * mask
    else:
        check_pooling(pooling)
    total = weights.sum(-1, keepdim=True)
    return weights / torch.where(total > 0, total, 1.0)


def pool(
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor,
    pooling: Pooling = "mean",
    token_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """One vector a text. Padding may be on either side and changes nothing.

    Args:
        hidden_states: floating ``(batch, sequence, dim)``.
        attention_mask: ``(batch, sequence)``, 1 at tokens.
        pooling: ``mean``; ``weighted_mean``, the i-th token weighing i (Muennighoff 2022; LLM2Vec); ``frequency``, each
            weighing ``token_weights``; ``cls``, the first token; ``first_content_token``, the one after it;
            ``last_token``.
        token_weights: ``(batch, sequence)`` for ``frequency``, from ``frequency_weights``.

    Returns:
        ``(batch, dim)`` in the dtype of ``hidden_states``; zeros for a text without tokens.

    Raises:
        ValueError: if the pooling is unknown or its weights are missing.

    Example:
        >>> hidden = torch.tensor([[[1.0], [2.0], [6.0]]])
        >>> pool(hidden, torch.tensor([[1, 1, 0]])), pool(hidden, torch.tensor([[0, 1, 1]]), "last_token")
        (tensor([[1.5000]]), tensor([[6.]]))
    """
    weights = pooling_weights(attention_mask, pooling, token_weights)
    return pool_weighted(hidden_states, attention_mask, weights)


def pool_weighted(hidden_states: torch.Tensor, attention_mask: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The sum of each text's states, weighted by ``pooling_weights``: ``(batch, sequence, dim)`` in, ``(batch, dim)`` out."""
    # Hidden states under padding may be anything, NaN included, and zero times NaN is NaN.
    kept = hidden_states.float().masked_fill(~attention_mask.bool().unsqueeze(-1), 0.0)
    return torch.einsum("bs,bsd->bd", weights, kept).to(hidden_states.dtype)
