"""Residual codes folded: scored in the backbone's width, and worth what they add to the answer. For inference alone.

What is left of a state ``c = P h + b`` after a sense ``s`` scores a code ``e`` with ``(c - s) . e - |e|^2 / 2``, that is
``h . (P^T e) - (|e|^2 / 2 - b . e) - s . e``; each code taken at a level before counts as ``s`` does. So no state is projected:
there are keys ``P^T e``, a number each, the products ``s . e`` of every sense and ``e . e`` of every pair of codes.
"""

from __future__ import annotations

import torch
from torch import nn

from hf_sense.residual_codes import ResidualCodes

# Scores held at once, of rows times codes.
_SCORES_AT_ONCE = 2**20


class FoldedCodes(nn.Module):
    """The tables of ``hf_sense.residual_codes`` as a folded model needs them.

    Args:
        levels: of the codes.
        num_codes: of a level.
        width: the backbone's.
        values_dim: of what stands for a sense.
        num_senses: rows of the products with senses; 0 where these are all zero.
    """

    def __init__(self, levels: int, num_codes: int, width: int, values_dim: int, num_senses: int) -> None:
        super().__init__()
        self.keys: torch.Tensor
        self.shifts: torch.Tensor
        self.values: torch.Tensor
        self.between: torch.Tensor
        self.with_senses: torch.Tensor
        self.register_buffer("keys", torch.zeros(levels, num_codes, width))
        self.register_buffer("shifts", torch.zeros(levels, num_codes))
        self.register_buffer("values", torch.zeros(levels, num_codes, values_dim))
        # Of each level with each later one: (0, 1), (0, 2), ..., (1, 2), ...
        self.register_buffer("between", torch.zeros(levels * (levels - 1) // 2, num_codes, num_codes))
        self.register_buffer("with_senses", torch.zeros(num_senses, levels * num_codes))

    def fill(self, codes: ResidualCodes, projection: nn.Linear | None, classifier: nn.Linear | None) -> None:
        """Computes all but ``with_senses``, sums in float64."""
        vectors = codes.vectors.double()
        shifts = codes.half_norms.double()
        for level in range(len(vectors)):
            self._later(level).copy_(vectors[level] @ vectors[level + 1 :].transpose(1, 2))
        if projection is None:
            self.keys.copy_(vectors)
        else:
            self.keys.copy_(vectors @ projection.weight.double())
            shifts = shifts - vectors @ projection.bias.double()
        self.shifts.copy_(shifts)
        self.values.copy_(vectors if classifier is None else vectors @ classifier.weight.double().t())

    def _later(self, level: int) -> torch.Tensor:
        """The products of a level's codes with those of the levels after it, ``(later levels, num_codes, num_codes)``."""
        levels = len(self.keys)
        begin = level * levels - level * (level + 1) // 2
        return self.between[begin : begin + levels - 1 - level]

    def forward(
        self, hidden: torch.Tensor, taken: torch.Tensor | None, temperature: float | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The summed values of the codes of each state, ``(n, values_dim)``, and the codes, int64 ``(n, levels)``.

        Args:
            hidden: the backbone's, floating ``(n, width)``.
            taken: of the sense that each state was given, the row of ``with_senses``; int64 ``(n,)`` for its number, or
                ``(n, levels * num_codes)`` for a mean of such rows. Not read where the products are zero.
            temperature: for the mean of each level's codes under their scores, instead of the best.
        """
        levels, num_codes, _ = self.keys.shape
        hidden = hidden.to(self.keys.dtype)
        sums = hidden.new_zeros(len(hidden), self.values.shape[2])
        code_ids = torch.zeros(len(hidden), levels, dtype=torch.int64, device=hidden.device)
        step = max(1, _SCORES_AT_ONCE // (num_codes * levels))
        for begin in range(0, len(hidden), step):
            rows = slice(begin, begin + step)
            scores = torch.einsum("nw,lkw->nlk", hidden[rows], self.keys) - self.shifts
            if taken is not None and len(self.with_senses):
                part = taken[rows]
                products = part if part.ndim == 2 else self.with_senses.index_select(0, part)
                scores = scores - products.view_as(scores)
            for level in range(levels):
                own = scores[:, level]
                code_ids[rows, level] = found = own.argmax(1)
                if temperature is None:
                    sums[rows] += self.values[level].index_select(0, found)
                    before = self._later(level).index_select(1, found)
                else:
                    shares = (own / temperature).softmax(1)
                    sums[rows] += shares @ self.values[level]
                    before = shares @ self._later(level)
                scores[:, level + 1 :] -= before.transpose(0, 1)
        return sums, code_ids
