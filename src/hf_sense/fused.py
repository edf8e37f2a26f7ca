"""The best sense of each token, and the loss on its target, in one pass: where it is decided which kernels run.

On the CPU, with Numba at hand (``pip install hf-sense[fast]``), the kernels of ``hf_sense.compiled`` read senses where they lie
and as they are kept; elsewhere, and where senses are trained, those of ``hf_sense.ragged`` run, which PyTorch brings. Both
answer alike, rounding aside. ``docs/performance.md`` has the measurements behind this choice. ``HF_SENSE_COMPILED=0`` in the
environment keeps to PyTorch's.
"""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import torch
from torch.autograd.function import once_differentiable

from hf_sense.kernel_calls import NOTHING, NOTHING_INT, NOTHING_ROWS, Plan, compiled_kernels
from hf_sense.quantization import dequantize
from hf_sense.ragged import (
    NO_SENSE,
    Metric,
    RaggedIndex,
    best_sense,
    check_targets,
    sense_cross_entropy,
    sense_scores,
    take_senses,
)
from hf_sense.senses import Senses

_KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.int8)


def has_compiled_kernels() -> bool:
    """Whether Numba is installed and not switched off by ``HF_SENSE_COMPILED=0``."""
    return os.environ.get("HF_SENSE_COMPILED", "1") != "0" and compiled_kernels() is not None


def runs_compiled(hidden: torch.Tensor, senses: Senses) -> bool:
    """Whether the compiled kernels take these: on the CPU, senses not trained, not under a tracer."""
    return (
        hidden.device.type == "cpu"
        and senses.rows.device.type == "cpu"
        and senses.rows.dtype in _KINDS
        and hidden.dtype != torch.float64
        and not senses.rows.requires_grad
        and type(hidden) is torch.Tensor
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and has_compiled_kernels()
    )


class Choice(NamedTuple):
    """What ``choose_senses`` returns.

    Attributes:
        sense_ids: int64 ``(n,)``; NO_SENSE elsewhere than at the places, for tokens without a sense, and where all scores
            are NaN.
        replaced: the states with the best sense's row in each one's place, ``(n, dim)``, of their dtype and without gradient;
            ``None`` if not asked for.
        scores: float32 ``(pairs,)``, laid out as ``RaggedIndex.of(token_ids[places], senses.offsets)``, or ``None``.
    """

    sense_ids: torch.Tensor
    replaced: torch.Tensor | None
    scores: torch.Tensor | None

    def numbered(self, global_ids: torch.Tensor) -> Choice:
        """The same with ``global_ids[i]`` for the sense id ``i``."""
        return self._replace(sense_ids=_global(self.sense_ids, global_ids))


def choose_senses(
    hidden: torch.Tensor,
    token_ids: torch.Tensor,
    places: torch.Tensor,
    senses: Senses,
    metric: Metric,
    *,
    output_replaced: bool = False,
    output_scores: bool = False,
    check_finite: bool = False,
) -> Choice:
    """The best sense at each of ``places``; ties go to the lowest id.

    Args:
        hidden: floating ``(n, dim)``.
        token_ids: int64 ``(n,)``; elsewhere than at ``places`` they may be anything.
        places: int64 ``(m,)``, which tokens count, each once.
        senses: where the senses lie.
        metric: as for ``hf_sense.ragged.sense_scores``.
        output_replaced: also return the states replaced.
        output_scores: also return every score.
        check_finite: refuse a best score that is not finite.

    Raises:
        ValueError: if the widths differ, or as ``check_finite`` says.
    """
    hidden = hidden.detach()
    best = torch.full_like(token_ids, NO_SENSE)
    if not runs_compiled(hidden, senses):
        index, rows, global_ids, scores = _scores(hidden, token_ids, places, senses, metric, check_finite)
        found = best_sense(scores, index)
        found = torch.where(found < len(rows), found, NO_SENSE)  # NaN equals no highest score
        best[places] = found if global_ids is None else _global(found, global_ids)
        replaced = None
        if output_replaced:
            replaced = hidden.index_copy(0, places, take_senses(rows, found, hidden[places]))
        return Choice(best, replaced, scores if output_scores else None)
    top = torch.full(token_ids.shape, -torch.inf)
    plan = Plan.of(hidden, token_ids, places, senses, metric)
    starts, scores, out = NOTHING_INT, NOTHING, NOTHING_ROWS
    if output_scores:
        _, lengths = senses.spans(token_ids[places])
        ends = lengths.cumsum(0)
        starts = (ends - lengths)[plan.sorting]
        scores = torch.empty(int(ends[-1]) if len(ends) else 0)
    # The kernel sees a cosine's states at length one, which is not what should stand where a token has no sense.
    puts = output_replaced and hidden.dtype == torch.float32 and metric != "cosine"
    if puts:
        # Where every place counts the kernel writes every row.
        kept = hidden.contiguous()
        out = torch.empty_like(kept) if len(places) == len(hidden) else kept.clone()
    plan.run(plan.kernels.choose, best.numpy(), top.numpy(), starts.numpy(), scores.numpy(), out.numpy())
    if check_finite and not bool(torch.isfinite(top[places]).all()):
        # A token without a sense has no score.
        bad = ~torch.isfinite(top[places]) & (senses.spans(token_ids[places])[1] > 0)
        if bool(bad.any()):
            raise ValueError(
                f"{int(bad.sum())} of {len(places)} hidden states give a sense score that is not finite (first at token "
                f"{int(bad.nonzero()[0])}). Look for NaN or infinity in the model's output or in the dictionary's senses."
            )
    replaced = None
    if output_replaced:
        replaced = out if puts else _put(hidden, best, senses)
    return Choice(best, replaced, scores if output_scores else None)


def _scores(
    hidden: torch.Tensor,
    token_ids: torch.Tensor,
    places: torch.Tensor,
    senses: Senses,
    metric: Metric,
    check_finite: bool = False,
) -> tuple[RaggedIndex, torch.Tensor, torch.Tensor | None, torch.Tensor]:
    """What ``Senses.of`` gives for the places, and the scores by PyTorch's kernels."""
    index, rows, global_ids = senses.of(token_ids[places])
    halves = senses.half_norms if global_ids is None else None
    return index, rows, global_ids, sense_scores(hidden[places], index, rows, metric, halves, check_finite=check_finite)


def _put(hidden: torch.Tensor, best: torch.Tensor, senses: Senses) -> torch.Tensor:
    at = (best >= 0).nonzero().squeeze(-1)
    rows = senses.rows.index_select(0, best[at])
    if senses.scales is not None:
        rows = dequantize(rows, senses.scales.index_select(0, best[at]))
    return hidden.index_copy(0, at, rows.to(hidden.dtype))


def _global(found: torch.Tensor, global_ids: torch.Tensor) -> torch.Tensor:
    return torch.where(found >= 0, global_ids[found.clamp_min(0)], NO_SENSE) if len(global_ids) else found


def sense_loss(
    hidden: torch.Tensor,
    token_ids: torch.Tensor,
    places: torch.Tensor,
    senses: Senses,
    metric: Metric,
    targets: torch.Tensor,
    temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each target among its token's senses (Wang et al. 2025, section 3.3), and the sense chosen.

    Args:
        hidden: floating ``(n, dim)``. Gradients flow to it.
        token_ids: int64 ``(n,)``.
        places: int64 ``(m,)``, which tokens have a target.
        senses: where the senses lie. Gradients flow to its rows if they ask for them.
        metric: as for ``hf_sense.ragged.sense_scores``.
        targets: int64 ``(n,)``, global sense ids; read at ``places`` alone.
        temperature: divides the scores.

    Returns:
        float32 ``(m,)``, nats; int64 ``(m,)``, the best sense of each of ``places``.

    Raises:
        ValueError: if a target is not a sense of its token, or a token has no place in the table.
    """
    wanted = targets[places]
    check_targets(wanted, *senses.spans(token_ids[places]))
    if not runs_compiled(hidden, senses):
        index, rows, global_ids, scores = _scores(hidden, token_ids, places, senses, metric)
        best = best_sense(scores.detach(), index)
        if global_ids is not None:
            wanted = torch.searchsorted(global_ids, wanted)
            best = _global(best.clamp_max(len(rows) - 1), global_ids)
        return sense_cross_entropy(scores / temperature, index, wanted), best
    states = hidden.to(torch.float32)
    if metric == "cosine":
        states = torch.nn.functional.normalize(states, dim=-1, eps=1e-12)
    return _SenseLoss.apply(states, token_ids, places, senses, metric, targets, temperature)


class _SenseLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: torch.Tensor,
        token_ids: torch.Tensor,
        places: torch.Tensor,
        senses: Senses,
        metric: Metric,
        targets: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        plan = Plan.of(hidden, token_ids, places, senses, metric, normalized=True)
        best = torch.full_like(token_ids, NO_SENSE)
        loss = torch.zeros(len(token_ids))
        grad = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        sharpness = plan.kernels.np.float32(1 / temperature)
        outputs = best.numpy(), loss.numpy(), (NOTHING_ROWS if grad is None else grad).numpy()
        plan.run(plan.kernels.cross_entropy, targets.contiguous().numpy(), sharpness, *outputs)
        ctx.places, ctx.grad = places, grad
        chosen = best[places]
        ctx.mark_non_differentiable(chosen)
        return loss[places], chosen

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weights = torch.zeros(len(ctx.grad)).index_copy(0, ctx.places, grads[0])
        return (ctx.grad * weights.unsqueeze(-1), *[None] * 6)
