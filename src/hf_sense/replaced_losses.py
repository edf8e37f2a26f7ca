"""The losses that compare what a student's selection puts in a state's place with the teacher's state.

They train a student, and its senses where those are learned. Losses on the states themselves, and on choices, stand in
``hf_sense.losses`` and ``hf_sense.fused``.
"""

from __future__ import annotations

import dataclasses

import torch

from hf_sense.configuration_sense import SenseConfig
from hf_sense.distillation_config import SenseDistillationConfig
from hf_sense.expectation import expect_senses
from hf_sense.fused import choose_senses
from hf_sense.losses import squared_error_loss
from hf_sense.ragged import Metric, take_senses
from hf_sense.senses import Senses


def replaced_loss(
    hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    args: SenseDistillationConfig,
    config: SenseConfig,
    senses: Senses,
    token_ids: torch.Tensor,
) -> torch.Tensor:
    """``expected_loss`` for a student that selects softly, ``straight_through_loss`` for others, float32 ``(n,)``.

    Args:
        hidden: the student's, ``(n, dim)``. Gradients flow to it.
        teacher_hidden: ``(n, dim)``.
        args: its ``commitment_weight`` counts.
        config: the student's; ``metric``, ``selection`` and ``selection_temperature`` count.
        senses: where the senses lie. Gradients flow to its rows if they ask for them.
        token_ids: int64 ``(n,)``, by which to ask ``senses``.
    """
    sides = hidden, teacher_hidden, senses, token_ids, config.metric
    if config.selection == "soft":
        return expected_loss(*sides, config.selection_temperature)
    return straight_through_loss(*sides, args.commitment_weight)


def expected_loss(
    hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    senses: Senses,
    token_ids: torch.Tensor,
    metric: Metric,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Squared error of the expectation over a token's senses, ``|sum_j p_j s_j - g|^2 / dim``, float32 ``(n,)``.

    ``p`` is the soft maximum of the student's scores over ``temperature``, ``g`` the teacher's state: what soft selection puts
    in a state's place is pulled to it. ``straight_through_loss`` is the sibling for the best sense.

    Args:
        hidden: the student's, ``(n, dim)``. Gradients flow to it, as long as the scores depend on it.
        teacher_hidden: ``(n, dim)``.
        senses: where the senses lie. Gradients flow to its rows if they ask for them.
        token_ids: int64 ``(n,)``; a token without senses keeps its state.
        metric: as for ``hf_sense.ragged.sense_scores``.
        temperature: divides the scores.
    """
    places = torch.arange(len(hidden), device=hidden.device)
    replaced = expect_senses(hidden, token_ids, places, senses, metric, temperature).replaced
    return squared_error_loss(replaced, teacher_hidden)


def straight_through_loss(
    hidden: torch.Tensor,
    teacher_hidden: torch.Tensor,
    senses: Senses,
    token_ids: torch.Tensor,
    metric: Metric,
    commitment_weight: float = 0.25,
) -> torch.Tensor:
    """``|s - g|^2 / dim + commitment_weight |h - sg(s)|^2 / dim``, ``s`` the sense that ``h`` chooses, float32 ``(n,)``.

    In the manner of VQ-VAE (van den Oord, Vinyals and Kavukcuoglu 2017, equation 3). The first term pulls the chosen row to the
    teacher's state ``g``, if rows are trained, and gives ``h`` the gradient of ``s``, as if choosing were the identity; the
    second keeps ``h`` near what it chooses. ``sg`` passes no gradient.

    Args:
        hidden: the student's, ``(n, dim)``. Gradients flow to it.
        teacher_hidden: ``(n, dim)``.
        senses: where the senses lie. Gradients flow to its rows if they ask for them.
        token_ids: int64 ``(n,)``; a token without senses keeps its state.
        metric: as for ``hf_sense.ragged.sense_scores``.
        commitment_weight: van den Oord et al. found 0.1 to 2.0 to do alike.
    """
    chosen = straight_through(hidden, token_ids, senses, metric)
    committed = squared_error_loss(hidden, chosen)
    return squared_error_loss(chosen, teacher_hidden) + commitment_weight * committed


def straight_through(hidden: torch.Tensor, token_ids: torch.Tensor, senses: Senses, metric: Metric) -> torch.Tensor:
    """The best sense's row for each state ``(n, dim)``; its gradient goes to the row and, whole, to the state."""
    places = torch.arange(len(hidden), device=hidden.device)
    learned = senses.rows.requires_grad
    fixed = dataclasses.replace(senses, rows=senses.rows.detach())
    best, chosen, _ = choose_senses(hidden, token_ids, places, fixed, metric, output_replaced=not learned)
    if chosen is None:
        chosen = take_senses(senses.rows, best, hidden.detach())
    return chosen + (hidden - hidden.detach())
