"""Senses as they lie in memory, and which rows of them are a token's. It multiplies nothing."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_sense.quantization import dequantize
from hf_sense.ragged import RaggedIndex


@dataclass(frozen=True)
class Senses:
    """Senses as they lie in memory: token ``t`` owns the rows ``offsets[t]:offsets[t + 1]``.

    Attributes:
        offsets: int64 ``(vocab_size + 1,)``.
        rows: float32, bfloat16, float16 or int8 ``(num_senses, dim)``; float64 without the compiled kernels.
        scales: float32 ``(num_senses,)`` beside int8 rows.
        half_norms: ``half_squared_norms`` of the rows, float32, if they are at hand; with ``dot`` they are not used.

    Raises:
        ValueError: if scales or norms are not one a row, or int8 rows have none.
    """

    offsets: torch.Tensor
    rows: torch.Tensor
    scales: torch.Tensor | None = None
    half_norms: torch.Tensor | None = None

    def __post_init__(self) -> None:
        for name, beside in (("scales", self.scales), ("half_norms", self.half_norms)):
            if beside is not None and len(beside) != len(self.rows):
                raise ValueError(f"{name} should be one a row, but are {len(beside)} for {len(self.rows)} rows.")
        if (self.rows.dtype == torch.int8) != (self.scales is not None):
            raise ValueError(f"Rows of int8 need scales and others take none, but these are {self.rows.dtype}.")

    def take(self, sense_ids: torch.Tensor) -> torch.Tensor:
        """The rows of ``sense_ids`` int64 ``(n,)``, ``(n, dim)``, of their dtype; int8 ones as float32."""
        rows = self.rows.index_select(0, sense_ids)
        return rows if self.scales is None else dequantize(rows, self.scales.index_select(0, sense_ids))

    def spans(self, tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The first row of each of ``tokens`` ``(n,)`` and how many it owns, both int64 ``(n,)``.

        Raises:
            ValueError: if a token is outside the vocabulary, or its offsets are outside the table, as those of a damaged file.
        """
        size = len(self.offsets) - 1
        if len(tokens) and (int(tokens.min()) < 0 or int(tokens.max()) >= size):
            raise ValueError(
                f"Token ids should be in 0..{size - 1}, the vocabulary of the senses, but run from {int(tokens.min())} to "
                f"{int(tokens.max())}. Was the text tokenized with their tokenizer?"
            )
        first, last = self.offsets[tokens], self.offsets[tokens + 1]
        wrong = (first < 0) | (last < first) | (last > len(self.rows))
        if bool(wrong.any()):
            at = int(wrong.nonzero()[0])
            raise ValueError(
                f"Token {int(tokens[at])} owns the rows {int(first[at])}:{int(last[at])} by its offsets, and the table has "
                f"{len(self.rows)}. The file is damaged: fetch or build it again."
            )
        return first, last - first

    def of(self, token_ids: torch.Tensor) -> tuple[RaggedIndex, torch.Tensor, torch.Tensor | None]:
        """The layout of ``token_ids`` ``(n,)``, the table it points into, and that table's global ids if it is a part.

        Of rows narrower than float32 the table holds the batch's own alone, widened: PyTorch's fast kernels take no less.

        Raises:
            ValueError: on the CPU, as ``spans``.
        """
        if token_ids.device.type == "cpu":  # elsewhere the question would wait for the device
            self.spans(token_ids)
        if self.rows.dtype.itemsize >= 4:
            return RaggedIndex.of(token_ids, self.offsets), self.rows, None
        tokens, compact = token_ids.unique(return_inverse=True)
        own = RaggedIndex.of(tokens, self.offsets)
        rows = self.rows.index_select(0, own.sense_ids)
        if self.scales is not None:
            rows = dequantize(rows, self.scales.index_select(0, own.sense_ids))
        return RaggedIndex.of(compact, own.starts), rows.float(), own.sense_ids
