"""The distillation losses: a number for each token, over ragged senses or hidden states.

They do not reduce: the trainer sums over the tokens that count and divides by their number in the whole step.
"""

from __future__ import annotations

import torch

from hf_sense.distillation_config import SenseDistillationConfig
from hf_sense.ragged import Metric, RaggedIndex, sense_cross_entropy, sense_log_probabilities, sense_scores
from hf_sense.residual_codes import ResidualCodes
from hf_sense.senses import Senses


def code_losses(
    residuals: torch.Tensor,
    code_ids: torch.Tensor,
    codes: ResidualCodes,
    weights: SenseDistillationConfig,
    teacher_residuals: torch.Tensor | None,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The losses on codes, summed over levels: cross-entropy times ``sense_weight``, divergence times ``soft_weight``.

    Args:
        residuals: the student's states less the target senses, floating ``(n, dim)``. Gradients flow to it alone.
        code_ids: the teacher's, int64 ``(n, levels)``.
        codes: the dictionary's.
        weights: see above.
        teacher_residuals: likewise, where there is a ``soft_weight``.
        temperature: divides the scores.

    Returns:
        ``(n,)``, and the codes that the student scores highest, int64 ``(n, levels)``.

    Raises:
        ValueError: if a code is none of the dictionary's.
    """
    entropies, chosen = codes.cross_entropy(residuals, code_ids, temperature)
    losses = weights.sense_weight * entropies.sum(-1)
    if teacher_residuals is not None and weights.soft_weight:
        terms = codes.divergence(residuals, teacher_residuals, code_ids, temperature)
        losses = losses + weights.soft_weight * terms.sum(-1)
    return losses, chosen


def state_losses(
    hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    weights: SenseDistillationConfig,
    senses: Senses,
    token_ids: torch.Tensor,
    metric: Metric,
    temperature: float,
) -> torch.Tensor:
    """The losses below that need the teacher's states, each times its weight, ``(n,)``.

    Args:
        hidden: the student's, floating ``(n, dim)``. Gradients flow to it alone.
        teacher_hidden: likewise.
        weights: its ``soft_weight``, ``mse_weight`` and ``cosine_weight`` count.
        senses: where the senses lie.
        token_ids: int64 ``(n,)``.
        metric: how states score senses.
        temperature: divides the scores.
    """
    losses = torch.zeros(len(hidden), device=hidden.device)
    if weights.soft_weight:
        index, rows, own_ids = senses.of(token_ids)
        halves = senses.half_norms if own_ids is None else None
        # A gradient scaler looks for overflow itself, and skips the step.
        scores, teacher_scores = (
            sense_scores(states, index, rows, metric, halves, check_finite=False) for states in (hidden, teacher_hidden)
        )
        losses = losses + weights.soft_weight * soft_sense_loss(scores, teacher_scores, index, temperature)
    if weights.mse_weight:
        losses = losses + weights.mse_weight * squared_error_loss(hidden, teacher_hidden)
    if weights.cosine_weight:
        losses = losses + weights.cosine_weight * cosine_loss(hidden, teacher_hidden)
    return losses


def hard_sense_loss(
    scores: torch.Tensor, index: RaggedIndex, targets: torch.Tensor, temperature: float = 1.0
) -> torch.Tensor:
    """Cross-entropy of the teacher's sense among the token's senses (Wang et al. 2025, section 3.3), in nats ``(n,)``.

    Args:
        scores: the student's, float32 ``(pairs,)``.
        index: the layout of ``scores``.
        targets: int64 ``(n,)``, global sense ids; 0 is returned where it is negative.
        temperature: divides the scores.

    Raises:
        ValueError: if a target is not a sense of its token.
    """
    return sense_cross_entropy(scores / temperature, index, targets)


def soft_sense_loss(
    scores: torch.Tensor, teacher_scores: torch.Tensor, index: RaggedIndex, temperature: float = 1.0
) -> torch.Tensor:
    """``T^2 KL(teacher || student)`` over each token's senses (Hinton, Vinyals and Dean 2015), in nats ``(n,)``.

    Args:
        scores: the student's, float32 ``(pairs,)``. Gradients flow to it alone.
        teacher_scores: the teacher's, likewise.
        index: the layout of both.
        temperature: divides both; the factor ``T^2`` keeps the gradient's size.
    """
    student = sense_log_probabilities(scores / temperature, index)
    teacher = sense_log_probabilities(teacher_scores.detach() / temperature, index)
    terms = teacher.exp() * (teacher - student) * temperature**2
    return torch.zeros(len(index.lengths), dtype=terms.dtype, device=terms.device).index_add(0, index.rows, terms)


def squared_error_loss(hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """Mean over the width of the squared difference of hidden states ``(n, dim)``, float32 ``(n,)``."""
    return (hidden.float() - teacher_hidden.detach().float()).square().mean(-1)


def cosine_loss(hidden: torch.Tensor, teacher_hidden: torch.Tensor) -> torch.Tensor:
    """One minus the cosine between hidden states ``(n, dim)``, float32 ``(n,)``."""
    return 1 - torch.nn.functional.cosine_similarity(hidden.float(), teacher_hidden.detach().float(), dim=-1)
