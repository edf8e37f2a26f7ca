"""Which processes share the work, as ``accelerate launch`` and ``torchrun`` start them. It starts none itself."""

from __future__ import annotations

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


def on_cpu() -> bool:
    """Whether the processes compute on the CPU: there is no accelerator, or ``ACCELERATE_USE_CPU`` is set."""
    return not torch.accelerator.is_available() or parse_flag_from_env("ACCELERATE_USE_CPU")


def processes() -> PartialState:
    """This process among those that were launched together.

    Accelerate joins them over gloo only when it is told that they are on the CPU; otherwise each takes itself for the only
    one, does all the work, and writes over what the others write.
    """
    return PartialState(cpu=on_cpu())
