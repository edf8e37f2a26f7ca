"""The rows of a sense table as they are kept: floats, or int8 with a scale a row, in one tensor or in several.

It knows nothing of tokens; ``hf_sense.dictionary`` says which rows are whose.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch

from hf_sense.quantization import LARGEST, dequantize, dequantize_table, quantize, scales_are_sound
from hf_sense.ragged import half_squared_norms

# Norms of a larger table are computed for the rows a batch touches, so that the others stay on disk.
_KEEP_NORMS_BYTES = 2**30
_Own = TypeVar("_Own", bound="RowBlocks")


class RowBlocks:
    """A table of ``(n, dim)`` vectors.

    Args:
        blocks: row blocks in order, each floating or int8 ``(rows, dim)``.
        scales: float32 ``(n,)`` beside int8 blocks.

    Raises:
        ValueError: if blocks differ in width or dtype, or scales do not fit.
    """

    def __init__(self, blocks: Sequence[torch.Tensor], scales: torch.Tensor | None = None) -> None:
        self.blocks, self.scales = list(blocks), scales
        self._half_norms: torch.Tensor | None = None
        first = self.blocks[0] if self.blocks else None
        if first is None or any(
            b.ndim != 2 or b.shape[1] != first.shape[1] or b.dtype != first.dtype for b in self.blocks
        ):
            raise ValueError(
                "senses should be (num_senses, dim), or row blocks of one width and dtype, but got "
                f"{[(tuple(block.shape), block.dtype) for block in self.blocks]}."
            )
        if self.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.int8):
            raise ValueError(
                f"senses should be float16, bfloat16 or float32, or int8 with scales, but is {self.dtype}."
            )
        if (self.dtype == torch.int8) != (scales is not None):
            raise ValueError(
                f"int8 senses need scales and others take none, but senses is {self.dtype} and scales "
                f"{'missing' if scales is None else 'given'}. SenseDictionary.to(torch.int8) makes both."
            )
        if scales is None:
            return
        if tuple(scales.shape) != (len(self),) or scales.dtype != torch.float32:
            raise ValueError(
                f"scales should be torch.float32 ({len(self)},), but is {scales.dtype} {tuple(scales.shape)}."
            )
        if not scales_are_sound(scales):
            raise ValueError(f"scales should be at least 0 and {LARGEST} times each finite.")

    def __len__(self) -> int:
        return sum(map(len, self.blocks))

    @property
    def dim(self) -> int:
        """The width of a row."""
        return int(self.blocks[0].shape[1])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which rows are kept."""
        return self.blocks[0].dtype

    @property
    def nbytes(self) -> int:
        """The bytes of all rows, with their scales."""
        return sum(part.nbytes for part in (*self.blocks, self.scales) if part is not None)

    def whole(self) -> torch.Tensor:
        """All rows as kept, ``(n, dim)``; a copy if there are several blocks."""
        return self.blocks[0] if len(self.blocks) == 1 else torch.cat(self.blocks)

    def rows(self, ids: torch.Tensor) -> torch.Tensor:
        """The rows of ``ids`` int64 ``(m,)``, copied to ``(m, dim)``; int8 ones as float32. Reads no other row."""
        stored = self._stored(ids)
        return stored if self.scales is None else dequantize(stored, self.scales.index_select(0, ids))

    def _stored(self, ids: torch.Tensor) -> torch.Tensor:
        if len(self.blocks) == 1:
            return self.blocks[0].index_select(0, ids)
        ends = torch.tensor([len(block) for block in self.blocks]).cumsum(0)
        owner = torch.searchsorted(ends, ids, right=True)
        result = torch.empty(len(ids), self.dim, dtype=self.dtype)
        for number, block in enumerate(self.blocks):
            mine = (owner == number).nonzero().squeeze(-1)
            result[mine] = block.index_select(0, ids[mine] - (ends[number] - len(block)))
        return result

    def half_norms(self) -> torch.Tensor | None:
        """``|row|^2 / 2`` of each row of a table of one block, kept; ``None`` if it is too large to read for that."""
        if self.nbytes > _KEEP_NORMS_BYTES:
            return None
        if self._half_norms is None:
            self._half_norms = half_squared_norms(self.blocks[0])
        return self._half_norms

    def check_finite(self) -> None:
        """Reads every row; raises ``ValueError`` if a value is NaN, infinite, or outside what a scale is meant for."""
        for block in self.blocks:
            for rows in block.split(max(1, 2**20 // max(1, self.dim))):
                if self.scales is not None and bool((rows < -LARGEST).any()):
                    raise ValueError(f"int8 senses should be from -{LARGEST} to {LARGEST}, but hold {int(rows.min())}.")
                if not bool(torch.isfinite(rows).all()):
                    raise ValueError("senses holds NaN or infinite values; look for them in the teacher's output.")

    def to(self: _Own, dtype: torch.dtype) -> _Own:
        """The rows in another dtype; itself in its own.

        Raises:
            ValueError: if a value overflows the dtype.
        """
        if dtype == self.dtype:
            return self
        scales = None
        if dtype == torch.int8:
            quantized = [quantize(block) for block in self.blocks]
            blocks = [values for values, _ in quantized]
            scales = torch.cat([part for _, part in quantized])
        elif self.scales is not None:
            parts = self.scales.split([len(block) for block in self.blocks])
            blocks = [dequantize_table(block, part, dtype) for block, part in zip(self.blocks, parts)]
        else:
            blocks = [block.to(dtype) for block in self.blocks]
        if any(bool(torch.isinf(block).any()) for block in blocks):
            largest = max(float(self.rows(ids).abs().max()) for ids in torch.arange(len(self)).split(4096))
            raise ValueError(f"A sense value of {largest:.4g} overflows {dtype}; use torch.bfloat16.")
        return type(self)(blocks, scales)
