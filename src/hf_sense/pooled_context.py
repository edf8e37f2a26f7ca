"""A text's vector from a context table without its tokens' states: what is linear is done once a text, not once a token.

With ``w_t`` the weights of pooling, a state is ``mean_t + P (O h_t + o) + p``, ``h_t`` the network's hidden layer. The vector is
``sum w_t mean_t + P (O sum w_t h_t + o S) + p S`` with ``S = sum w_t``; tokens without senses weigh nothing. It is for inference:
training goes through the states.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from hf_sense.context_network import ContextNetwork

if TYPE_CHECKING:
    from hf_sense.modeling_sense import SenseModel


def can_pool_first(model: SenseModel) -> bool:
    """Whether this is a context table in float32 that only answers: no gradient, no tracing, no choice among senses.

    Its layers are read here, not called: where adapters or hooks have been put into them, states are made as ever.
    """
    return (
        isinstance(model.backbone, ContextNetwork)
        and all(_is_bare(part) for part in (model, model.backbone, model.table))
        and all(_is_plain(part) for part in (*model.backbone.children(), model.sense_projection) if part is not None)
        and model.config.adds_token_mean
        and model.config.selection == "none"
        and model.dtype == torch.float32
        and not model.training
        and not (torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing())
    )


def _is_plain(part: nn.Module) -> bool:
    """Whether its weights say what it does."""
    plain = type(part) in (nn.Linear, nn.Conv1d, nn.Embedding) or not list(part.parameters())
    return plain and _is_bare(part)


def _is_bare(part: nn.Module) -> bool:
    """Whether nothing was put around its ``forward``: hooks, or another one, as where accelerate moves weights about."""
    return not (part._forward_hooks or part._forward_pre_hooks or "forward" in part.__dict__)


def pooled_first(
    model: SenseModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The vectors that pooling with these weights would make of the model's states, ``(batch, sense_dim)`` float32.

    Args:
        model: one that ``can_pool_first``.
        input_ids: int64 ``(batch, sequence)``.
        attention_mask: ``(batch, sequence)``, 1 at tokens; padding may be on either side.
        weights: float32 ``(batch, sequence)``, 0 under padding; those of ``hf_sense.pooling.pooling_weights``.
    """
    kept = attention_mask.reshape(-1).nonzero().squeeze(-1)
    lengths = attention_mask.bool().sum(1)
    starts = lengths.cumsum(0) - lengths
    ids, table = input_ids.reshape(-1)[kept], model.table
    known = table.offsets[ids + 1] > table.offsets[ids]
    weights = weights.reshape(-1)[kept] * known
    hidden = model.backbone.hidden_layer(ids, lengths)
    whole = _sums(weights.unsqueeze(1), starts)
    states = _sums(hidden, starts, weights) @ model.backbone.outer.weight.T + whole * model.backbone.outer.bias
    if model.sense_projection is not None:
        states = states @ model.sense_projection.weight.T + whole * model.sense_projection.bias
    return states + _sums(table.token_means(ids).float(), starts, weights)


def _sums(rows: torch.Tensor, starts: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    """Sums of packed rows ``(tokens, width)``, weighted if weights are given, one for each text: ``(texts, width)``."""
    places = torch.arange(len(rows), device=rows.device)
    if not len(rows):
        return rows.new_zeros(len(starts), rows.shape[1])
    return nn.functional.embedding_bag(places, rows, starts, mode="sum", per_sample_weights=weights)
