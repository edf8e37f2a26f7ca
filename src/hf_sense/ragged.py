"""Scores, best sense, weighted sums and cross-entropy over ragged senses: tensors in, tensors out.

It knows nothing of models, tokenizers or files, and never loops in Python over tokens.

Words used below: token ``t`` owns the rows ``offsets[t]:offsets[t + 1]`` of ``senses``. A batch of ``n`` tokens then
touches ``pairs`` (token, sense) pairs, laid out as the entries of a sparse ``(n, num_senses)`` matrix in CSR form. Its two
products with dense matrices are all that is needed: *sampled dense-dense* gives the scores, *sparse-dense* the weighted
sums, and each is the gradient of the other.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch

Metric = Literal["dot", "cosine", "l2"]
METRICS: tuple[str, ...] = get_args(Metric)

# The sense id of a token that has no sense: what a loss ignores by default in PyTorch.
NO_SENSE = -100

# Rows gathered at once on the path that gathers: small enough to stay in a core's cache.
_GATHER_BYTES = 4 * 2**20


def check_metric(metric: str) -> Metric:
    """Returns ``metric`` if it is one of ``METRICS``; raises ``ValueError`` naming them otherwise."""
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}, but is {metric!r:.80}.")
    return metric  # type: ignore[return-value]


@dataclass(frozen=True)
class RaggedIndex:
    """Which senses each token of a batch owns, in CSR form.

    Attributes:
        starts: int64 ``(n + 1,)``; the pairs of token ``i`` are ``starts[i]:starts[i + 1]``.
        lengths: int64 ``(n,)``, how many senses token ``i`` owns.
        rows: int64 ``(pairs,)``, the token of each pair.
        sense_ids: int64 ``(pairs,)``, the sense of each pair, ascending within a token.
    """

    starts: torch.Tensor
    lengths: torch.Tensor
    rows: torch.Tensor
    sense_ids: torch.Tensor

    @classmethod
    def of(cls, token_ids: torch.Tensor, offsets: torch.Tensor) -> RaggedIndex:
        """Lays out the senses of ``token_ids`` int64 ``(n,)`` by ``offsets`` int64 ``(vocab_size + 1,)``."""
        first = offsets[token_ids]
        lengths = offsets[token_ids + 1] - first
        starts = torch.zeros(len(token_ids) + 1, dtype=torch.int64, device=token_ids.device)
        torch.cumsum(lengths, 0, out=starts[1:])
        rows = torch.repeat_interleave(lengths)
        sense_ids = (first - starts[:-1])[rows] + torch.arange(len(rows), device=token_ids.device)
        return cls(starts, lengths, rows, sense_ids)


def half_squared_norms(senses: torch.Tensor) -> torch.Tensor:
    """``|s|^2 / 2`` of each row of ``senses`` ``(num_senses, dim)``, float32 ``(num_senses,)``.

    ``l2`` and ``cosine`` need it. It is worth keeping: computing it reads the whole table once.
    """
    result = torch.empty(len(senses), dtype=_accumulator(senses.dtype), device=senses.device)
    step = _rows_at_once(senses)
    for begin in range(0, len(senses), step):
        block = senses[begin : begin + step].to(result.dtype)
        result[begin : begin + step] = block.square().sum(-1) / 2
    return result


def sense_scores(
    hidden: torch.Tensor,
    index: RaggedIndex,
    senses: torch.Tensor,
    metric: Metric = "l2",
    half_norms: torch.Tensor | None = None,
    check_finite: bool = True,
) -> torch.Tensor:
    """The score of each (token, sense) pair; a higher score is a better sense.

    ``dot`` is ``h . s`` (Wang et al. 2025, section 3.2), ``cosine`` is ``h . s / (|h| |s|)``, and ``l2`` is
    ``h . s - |s|^2 / 2``, which orders senses as ``-|h - s|^2 / 2`` does and differs from it by ``|h|^2 / 2`` alone, so
    that its soft maximum is the posterior of a mixture of unit Gaussians.

    Args:
        hidden: floating ``(n, dim)``. Gradients flow to it.
        index: from ``RaggedIndex.of``, for the same ``n`` tokens.
        senses: floating ``(num_senses, dim)``. Gradients flow to it if it asks for them.
        metric: see above.
        half_norms: ``half_squared_norms(senses)`` if it is at hand; with ``dot`` it is not used.
        check_finite: refuse scores that are not finite. Switch off only where something else looks, as a gradient scaler.

    Returns:
        float32 (float64 if ``senses`` is) ``(pairs,)``.

    Raises:
        ValueError: if ``hidden`` and ``senses`` differ in width, or a score is NaN or infinite.
    """
    if hidden.ndim != 2 or senses.ndim != 2 or hidden.shape[1] != senses.shape[1]:
        raise ValueError(
            f"Expected hidden states (tokens, dim) and senses (num_senses, dim) of one width, but got "
            f"{tuple(hidden.shape)} and {tuple(senses.shape)}. A student narrower than its teacher needs a projection."
        )
    if len(hidden) != len(index.lengths):
        raise ValueError(f"Expected one hidden state a token, but got {len(hidden)} for {len(index.lengths)} tokens.")
    check_metric(metric)
    hidden = hidden.to(_accumulator(senses.dtype))
    if metric == "cosine":
        hidden = torch.nn.functional.normalize(hidden, dim=-1, eps=1e-12)
    scores = _PairProducts.apply(hidden, senses, index)
    if metric != "dot":
        if half_norms is None or senses.requires_grad:
            halves = _half_norms_of_pairs(senses, index)
        else:
            halves = half_norms[index.sense_ids].to(scores.dtype)
        scores = scores - halves if metric == "l2" else scores / (2 * halves).clamp_min(1e-24).sqrt()
    if check_finite and not bool(torch.isfinite(scores).all()):
        bad = index.rows[~torch.isfinite(scores)]
        raise ValueError(
            f"{len(bad.unique())} of {len(hidden)} hidden states give a sense score that is not finite (first at token "
            f"{int(bad[0])}). Look for NaN or infinity in the model's output or in the dictionary's senses."
        )
    return scores


def best_sense(scores: torch.Tensor, index: RaggedIndex) -> torch.Tensor:
    """The sense id of the highest score of each token, int64 ``(n,)``; ties to the lowest id, NO_SENSE where none."""
    if len(scores) == 0:
        return torch.full_like(index.lengths, NO_SENSE)
    highest = _segment_max(scores, index)
    candidates = torch.where(scores == highest[index.rows], index.sense_ids, torch.iinfo(torch.int64).max)
    best = torch.full_like(index.lengths, torch.iinfo(torch.int64).max)
    best.scatter_reduce_(0, index.rows, candidates, "amin")
    return torch.where(index.lengths > 0, best, NO_SENSE)


def take_senses(senses: torch.Tensor, sense_ids: torch.Tensor, fallback: torch.Tensor) -> torch.Tensor:
    """The rows ``sense_ids`` ``(n,)`` of ``senses``, and rows of ``fallback`` ``(n, dim)`` where the id is negative."""
    if len(senses) == 0:
        return fallback
    taken = senses.index_select(0, sense_ids.clamp_min(0)).to(fallback.dtype)
    return torch.where((sense_ids >= 0).unsqueeze(-1), taken, fallback)


def sense_log_probabilities(scores: torch.Tensor, index: RaggedIndex) -> torch.Tensor:
    """The logarithm of the soft maximum of ``scores`` ``(pairs,)`` over the senses of each token, ``(pairs,)``."""
    if len(scores) == 0:
        return scores
    shifted = scores - _segment_max(scores.detach(), index)[index.rows]
    totals = torch.zeros(len(index.lengths), dtype=scores.dtype, device=scores.device)
    totals = totals.index_add(0, index.rows, shifted.exp())
    return shifted - totals.log()[index.rows]


def expected_sense(
    probabilities: torch.Tensor, index: RaggedIndex, senses: torch.Tensor, fallback: torch.Tensor
) -> torch.Tensor:
    """The mean of each token's senses under ``probabilities`` ``(pairs,)``, ``(n, dim)``; ``fallback`` where it has none.

    Gradients flow to ``probabilities`` and to ``fallback``, and to ``senses`` if it asks for them.
    """
    if len(probabilities) == 0:
        return fallback
    mean = _PairSums.apply(probabilities, senses, index)
    return torch.where((index.lengths > 0).unsqueeze(-1), mean.to(fallback.dtype), fallback)


def sense_cross_entropy(scores: torch.Tensor, index: RaggedIndex, targets: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of each token's target sense among its own senses, in nats, ``(n,)``; 0 where the target is negative.

    Args:
        scores: ``(pairs,)`` from ``sense_scores``. Gradients flow to it.
        index: the layout of ``scores``.
        targets: int64 ``(n,)``, global sense ids; a negative one (-100) marks a token that does not count.

    Raises:
        ValueError: if a target is not a sense of its token, which means that the targets come from another dictionary.
    """
    labelled = targets >= 0
    if len(scores) == 0 and not bool(labelled.any()):
        return torch.zeros(len(targets), dtype=scores.dtype, device=scores.device) + scores.sum()
    first = index.sense_ids[index.starts[:-1].clamp_max(max(len(index.sense_ids) - 1, 0))] if len(scores) else targets
    check_targets(targets, first, index.lengths)
    local = targets - first
    pair = torch.where(labelled, index.starts[:-1] + local, 0)
    return torch.where(labelled, -sense_log_probabilities(scores, index)[pair], 0.0)


def check_targets(targets: torch.Tensor, first: torch.Tensor, lengths: torch.Tensor) -> None:
    """Raises ``ValueError`` if a target that is not negative is none of its token's ``lengths`` senses from ``first`` on.

    All are int64 ``(n,)``.
    """
    labelled = targets >= 0
    wrong = labelled & ((targets < first) | (targets >= first + lengths))
    if bool(wrong.any()):
        at = int(wrong.nonzero()[0])
        raise ValueError(
            f"{int(wrong.sum())} of {int(labelled.sum())} targets are not senses of their token (first: sense "
            f"{int(targets[at])} at token {at}, which owns {int(lengths[at])}). Targets belong to one dictionary: "
            "compute them again for this one."
        )


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _rows_at_once(senses: torch.Tensor) -> int:
    return max(1, _GATHER_BYTES // max(1, senses.shape[1] * 4))


def _segment_max(scores: torch.Tensor, index: RaggedIndex) -> torch.Tensor:
    highest = torch.full((len(index.lengths),), -torch.inf, dtype=scores.dtype, device=scores.device)
    return highest.scatter_reduce(0, index.rows, scores, "amax")


def _half_norms_of_pairs(senses: torch.Tensor, index: RaggedIndex) -> torch.Tensor:
    touched, pair_to_touched = index.sense_ids.unique(return_inverse=True)
    if senses.requires_grad:
        halves = senses[touched].to(_accumulator(senses.dtype)).square().sum(-1) / 2
    else:
        halves = half_squared_norms(senses[touched])
    return halves[pair_to_touched]


def _csr(values: torch.Tensor, index: RaggedIndex, num_senses: int) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(
            index.starts, index.sense_ids, values, (len(index.lengths), num_senses), check_invariants=False
        )


def _has_sparse_kernels(dense: torch.Tensor, senses: torch.Tensor) -> bool:
    return senses.dtype in (torch.float32, torch.float64) and dense.device.type in ("cpu", "cuda") and len(senses) > 0


def _pair_products(dense: torch.Tensor, senses: torch.Tensor, index: RaggedIndex) -> torch.Tensor:
    """``dense[row] . senses[sense]`` of each pair."""
    if _has_sparse_kernels(dense, senses):
        zeros = dense.new_zeros(len(index.rows))
        pattern = _csr(zeros, index, len(senses))
        return torch.sparse.sampled_addmm(pattern, dense, senses.t(), beta=0.0).values()
    result = dense.new_empty(len(index.rows))
    for begin, end, gathered, rows in _gathered(dense, senses, index):
        torch.sum(gathered.mul_(dense[rows]), -1, out=result[begin:end])
    return result


def _pair_sums(values: torch.Tensor, senses: torch.Tensor, index: RaggedIndex) -> torch.Tensor:
    """The sum over each token's senses of ``value * sense``."""
    if _has_sparse_kernels(values, senses):
        return _csr(values, index, len(senses)) @ senses
    result = values.new_zeros(len(index.lengths), senses.shape[1])
    for begin, end, gathered, rows in _gathered(values, senses, index):
        result.index_add_(0, rows, gathered.mul_(values[begin:end, None]))
    return result


def _gathered(like: torch.Tensor, senses: torch.Tensor, index: RaggedIndex) -> Any:
    """Yields the senses of the pairs a few megabytes at a time, in one buffer that is used again and again."""
    step = _rows_at_once(senses)
    buffer = like.new_empty(min(step, len(index.rows)), senses.shape[1])
    for begin in range(0, len(index.rows), step):
        end = min(begin + step, len(index.rows))
        gathered = buffer[: end - begin]
        gathered.copy_(senses[index.sense_ids[begin:end]])
        yield begin, end, gathered, index.rows[begin:end]


class _PairProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, senses: torch.Tensor, index: RaggedIndex) -> torch.Tensor:
        ctx.index = index
        ctx.save_for_backward(hidden, senses)
        return _pair_products(hidden, senses, index)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        hidden, senses = ctx.saved_tensors
        (grad,) = grads
        to_hidden = _pair_sums(grad, senses, ctx.index) if ctx.needs_input_grad[0] else None
        to_senses = _sum_by_sense(grad, hidden, senses, ctx.index) if ctx.needs_input_grad[1] else None
        return to_hidden, to_senses, None


class _PairSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor, senses: torch.Tensor, index: RaggedIndex) -> torch.Tensor:
        ctx.index = index
        ctx.save_for_backward(values, senses)
        return _pair_sums(values, senses, index)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None, None]:
        values, senses = ctx.saved_tensors
        (grad,) = grads
        grad = grad.contiguous()
        to_values = _pair_products(grad, senses, ctx.index) if ctx.needs_input_grad[0] else None
        to_senses = _sum_by_sense(values, grad, senses, ctx.index) if ctx.needs_input_grad[1] else None
        return to_values, to_senses, None


def _sum_by_sense(values: torch.Tensor, dense: torch.Tensor, senses: torch.Tensor, index: RaggedIndex) -> torch.Tensor:
    """The gradient of the table: for each sense, the sum over its pairs of ``value * dense[row]``."""
    result = torch.zeros(senses.shape, dtype=dense.dtype, device=dense.device)
    step = _rows_at_once(senses)
    for begin in range(0, len(index.rows), step):
        pairs = slice(begin, begin + step)
        result.index_add_(0, index.sense_ids[pairs], dense[index.rows[pairs]] * values[pairs, None])
    return result.to(senses.dtype)
