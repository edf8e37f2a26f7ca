"""Kernels over ragged senses, compiled by Numba for the processor that runs them: arrays in, arrays written in place.

Importing it imports Numba (``pip install hf-sense[fast]``); ``hf_sense.fused`` decides whether to. A kernel works through a
stretch of ``order``, which names the places of the hidden states sorted by token id: all occurrences of a token meet its
senses while these are in the cache, so that each row comes from memory once. Two occurrences by two senses are multiplied at a
time, which halves what is loaded. Narrow rows are widened a few at a time, never the whole table.

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


def _float32_rows(senses, scales, first, last, bits):
    """The rows ``first:last`` as float32: where they lie, or widened into ``bits`` uint32 ``(_ROWS, dim)``."""
    raise NotImplementedError


@overload(_float32_rows, jit_options=_INNER)
def _float32_rows_of(senses, scales, first, last, bits):
    if senses.dtype == numba.float32:
        return lambda senses, scales, first, last, bits: senses[first:last]
    if senses.dtype == numba.int16:

        def from_bfloat16(senses, scales, first, last, bits):
            for row in range(last - first):
                for at in range(bits.shape[1]):
                    bits[row, at] = np.uint32(np.uint16(senses[first + row, at])) << np.uint32(16)
            return bits.view(np.float32)[: last - first]

        return from_bfloat16
    if senses.dtype == numba.uint16:

        def from_float16(senses, scales, first, last, bits):
            # Exponent and fraction moved to their places give the number times 2^-112, numbers below the normal included.
            floats = bits.view(np.float32)
            for row in range(last - first):
                for at in range(bits.shape[1]):
                    half = np.uint32(senses[first + row, at])
                    bits[row, at] = ((half & np.uint32(0x7FFF)) << np.uint32(13)) | (
                        (half & np.uint32(0x8000)) << np.uint32(16)
                    )
                for at in range(bits.shape[1]):
                    floats[row, at] *= np.float32(2.0**112)
            return floats[: last - first]

        return from_float16

    def from_int8(senses, scales, first, last, bits):
        floats = bits.view(np.float32)
        for row in range(last - first):
            scale = scales[first + row]
            for at in range(bits.shape[1]):
                floats[row, at] = np.float32(senses[first + row, at]) * scale
        return floats[: last - first]

    return from_int8


@njit(**_INNER)
def _gains_and_shifts(rows, halves, first, metric, gains, shifts):
    """A score is ``gain * (h . s) - shift``."""
    for row in range(len(rows)):
        half = np.float32(0.0)
        if metric != DOT:
            if len(halves):
                half = halves[first + row]
            else:
                for at in range(rows.shape[1]):
                    half += rows[row, at] * rows[row, at]
                half *= np.float32(0.5)
        gains[row] = np.float32(1.0)
        shifts[row] = np.float32(0.0)
        if metric == COSINE:
            gains[row] = np.float32(1.0) / np.sqrt(max(np.float32(2.0) * half, np.float32(1e-24)))
        elif metric == L2:
            shifts[row] = half


@njit(**_INNER)
def _scores_of_four(x, y, z, w, rows, gains, shifts, scores):
    """Of four states, into the rows of ``scores``."""
    dim = rows.shape[1]
    for row in range(len(rows)):
        own = rows[row]
        a = b = c = d = np.float32(0.0)
        for at in range(dim):
            a += x[at] * own[at]
            b += y[at] * own[at]
            c += z[at] * own[at]
            d += w[at] * own[at]
        scores[0, row], scores[1, row] = gains[row] * a - shifts[row], gains[row] * b - shifts[row]
        scores[2, row], scores[3, row] = gains[row] * c - shifts[row], gains[row] * d - shifts[row]


@njit(**_INNER)
def _scores_of_two(x, y, rows, gains, shifts, to_x, to_y):
    count, dim = rows.shape
    row = 0
    while row + 2 <= count:
        one, two = rows[row], rows[row + 1]
        x1 = x2 = y1 = y2 = np.float32(0.0)
        for at in range(dim):
            x1 += x[at] * one[at]
            x2 += x[at] * two[at]
            y1 += y[at] * one[at]
            y2 += y[at] * two[at]
        to_x[row], to_y[row] = gains[row] * x1 - shifts[row], gains[row] * y1 - shifts[row]
        to_x[row + 1] = gains[row + 1] * x2 - shifts[row + 1]
        to_y[row + 1] = gains[row + 1] * y2 - shifts[row + 1]
        row += 2
    if row < count:
        one = rows[row]
        x1 = y1 = np.float32(0.0)
        for at in range(dim):
            x1 += x[at] * one[at]
            y1 += y[at] * one[at]
        to_x[row], to_y[row] = gains[row] * x1 - shifts[row], gains[row] * y1 - shifts[row]


@njit(**_INNER)
def _scores_of_one(x, rows, gains, shifts, to_x):
    count, dim = rows.shape
    row = 0
    while row + 2 <= count:
        one, two = rows[row], rows[row + 1]
        x1 = x2 = np.float32(0.0)
        for at in range(dim):
            x1 += x[at] * one[at]
            x2 += x[at] * two[at]
        to_x[row], to_x[row + 1] = gains[row] * x1 - shifts[row], gains[row + 1] * x2 - shifts[row + 1]
        row += 2
    if row < count:
        one = rows[row]
        x1 = np.float32(0.0)
        for at in range(dim):
            x1 += x[at] * one[at]
        to_x[row] = gains[row] * x1 - shifts[row]


@njit(**_INNER)
def _same_token(order, token_ids, at, end):
    """Where the stretch of occurrences of one token that begins at ``at`` stops."""
    stop = at + 1
    while stop < end and stop - at < _OCCURRENCES and token_ids[order[stop]] == token_ids[order[at]]:
        stop += 1
    return stop


@njit(**_INNER)
def _scores_of_group(hidden, order, at, stop, senses, scales, halves, metric, first, last, bits, measures, scores):
    """Scores of the occurrences ``at:stop`` of a token that owns ``first:last``, into ``scores`` ``(_OCCURRENCES, width)``."""
    gains, shifts = measures[0], measures[1]
    for begin in range(first, last, _ROWS):
        end = min(begin + _ROWS, last)
        rows = _float32_rows(senses, scales, begin, end, bits)
        _gains_and_shifts(rows, halves, begin, metric, gains, shifts)
        one = at
        while one + 4 <= stop:
            _scores_of_four(
                hidden[order[one]], hidden[order[one + 1]], hidden[order[one + 2]], hidden[order[one + 3]],
                rows, gains, shifts, scores[one - at :, begin - first :],
            )  # fmt: skip
            one += 4
        while one + 2 <= stop:
            _scores_of_two(
                hidden[order[one]], hidden[order[one + 1]], rows, gains, shifts,
                scores[one - at, begin - first :], scores[one - at + 1, begin - first :],
            )  # fmt: skip
            one += 2
        if one < stop:
            _scores_of_one(hidden[order[one]], rows, gains, shifts, scores[one - at, begin - first :])


@njit(**_INNER)
def _scratch(order, begin, end, token_ids, offsets, dim, narrow):
    widest = 1
    for at in range(begin, end):
        token = token_ids[order[at]]
        widest = max(widest, offsets[token + 1] - offsets[token])
    bits = np.empty((_ROWS if narrow else 1, dim), np.uint32)
    return bits, np.empty((2, _ROWS), np.float32), np.empty((_OCCURRENCES, widest), np.float32)


@njit(**_OPTIONS)
def choose(
    hidden, order, begin, end, token_ids, offsets, senses, scales, halves, metric, best, top, starts, every, out
):
    """The best sense of each place and its score, into ``best`` and ``top``. The first of equal scores wins; NaN never does.

    Into ``every``, if it has room, go all scores, those of the place ``order[at]`` from ``starts[at]`` on; into ``out``, if it
    has room, the best sense's row as float32, or the state of a place without.
    """
    bits, measures, scores = _scratch(order, begin, end, token_ids, offsets, hidden.shape[1], senses.itemsize < 4)
    at = begin
    while at < end:
        stop = _same_token(order, token_ids, at, end)
        token = token_ids[order[at]]
        first, last = offsets[token], offsets[token + 1]
        _scores_of_group(hidden, order, at, stop, senses, scales, halves, metric, first, last, bits, measures, scores)
        for one in range(at, stop):
            place = order[one]
            best[place], top[place] = NONE, np.float32(-np.inf)
            for sense in range(last - first):
                if scores[one - at, sense] > top[place]:
                    best[place], top[place] = first + sense, scores[one - at, sense]
            if len(every):
                for sense in range(last - first):
                    every[starts[one] + sense] = scores[one - at, sense]
            if len(out):
                row = hidden[place]
                if best[place] >= 0:
                    row = _float32_rows(senses, scales, best[place], best[place] + 1, bits)[0]
                for number in range(len(row)):
                    out[place, number] = row[number]
        at = stop


@njit(**_OPTIONS)
def cross_entropy(
    hidden, order, begin, end, token_ids, offsets, senses, scales, halves, metric, targets, sharpness, best, loss, grad
):
    """Cross-entropy of the target among the scores times ``sharpness``, the best sense, and if ``grad`` has room its rows.

    ``grad[place]`` becomes the derivative of ``loss[place]`` by the hidden state. Targets are senses of their tokens.
    """
    bits, measures, scores = _scratch(order, begin, end, token_ids, offsets, hidden.shape[1], senses.itemsize < 4)
    gains, shifts = measures[0], measures[1]
    at = begin
    while at < end:
        stop = _same_token(order, token_ids, at, end)
        token = token_ids[order[at]]
        first, last = offsets[token], offsets[token + 1]
        _scores_of_group(hidden, order, at, stop, senses, scales, halves, metric, first, last, bits, measures, scores)
        for one in range(at, stop):
            own = scores[one - at]
            place = order[one]
            highest, best[place] = np.float32(-np.inf), NONE
            for sense in range(last - first):
                if own[sense] > highest:
                    highest, best[place] = own[sense], first + sense
            target = targets[place] - first
            loss[place] = sharpness * (highest - own[target])
            total = np.float32(0.0)
            for sense in range(last - first):
                own[sense] = np.exp(sharpness * (own[sense] - highest))
                total += own[sense]
            loss[place] += np.log(total)
            for sense in range(last - first):
                own[sense] *= sharpness / total
            own[target] -= sharpness
        if len(grad):
            for block in range(first, last, _ROWS):
                rows = _float32_rows(senses, scales, block, min(block + _ROWS, last), bits)
                if metric == COSINE:
                    _gains_and_shifts(rows, halves, block, metric, gains, shifts)
                for one in range(at, stop):
                    own = scores[one - at, block - first :]
                    if metric == COSINE:
                        for row in range(len(rows)):
                            own[row] *= gains[row]
                    _add_rows(own, rows, grad[order[one]])
        at = stop


@njit(**_INNER)
def _add_rows(values, rows, out):
    """Adds the sum of ``value * row``, four rows at a time."""
    count, dim = rows.shape
    row = 0
    while row + 4 <= count:
        one, two, three, four = rows[row], rows[row + 1], rows[row + 2], rows[row + 3]
        a, b, c, d = values[row], values[row + 1], values[row + 2], values[row + 3]
        for at in range(dim):
            out[at] += a * one[at] + b * two[at] + c * three[at] + d * four[at]
        row += 4
    while row < count:
        one, a = rows[row], values[row]
        for at in range(dim):
            out[at] += a * one[at]
        row += 1


@njit(**_OPTIONS)
def fits(order, token_ids, offsets, rows):
    """Whether every token has a place in the vocabulary, and its senses among so many rows."""
    size = len(offsets) - 1
    for place in order:
        token = token_ids[place]
        if token < 0 or token >= size or offsets[token] < 0 or offsets[token] > offsets[token + 1]:
            return False
        if offsets[token + 1] > rows:
            return False
    return True


@njit(**_OPTIONS)
def cuts(order, token_ids, offsets, parts):
    """Where to cut ``order`` into ``parts`` of about equal numbers of scores, never within a token, int64 ``(parts + 1,)``."""
    pairs = 0
    for at in range(len(order)):
        token = token_ids[order[at]]
        pairs += offsets[token + 1] - offsets[token] + 1
    result = np.full(parts + 1, len(order), np.int64)
    result[0] = 0
    done, part = 0, 1
    for at in range(len(order)):
        token = token_ids[order[at]]
        fresh = at == 0 or token_ids[order[at - 1]] != token
        while fresh and part < parts and done * parts >= pairs * part:
            result[part] = at
            part += 1
        done += offsets[token + 1] - offsets[token] + 1
    return result
