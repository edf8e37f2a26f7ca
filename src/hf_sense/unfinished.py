"""An unfinished build's state: in a folder, from which the next call goes on with any number of ranks, or in memory.

It knows files and ranks, not what is computed.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from hf_sense import __version__
from hf_sense.files import write_text
from hf_sense.ranks import Ranks
from hf_sense.segments import Segments, read_checked, remove, write_checked

_LOCK = "build.lock"
# Of the files in the folder; work of another layout cannot be gone on from.
_LAYOUT = 2


class UnfinishedBuild:
    """Unfinished work: the corpus's token ids, the teacher's vectors, and the parts computed of them.

    Args:
        folder: where it is kept, made if it is missing; ``None`` for memory.
        description: what the build is; that of the work in the folder must be the same.
        ranks: who works at it. Where they do not share the folder, as on several machines, each keeps its own part there.

    Attributes:
        tokens: pieces of the corpus.
        drawn: pieces of the sample, while it is drawn.
        vectors: pieces of the vectors.
        whole: float32 ``(n, dim)``, all vectors of a process that works alone in memory, after ``allocate``.
        shared: whether all ranks see one folder.
        leads: whether this rank writes for all that see its folder.

    Raises:
        ValueError: if the folder holds other files, or the work of another build, with both descriptions; or if another process
            is at work in it.
    """

    def __init__(self, folder: Path | None, description: dict[str, Any], ranks: Ranks) -> None:
        self.ranks, self.folder, self.shared = ranks, folder, False
        self._parts: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
        self._lock: Any = None
        self.whole: torch.Tensor | None = None
        self.leads, self._places = True, (0, 1)
        if folder is not None:
            self._description = json.loads(
                json.dumps({**description, "layout": _LAYOUT, "library_version": __version__})
            )
            self._take_folder(folder)
        self.tokens = Segments(folder, "tokens")
        self.drawn = Segments(folder, "drawn")
        self.vectors = Segments(folder, "vectors")
        if not self.shared:  # each piece is one rank's to send
            self.vectors.pieces = self.vectors.pieces[self._places[0] :: self._places[1]]
        ranks.wait()

    def _take_folder(self, folder: Path) -> None:
        """Ranks that see the same folder have one leader, who takes it for all of them."""
        leader: int | None = None
        while None in (leaders := self.ranks.gather(leader)):
            first = leaders.index(None)
            fault = _fault_of(folder, self._description, self._open) if self.ranks.rank == first else None
            mine = self._name() if self.ranks.rank == first and fault is None else None
            fault, name = self.ranks.share((fault, mine), first)
            if fault is not None:
                raise ValueError(fault)
            if self.ranks.rank == first or (leader is None and self._sees(name)):
                leader = first
        self.leads, self.shared = leader == self.ranks.rank, set(leaders) == {0}
        with_me = [rank for rank, own in enumerate(leaders) if own == leader]
        self._places = with_me.index(self.ranks.rank), len(with_me)

    def _open(self, folder: Path) -> None:
        """Takes the folder for this process, removes writes that were cut off, and notes whose work it holds."""
        self._lock = _locked(folder / _LOCK)
        for path in folder.glob(".*.tmp"):
            path.unlink(missing_ok=True)
        if not (folder / "build.json").is_file():
            write_text(folder / "build.json", json.dumps({"id": uuid.uuid4().hex, **self._description}, indent=2))

    def _name(self) -> str:
        return str(_described(self._folder / "build.json").get("id"))

    def _sees(self, name: str) -> bool:
        path = self._folder / "build.json"
        return path.is_file() and _described(path).get("id") == name

    @property
    def _folder(self) -> Path:
        return self.folder or Path()

    def check_corpus(self, found: dict[str, Any]) -> None:
        """Notes the corpus once it was read; later it must be the same.

        Raises:
            ValueError: if it is not.
        """
        if self.folder is None:
            return
        path = self._folder / "corpus.json"
        if path.is_file() and (before := _described(path)) != found:
            raise self.differs("corpus", before, found)
        self.ranks.wait()
        if self.leads and not path.is_file():
            write_text(path, json.dumps(found))

    def allocate(self, n: int, dim: int) -> None:
        """Makes room for the vectors, where one process holds them all."""
        if self.folder is None and self.ranks.count == 1:
            self.whole = torch.zeros(n, dim)

    def differs(self, name: str, before: Any, now: Any) -> ValueError:
        """The error that says in what the work in the folder is another build's."""
        return ValueError(_another(self._folder, {name: (before, now)}))

    def parts_done(self, kind: str, number: int) -> dict[int, int]:
        """The parts of a kind that are done, of ``number`` in all, and a rank that has each."""
        here = [
            at for at in range(number)
            if (kind, at) in self._parts or (self.folder is not None and self._path(kind, at).is_file() and self._load(kind, at))
        ]  # fmt: skip
        found: dict[int, int] = {}
        for rank, own in enumerate(self.ranks.gather(here)):
            found |= {at: found.get(at, rank) for at in own}
        return found

    def _path(self, kind: str, number: int) -> Path:
        return self._folder / f"{kind}-{number:06d}.safetensors"

    def _load(self, kind: str, number: int) -> bool:
        found = read_checked(self._path(kind, number))
        if found is not None:
            self._parts[kind, number] = found
        return found is not None

    def save_part(self, number: int, tensors: dict[str, torch.Tensor], kind: str = "part") -> None:
        """Keeps what was computed of a part."""
        if self.folder is None:
            self._parts[kind, number] = tensors
        else:
            write_checked(self._path(kind, number), tensors)

    def all_parts(self, kind: str, owners: Sequence[int]) -> list[dict[str, torch.Tensor]]:
        """All parts of a kind, on every rank; ``owners`` says for each which rank has it. Those in files are mapped."""
        self.ranks.wait()
        found = []
        for number, owner in enumerate(owners):
            own = self._parts.pop((kind, number), None)
            if self.folder is not None and (self.shared or self.ranks.count == 1 or owner == self.ranks.rank):
                own = own or read_checked(self._path(kind, number))
                if own is None:
                    raise OSError(
                        f"{self._path(kind, number)} was removed or damaged. Give the same command again to go on."
                    )
            if not self.shared:
                own = self.ranks.share(own if owner == self.ranks.rank else None, owner)
            found.append(own)
        return found  # type: ignore[return-value]

    def close(self) -> None:
        """Leaves the folder to whoever comes next."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def remove(self) -> None:
        """Removes what this build wrote, and the folder if nothing else is in it."""
        self.ranks.wait()
        if self.folder is not None and self.leads:
            kinds = ("tokens", "drawn", "sample", "vectors", "curves", "part")
            remove(self.folder, *(f"{kind}-*.safetensors" for kind in kinds), "corpus.json", "build.json", _LOCK)
            self.close()
            if not any(self.folder.iterdir()):
                self.folder.rmdir()
        self.ranks.wait()


def _fault_of(folder: Path, description: dict[str, Any], take: Any) -> str | None:
    """Takes a folder; what stands against it, if anything does."""
    path = folder / "build.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.is_file():
            before = _described(path)
            changed = {
                key: (before.get(key), description.get(key))
                for key in description
                if before.get(key) != description.get(key)
            }
            if changed:
                return _another(folder, changed)
        elif any(file.name != _LOCK and not file.name.endswith(".tmp") for file in folder.iterdir()):
            return f"work_dir should be a new or empty folder, or that of a stopped build, but {folder} is not."
        take(folder)
    except BlockingIOError:
        return f"Another process is at work in {folder}. Wait for it, or give another work_dir."
    except OSError as error:
        return f"work_dir {folder} cannot be written to: {error.strerror or error}. Give another folder."
    return None


def _another(folder: Path, changed: dict[str, tuple[Any, Any]]) -> str:
    return (
        f"{folder} holds the unfinished work of another build. It differs in (before, now): {changed}. Give another work_dir, or "
        "remove this one."
    )


def _described(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        found = None
    return found if isinstance(found, dict) else {}


def _locked(path: Path) -> int | None:
    """An open file that no other process can lock, until this one closes it or ends; ``None`` where there are no such locks."""
    try:
        import fcntl
    except ImportError:
        return None
    handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise BlockingIOError from None
    return handle
