"""An unfinished build's state on disk, from which the next call goes on.

It knows files and ranks, not what is computed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from hf_sense import __version__
from hf_sense.ranks import processes
from hf_sense.storage import write_atomically, write_text


class UnfinishedBuild:
    """Unfinished work in a folder: sampled vectors in a file, how many batches are in it, and the parts clustered."""

    def __init__(self, folder: Path | None, description: dict[str, Any]) -> None:
        state = processes()
        self.rank, self.ranks = state.process_index, state.num_processes
        self._folder = folder
        if folder is None:
            return
        description = json.loads(json.dumps({**description, "library_version": __version__, "processes": self.ranks}))
        path = folder / "build.json"
        folder.mkdir(parents=True, exist_ok=True)
        if state.is_main_process:
            if path.is_file():
                before = json.loads(path.read_text(encoding="utf-8"))
                if before != description:
                    changed = {
                        k: (before.get(k), description.get(k))
                        for k in description
                        if before.get(k) != description.get(k)
                    }
                    raise ValueError(
                        f"{folder} holds the unfinished work of another build. It differs in (before, now): {changed}. Give "
                        "another work_dir, or remove this one."
                    )
            elif any(folder.iterdir()):
                raise ValueError(
                    f"work_dir should be a new or empty folder, or that of a stopped build, but {folder} is not."
                )
            else:
                write_text(path, json.dumps(description, indent=2))
        state.wait_for_everyone()

    def vectors(self, rows: int, dim: int) -> torch.Tensor:
        """Float32 ``(rows, dim)``, zero where nothing was written yet."""
        if self._folder is None:
            return torch.zeros(rows, dim)
        path = self._folder / f"vectors-{self.rank}.f32"
        if not path.is_file() or path.stat().st_size != rows * dim * 4:
            self._progress_path.unlink(missing_ok=True)
            with open(path, "wb") as file:
                file.truncate(rows * dim * 4)
        self._map = np.memmap(path, np.float32, "r+", shape=(rows, dim))
        return torch.from_numpy(self._map)

    @property
    def _progress_path(self) -> Path:
        return (self._folder or Path()) / f"batches-{self.rank}.txt"

    def batches_done(self) -> int:
        """How many batches' vectors are in the file."""
        if self._folder is None or not self._progress_path.is_file():
            return 0
        return int(self._progress_path.read_text())

    def save(self, batches: int) -> None:
        """Flushes the vectors, then notes how many batches they hold."""
        if self._folder is not None:
            self._map.flush()
            write_text(self._progress_path, str(batches))

    def part(self, number: int, kind: str = "part") -> dict[str, torch.Tensor] | None:
        """What was computed of a part, if it is done; a kind for each thing that is computed in parts."""
        path = (self._folder or Path()) / f"{kind}-{number:06d}.safetensors"
        return load_file(path) if self._folder is not None and path.is_file() else None

    def save_part(self, number: int, tensors: dict[str, torch.Tensor], kind: str = "part") -> None:
        """Keeps what was computed of a part."""
        if self._folder is not None and self.rank == 0:
            path = self._folder / f"{kind}-{number:06d}.safetensors"
            write_atomically(path, lambda temporary: save_file(tensors, temporary))

    def remove(self) -> None:
        """Removes what this build wrote, and the folder if nothing else is in it."""
        if self._folder is None:
            return
        processes().wait_for_everyone()
        if self.rank == 0:
            for pattern in (
                "vectors-*.f32",
                "batches-*.txt",
                "curves-*.safetensors",
                "part-*.safetensors",
                "build.json",
            ):
                for path in self._folder.glob(pattern):
                    path.unlink()
            if not any(self._folder.iterdir()):
                self._folder.rmdir()
