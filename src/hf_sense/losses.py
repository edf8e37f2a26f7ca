"""The distillation losses: a number for each token, over ragged senses or hidden states.

They do not reduce: the trainer sums over the tokens that count and divides by their number in the whole step.
"""

from __future__ import annotations

import torch

from hf_sense.ragged import RaggedIndex, sense_cross_entropy, sense_log_probabilities


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
