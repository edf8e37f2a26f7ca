"""Codes that all tokens share: what a sense leaves of a hidden state is put together from a few of them, level after level.

This is residual vector quantization (Juang and Gray 1982). It knows nothing of tokens and trains nothing; codes are fitted
by ``hf_sense.code_training``.

At each level the code nearest to what is left is taken and subtracted: ``argmax_c r . c - |c|^2 / 2``, then ``r - c``. It is
one dense product a level, some rows at a time, so that memory does not grow with (rows x codes).
"""

from __future__ import annotations

import torch

from hf_sense.quantization import LARGEST, dequantize, quantize, scales_are_sound

# Scores held at once, of rows times codes, where no gradient asks for all of them.
_SCORES_AT_ONCE = 2**20
# A target is stored in two bytes at most.
MOST_CODES = 2**16
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8)


class ResidualCodes:
    """One or more levels of vectors, of which a residual is the sum of one each.

    Args:
        values: floating, or int8 with ``scales``, ``(levels, num_codes, dim)``.
        scales: float32 ``(levels, num_codes)`` beside int8 values.
        check_values: look for NaN and infinity.

    Raises:
        ValueError: if shapes or dtypes do not fit, or a value is not finite.

    Example:
        >>> codes = ResidualCodes(torch.tensor([[[0.0, 0.0], [4.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]))
        >>> found = codes.encode(torch.tensor([[4.0, 1.0], [0.0, 0.2]]))
        >>> found.tolist(), codes.decode(found).tolist()
        ([[1, 1], [0, 0]], [[4.0, 1.0], [0.0, 0.0]])
    """

    def __init__(self, values: torch.Tensor, scales: torch.Tensor | None = None, *, check_values: bool = True) -> None:
        if values.ndim != 3 or values.dtype not in _DTYPES or 0 in values.shape[:2] or values.shape[1] > MOST_CODES:
            raise ValueError(
                f"codes should be (levels, num_codes, dim), floating or int8, with 1 to {MOST_CODES} codes a level, but are "
                f"{values.dtype} {tuple(values.shape)}."
            )
        if (values.dtype == torch.int8) != (scales is not None):
            raise ValueError(
                f"int8 codes need code_scales and others take none, but codes is {values.dtype} and code_scales "
                f"{'missing' if scales is None else 'given'}."
            )
        if scales is not None and (scales.shape != values.shape[:2] or scales.dtype != torch.float32):
            raise ValueError(
                f"code_scales should be torch.float32 {tuple(values.shape[:2])}, but is {scales.dtype} "
                f"{tuple(scales.shape)}."
            )
        if check_values and not bool(torch.isfinite(values).all()):
            raise ValueError("codes hold NaN or infinite values.")
        if check_values and scales is not None and (int(values.min()) < -LARGEST or not scales_are_sound(scales)):
            raise ValueError(
                f"int8 codes should be from -{LARGEST} to {LARGEST}, and code_scales at least 0 and {LARGEST} times each finite."
            )
        self.values, self.scales = values, scales
        self._vectors: torch.Tensor | None = None
        self._half_norms: torch.Tensor | None = None

    @classmethod
    def of(cls, tensors: dict[str, torch.Tensor]) -> ResidualCodes | None:
        """From tensors by the names that ``tensors`` gives, which were checked; ``None`` if there are none."""
        return cls(tensors["codes"], tensors.get("code_scales"), check_values=False) if "codes" in tensors else None

    def tensors(self) -> dict[str, torch.Tensor]:
        """What is stored: ``codes``, and ``code_scales`` if they are int8."""
        return {"codes": self.values} | ({} if self.scales is None else {"code_scales": self.scales})

    @property
    def levels(self) -> int:
        """How many codes a residual is the sum of."""
        return int(self.values.shape[0])

    @property
    def num_codes(self) -> int:
        """How many codes a level has."""
        return int(self.values.shape[1])

    @property
    def dim(self) -> int:
        """The width of a code."""
        return int(self.values.shape[2])

    @property
    def nbytes(self) -> int:
        """The bytes of all codes, with their scales."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    @property
    def vectors(self) -> torch.Tensor:
        """The codes as they are compared and added, float32 (float64 if they are) ``(levels, num_codes, dim)``; kept."""
        if self._vectors is None:
            with torch.inference_mode(False), torch.no_grad():  # what is kept serves training too
                if self.scales is not None:
                    rows = dequantize(self.values.reshape(-1, self.dim), self.scales.reshape(-1))
                    self._vectors = rows.view(self.values.shape)
                else:
                    self._vectors = self.values if self.values.dtype == torch.float64 else self.values.float()
        return self._vectors

    @property
    def half_norms(self) -> torch.Tensor:
        """``|c|^2 / 2`` of each code, ``(levels, num_codes)``; kept."""
        if self._half_norms is None:
            with torch.inference_mode(False), torch.no_grad():
                self._half_norms = self.vectors.square().sum(-1) / 2
        return self._half_norms

    def scores(self, residuals: torch.Tensor, level: int) -> torch.Tensor:
        """``r . c - |c|^2 / 2`` of ``residuals`` ``(n, dim)`` and each code of a level, ``(n, num_codes)``."""
        return torch.addmm(self.half_norms[level], residuals, self.vectors[level].t(), beta=-1)

    def encode(self, residuals: torch.Tensor) -> torch.Tensor:
        """The codes of ``residuals`` floating ``(n, dim)``, int64 ``(n, levels)``; ties go to the lowest."""
        return self.quantize(residuals)[0]

    @torch.no_grad()
    def quantize(self, residuals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``encode``, and the sums of these codes, ``(n, dim)`` of the dtype of ``vectors``.

        Raises:
            ValueError: if the width is another.
        """
        self._check(residuals)
        code_ids = torch.empty(len(residuals), self.levels, dtype=torch.int64, device=residuals.device)
        sums = torch.empty(len(residuals), self.dim, dtype=self.vectors.dtype, device=residuals.device)
        step = max(1, _SCORES_AT_ONCE // self.num_codes)
        for begin in range(0, len(residuals), step):
            rows = slice(begin, begin + step)
            left = residuals[rows].to(self.vectors.dtype)
            for level in range(self.levels):
                code_ids[rows, level] = found = self.scores(left, level).argmax(1)
                taken = self.vectors[level].index_select(0, found)
                left = left - taken if level + 1 < self.levels else left
                sums[rows] = taken if level == 0 else sums[rows] + taken
        return code_ids, sums

    def decode(self, code_ids: torch.Tensor) -> torch.Tensor:
        """The sums of the codes ``code_ids`` int64 ``(n, levels)``, ``(n, dim)``; zeros where an id is negative."""
        total = self.vectors.new_zeros(len(code_ids), self.dim)
        for level, ids in enumerate(code_ids.unbind(1)):
            taken = self.vectors[level].index_select(0, ids.clamp_min(0))
            total = total + torch.where((ids >= 0).unsqueeze(-1), taken, 0.0)
        return total

    def expected(self, residuals: torch.Tensor, temperature: float) -> torch.Tensor:
        """The mean of each level's codes under the soft maximum of ``scores / temperature``, summed over levels, ``(n, dim)``.

        Each level sees what the means of those before have left. Gradients flow to ``residuals``.
        """
        self._check(residuals)
        residuals = residuals.to(self.vectors.dtype)
        step = max(1, _SCORES_AT_ONCE // self.num_codes)
        parts = []
        for rows in residuals.split(step) if len(residuals) else [residuals]:
            left = rows
            for level in range(self.levels):
                left = left - (self.scores(left, level) / temperature).softmax(-1) @ self.vectors[level]
            parts.append(rows - left)
        return torch.cat(parts)

    def cross_entropy(
        self, residuals: torch.Tensor, code_ids: torch.Tensor, temperature: float = 1.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Cross-entropy of each level's code among all of that level, given the codes of the levels before.

        Args:
            residuals: floating ``(n, dim)``, the student's state less the target sense. Gradients flow to it.
            code_ids: int64 ``(n, levels)``, the teacher's.
            temperature: divides the scores.

        Returns:
            ``(n, levels)`` in nats, and the codes that score highest, int64 ``(n, levels)``.

        Raises:
            ValueError: if a code is none of the level's, which means that targets come from another dictionary.
        """
        self._check(residuals)
        outside = (code_ids < 0) | (code_ids >= self.num_codes)
        if code_ids.shape != (len(residuals), self.levels) or bool(outside.any()):
            raise ValueError(
                f"Codes of targets should be ({len(residuals)}, {self.levels}) in 0..{self.num_codes - 1}, but are "
                f"{tuple(code_ids.shape)} with {int(outside.sum())} outside. Targets belong to one dictionary: compute them "
                "again for this one."
            )
        left = residuals.to(self.vectors.dtype)
        losses, chosen = [], []
        for level, ids in enumerate(code_ids.unbind(1)):
            scores = self.scores(left, level)
            losses.append(torch.nn.functional.cross_entropy(scores / temperature, ids, reduction="none"))
            chosen.append(scores.detach().argmax(1))
            left = left - self.vectors[level].index_select(0, ids)
        return torch.stack(losses, 1), torch.stack(chosen, 1)

    def divergence(
        self, residuals: torch.Tensor, teacher_residuals: torch.Tensor, code_ids: torch.Tensor, temperature: float = 1.0
    ) -> torch.Tensor:
        """``T^2 KL(teacher || student)`` over the codes of each level, given the teacher's of the levels before.

        Args:
            residuals: the student's, floating ``(n, dim)``. Gradients flow to it alone.
            teacher_residuals: likewise.
            code_ids: int64 ``(n, levels)``, the teacher's.
            temperature: divides the scores of both.

        Returns:
            ``(n, levels)`` in nats.
        """
        mine, theirs = residuals.to(self.vectors.dtype), teacher_residuals.detach().to(self.vectors.dtype)
        terms = []
        for level, ids in enumerate(code_ids.unbind(1)):
            student, teacher = ((self.scores(left, level) / temperature).log_softmax(-1) for left in (mine, theirs))
            terms.append((teacher.exp() * (teacher - student)).sum(-1) * temperature**2)
            taken = self.vectors[level].index_select(0, ids)
            mine, theirs = mine - taken, theirs - taken
        return torch.stack(terms, 1)

    def to(self, dtype: torch.dtype) -> ResidualCodes:
        """The codes in another dtype, int8 with a scale each; itself in its own.

        Raises:
            ValueError: if a value overflows the dtype.
        """
        if dtype == self.values.dtype:
            return self
        if dtype == torch.int8:
            values, scales = quantize(self.vectors.reshape(-1, self.dim))
            return ResidualCodes(values.view(self.values.shape), scales.view(self.values.shape[:2]))
        values = self.vectors.to(dtype)
        if bool(torch.isinf(values).any()):
            raise ValueError(
                f"A code's value of {float(self.vectors.abs().max()):.4g} overflows {dtype}; use torch.bfloat16."
            )
        return ResidualCodes(values)

    def merge(self, other: ResidualCodes | None) -> ResidualCodes:
        """The codes of both at each level, those of ``self`` first; a level that one of them lacks is zeros there."""
        if other is None or (self.values.shape == other.values.shape and torch.equal(self.vectors, other.vectors)):
            return self
        levels = max(self.levels, other.levels)
        mine, theirs = (
            torch.nn.functional.pad(codes.vectors, (0, 0, 0, 0, 0, levels - codes.levels)) for codes in (self, other)
        )
        joined = ResidualCodes(torch.cat([mine, theirs], 1))
        floating = [c.values.dtype for c in (self, other) if c.scales is None]
        return joined.to(torch.int8 if not floating else max(floating, key=lambda dtype: dtype.itemsize))

    def _check(self, residuals: torch.Tensor) -> None:
        if residuals.ndim != 2 or residuals.shape[1] != self.dim:
            raise ValueError(
                f"Residuals should be (n, {self.dim}), as wide as the codes, but are {tuple(residuals.shape)}."
            )
