"""Files that are written whole or not at all: to a temporary name beside the file, flushed to the disk, then renamed."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any


def write_atomically(path: Path, write: Callable[[Path], Any]) -> None:
    """Calls ``write`` on a temporary name beside ``path``, flushes it to disk and renames it to ``path``."""
    with staged() as files:
        files.add(path, write)


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` to ``path`` as UTF-8, whole or not at all."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


class Staged:
    """Files that lie under temporary names, to be renamed together."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Path, Path]] = []

    def add(self, path: Path, write: Callable[[Path], Any]) -> None:
        """Calls ``write`` on a temporary name beside ``path`` and flushes it to disk."""
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        self._waiting.append((Path(name), path))
        write(Path(name))
        with open(name, "rb+") as file:
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)

    def add_text(self, path: Path, text: str) -> None:
        """As ``add``, for a text."""
        self.add(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))

    def rename(self) -> None:
        """Gives all their names, in the order in which they were added."""
        while self._waiting:
            temporary, path = self._waiting[0]
            os.replace(temporary, path)
            self._waiting.pop(0)

    def discard(self) -> None:
        """Removes what has no name yet."""
        for temporary, _ in self._waiting:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def staged() -> Iterator[Staged]:
    """Files that get their names at the end of the context, all of them; none if it raises."""
    files = Staged()
    try:
        yield files
        files.rename()
    finally:
        files.discard()
