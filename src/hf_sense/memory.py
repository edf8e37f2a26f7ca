"""What a process takes, and what a build may take of it: sizes in words, bytes in use, shares of a limit."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
from dataclasses import dataclass

import psutil

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_LEAST = 96 * 10**6
# Of what a limit leaves at a time: vectors that are clustered at once, occurrences that wait to be sorted, the finished senses.
_VECTORS, _WAITING, _SENSES = 0.5, 0.2, 0.3
# And embeddings on their way to a file, which are there twice: as they came, and in order.
_PIECES = 0.05
# What an occurrence takes while it waits and is sorted, and what clustering takes of a vector beside its numbers.
_BYTES_A_WAITING, _BYTES_A_CLUSTERED = 200, 160


def bytes_of(size: int | str, name: str = "max_memory") -> int:
    """A size in bytes: a number of them, "800MB", "4GB" or "1.5GiB".

    Raises:
        ValueError: if it is none of these.

    Example:
        >>> bytes_of("1.5GB")
        1500000000
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]i?b)?", str(size).strip().lower(), flags=re.ASCII)
    if match is None or isinstance(size, bool) or not float(match[1]):
        raise ValueError(f'{name} should be a size such as "4GB" or "800MB", but is {size!r}.')
    return round(float(match[1]) * _UNITS.get(match[2] or "", 1))


def bytes_in_use() -> int:
    """What this process holds in memory now."""
    return int(psutil.Process().memory_info().rss)


def shown_bytes(size: float) -> str:
    """A number of bytes in words.

    Example:
        >>> shown_bytes(1_540_000_000), shown_bytes(2_300)
        ('1.5 GB', '2.3 kB')
    """
    if size < 1000:
        return f"{size:.0f} bytes"
    unit = next((name for name in ("kB", "MB", "GB") if size < 1000 * _UNITS[name.lower()]), "TB")
    return f"{size / _UNITS[unit.lower()]:.1f} {unit}"


def release() -> None:
    """Gives the system back what was freed: allocators keep it, and it counts as the process's."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError, TypeError):  # only the C library of Linux has the call
        ctypes.CDLL(None).malloc_trim(0)


@dataclass(frozen=True)
class MemoryLimit:
    """How a build stays under a limit: what each of its stages may hold. Without a limit it holds all.

    What is left is looked at when a stage begins, since what the ones before it made is held by then.

    Attributes:
        total: bytes that the process may take; ``None`` for no limit.
    """

    total: int | None = None

    @classmethod
    def of(cls, max_memory: int | str | None) -> MemoryLimit:
        """The limit, beside that which the process, with its teacher, holds already.

        Raises:
            ValueError: if it leaves too little to work with.
        """
        if max_memory is None:
            return cls()
        used = bytes_in_use()
        if bytes_of(max_memory) - used < _LEAST:
            raise ValueError(
                f"max_memory is {max_memory}, and this process holds {shown_bytes(used)} already, with its teacher. Give at "
                f"least {shown_bytes(used + _LEAST)}."
            )
        return cls(bytes_of(max_memory))

    def vectors(self, dim: int) -> int | None:
        """Contextual embeddings, ``dim`` float32 numbers each, that are clustered at once; ``None`` for all."""
        left = self._left()
        return None if left is None else max(1, int(_VECTORS * left) // (4 * dim + _BYTES_A_CLUSTERED))

    def waiting(self) -> int | None:
        """Occurrences that are sorted at once; ``None`` for the default."""
        left = self._left()
        return None if left is None else int(_WAITING * left) // _BYTES_A_WAITING

    def pieces(self) -> int | None:
        """Bytes of contextual embeddings that are held until they are written; ``None`` for the default."""
        left = self._left()
        return None if left is None else int(_PIECES * left)

    def senses(self) -> int | None:
        """Bytes of finished senses that are held in one piece; ``None`` for all."""
        left = self._left()
        return None if left is None else int(_SENSES * left)

    def _left(self) -> int | None:
        if self.total is None:
            return None
        release()
        return max(_LEAST, self.total - bytes_in_use())
