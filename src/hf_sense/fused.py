"""The best sense of each token, and the loss on its target, in one pass: where it is decided which kernels run.

On the CPU, with Numba at hand (``pip install hf-sense[fast]``), the kernels of ``hf_sense.compiled`` read senses where they lie
and as they are kept; elsewhere, and where senses are trained, those of ``hf_sense.ragged`` run, which PyTorch brings. Both
answer alike, rounding aside. ``docs/performance.md`` has the measurements behind this choice. ``HF_SENSE_COMPILED=0`` in the
environment keeps to PyTorch's.
"""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch

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

logger = logging.getLogger(__name__)

_KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.int8)
# Below so many multiplications a second thread brings nothing: it finds its core held by PyTorch's own, which wait for more.
_WORTH_A_THREAD = 2**25


@dataclass(frozen=True)
class Senses:
    """Senses as they lie in memory: token ``t`` owns the rows ``offsets[t]:offsets[t + 1]``.

    Attributes:
        offsets: int64 ``(vocab_size + 1,)``.
        rows: float32, bfloat16, float16 or int8 ``(num_senses, dim)``; float64 without the compiled kernels.
        scales: float32 ``(num_senses,)`` beside int8 rows.
        half_norms: ``half_squared_norms`` of the rows, float32, if they are at hand; with ``dot`` they are not used.
    """

    offsets: torch.Tensor
    rows: torch.Tensor
    scales: torch.Tensor | None = None
    half_norms: torch.Tensor | None = None

    def of(self, token_ids: torch.Tensor) -> tuple[RaggedIndex, torch.Tensor, torch.Tensor | None]:
        """The layout of ``token_ids`` ``(n,)``, the table it points into, and that table's global ids if it is a part.

        Of rows narrower than float32 the table holds the batch's own alone, widened: PyTorch's fast kernels take no less.
        """
        if self.rows.dtype.itemsize >= 4:
            return RaggedIndex.of(token_ids, self.offsets), self.rows, None
        tokens, compact = token_ids.unique(return_inverse=True)
        own = RaggedIndex.of(tokens, self.offsets)
        rows = self.rows.index_select(0, own.sense_ids)
        if self.scales is not None:
            rows = dequantize(rows, self.scales.index_select(0, own.sense_ids))
        return RaggedIndex.of(compact, own.starts), rows.float(), own.sense_ids


def has_compiled_kernels() -> bool:
    """Whether Numba is installed and not switched off by ``HF_SENSE_COMPILED=0``."""
    return os.environ.get("HF_SENSE_COMPILED", "1") != "0" and _kernels() is not None


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
    hidden, tokens = hidden.detach(), token_ids[places]
    best = torch.full_like(token_ids, NO_SENSE)
    if not runs_compiled(hidden, senses):
        index, rows, global_ids = senses.of(tokens)
        halves = senses.half_norms if global_ids is None else None
        scores = sense_scores(hidden[places], index, rows, metric, halves, check_finite=check_finite)
        found = best_sense(scores, index)
        found = torch.where(found < len(rows), found, NO_SENSE)  # NaN equals no highest score
        best[places] = found if global_ids is None else _global(found, global_ids)
        replaced = None
        if output_replaced:
            replaced = hidden.index_copy(0, places, take_senses(rows, found, hidden[places]))
        return Choice(best, replaced, scores if output_scores else None)
    top = torch.full(token_ids.shape, -torch.inf)
    plan = _Plan.of(hidden, token_ids, places, senses, metric)
    starts, scores, out = _NOTHING_INT, _NOTHING, _NOTHING_ROWS
    if output_scores:
        lengths = senses.offsets[tokens + 1] - senses.offsets[tokens]
        ends = lengths.cumsum(0)
        starts = (ends - lengths)[plan.sorting]
        scores = torch.empty(int(ends[-1]) if len(ends) else 0)
    # The kernel sees a cosine's states at length one, which is not what should stand where a token has no sense.
    whole = hidden.dtype == torch.float32 and metric != "cosine"
    if output_replaced and whole:
        # Where every place counts the kernel writes every row.
        kept = hidden.contiguous()
        out = torch.empty_like(kept) if len(places) == len(hidden) else kept.clone()
    plan.run(plan.kernels.choose, best.numpy(), top.numpy(), starts.numpy(), scores.numpy(), out.numpy())
    if check_finite and not bool(torch.isfinite(top[places]).all()):
        # A token without a sense has no score.
        bad = ~torch.isfinite(top[places]) & (senses.offsets[tokens + 1] > senses.offsets[tokens])
    else:
        bad = _NOTHING
    if bool(bad.any()):
        raise ValueError(
            f"{int(bad.sum())} of {len(places)} hidden states give a sense score that is not finite (first at token "
            f"{int(bad.nonzero()[0])}). Look for NaN or infinity in the model's output or in the dictionary's senses."
        )
    replaced = out if whole else _put(hidden, best, senses)
    return Choice(best, replaced if output_replaced else None, scores if output_scores else None)


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
        ValueError: if a target is not a sense of its token.
    """
    tokens, wanted = token_ids[places], targets[places]
    first = senses.offsets[tokens]
    check_targets(wanted, first, senses.offsets[tokens + 1] - first)
    if not runs_compiled(hidden, senses):
        index, rows, global_ids = senses.of(tokens)
        halves = senses.half_norms if global_ids is None else None
        scores = sense_scores(hidden[places], index, rows, metric, halves, check_finite=False)
        if global_ids is not None:
            wanted = torch.searchsorted(global_ids, wanted)
        best = best_sense(scores.detach(), index)
        best = best if global_ids is None else _global(best.clamp_max(len(rows) - 1), global_ids)
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
        plan = _Plan.of(hidden, token_ids, places, senses, metric, normalized=True)
        best = torch.full_like(token_ids, NO_SENSE)
        loss = torch.zeros(len(token_ids))
        grad = torch.zeros_like(hidden, memory_format=torch.contiguous_format) if ctx.needs_input_grad[0] else None
        sharpness = plan.kernels.np.float32(1 / temperature)
        outputs = best.numpy(), loss.numpy(), (_NOTHING_ROWS if grad is None else grad).numpy()
        plan.run(plan.kernels.cross_entropy, targets.contiguous().numpy(), sharpness, *outputs)
        ctx.places, ctx.grad = places, grad
        chosen = best[places]
        ctx.mark_non_differentiable(chosen)
        return loss[places], chosen

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        weights = torch.zeros(len(ctx.grad)).index_copy(0, ctx.places, grads[0])
        return (ctx.grad * weights.unsqueeze(-1), *[None] * 6)


_NOTHING, _NOTHING_ROWS = torch.empty(0), torch.empty(0, 0)
_NOTHING_INT = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class _Plan:
    """A batch's places in the order of their tokens, cut for the threads, and the arrays that the kernels take."""

    kernels: Any
    sorting: torch.Tensor
    order: Any
    bounds: list[int]
    hidden: Any
    table: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        hidden: torch.Tensor,
        token_ids: torch.Tensor,
        places: torch.Tensor,
        senses: Senses,
        metric: Metric,
        normalized: bool = False,
    ) -> _Plan:
        if hidden.shape[1] != senses.rows.shape[1]:
            raise ValueError(
                f"Expected hidden states (tokens, dim) and senses (num_senses, dim) of one width, but got "
                f"{tuple(hidden.shape)} and {tuple(senses.rows.shape)}. A student narrower than its teacher needs a "
                "projection."
            )
        kernels = _kernels()
        states = hidden.detach().to(torch.float32)
        if metric == "cosine" and not normalized:
            states = torch.nn.functional.normalize(states, dim=-1, eps=1e-12)
        sorting = torch.argsort(token_ids[places])
        order = places[sorting].numpy()
        ids, offsets = token_ids.contiguous().numpy(), senses.offsets.contiguous().numpy()
        parts = _parts(8 * len(order) * hidden.shape[1])
        bounds = kernels.cuts(order, ids, offsets, parts).tolist() if parts > 1 else [0, len(order)]
        halves = _NOTHING if senses.half_norms is None or metric == "dot" else senses.half_norms
        table = ids, offsets, *_arrays(senses), halves.contiguous().numpy(), kernels.METRICS[metric]
        return cls(kernels, sorting, order, bounds, states.contiguous().numpy(), table)

    def run(self, kernel: Callable[..., None], *rest: Any) -> None:
        """Calls ``kernel`` on each part of the order, every part on a thread of its own."""
        _spread(lambda begin, end: kernel(self.hidden, self.order, begin, end, *self.table, *rest), self.bounds)


def _arrays(senses: Senses) -> tuple[Any, Any]:
    rows = senses.rows.detach().contiguous()
    if rows.dtype == torch.bfloat16:
        rows = rows.view(torch.int16)
    array = rows.numpy()
    if rows.dtype == torch.float16:
        array = array.view("uint16")
    return array, (_NOTHING if senses.scales is None else senses.scales.contiguous()).numpy()


def _parts(work: int) -> int:
    return max(1, min(torch.get_num_threads(), work // _WORTH_A_THREAD))


def _spread(call: Callable[[int, int], None], bounds: list[int]) -> None:
    stretches = [(begin, end) for begin, end in pairwise(bounds) if end > begin]
    if len(stretches) <= 1:
        for begin, end in stretches:
            call(begin, end)
        return
    # Kernels let go of the interpreter, so that threads run side by side; this one takes a part too.
    others = [_pool(os.getpid()).submit(call, *stretch) for stretch in stretches[1:]]
    call(*stretches[0])
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="hf_sense")


@lru_cache(maxsize=1)
def _kernels() -> Any:
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        from hf_sense import compiled
    except (ImportError, RuntimeError) as error:
        # Numba is there and does not fit NumPy, or finds no folder to keep what it compiles.
        logger.warning("Numba's kernels cannot be used (%s); PyTorch's run instead.", error)
        return None
    return compiled
