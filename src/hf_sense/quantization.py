"""Rows as int8 with one float32 scale each, and back again. It knows nothing of tokens, senses or files.

Symmetric, a scale a row: ``row = scale * integers``, the integers from -127 to 127 and ``scale = max |row| / 127``.
"""

from __future__ import annotations

import torch

LARGEST = 127

# Numbers taken to float32 at once: a table larger than memory is quantized a few megabytes at a time.
_NUMBERS_AT_ONCE = 2**20


def quantize(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The integers and the scales that come nearest to ``rows``.

    No entry moves by more than half a scale, float32 rounding aside, and zeros stay zeros. The way back is ``dequantize``.

    Args:
        rows: floating and finite, ``(n, dim)``.

    Returns:
        int8 ``(n, dim)`` and float32 ``(n,)``; a row of zeros has the scale 0.
    """
    values = torch.empty(rows.shape, dtype=torch.int8, device=rows.device)
    scales = torch.zeros(len(rows), dtype=torch.float32, device=rows.device)
    step = _rows_at_once(rows)
    for begin in range(0, len(rows) if rows.numel() else 0, step):
        block = rows[begin : begin + step].float()
        largest = block.abs().amax(1)
        # Below the smallest normal number a quotient loses its digits, and half a scale would be no bound.
        scale = torch.where(largest > 0, (largest / LARGEST).clamp_min(torch.finfo(torch.float32).tiny), 0.0)
        integers = (block / torch.where(scale > 0, scale, 1.0)[:, None]).round_().clamp_(-LARGEST, LARGEST)
        values[begin : begin + step] = integers.to(torch.int8)
        scales[begin : begin + step] = scale
    return values, scales


def dequantize(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """``scale * integers`` of each row: int8 ``(n, dim)`` and float32 ``(n,)`` in, float32 ``(n, dim)`` out."""
    return values.to(torch.float32).mul_(scales[:, None])


def dequantize_table(values: torch.Tensor, scales: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """As ``dequantize``, to any floating ``dtype`` and a few megabytes at a time: for a whole table, not for a batch."""
    result = torch.empty(values.shape, dtype=dtype, device=values.device)
    step = _rows_at_once(values)
    for begin in range(0, len(values), step):
        rows = slice(begin, begin + step)
        result[rows] = dequantize(values[rows], scales[rows])
    return result


def scales_are_sound(scales: torch.Tensor) -> bool:
    """Whether float32 ``(n,)`` scales are at least 0 and give finite rows."""
    return bool((torch.isfinite(scales * LARGEST) & (scales >= 0)).all())


def _rows_at_once(table: torch.Tensor) -> int:
    return max(1, _NUMBERS_AT_ONCE // max(1, table.shape[1]))
