"""Calls the compiled kernels: lays a batch out for them, checks what they do not, and spreads them over threads."""

from __future__ import annotations

import importlib.util
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch

from hf_sense.ragged import Metric
from hf_sense.senses import Senses

logger = logging.getLogger(__name__)

# Below so many multiplications a second thread brings nothing: it finds its core held by PyTorch's own, which wait for more.
_WORTH_A_THREAD = 2**25
# In the place of an array that a kernel may be given.
NOTHING, NOTHING_ROWS = torch.empty(0), torch.empty(0, 0)
NOTHING_INT = torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Plan:
    """A batch's places in the order of their tokens, cut for the threads, and the arrays that the kernels take.

    The kernels look at no bounds: what they would read out of place is refused here.

    Attributes:
        kernels: the module ``hf_sense.compiled``.
        sorting: int64 ``(m,)``, the places' order.
    """

    kernels: Any
    sorting: torch.Tensor
    order: Any
    bounds: list[int]
    hidden: Any
    table: tuple[Any, ...]

    @classmethod
    def of(
        cls,
        hidden: torch.Tensor,
        token_ids: torch.Tensor,
        places: torch.Tensor,
        senses: Senses,
        metric: Metric,
        normalized: bool = False,
    ) -> Plan:
        """Of the same arguments as ``hf_sense.fused.choose_senses``; ``normalized`` states of a cosine have length one.

        Raises:
            ValueError: if states, token ids and senses do not fit together.
        """
        if len(hidden) != len(token_ids):
            raise ValueError(f"Expected one hidden state a token, but got {len(hidden)} for {len(token_ids)} tokens.")
        if hidden.shape[1] != senses.rows.shape[1]:
            raise ValueError(
                f"Expected hidden states (tokens, dim) and senses (num_senses, dim) of one width, but got "
                f"{tuple(hidden.shape)} and {tuple(senses.rows.shape)}. A student narrower than its teacher needs a "
                "projection."
            )
        from hf_sense.compiled_order import cuts, fits, sorting_by

        kernels, tokens = compiled_kernels(), token_ids[places]
        states = hidden.detach().to(torch.float32)
        if metric == "cosine" and not normalized:
            states = torch.nn.functional.normalize(states, dim=-1, eps=1e-12)
        sorting = torch.from_numpy(sorting_by(tokens.numpy()))
        order = places[sorting].numpy()
        ids, offsets = token_ids.contiguous().numpy(), senses.offsets.contiguous().numpy()
        if not fits(order, ids, offsets, len(senses.rows)):
            senses.spans(tokens)  # says what does not
        parts = _parts(8 * len(order) * hidden.shape[1])
        bounds = cuts(order, ids, offsets, parts).tolist() if parts > 1 else [0, len(order)]
        halves = NOTHING if senses.half_norms is None or metric == "dot" else senses.half_norms
        table = ids, offsets, *_arrays(senses), halves.contiguous().numpy(), kernels.METRICS[metric]
        return cls(kernels, sorting, order, bounds, states.contiguous().numpy(), table)

    def run(self, kernel: Callable[..., None], *rest: Any) -> None:
        """Calls ``kernel`` on each part of the order, every part on a thread of its own."""
        _spread(lambda begin, end: kernel(self.hidden, self.order, begin, end, *self.table, *rest), self.bounds)


def _arrays(senses: Senses) -> tuple[Any, Any]:
    rows = senses.rows.detach().contiguous()
    if rows.dtype == torch.bfloat16:
        rows = rows.view(torch.int16)
    array = rows.numpy()
    if rows.dtype == torch.float16:
        array = array.view("uint16")
    return array, (NOTHING if senses.scales is None else senses.scales.contiguous()).numpy()


def _parts(work: int) -> int:
    return max(1, min(torch.get_num_threads(), work // _WORTH_A_THREAD))


def _spread(call: Callable[[int, int], None], bounds: list[int]) -> None:
    stretches = [(begin, end) for begin, end in pairwise(bounds) if end > begin]
    if len(stretches) <= 1:
        for begin, end in stretches:
            call(begin, end)
        return
    # Kernels let go of the interpreter, so that threads run side by side; this one takes a part too.
    others = [_pool(os.getpid()).submit(call, *stretch) for stretch in stretches[1:]]
    call(*stretches[0])
    for other in others:
        other.result()


@lru_cache(maxsize=1)
def _pool(process: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=os.cpu_count() or 1, thread_name_prefix="hf_sense")


@lru_cache(maxsize=1)
def compiled_kernels() -> Any:
    """The module ``hf_sense.compiled``; ``None`` where Numba is not installed or cannot run."""
    if importlib.util.find_spec("numba") is None:
        return None
    try:
        from hf_sense import compiled
    except (ImportError, RuntimeError) as error:
        # Numba is there and does not fit NumPy, or finds no folder to keep what it compiles.
        logger.warning("Numba's kernels cannot be used (%s); PyTorch's run instead.", error)
        return None
    return compiled
