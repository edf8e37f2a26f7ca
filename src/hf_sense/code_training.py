"""Fits residual codes: k-means over what senses leave of a sample of hidden states, level after level.

It runs no teacher; ``hf_sense.builder`` hands over the vectors that it clustered.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_sense.choosing import choose_in
from hf_sense.dictionary import SenseDictionary
from hf_sense.kmeans import kmeans
from hf_sense.residual_codes import MOST_CODES, ResidualCodes
from hf_sense.sampled_vectors import SampledVectors
from hf_sense.sampling import OccurrenceSample

# More points a code than this do not make better centres (the rule of FAISS).
_POINTS_A_CODE = 256
# Of residuals that are fitted to: more are not held.
_MOST_POINTS = 100_000
_MOST_NUMBERS = 2**27
# Points a code that k-means++ draws the first centres from.
_START_POINTS = 8
_ITERATIONS = 25
# Lloyd stops when a step lowers the summed squared distance by less than this share of it.
_TOLERANCE = 1e-3
_SCORES_AT_ONCE = 2**20


def check_codes(codes: int | None, code_levels: int) -> None:
    """Raises ``ValueError`` if these are no numbers of codes and levels."""
    for name, value, most in (("codes", codes, MOST_CODES), ("code_levels", code_levels, 16)):
        low = 2 if name == "codes" else 1
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not low <= value <= most):
            raise ValueError(f"{name} should be a whole number from {low} to {most}, but is {value!r}.")
    if codes is None and code_levels != 1:
        raise ValueError(f"code_levels={code_levels} needs codes: say how many a level has, such as codes=256.")


@torch.no_grad()
def fit_dictionary_codes(
    dictionary: SenseDictionary,
    vectors: SampledVectors,
    sample: OccurrenceSample,
    num_codes: int,
    levels: int,
    *,
    seed: int = 0,
    disable_tqdm: bool | None = None,
) -> ResidualCodes:
    """Codes of what a dictionary's senses leave of the sampled vectors, each counting for as many occurrences as it stands for.

    Of more than 256 vectors a code, 100,000, or 512 MB, those of lowest priority are taken, which are a uniform part.

    Args:
        dictionary: its senses choose by its metric.
        vectors: at the places of ``sample``.
        sample: the sample that the dictionary was built from.
        num_codes: of a level.
        levels: how many.
        seed: of the start.
        disable_tqdm: ``True`` hides the progress bar.
    """
    most = min(_POINTS_A_CODE * num_codes, _MOST_POINTS, max(num_codes, _MOST_NUMBERS // dictionary.dim))
    rows = np.sort(np.lexsort((np.arange(len(vectors)), sample.priorities))[:most])
    tokens = sample.token_ids.astype(np.int64)
    drawn = np.bincount(tokens, sample.weights, minlength=len(sample.totals))
    weights = (sample.weights * sample.totals[tokens] / drawn[tokens])[rows]
    states = vectors.take(torch.from_numpy(rows))
    chosen = choose_in(dictionary, torch.from_numpy(tokens[rows]), states, None, output_replaced=True)
    residuals = states.sub_(chosen.replaced)
    return fit_codes(residuals, torch.from_numpy(weights), num_codes, levels, seed=seed, disable_tqdm=disable_tqdm)


@torch.no_grad()
def fit_codes(
    residuals: torch.Tensor,
    weights: torch.Tensor,
    num_codes: int,
    levels: int = 1,
    *,
    seed: int = 0,
    disable_tqdm: bool | None = True,
) -> ResidualCodes:
    """Codes that come near to ``residuals`` at the first level, and to what is left of them at each further one.

    The first code of each level is zero: so a code brings no state farther away than it was. The others are weighted means, by
    Lloyd's steps from a k-means++ start on a part of the residuals. Where there are fewer distinct residuals than codes the
    rest are zeros too. Same inputs, same bytes.

    Args:
        residuals: floating ``(n, dim)``, at least one.
        weights: ``(n,)``, at least 0 and not all 0: how much each counts.
        num_codes: of a level, with the zero.
        levels: how many.
        seed: of the start.
        disable_tqdm: ``False`` shows a progress bar, ``None`` too unless ``TQDM_DISABLE`` says otherwise.
    """
    left, mass = residuals.float().clone(), weights.float()
    fitted = torch.zeros(levels, num_codes, residuals.shape[1])
    with tqdm(desc="Codes", unit=" steps", total=levels * _ITERATIONS, disable=disable_tqdm) as bar:
        for level in range(levels):
            fitted[level, 1:] = _centers(left, mass, num_codes - 1, seed + level, bar)
            left -= ResidualCodes(fitted[level : level + 1]).quantize(left)[1]
            bar.update((level + 1) * _ITERATIONS - bar.n)
    return ResidualCodes(fitted)


def _centers(points: torch.Tensor, mass: torch.Tensor, k: int, seed: int, bar: Any) -> torch.Tensor:
    """The centres of ``k`` clusters beside a fixed one at zero, ``(k, dim)``."""
    if k == 0:
        return points.new_zeros(0, points.shape[1])
    centers = _start(points, mass, k, seed)
    before = math.inf
    for _ in range(_ITERATIONS):
        labels, away = _nearest(points, centers)
        total = float((away.double() * mass).sum())
        if total >= before * (1 - _TOLERANCE):
            break
        before = total
        bar.update()
        held = torch.zeros(k + 1).index_add_(0, labels, mass)
        sums = torch.zeros(k + 1, points.shape[1]).index_add_(0, labels, points * mass[:, None])
        centers = (sums / held.clamp_min(1e-30)[:, None])[1:]
        # An empty cluster takes one of the points that cost most where they are.
        empty = (held[1:] == 0).nonzero().squeeze(-1)[: len(points)]
        if len(empty):
            centers[empty] = points[(away * mass).argsort(descending=True, stable=True)[: len(empty)]]
    return centers


def _nearest(points: torch.Tensor, centers: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each point, 0 for zero or 1 + the nearest centre, and the squared distance to it; both ``(n,)``."""
    halves = centers.square().sum(1) / 2
    labels, away = torch.empty(len(points), dtype=torch.int64), torch.empty(len(points))
    step = max(1, _SCORES_AT_ONCE // len(centers))
    for begin in range(0, len(points), step):
        rows = slice(begin, begin + step)
        best = torch.addmm(-halves, points[rows], centers.t()).max(1)
        labels[rows] = torch.where(best.values > 0, best.indices + 1, 0)
        away[rows] = points[rows].square().sum(1) - 2 * best.values.clamp_min(0)
    return labels, away


def _start(points: torch.Tensor, mass: torch.Tensor, k: int, seed: int) -> torch.Tensor:
    """First centres, ``(k, dim)``: a few steps of k-means from k-means++ on a random part of the points."""
    generator = torch.Generator().manual_seed(seed % 2**63)
    drawn = torch.randperm(len(points), generator=generator)[: _START_POINTS * k]
    part, weights = points[drawn], mass[drawn]
    found = kmeans(part[None], weights[None], k, seed=seed, max_iterations=5)
    members = found.members[0]
    held = torch.zeros(k).index_add_(0, members, weights)
    sums = torch.zeros(k, points.shape[1]).index_add_(0, members, part * weights[:, None])
    return sums / held.clamp_min(1e-30)[:, None]
