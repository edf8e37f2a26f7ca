"""Which processes share the work, as ``accelerate launch`` and ``torchrun`` start them, and what they tell each other.

It starts none itself.
"""

from __future__ import annotations

import datetime
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

_DTYPES = (torch.float32, torch.int64, torch.int32, torch.uint8)


def on_cpu() -> bool:
    """Whether the processes compute on the CPU: there is no accelerator, or ``ACCELERATE_USE_CPU`` is set."""
    return not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def processes() -> PartialState:
    """This process among those that were launched together.

    Accelerate joins them over gloo only when it is told that they are on the CPU; otherwise each takes itself for the only
    one, does all the work, and writes over what the others write.
    """
    return PartialState(cpu=on_cpu())


class Ranks:
    """The processes that were launched together, talking over the CPU's network whatever the accelerators use.

    Every method is called by all of them, in the same order.

    Attributes:
        rank: this process's number.
        count: how many there are.
    """

    _group: Any = None

    def __init__(self) -> None:
        state = processes()
        self.rank, self.count = state.process_index, state.num_processes
        if self.count > 1 and Ranks._group is None:
            # Ranks wait for the slowest however long it takes; one that died is noticed otherwise (hf_sense.watch).
            Ranks._group = dist.new_group(backend="gloo", timeout=datetime.timedelta(days=7))

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        if self.count > 1:
            dist.barrier(group=Ranks._group)

    def gather(self, value: Any) -> list[Any]:
        """The values of all, in order of rank; small ones."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value, group=Ranks._group)
        return found

    def share(self, value: Any, source: int) -> Any:
        """The value of one rank, for all."""
        if self.count == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=source, group=Ranks._group)
        return held[0]

    def send(self, tensors: list[torch.Tensor], source: int, target: int) -> list[torch.Tensor] | None:
        """Tensors from one rank to another, which gets them back; the others, and the source, get ``None``."""
        if source == target:
            return tensors if self.rank == target else None
        if self.rank == source:
            dist.send(torch.tensor([len(tensors)]), target, group=Ranks._group)
            for tensor in tensors:
                shape = torch.tensor([_DTYPES.index(tensor.dtype), tensor.ndim, *tensor.shape])
                dist.send(torch.nn.functional.pad(shape, (0, 8 - len(shape))), target, group=Ranks._group)
                if tensor.numel():
                    dist.send(tensor.contiguous(), target, group=Ranks._group)
        elif self.rank == target:
            count = torch.zeros(1, dtype=torch.int64)
            dist.recv(count, source, group=Ranks._group)
            found = []
            for _ in range(int(count)):
                shape = torch.zeros(8, dtype=torch.int64)
                dist.recv(shape, source, group=Ranks._group)
                kind, ndim, *sizes = shape.tolist()
                tensor = torch.empty(sizes[:ndim], dtype=_DTYPES[kind])
                if tensor.numel():
                    dist.recv(tensor, source, group=Ranks._group)
                found.append(tensor)
            return found
        return None

    def total(self, tensor: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks, in place."""
        if self.count > 1:
            dist.all_reduce(tensor, group=Ranks._group)
        return tensor
