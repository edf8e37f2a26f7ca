"""Kernels over ragged senses, compiled by Numba for the processor that runs them: arrays in, arrays written in place.

Importing it imports Numba (``pip install hf-sense[fast]``); ``hf_sense.fused`` decides whether to. A kernel works through a
stretch of ``order``, which names the places of the hidden states sorted by token id: all occurrences of a token meet its
senses while these are in the cache, so that each row comes from memory once. Several products are summed at a time, which loads
each number less often and keeps more rows on their way from memory. Narrow rows are widened a few at a time, never the whole
table.

Senses are float32, or, in the form that NumPy can hold: bfloat16 as int16, float16 as uint16, int8 with a scale a row.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numba import njit
from numba.extending import overload

# Senses widened at once, and occurrences of a token that share the scores' buffer.
_ROWS, _OCCURRENCES = 32, 64
# Sums may be reordered, as every fast kernel does; NaN and infinity keep their meaning.
_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True, "fastmath": {"reassoc", "contract", "nsz"}}
_INNER: dict[str, Any] = {"nogil": True, "fastmath": _OPTIONS["fastmath"]}

DOT, COSINE, L2 = 0, 1, 2
METRICS = {"dot": DOT, "cosine": COSINE, "l2": L2}
NONE = -100


def _float32_rows(senses, scales, first, last, bits, floats):
    """An array and its row from which ``first:last`` stand as float32: where they lie, or widened into ``floats``.

    ``floats`` ``(_ROWS, dim)`` is ``bits``, uint32, seen as float32. Whole arrays are handed on, never slices: each slice is
    counted up and down, which costs as much as a short row.
    """
    raise NotImplementedError


@overload(_float32_rows, jit_options=_INNER)
def _float32_rows_of(senses, scales, first, last, bits, floats):
    if senses.dtype == numba.float32:
        return lambda senses, scales, first, last, bits, floats: (senses, first)
    if senses.dtype == numba.int16:

        def from_bfloat16(senses, scales, first, last, bits, floats):
            for row in range(last - first):
                for at in range(bits.shape[1]):
                    bits[row, at] = np.uint32(np.uint16(senses[first + row, at])) << np.uint32(16)
            return floats, 0

        return from_bfloat16
    if senses.dtype == numba.uint16:

        def from_float16(senses, scales, first, last, bits, floats):
            # Exponent and fraction moved to their places give the number times 2^-112, numbers below the normal included.
            for row in range(last - first):
                for at in range(bits.shape[1]):
                    half = np.uint32(senses[first + row, at])
                    bits[row, at] = ((half & np.uint32(0x7FFF)) << np.uint32(13)) | (
                        (half & np.uint32(0x8000)) << np.uint32(16)
                    )
                for at in range(bits.shape[1]):
                    floats[row, at] *= np.float32(2.0**112)
            return floats, 0

        return from_float16

    def from_int8(senses, scales, first, last, bits, floats):
        for row in range(last - first):
            scale = scales[first + row]
            for at in range(bits.shape[1]):
                floats[row, at] = np.float32(senses[first + row, at]) * scale
        return floats, 0

    return from_int8


@njit(**_INNER)
def _gains_and_shifts(rows, begin, count, halves, first, metric, gains, shifts):
    """A score is ``gain * (h . s) - shift``.

    Rows are read straight through once, whatever the metric: so they come from memory at its full speed, and the products, which
    read several rows at a time, find them in the cache.
    """
    for row in range(count):
        half = np.float32(0.0)
        if len(halves):
            half = halves[first + row]
        else:
            for at in range(rows.shape[1]):
                half += rows[begin + row, at] * rows[begin + row, at]
            half *= np.float32(0.5)
        shifts[row] = half
    for row in range(count):
        gains[row] = np.float32(1.0)
        if metric == COSINE:
            gains[row] = np.float32(1.0) / np.sqrt(max(np.float32(2.0) * shifts[row], np.float32(1e-24)))
        if metric != L2:
            shifts[row] = np.float32(0.0)


@njit(**_INNER)
def _scores_of_four(hidden, w, x, y, z, rows, begin, count, gains, shifts, scores, slot, column):
    """Of four states and two rows or more, into ``scores`` from ``[slot, column]`` on."""
    row = 0
    while row < count:
        row = min(row, count - 2)  # of an odd number the last but one is done again
        w1 = w2 = x1 = x2 = y1 = y2 = z1 = z2 = np.float32(0.0)
        for at in range(rows.shape[1]):
            one, two = rows[begin + row, at], rows[begin + row + 1, at]
            w1 += hidden[w, at] * one
            x1 += hidden[x, at] * one
            y1 += hidden[y, at] * one
            z1 += hidden[z, at] * one
            w2 += hidden[w, at] * two
            x2 += hidden[x, at] * two
            y2 += hidden[y, at] * two
            z2 += hidden[z, at] * two
        own, gain, shift = column + row, gains[row], shifts[row]
        scores[slot, own], scores[slot + 1, own] = gain * w1 - shift, gain * x1 - shift
        scores[slot + 2, own], scores[slot + 3, own] = gain * y1 - shift, gain * z1 - shift
        own, gain, shift = own + 1, gains[row + 1], shifts[row + 1]
        scores[slot, own], scores[slot + 1, own] = gain * w2 - shift, gain * x2 - shift
        scores[slot + 2, own], scores[slot + 3, own] = gain * y2 - shift, gain * z2 - shift
        row += 2


@njit(**_INNER)
def _scores_of_one(hidden, x, rows, begin, count, gains, shifts, scores, slot, column):
    row = 0
    while row + 4 <= count:
        a = b = c = d = np.float32(0.0)
        for at in range(rows.shape[1]):
            own = hidden[x, at]
            a += own * rows[begin + row, at]
            b += own * rows[begin + row + 1, at]
            c += own * rows[begin + row + 2, at]
            d += own * rows[begin + row + 3, at]
        scores[slot, column + row] = gains[row] * a - shifts[row]
        scores[slot, column + row + 1] = gains[row + 1] * b - shifts[row + 1]
        scores[slot, column + row + 2] = gains[row + 2] * c - shifts[row + 2]
        scores[slot, column + row + 3] = gains[row + 3] * d - shifts[row + 3]
        row += 4
    while row < count:
        a = np.float32(0.0)
        for at in range(rows.shape[1]):
            a += hidden[x, at] * rows[begin + row, at]
        scores[slot, column + row] = gains[row] * a - shifts[row]
        row += 1


@njit(**_INNER)
def _scores_of_two(hidden, x, y, rows, begin, count, gains, shifts, scores, slot, column):
    row = 0
    while row + 2 <= count:
        x1 = x2 = y1 = y2 = np.float32(0.0)
        for at in range(rows.shape[1]):
            one, two = rows[begin + row, at], rows[begin + row + 1, at]
            x1 += hidden[x, at] * one
            x2 += hidden[x, at] * two
            y1 += hidden[y, at] * one
            y2 += hidden[y, at] * two
        scores[slot, column + row] = gains[row] * x1 - shifts[row]
        scores[slot + 1, column + row] = gains[row] * y1 - shifts[row]
        scores[slot, column + row + 1] = gains[row + 1] * x2 - shifts[row + 1]
        scores[slot + 1, column + row + 1] = gains[row + 1] * y2 - shifts[row + 1]
        row += 2
    if row < count:
        x1 = y1 = np.float32(0.0)
        for at in range(rows.shape[1]):
            x1 += hidden[x, at] * rows[begin + row, at]
            y1 += hidden[y, at] * rows[begin + row, at]
        scores[slot, column + row] = gains[row] * x1 - shifts[row]
        scores[slot + 1, column + row] = gains[row] * y1 - shifts[row]


@njit(**_INNER)
def _same_token(order, token_ids, at, end):
    """Where the stretch of occurrences of one token that begins at ``at`` stops."""
    stop = at + 1
    while stop < end and stop - at < _OCCURRENCES and token_ids[order[stop]] == token_ids[order[at]]:
        stop += 1
    return stop


@njit(**_INNER)
def _scores_of_group(
    hidden, order, at, stop, senses, scales, halves, metric, first, last, bits, floats, measures, scores
):
    """Scores of the occurrences ``at:stop`` of a token that owns ``first:last``, into ``scores`` ``(_OCCURRENCES, width)``."""
    gains, shifts = measures
    for own in range(first, last, _ROWS):
        count = min(_ROWS, last - own)
        rows, begin = _float32_rows(senses, scales, own, own + count, bits, floats)
        _gains_and_shifts(rows, begin, count, halves, own, metric, gains, shifts)
        one, column = at, own - first
        while one + 4 <= stop and count > 1:
            _scores_of_four(
                hidden, order[one], order[one + 1], order[one + 2], order[one + 3],
                rows, begin, count, gains, shifts, scores, one - at, column,
            )  # fmt: skip
            one += 4
        while one + 2 <= stop:
            _scores_of_two(
                hidden, order[one], order[one + 1], rows, begin, count, gains, shifts, scores, one - at, column
            )
            one += 2
        if one < stop:
            _scores_of_one(hidden, order[one], rows, begin, count, gains, shifts, scores, one - at, column)


@njit(**_INNER)
def _scratch(order, begin, end, token_ids, offsets, dim, narrow):
    widest = 1
    for at in range(begin, end):
        token = token_ids[order[at]]
        widest = max(widest, offsets[token + 1] - offsets[token])
    bits = np.empty((_ROWS if narrow else 1, dim), np.uint32)
    measures = np.empty(_ROWS, np.float32), np.empty(_ROWS, np.float32)
    return bits, bits.view(np.float32), measures, np.empty((_OCCURRENCES, widest), np.float32)


@njit(**_OPTIONS)
def choose(
    hidden, order, begin, end, token_ids, offsets, senses, scales, halves, metric, best, top, starts, every, out
):
    """The best sense of each place and its score, into ``best`` and ``top``. The first of equal scores wins; NaN never does.

    Into ``every``, if it has room, go all scores, those of the place ``order[at]`` from ``starts[at]`` on; into ``out``, if it
    has room, the best sense's row as float32, or the state of a place without.
    """
    scratch = _scratch(order, begin, end, token_ids, offsets, hidden.shape[1], senses.itemsize < 4)
    bits, floats, measures, scores = scratch
    at = begin
    while at < end:
        stop = _same_token(order, token_ids, at, end)
        token = token_ids[order[at]]
        first, last = offsets[token], offsets[token + 1]
        _scores_of_group(
            hidden, order, at, stop, senses, scales, halves, metric, first, last, bits, floats, measures, scores
        )
        for one in range(at, stop):
            found, highest = NONE, np.float32(-np.inf)
            for sense in range(last - first):
                if scores[one - at, sense] > highest:
                    found, highest = first + sense, scores[one - at, sense]
            place = order[one]
            best[place], top[place] = found, highest
            if len(every):
                for sense in range(last - first):
                    every[starts[one] + sense] = scores[one - at, sense]
            if len(out):
                if found < 0:
                    for number in range(hidden.shape[1]):
                        out[place, number] = hidden[place, number]
                else:
                    rows, row = _float32_rows(senses, scales, found, found + 1, bits, floats)
                    for number in range(hidden.shape[1]):
                        out[place, number] = rows[row, number]
        at = stop


@njit(**_OPTIONS)
def cross_entropy(
    hidden, order, begin, end, token_ids, offsets, senses, scales, halves, metric, targets, sharpness, best, loss, grad
):
    """Cross-entropy of the target among the scores times ``sharpness``, the best sense, and if ``grad`` has room its rows.

    ``grad[place]`` becomes the derivative of ``loss[place]`` by the hidden state. Targets are senses of their tokens.
    """
    scratch = _scratch(order, begin, end, token_ids, offsets, hidden.shape[1], senses.itemsize < 4)
    bits, floats, measures, scores = scratch
    gains, shifts = measures
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
            target = targets[place] - first
            loss[place] = sharpness * (highest - scores[slot, target])
            total = np.float32(0.0)
            for sense in range(last - first):
                scores[slot, sense] = np.exp(sharpness * (scores[slot, sense] - highest))
                total += scores[slot, sense]
            loss[place] += np.log(total)
            for sense in range(last - first):
                scores[slot, sense] *= sharpness / total
            scores[slot, target] -= sharpness
        if len(grad):
            for own in range(first, last, _ROWS):
                count = min(_ROWS, last - own)
                rows, begin_row = _float32_rows(senses, scales, own, own + count, bits, floats)
                if metric == COSINE:
                    _gains_and_shifts(rows, begin_row, count, halves, own, metric, gains, shifts)
                for one in range(at, stop):
                    if metric == COSINE:
                        for row in range(count):
                            scores[one - at, own - first + row] *= gains[row]
                    _add_rows(scores, one - at, own - first, rows, begin_row, count, grad, order[one])
        at = stop


@njit(**_INNER)
def _add_rows(values, slot, column, rows, begin, count, out, place):
    """Adds the sum of ``value * row``, four rows at a time."""
    row = 0
    while row + 4 <= count:
        a, b = values[slot, column + row], values[slot, column + row + 1]
        c, d = values[slot, column + row + 2], values[slot, column + row + 3]
        one = begin + row
        for at in range(rows.shape[1]):
            out[place, at] += a * rows[one, at] + b * rows[one + 1, at] + c * rows[one + 2, at] + d * rows[one + 3, at]
        row += 4
    while row < count:
        a = values[slot, column + row]
        for at in range(rows.shape[1]):
            out[place, at] += a * rows[begin + row, at]
        row += 1
