"""Runs independent pieces of work on the CPU's cores at once, each piece on one thread.

It does not know what a piece computes, and an accelerator gets one after the other. Small matrices gain little from two threads
each; two of them at once gain everything, and no number then depends on how many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch

Runner: TypeAlias = Callable[[Callable[[Any], None], Iterable[Any]], None]


@contextmanager
def side_by_side(device: torch.device) -> Iterator[Runner]:
    """Gives a function ``run(work, pieces)`` that calls ``work`` on each piece, in as many threads as torch is set to.

    A piece writes its results, and never where another piece reads or writes. It runs without gradients. Pieces are begun in
    their order, so the longest should come first; a lone one gets all threads. What a piece raises, ``run`` raises.

    Args:
        device: where the work is done.
    """
    threads, inference = torch.get_num_threads(), torch.is_inference_mode_enabled()

    def one_by_one(work: Callable[[Any], None], pieces: Iterable[Any]) -> None:
        # A thread starts with gradients on, whatever the mode of the one that started it.
        with torch.inference_mode(inference), torch.no_grad():
            for piece in pieces:
                work(piece)

    if device.type != "cpu" or threads == 1:
        yield one_by_one
        return
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def at_once(work: Callable[[Any], None], pieces: Iterable[Any]) -> None:
        pieces = list(pieces)
        if len(pieces) > 1:
            list(pool.map(lambda piece: one_by_one(work, [piece]), pieces))
            return
        torch.set_num_threads(threads)
        one_by_one(work, pieces)
        torch.set_num_threads(1)

    try:
        # Between the pieces too: OpenMP's threads spin a while after their work, on the cores that the pieces need.
        torch.set_num_threads(1)
        yield at_once
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
