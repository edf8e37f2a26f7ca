"""A build's state in pieces, each written whole and checksummed: in files of a folder, or in memory without one.

A piece says by numbers what it holds, batches or blocks of texts, so that whoever finds it knows what is done, whichever process
wrote it. It knows nothing of what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from hf_sense.files import write_atomically
from hf_sense.storage import sha256_of

logger = logging.getLogger(__name__)

_NUMBERS = "numbers"


class Piece:
    """Some tensors, in memory or in a file that is mapped each time it is opened, so that nothing of it stays in memory.

    Attributes:
        numbers: int64 ``(n,)``, what it holds.
        name: its file's, or a name of its own.
    """

    def __init__(self, numbers: torch.Tensor, name: str, held: dict[str, torch.Tensor] | Path) -> None:
        self.numbers, self.name, self._held = numbers, name, held

    def open(self) -> dict[str, torch.Tensor]:
        """Its tensors by name, not to be written to."""
        return self._held if isinstance(self._held, dict) else _mapped(self._held)


class Segments:
    """The pieces of one kind.

    Args:
        folder: where they lie; ``None`` keeps them in memory.
        kind: begins the names of their files.
    """

    def __init__(self, folder: Path | None, kind: str) -> None:
        self.folder, self.kind = folder, kind
        self.pieces: list[Piece] = [] if folder is None else list(_sound(folder, kind))

    def add(self, numbers: list[int], tensors: dict[str, torch.Tensor]) -> None:
        """Keeps a piece, flushed to the disk when this returns.

        Raises:
            OSError: if it cannot be written; what was kept before is as it was.
        """
        own = torch.tensor(numbers, dtype=torch.int64)
        name = f"{self.kind}-{uuid.uuid4().hex}.safetensors"
        if self.folder is None:
            self.pieces.append(Piece(own, name, tensors))
            return
        write_checked(self.folder / name, {_NUMBERS: own, **tensors})
        self.pieces.append(Piece(own, name, self.folder / name))

    def remove(self, piece: Piece) -> None:
        """Forgets a piece, and removes its file."""
        self.pieces.remove(piece)
        if self.folder is not None:
            (self.folder / piece.name).unlink(missing_ok=True)

    def refresh(self) -> None:
        """Finds the pieces that other processes wrote; they are whole, since a file gets its name last."""
        if self.folder is None:
            return
        known = {piece.name for piece in self.pieces}
        for path in sorted(self.folder.glob(f"{self.kind}-*.safetensors")):
            if path.name not in known:
                self.pieces.append(Piece(_mapped(path)[_NUMBERS].clone(), path.name, path))
        self.pieces.sort(key=lambda piece: piece.name)

    def done(self) -> set[int]:
        """The numbers of everything that is held."""
        return {number for piece in self.pieces for number in piece.numbers.tolist()}


def write_checked(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Writes a safetensors file with the checksum of its tensors, whole or not at all.

    Raises:
        OSError: if it cannot be written, with what to do when the disk is full.
    """
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    about = {"sha256": _checksum(tensors)}
    try:
        write_atomically(path, lambda temporary: save_file(tensors, temporary, metadata=about))
    except (OSError, SafetensorError) as error:
        size = sum(tensor.nbytes for tensor in tensors.values())
        raise OSError(
            getattr(error, "errno", None) or 0,
            f"{path.parent} could not take {size:,} bytes more ({error}). What was done before is kept: make room, and give the "
            "same command again to go on.",
        ) from error


def read_checked(path: Path, keep: bool = False) -> dict[str, torch.Tensor] | None:
    """The tensors of such a file, mapped; ``None`` if it is not as it was written, and the file removed but for ``keep``."""
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
        tensors = _mapped(path)
        if about.get("sha256") == _checksum(tensors):
            return tensors
        fault = "its bytes are not those that were written"
    except (SafetensorError, OSError, ValueError) as error:
        fault = str(error)
    if not keep:
        logger.warning("%s is damaged (%s) and is made again.", path, fault)
        path.unlink(missing_ok=True)
    return None


def remove(folder: Path, *patterns: str) -> None:
    """Removes files, those of writes that were cut off too."""
    for pattern in patterns:
        for path in (*folder.glob(pattern), *folder.glob(f".{pattern}.*.tmp")):
            path.unlink(missing_ok=True)


def _sound(folder: Path, kind: str) -> Iterator[Piece]:
    for path in sorted(folder.glob(f"{kind}-*.safetensors")):
        tensors = read_checked(path)
        if tensors is not None and _NUMBERS in tensors:
            yield Piece(tensors[_NUMBERS].clone(), path.name, path)


def _mapped(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


def _checksum(tensors: dict[str, torch.Tensor]) -> str:
    layout = [(name, str(tensors[name].dtype), list(tensors[name].shape)) for name in sorted(tensors)]
    digest = hashlib.sha256(json.dumps(layout).encode())
    for name in sorted(tensors):
        digest.update(sha256_of([tensors[name]]).encode())
    return digest.hexdigest()


def free_bytes(folder: Path) -> int:
    """What the disk of a folder still takes."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize
