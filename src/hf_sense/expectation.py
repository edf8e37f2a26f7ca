"""The expectation over each token's senses, and its scores: compiled where nothing is trained, PyTorch's kernels otherwise.

``hf_sense.fused`` has the best sense alone, and says when the compiled kernels run.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from hf_sense.fused import runs_compiled
from hf_sense.kernel_calls import NOTHING, NOTHING_INT, Plan
from hf_sense.ragged import NO_SENSE, Metric, best_sense, expected_sense, sense_log_probabilities, sense_scores
from hf_sense.senses import Senses


class Expectation(NamedTuple):
    """What ``expect_senses`` returns.

    Attributes:
        replaced: the states with their token's mean sense in each one's place, ``(n, dim)``, of their dtype.
        sense_ids: the best senses, int64 ``(n,)``, as of ``hf_sense.fused.choose_senses``; ``None`` without scores.
        scores: float32 ``(pairs,)``, before they are divided, laid out as
            ``RaggedIndex.of(token_ids[places], senses.offsets)``; ``None`` if not asked for.
    """

    replaced: torch.Tensor
    sense_ids: torch.Tensor | None
    scores: torch.Tensor | None


def expect_senses(
    hidden: torch.Tensor,
    token_ids: torch.Tensor,
    places: torch.Tensor,
    senses: Senses,
    metric: Metric,
    temperature: float,
    *,
    output_scores: bool = False,
) -> Expectation:
    """Puts the mean of the token's senses, under the soft maximum of their scores, in the place of each state.

    Args:
        hidden: floating ``(n, dim)``. Gradients flow to it.
        token_ids: int64 ``(n,)``; elsewhere than at ``places`` they may be anything.
        places: int64 ``(m,)``, which tokens count, each once.
        senses: where the senses lie. Gradients flow to its rows if they ask for them.
        metric: as for ``hf_sense.ragged.sense_scores``.
        temperature: divides the scores; ``hf_sense.selection_temperature.fit_temperature`` finds one.
        output_scores: also return the scores and the best senses. A token without senses keeps its state.

    Raises:
        ValueError: if the widths differ, or a token has no place in the table.
    """
    needs_gradient = torch.is_grad_enabled() and (hidden.requires_grad or senses.rows.requires_grad)
    if needs_gradient or not runs_compiled(hidden, senses):
        return _expect(hidden, token_ids, places, senses, metric, temperature, output_scores)
    plan = Plan.of(hidden, token_ids, places, senses, metric)
    from hf_sense.compiled_soft import expect

    best = torch.full_like(token_ids, NO_SENSE)
    starts, scores = NOTHING_INT, NOTHING
    if output_scores:
        _, lengths = senses.spans(token_ids[places])
        ends = lengths.cumsum(0)
        starts = (ends - lengths)[plan.sorting]
        scores = torch.empty(int(ends[-1]) if len(ends) else 0)
    out = hidden.detach().to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    sharpness = plan.kernels.np.float32(1 / temperature)
    plan.run(expect, sharpness, best.numpy(), starts.numpy(), scores.numpy(), out.numpy())
    replaced = out.to(hidden.dtype)
    return Expectation(replaced, best, scores) if output_scores else Expectation(replaced, None, None)


def _expect(
    hidden: torch.Tensor,
    token_ids: torch.Tensor,
    places: torch.Tensor,
    senses: Senses,
    metric: Metric,
    temperature: float,
    output_scores: bool,
) -> Expectation:
    states = hidden[places]
    index, rows, own_ids = senses.of(token_ids[places])
    halves = senses.half_norms if own_ids is None else None
    scores = sense_scores(states, index, rows, metric, halves, check_finite=False)
    shares = sense_log_probabilities(scores / temperature, index).exp()
    replaced = hidden.index_copy(0, places, expected_sense(shares, index, rows, states).to(hidden.dtype))
    if not output_scores:
        return Expectation(replaced, None, None)
    found = best_sense(scores.detach(), index)
    found = torch.where(found < len(rows), found, NO_SENSE)  # NaN equals no highest score
    if own_ids is not None and len(own_ids):
        found = torch.where(found >= 0, own_ids[found.clamp_min(0)], NO_SENSE)
    best = torch.full_like(token_ids, NO_SENSE).index_copy(0, places, found)
    return Expectation(replaced, best, scores)
