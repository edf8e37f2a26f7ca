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
            ValueError: if the rows hold ``sense_indices`` and no offsets were given.
        """
        lengths = np.array([len(row["input_ids"]) for row in rows])
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
                padded = np.full(kept.shape, fill, np.int64)
                padded[kept] = np.concatenate([row[name] for row in rows])
                batch[name] = torch.from_numpy(padded)
        batch.setdefault("attention_mask", torch.from_numpy(kept.astype(np.int64)))
        if "sense_indices" in batch:
            if self.offsets is None:
                raise ValueError("sense_indices are places among a token's senses: SenseDataCollator needs offsets=.")
            indices = batch.pop("sense_indices")
            batch["sense_labels"] = torch.where(indices >= 0, self.offsets[batch["input_ids"]] + indices, NO_SENSE)
        if levels and "sense_labels" in batch:
            stacked = torch.stack([batch.pop(name) for name in levels], -1)
            batch["code_labels"] = stacked.masked_fill(batch["sense_labels"].unsqueeze(-1) < 0, NO_SENSE)
        return batch
