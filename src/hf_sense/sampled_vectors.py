"""The teacher's vectors at the places of a sample, in pieces that several processes wrote; read a range of rows at a time.

A row is a place of the sample, which is ordered by token: so a range of rows is what some tokens are clustered from.
"""

from __future__ import annotations

import numpy as np
import torch

from hf_sense.segments import Piece
from hf_sense.unfinished import UnfinishedBuild


class SampledVectors:
    """Float32 ``(n, dim)``, zeros where nothing was written.

    Args:
        work: has pieces with ``rows`` int64 ``(m,)``, rising, and ``vectors`` float32 ``(m, dim)``.
        n: rows.
        dim: their width.
        kept: int64, the new number of each row of the pieces, -1 for one that is left out; rising but for these. All if not
            given.
    """

    def __init__(self, work: UnfinishedBuild, n: int, dim: int, kept: np.ndarray | None = None) -> None:
        self.n, self.dim = n, dim
        self._pieces, self._whole, self._ranks = work.vectors.pieces, work.whole, work.ranks
        # Whether each rank sees the pieces of all; otherwise rows are sent.
        self._alone = work.shared or work.ranks.count == 1
        self._kept = kept
        if self._whole is not None:
            self._pieces = [
                Piece(
                    torch.zeros(0, dtype=torch.int64),
                    "",
                    {"rows": torch.arange(len(self._whole)), "vectors": self._whole},
                ),
                *self._pieces,
            ]

    def __len__(self) -> int:
        return self.n

    def ranges(self, wanted: list[slice | None]) -> torch.Tensor:
        """The rows of a range that each rank wants for itself, ``(stop - start, dim)``; empty for ``None``.

        All ranks call it at once, with the same list.
        """
        own = wanted[self._ranks.rank]
        if self._whole is not None and self._kept is None:
            return self._whole[own or slice(0, 0)]
        found = torch.zeros(0 if own is None else own.stop - own.start, self.dim)
        if self._alone:
            if own is not None:
                self._fill(found, own.start, own.stop)
            return found
        for target, part in enumerate(wanted):
            if part is None:
                continue
            for source in range(self._ranks.count):
                mine = self._here(part.start, part.stop) if source == self._ranks.rank else []
                sent = self._ranks.send(mine, source, target)
                for rows, vectors in zip(sent[::2], sent[1::2], strict=True) if sent else ():
                    found[rows - part.start] = vectors
        return found

    def take(self, rows: torch.Tensor) -> torch.Tensor:
        """The vectors of rows int64 ``(m,)``, rising, for every rank: ``(m, dim)``.

        All ranks call it at once, with the same rows.
        """
        found = torch.zeros(len(rows), self.dim)
        for piece in self._pieces:
            tensors = piece.open()
            numbers, place = self._between(tensors["rows"], 0, self.n)
            if not len(numbers):
                continue
            at = torch.searchsorted(numbers, rows).clamp_max(len(numbers) - 1)
            here = (numbers[at] == rows).nonzero().squeeze(-1)
            found[here] = tensors["vectors"][place][at[here]]
        return found if self._alone else self._ranks.total(found)

    def _here(self, start: int, stop: int) -> list[torch.Tensor]:
        found = []
        for piece in self._pieces:
            tensors = piece.open()
            rows, place = self._between(tensors["rows"], start, stop)
            if len(rows):
                found += [rows, tensors["vectors"][place]]
        return found

    def _between(self, rows: torch.Tensor, start: int, stop: int) -> tuple[torch.Tensor, slice | torch.Tensor]:
        """The rows of a piece that fall in a range, by their new numbers, and where they stand in the piece."""
        if self._kept is None:
            low, high = np.searchsorted(rows.numpy(), [start, stop]).tolist()
            return rows[low:high], slice(low, high)
        own = torch.from_numpy(self._kept[rows.numpy()])
        place = ((own >= start) & (own < stop)).nonzero().squeeze(-1)
        return own[place], place

    def _fill(self, found: torch.Tensor, start: int, stop: int) -> None:
        for piece in self._pieces:
            tensors = piece.open()
            rows, place = self._between(tensors["rows"], start, stop)
            if len(rows):
                found[rows - start] = tensors["vectors"][place]
