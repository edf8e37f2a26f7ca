"""How every benchmark measures: ways run by turns in one process, medians with their range, the machine named.

Times differ from machine to machine and from hour to hour; what is published are ratios of ways that took turns.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from hf_sense import build_dictionary
from hf_sense.dictionary import SenseDictionary
from hf_sense.teacher import Teacher


def by_turns(
    ways: dict[str, Callable[[], Any]], rounds: int, before: Callable[[], Any] | None = None
) -> dict[str, list[float]]:
    """Seconds of each way, once a round after one that does not count; ``before`` runs, untimed, before each."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, run in ways.items():
            if before:
                before()
            begin = time.perf_counter()
            run()
            if number:
                seconds[name].append(time.perf_counter() - begin)
    return seconds


def ratios(over: list[float], under: list[float]) -> list[float]:
    """``over / under``, round by round."""
    return [a / b for a, b in zip(over, under, strict=True)]


def spread(values: list[float], factor: float = 1.0) -> dict[str, float]:
    """Median, lowest and highest, as they go into the results."""
    return {
        "median": factor * statistics.median(values),
        "low": factor * min(values),
        "high": factor * max(values),
    }


def shown(values: list[float], unit: str, factor: float = 1.0) -> str:
    """Median and range, in words."""
    figures = spread(values, factor)
    return f"{figures['median']:.3g} {unit} ({figures['low']:.3g} to {figures['high']:.3g})"


def show(values: dict[str, list[float]], unit: str, factor: float = 1.0) -> None:
    """Prints a line for each name."""
    for name, own in values.items():
        print(f"  {name}: {shown(own, unit, factor)}")


def kept_dictionary(folder: Path | None, teacher: Teacher, texts: list[str], **options: Any) -> SenseDictionary:
    """The dictionary of these texts: that which ``folder`` holds, or else a new one, which it then holds; ``None`` keeps none.

    Building is not what the benchmarks that use it measure, so those that run one after the other build it once.
    """
    if folder is not None and folder.is_dir():
        return SenseDictionary.from_pretrained(folder)
    built = build_dictionary(teacher, texts, **options)
    if folder is not None:
        built.save_pretrained(folder)
    return built


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def save(path: Path | None, figures: dict[str, Any]) -> None:
    """Writes ``figures`` and the machine to a JSON file, whole or not at all."""
    if path is None:
        return
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps({"machine": machine(), **figures}, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
