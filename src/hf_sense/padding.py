"""Moves left padding to the right and back, so that position numbers do not depend on the side of the padding."""

from __future__ import annotations

import torch


class RightAligned:
    """A batch whose padding was moved to the right, for models that number positions from the first column.

    Args:
        attention_mask: ``(batch, sequence)``, 1 at tokens. Each row's tokens must stand together.
    """

    def __init__(self, attention_mask: torch.Tensor) -> None:
        first = attention_mask.to(torch.int8).argmax(-1, keepdim=True)
        self._moved = bool((first > 0).any())
        columns = torch.arange(attention_mask.shape[-1], device=attention_mask.device)
        self._there = (columns + first) % attention_mask.shape[-1]
        self._back = (columns - first) % attention_mask.shape[-1]

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
