"""Shares a number of senses out among tokens so that their summed error is least.

It takes error curves as they are; `hf_sense.error_curves` measures them.
"""

import torch
from torch import Tensor


def share_out(levels: Tensor, errors: Tensor, budget: int) -> Tensor:
    """Give each next sense to the token whose error it lowers most, until the budget is spent or nothing is gained.

    Between two levels a curve counts as straight. With convex curves no other shares of this budget have a smaller
    summed error (Fox, 1966, marginal analysis). Of another curve the largest convex one below it is taken (Shoham and
    Gersho, 1988): the shares are best wherever the budget ends at a corner of these; elsewhere they are from the best
    by at most what the one edge that was begun and not ended would have brought.

    Args:
        levels: `(num_tokens, num_levels)` int64, at least 0, rising along a row and then staying at its last value.
        errors: `(num_tokens, num_levels)` floating, each token's error with so many senses, weighted as it should count.
            An error that is larger than one with fewer senses counts as that.
        budget: most senses in all, at least the sum of the first levels.

    Returns:
        `(num_tokens,)` int64, senses of each token, from its first level to its last. Of equal gains the first token's
        comes first.

    Raises:
        ValueError: shapes, dtypes or the order of the levels are not as stated, an error is NaN or infinite, or the
            budget is less than what the first levels take.

    Example:
        >>> levels = torch.tensor([[1, 2, 3], [1, 2, 3]])
        >>> errors = torch.tensor([[9.0, 1.0, 0.0], [5.0, 3.0, 2.5]])
        >>> share_out(levels, errors, 4).tolist()
        [2, 2]
    """
    if levels.dtype != torch.int64 or levels.dim() != 2 or not levels.shape[1] or errors.shape != levels.shape:
        raise ValueError(
            "levels should be int64 (num_tokens, num_levels) and errors of the same shape, but are "
            f"{levels.dtype} {tuple(levels.shape)} and {tuple(errors.shape)}."
        )
    if not errors.is_floating_point() or not bool(errors.isfinite().all()):
        raise ValueError("errors should be floating and finite, but hold NaN or infinity, or are integers.")
    steps = levels.diff(dim=1)
    stays = (steps[:, 1:] > 0) & (steps[:, :-1] <= 0)
    if bool((levels < 0).any() | (steps < 0).any() | stays.any()):
        raise ValueError("levels should be at least 0, rise along a row, and then stay at its last value.")
    needed = int(levels[:, 0].sum())
    if budget < needed:
        raise ValueError(
            f"The tokens need {needed:,} senses before any is shared out, but the budget is {budget:,}. Give at least that."
        )
    gains, lengths = _hull(levels, errors.double().cummin(1).values)
    wanted = gains > 0
    rows = wanted.nonzero()[:, 0]
    gains, lengths = gains[wanted], lengths[wanted]
    order = gains.argsort(descending=True, stable=True)
    rows, lengths = rows[order], lengths[order]
    before = lengths.cumsum(0) - lengths
    # What is left when an edge's turn comes: the whole edge, a part of it, or nothing.
    taken = (budget - needed - before).clamp_min(0).minimum(lengths)
    return levels[:, 0].clone().index_add_(0, rows, taken)


def _hull(levels: Tensor, errors: Tensor) -> tuple[Tensor, Tensor]:
    """The edges of each row's lower convex hull, `(num_tokens, num_levels - 1)`: fall of the error a sense, and length.

    Rows with fewer edges have edges of no fall and no length at the end. A step goes along all rows at once.
    """
    count, width = levels.shape
    at = torch.zeros(count, 1, dtype=torch.int64, device=levels.device)
    gains, lengths = [torch.zeros(count, 0, dtype=torch.float64, device=levels.device)], [levels[:, :0]]
    for _ in range(width - 1):
        rise = levels - levels.gather(1, at)
        slope = (errors.gather(1, at) - errors) / rise.clamp_min(1)
        slope.masked_fill_(rise <= 0, 0)
        # The farthest of equally steep corners: one edge, not two whose rounded slopes may change places.
        after = width - 1 - slope.flip(1).argmax(1, keepdim=True)
        gain = slope.gather(1, after)
        after = torch.where(gain > 0, after, at)
        gains.append(gain)
        lengths.append(rise.gather(1, after))
        at = after
        if not bool((gain > 0).any()):
            break
    return torch.cat(gains, 1), torch.cat(lengths, 1)
