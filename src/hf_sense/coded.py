"""The best sense of each token, and the codes of what it leaves of the state: ``hf_sense.fused``, then a dense product a level.

Which kernels find the sense is decided there; codes are found by ``hf_sense.residual_codes`` on every device.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from hf_sense.fused import choose_senses
from hf_sense.ragged import NO_SENSE, Metric
from hf_sense.residual_codes import ResidualCodes
from hf_sense.senses import Senses


class CodedChoice(NamedTuple):
    """What ``choose_coded`` returns.

    Attributes:
        sense_ids: as in ``hf_sense.fused.Choice``.
        replaced: likewise; with codes, sense and codes in each state's place.
        scores: likewise, of senses.
        code_ids: int64 ``(n, levels)``, NO_SENSE where there is no sense; ``None`` without codes.
    """

    sense_ids: torch.Tensor
    replaced: torch.Tensor | None = None
    scores: torch.Tensor | None = None
    code_ids: torch.Tensor | None = None

    def numbered(self, global_ids: torch.Tensor) -> CodedChoice:
        """The same with ``global_ids[i]`` for the sense id ``i``."""
        if not len(global_ids):
            return self
        found = torch.where(self.sense_ids >= 0, global_ids[self.sense_ids.clamp_min(0)], NO_SENSE)
        return self._replace(sense_ids=found)

    def add_codes(
        self, hidden: torch.Tensor, senses: Senses, codes: ResidualCodes, output_replaced: bool = False
    ) -> CodedChoice:
        """The same with the codes of what the senses leave of the states.

        Args:
            hidden: floating ``(n, dim)``, without gradient.
            senses: where the senses lie; ``sense_ids`` are its rows.
            codes: of their dictionary.
            output_replaced: also put sense and codes in the states' place.
        """
        at = (self.sense_ids >= 0).nonzero().squeeze(-1)
        taken = senses.take(self.sense_ids[at]).to(codes.vectors.dtype)
        code_ids = torch.full((len(hidden), codes.levels), NO_SENSE, dtype=torch.int64, device=hidden.device)
        code_ids[at], sums = codes.quantize(hidden.index_select(0, at) - taken)
        replaced = hidden.index_copy(0, at, (taken + sums).to(hidden.dtype)) if output_replaced else self.replaced
        return self._replace(replaced=replaced, code_ids=code_ids)


def choose_coded(
    hidden: torch.Tensor,
    token_ids: torch.Tensor,
    places: torch.Tensor,
    senses: Senses,
    metric: Metric,
    codes: ResidualCodes | None,
    *,
    output_replaced: bool = False,
    output_scores: bool = False,
    check_finite: bool = False,
) -> CodedChoice:
    """The best sense at each of ``places`` and its codes; arguments and errors are those of ``hf_sense.fused.choose_senses``.

    Args:
        hidden: floating ``(n, dim)``.
        token_ids: int64 ``(n,)``.
        places: int64 ``(m,)``.
        senses: where the senses lie.
        metric: of the choice among them; codes go by distance.
        codes: ``None`` for a dictionary without: then it is ``choose_senses``.
        output_replaced: also return the states replaced.
        output_scores: also return every sense's score.
        check_finite: refuse a best score that is not finite.
    """
    found = choose_senses(
        hidden, token_ids, places, senses, metric, output_replaced=output_replaced and codes is None,
        output_scores=output_scores, check_finite=check_finite,
    )  # fmt: skip
    choice = CodedChoice(*found)
    return choice if codes is None else choice.add_codes(hidden.detach(), senses, codes, output_replaced)
