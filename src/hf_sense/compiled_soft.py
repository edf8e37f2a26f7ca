"""The expectation over a token's senses, compiled by Numba as the kernels of ``hf_sense.compiled``; it has no gradient.

``hf_sense.expectation`` decides whether it runs. Numba keeps it by the date of this file alone: whoever changes
``compiled.py`` touches this one too.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from hf_sense.compiled import (
    _INNER,
    _OPTIONS,
    _ROWS,
    NONE,
    _float32_rows,
    _same_token,
    _scores_of_group,
    _scratch,
)

# Senses whose share of a state is below float32's rounding of it are passed over.
_LEAST = np.float32(2.0**-26)


@njit(**_INNER)
def _picked(shares, slot, column, count, picks):
    """Into ``picks`` the rows among ``count`` that weigh something, and how many they are."""
    found = 0
    for row in range(count):
        if shares[slot, column + row] >= _LEAST:
            picks[found] = row
            found += 1
    return found


@njit(**_INNER)
def _add_picked(shares, slot, column, rows, begin, picks, found, out, place):
    """Adds the sum of ``share * row`` over the rows picked, four at a time."""
    one = 0
    while one + 4 <= found:
        i, j, k, m = picks[one], picks[one + 1], picks[one + 2], picks[one + 3]
        a, b, c, d = (
            shares[slot, column + i], shares[slot, column + j], shares[slot, column + k], shares[slot, column + m],
        )  # fmt: skip
        for at in range(rows.shape[1]):
            out[place, at] += (
                a * rows[begin + i, at] + b * rows[begin + j, at] + c * rows[begin + k, at] + d * rows[begin + m, at]
            )
        one += 4
    while one < found:
        i = picks[one]
        a = shares[slot, column + i]
        for at in range(rows.shape[1]):
            out[place, at] += a * rows[begin + i, at]
        one += 1


@njit(**_OPTIONS)
def expect(
    hidden, order, begin, end, token_ids, offsets, senses, scales, halves, metric, sharpness, best, starts, every, out
):
    """Into ``out`` each place's mean of its token's senses under the soft maximum of the scores times ``sharpness``.

    A place whose token has no senses keeps what ``out`` holds. ``best`` gets the best sense; into ``every``, if it has room,
    go all scores, those of the place ``order[at]`` from ``starts[at]`` on.
    """
    scratch = _scratch(order, begin, end, token_ids, offsets, hidden.shape[1], senses.itemsize < 4)
    bits, floats, measures, scores = scratch
    picks = np.empty(_ROWS, np.int64)
    at = begin
    while at < end:
        stop = _same_token(order, token_ids, at, end)
        token = token_ids[order[at]]
        first, last = offsets[token], offsets[token + 1]
        _scores_of_group(
            hidden, order, at, stop, senses, scales, halves, metric, first, last, bits, floats, measures, scores
        )
        for one in range(at, stop):
            slot, place = one - at, order[one]
            found, highest = NONE, np.float32(-np.inf)
            for sense in range(last - first):
                if scores[slot, sense] > highest:
                    found, highest = first + sense, scores[slot, sense]
            best[place] = found
            if len(every):
                for sense in range(last - first):
                    every[starts[one] + sense] = scores[slot, sense]
            total = np.float32(0.0)
            for sense in range(last - first):
                scores[slot, sense] = np.exp(sharpness * (scores[slot, sense] - highest))
                total += scores[slot, sense]
            for sense in range(last - first):
                scores[slot, sense] /= total
            if last > first:
                # Without a finite score the mean is NaN, as everywhere.
                start = np.float32(0.0) if total > np.float32(0.0) else np.float32(np.nan)
                for number in range(out.shape[1]):
                    out[place, number] = start
        for own in range(first, last, _ROWS):
            count = min(_ROWS, last - own)
            rows, begin_row = _float32_rows(senses, scales, own, own + count, bits, floats)
            for one in range(at, stop):
                found = _picked(scores, one - at, own - first, count, picks)
                _add_picked(scores, one - at, own - first, rows, begin_row, picks, found, out, order[one])
        at = stop
