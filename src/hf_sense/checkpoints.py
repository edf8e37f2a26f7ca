"""A training's checkpoints: made often enough, and the newest that is whole found again."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


class SaveOften(TrainerCallback):
    """Asks for a checkpoint once so many seconds have passed since the last."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last = seconds, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After each step."""
        if time.monotonic() - self.last >= self.seconds:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After each checkpoint."""
        self.last = time.monotonic()


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that is whole: the trainer's state is its last file. ``None`` if there is none."""
    found = [
        (number, path) for path in folder.glob("checkpoint-*") if (number := path.name.rpartition("-")[2]).isdigit()
    ]
    for _, path in sorted(found, key=lambda pair: -int(pair[0])):
        try:
            if isinstance(json.loads((path / "trainer_state.json").read_text(encoding="utf-8")), dict):
                return str(path)
        except (OSError, ValueError):
            continue  # its write was cut off
    return None
