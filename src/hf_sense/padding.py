"""Moves left padding to the right and back, so that position numbers do not depend on the side of the padding."""

from __future__ import annotations

import torch


class RightAligned:
    """A batch whose padding was moved to the right, for models that number positions from the first column.

    Args:
        attention_mask: ``(batch, sequence)``, 1 at tokens. Each row's tokens must stand together.
        always: do not look whether there is something to move, so that a graph holds for every batch.
    """

    def __init__(self, attention_mask: torch.Tensor, always: bool = False) -> None:
        # Counted, not the arg max of the mask: compiled for any length, that of small integers is wrong (torch 2.13, CPU).
        first = (attention_mask.cumsum(-1) == 0).sum(-1, keepdim=True)
        self._moved = always or bool((first > 0).any())
        length = attention_mask.shape[-1]
        there = torch.arange(length, device=attention_mask.device) + first
        back = torch.arange(length, device=attention_mask.device) - first
        # Not a remainder: ONNX export knows none by a length that is not fixed.
        self._there = torch.where(there < length, there, there - length)
        self._back = torch.where(back >= 0, back, back + length)

    def move(self, tensor: torch.Tensor) -> torch.Tensor:
        """``(batch, sequence)`` or ``(batch, sequence, dim)`` with its padding moved to the right."""
        return _take(tensor, self._there) if self._moved else tensor

    def restore(self, tensor: torch.Tensor) -> torch.Tensor:
        """The inverse of ``move``."""
        return _take(tensor, self._back) if self._moved else tensor


def _take(tensor: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    if tensor.ndim == 3:
        columns = columns.unsqueeze(-1).expand(-1, -1, tensor.shape[-1])
    return tensor.gather(1, columns)
