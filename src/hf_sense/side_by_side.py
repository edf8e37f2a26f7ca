"""Runs independent pieces of work on the CPU's cores at once, each piece on one thread.

It does not know what a piece computes, and an accelerator gets one after the other. Small matrices gain little from two threads
each; two of them at once gain everything, and no number then depends on how many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
RUN = 32  # so many passes over a core's cache are a piece worth a thread


def side_by_side(work: Callable[[Piece], None], pieces: Iterable[Piece], device: torch.device) -> None:
    """Calls ``work`` on each piece, on the CPU in as many threads as torch is set to.

    Args:
        work: writes its results, and never where another piece reads or writes. It runs without gradients.
        pieces: begun in this order, so the longest should come first. A lone piece gets all threads.
        device: where the work is done.
    """
    pieces, threads, inference = list(pieces), torch.get_num_threads(), torch.is_inference_mode_enabled()

    def alone(piece: Piece) -> None:
        # A thread starts with gradients on, whatever the mode of the one that started it.
        with torch.inference_mode(inference), torch.no_grad():
            work(piece)

    if device.type != "cpu" or threads == 1 or len(pieces) < 2:
        for piece in pieces:
            alone(piece)
        return
    pool = ThreadPoolExecutor(min(threads, len(pieces)), initializer=torch.set_num_threads, initargs=(1,))
    try:
        list(pool.map(alone, pieces))  # raises what a piece raised
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # threads that start later would take the pool's number
