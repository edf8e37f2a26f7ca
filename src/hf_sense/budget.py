"""What a budget allows, and how many senses each token of a build gets under it.

It neither measures errors nor shares anything out: `hf_sense.error_curves` and `hf_sense.shares` do.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import torch

from hf_sense.clustering import number_of_senses
from hf_sense.error_curves import error_curves
from hf_sense.parts import in_parts
from hf_sense.sampled_vectors import SampledVectors
from hf_sense.sampling import OccurrenceSample
from hf_sense.shares import share_out
from hf_sense.unfinished import UnfinishedBuild

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9}
_HEADER = 1024  # bytes: more than the header of a dictionary's safetensors file takes
_CURVE_OPTIONS = ("method", "min_occurrences", "tolerance", "max_elements")


def senses_within(budget: int | str, *, dim: int, vocab_size: int, dtype: torch.dtype, codes: int = 0) -> int:
    """Say how many senses a budget allows.

    Args:
        budget: a number of senses (5000 or "5000"), or the size of the dictionary's safetensors file, "800kB", "3MB" or
            "1.5GB" (10**6 bytes a MB): senses in `dtype`, their counts, spread and scales, and 8 bytes a token of the
            vocabulary for the offsets. The JSON and the card beside it, a few kilobytes, are not counted.
        dim: width of a sense.
        vocab_size: tokens of the vocabulary, with senses or without.
        dtype: in which senses are stored.
        codes: vectors that all tokens share, of all levels together; a size counts them, a number of senses does not.

    Raises:
        ValueError: the budget is none of these, or too small for one sense.

    Example:
        >>> senses_within("3MB", dim=384, vocab_size=30522, dtype=torch.int8)
        6886
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kKmMgG][bB])|(\d+)", str(budget).strip(), flags=re.ASCII)
    if match is None or isinstance(budget, bool):
        raise ValueError(f'budget should be a number of senses, or a size such as "3MB" or "800kB", but is {budget!r}.')
    if match[3]:
        number = int(match[3])
        if number < 1:
            raise ValueError(f"budget should be at least one sense, but is {budget!r}.")
        return number
    fixed = bytes_without_senses(dim, vocab_size, dtype, codes)
    number = (round(float(match[1]) * _UNITS[match[2].lower()]) - fixed) // bytes_of_a_sense(dim, dtype)
    if number < 1:
        raise ValueError(
            f"A dictionary of {vocab_size:,} tokens takes {fixed:,} bytes without a sense, and one of {dim} numbers "
            f"{bytes_of_a_sense(dim, dtype):,}; budget is {budget!r}."
        )
    return int(number)


def bytes_of_a_sense(dim: int, dtype: torch.dtype) -> int:
    """What a sense takes in a dictionary's file: its numbers, int64 count, float32 spread and, as int8, float32 scale."""
    return dim * dtype.itemsize + 8 + 4 + (4 if dtype == torch.int8 else 0)


def bytes_without_senses(dim: int, vocab_size: int, dtype: torch.dtype, codes: int) -> int:
    """What a dictionary's file takes beside its senses: header, offsets, and ``codes`` vectors that all tokens share."""
    return _HEADER + 8 * (vocab_size + 1) + codes * (dim * dtype.itemsize + (4 if dtype == torch.int8 else 0))


def enough_senses(budget: int | str, totals: np.ndarray, *, dim: int, dtype: torch.dtype, codes: int = 0) -> int:
    """The senses that a budget allows, if they are one at least for each token.

    Args:
        budget: as for ``senses_within``.
        totals: int64 ``(vocab_size,)``, occurrences of each token; 0 for one that gets no senses.
        dim: width of a sense.
        dtype: in which senses are stored.
        codes: as for ``senses_within``.

    Raises:
        ValueError: if not, with the least budget that would do, and how rare tokens may be that have none.
    """
    allowed = senses_within(budget, dim=dim, vocab_size=len(totals), dtype=dtype, codes=codes)
    tokens = int((totals > 0).sum())
    if allowed >= tokens:
        return allowed
    least = (bytes_without_senses(dim, len(totals), dtype, codes) + tokens * bytes_of_a_sense(dim, dtype)) / 10**6
    # The most frequent that may not have a sense, by one more occurrence.
    rarest = int(np.sort(totals)[::-1][allowed]) + 1
    raise ValueError(
        f"budget={budget!r} is {allowed:,} senses, but the texts hold {tokens:,} different tokens, and each has one at least. "
        f"Give a budget from {tokens} senses, which is {np.ceil(1000 * least) / 1000:.3f}MB as {str(dtype)[6:]}, or leave rare "
        f"tokens without senses: min_count={rarest}."
    )


def shared_senses(
    vectors: SampledVectors,
    bounds: np.ndarray,
    sample: OccurrenceSample,
    options: dict[str, Any],
    allowed: int,
    seed: int,
    work: UnfinishedBuild,
    **how: Any,
) -> torch.Tensor:
    """The most senses that each token may have so that all together have at most ``allowed``.

    An error counts as often as the token occurs in the corpus, not only in the sample.

    Args:
        vectors: the sample's, in its order.
        bounds: int64 ``(vocab_size + 1,)``, token ``t`` owns rows ``bounds[t]:bounds[t + 1]``.
        sample: where the vectors stand.
        options: those of ``hf_sense.clustering.cluster``; ``max_senses`` is the most of each token.
        allowed: senses in all.
        seed: of the clustering.
        work: keeps what was measured.
        **how: ``rows_at_once`` and ``disable_tqdm`` of ``hf_sense.parts.in_parts``.

    Returns:
        int64 ``(vocab_size,)``, at least 1.
    """
    weights = torch.from_numpy(sample.weights)
    owner = torch.from_numpy(sample.token_ids).long()
    sampled = torch.zeros(len(bounds) - 1, dtype=torch.int64).index_add_(0, owner, weights)
    most = number_of_senses(sampled, options["max_senses"])

    def measure(first: int, last: int, rows: slice, points: torch.Tensor) -> dict[str, torch.Tensor]:
        curves = error_curves(
            points,
            torch.from_numpy(bounds[first : last + 1] - bounds[first]),
            max_senses=most[first:last],
            seed=seed,
            problem_ids=torch.arange(first, last),
            weights=weights[rows],
            **{name: options[name] for name in _CURVE_OPTIONS if name in options},
        )
        return curves._asdict()

    parts = in_parts(measure, bounds, most.numpy(), vectors, work, "curves", "Measuring", **how)
    width = max(part["levels"].shape[1] for part in parts)
    levels, errors = (
        torch.cat([torch.cat([p[name], p[name][:, -1:].expand(-1, width - p[name].shape[1])], 1) for p in parts])
        for name in ("levels", "errors")
    )
    times = torch.from_numpy(sample.totals) / sampled.clamp_min(1).double()
    return share_out(levels, errors * times[:, None], allowed).clamp_min(1)
