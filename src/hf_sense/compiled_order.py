"""How a batch is laid out for the kernels of ``hf_sense.compiled``, by Numba: sorted by token, checked, cut for threads."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

_OPTIONS: dict[str, Any] = {"nogil": True, "cache": True}


@njit(**_OPTIONS)
def sorting_by(keys):
    """The order of the keys, int64 ``(n,)`` and not negative; equal ones stay in theirs. A byte at a time, the lowest first."""
    order, moved = np.arange(len(keys)), np.empty(len(keys), np.int64)
    highest = 0
    for key in keys:
        highest = max(highest, key)
    shift = 0
    while highest >> shift:
        ends = np.zeros(257, np.int64)
        for key in keys:
            ends[((key >> shift) & 255) + 1] += 1
        for digit in range(1, 257):
            ends[digit] += ends[digit - 1]
        for at in order:
            digit = (keys[at] >> shift) & 255
            moved[ends[digit]] = at
            ends[digit] += 1
        order, moved = moved, order
        shift += 8
    return order


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
