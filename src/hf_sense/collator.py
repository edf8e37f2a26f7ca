"""Rows of a data set in, one padded batch out, targets decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hf_sense.ragged import NO_SENSE
from hf_sense.residual_codes import ResidualCodes

INPUTS = ("input_ids", "attention_mask", "token_type_ids")


# Before the number of the level.
_CODE_LABELS = "code_labels_"


def code_columns(codes: ResidualCodes | None) -> list[str]:
    """The names of the columns that hold a token's codes, one a level."""
    return [] if codes is None else [f"{_CODE_LABELS}{level + 1}" for level in range(codes.levels)]


@dataclass
class SenseDataCollator:
    """Pads rows as their tokenizer does, on its side, and targets with -100 on the same.

    Args:
        tokenizer: its padding id and side count.
        pad_to_multiple_of: makes the length a multiple of it.
        offsets: int64 ``(vocab_size + 1,)``, the dictionary's, to decode ``sense_indices`` with.
    """

    tokenizer: PreTrainedTokenizerBase
    pad_to_multiple_of: int | None = None
    offsets: torch.Tensor | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """One batch: int64 ``(batch, sequence)`` tensors; ``sense_labels`` are global sense ids.

        ``code_labels``, if the rows hold codes, are ``(batch, sequence, levels)``, -100 where there is no sense.

        Raises:
            ValueError: if there are no rows, one lacks a column of the first or has another number of values in it than token
                ids, the rows hold ``sense_indices`` and no offsets were given, or a token has no such sense.
        """
        if not rows:
            raise ValueError("There are no rows to make a batch of.")
        lengths = np.array([len(row.get("input_ids", ())) for row in rows])
        width = int(lengths.max(initial=0))
        if self.pad_to_multiple_of:
            width = -(-width // self.pad_to_multiple_of) * self.pad_to_multiple_of
        columns = np.arange(width)
        left = self.tokenizer.padding_side == "left"
        kept = columns >= (width - lengths)[:, None] if left else columns < lengths[:, None]
        fills = {
            "input_ids": self.tokenizer.pad_token_id or 0,
            "attention_mask": 0,
            "token_type_ids": self.tokenizer.pad_token_type_id,
            "sense_labels": NO_SENSE,
            "sense_indices": -1,
        }
        levels = sorted((name for name in rows[0] if name.startswith(_CODE_LABELS)), key=lambda name: (len(name), name))
        fills |= dict.fromkeys(levels, 0)
        batch = {}
        for name, fill in fills.items():
            if name in rows[0]:
                own: list[Any] = [row.get(name) for row in rows]
                if any(values is None or len(values) != length for values, length in zip(own, lengths)):
                    raise ValueError(
                        f"Every row should have as many {name} as input_ids, but they have "
                        f"{[None if values is None else len(values) for values in own]!s:.200} and {lengths.tolist()!s:.200}."
                    )
                padded = np.full(kept.shape, fill, np.int64)
                padded[kept] = np.concatenate(own)
                batch[name] = torch.from_numpy(padded)
        batch.setdefault("attention_mask", torch.from_numpy(kept.astype(np.int64)))
        if "sense_indices" in batch:
            if self.offsets is None:
                raise ValueError("sense_indices are places among a token's senses: SenseDataCollator needs offsets=.")
            indices = batch.pop("sense_indices")
            batch["sense_labels"] = self._labels(batch["input_ids"], indices)
        if levels and "sense_labels" in batch:
            stacked = torch.stack([batch.pop(name) for name in levels], -1)
            batch["code_labels"] = stacked.masked_fill(batch["sense_labels"].unsqueeze(-1) < 0, NO_SENSE)
        return batch

    def _labels(self, input_ids: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
        """Global sense ids of places among each token's senses."""
        assert self.offsets is not None
        known = (input_ids >= 0) & (input_ids < len(self.offsets) - 1)
        ids = input_ids.clamp(0, max(0, len(self.offsets) - 2))
        labels = self.offsets[ids] + indices
        wrong = (indices >= 0) & (~known | (labels >= self.offsets[(ids + 1).clamp_max(len(self.offsets) - 1)]))
        if bool(wrong.any()):
            token, index = int(input_ids[wrong][0]), int(indices[wrong][0])
            raise ValueError(
                f"A target says sense {index} of token {token}, which has no such sense in the student's dictionary: the targets "
                "are of another one. Compute them with this dictionary."
            )
        return torch.where(indices >= 0, labels, NO_SENSE)
