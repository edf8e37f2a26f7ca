"""Notices a rank that died or was stopped, so that the others do not wait for it for ever; one process needs no watch.

Each rank tells a store every few seconds that it lives. It restarts nothing: what is done is on disk, and the same command goes
on from there.
"""

from __future__ import annotations

import _thread
import contextlib
import datetime
import logging
import os
import socket
import threading
import time
from types import TracebackType

import torch.distributed as dist

from hf_sense.ranks import Ranks

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_BEATS = 3.0
_SECONDS_OF_SILENCE = 40.0
# What the main thread gets to stop by itself, once another rank is gone.
_GRACE = 8.0
EXIT_CODE = 75  # EX_TEMPFAIL: try again


class Watch:
    """A context: within it a rank that fails, dies or hangs makes the others stop, with its name, within a minute.

    Args:
        ranks: who is watched.

    Raises:
        RuntimeError: from the context, if another rank is gone.
    """

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.fault: str | None = None
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Watch:
        if self.ranks.count == 1:
            return self
        self._names = self.ranks.gather(f"rank {self.ranks.rank} on {socket.gethostname()} (process {os.getpid()})")
        host = os.environ.get("MASTER_ADDR", "127.0.0.1")
        wait = datetime.timedelta(seconds=20)
        store = None
        if self.ranks.main:
            store = dist.TCPStore(host, 0, is_master=True, wait_for_workers=False, timeout=wait)
        port = self.ranks.share(store.port if store is not None else None, 0)
        self._store = store or dist.TCPStore(host, port, is_master=False, timeout=wait)
        self._store.set(f"beat{self.ranks.rank}", "0")
        self.ranks.wait()
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="hf-sense-watch", daemon=True)
        self._thread.start()
        if not self.ranks.main:
            threading.Thread(target=self._guard, name="hf-sense-guard", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._thread is None:
            return
        if error is None:
            # Rank 0 holds the store: it stays until all have said that they are done.
            self._set("over", "")
            with contextlib.suppress(RuntimeError):
                self.ranks.wait()
        elif self.fault is None:
            self.fault = self._another()
            if self.fault is None:
                self._set("failed", f"{type(error).__name__}: {error}"[:500])
                if self.ranks.main:
                    time.sleep(2 * _SECONDS_BETWEEN_BEATS)  # the others read it in the store that this process holds
        self._over.set()
        self._thread.join(timeout=1)
        if error is not None and self.fault is not None:
            raise RuntimeError(self.fault) from error

    def _another(self) -> str | None:
        """If the error of this rank is one of talking to another, which died."""
        deadline = time.monotonic() + _SECONDS_BETWEEN_BEATS
        while time.monotonic() < deadline:
            for rank in range(self.ranks.count):
                if rank != self.ranks.rank and self._has(f"failed{rank}"):
                    return self._said(rank)
            time.sleep(0.2)
        return None

    def _set(self, what: str, value: str) -> None:
        with contextlib.suppress(RuntimeError):  # the store went with rank 0
            self._store.set(f"{what}{self.ranks.rank}", value)

    def _has(self, key: str) -> bool:
        try:
            return bool(self._store.check([key]))
        except RuntimeError:
            return False

    def _said(self, rank: int) -> str:
        what = self._store.get(f"failed{rank}").decode(errors="replace")
        return (
            f"{self._names[rank]} stopped: {what}. Nothing that was done is lost: give the same command again to go on."
        )

    def _run(self) -> None:
        beat = 0
        last = {rank: ("", time.monotonic()) for rank in range(self.ranks.count) if rank != self.ranks.rank}
        while not self._over.wait(_SECONDS_BETWEEN_BEATS):
            beat += 1
            self._heard = time.monotonic()
            try:
                self._store.set(f"beat{self.ranks.rank}", str(beat))
                for rank, (seen, since) in last.items():
                    if self._store.check([f"failed{rank}"]):
                        return self._stop(self._said(rank))
                    now = self._store.get(f"beat{rank}").decode()
                    if now != seen or self._store.check([f"over{rank}"]):
                        last[rank] = (now, time.monotonic())
                    elif time.monotonic() - since > _SECONDS_OF_SILENCE:
                        return self._stop(self._silent(rank))
            except RuntimeError:
                return None if self._over.wait(_SECONDS_BETWEEN_BEATS) else self._stop(self._silent(0))
        return None

    def _guard(self) -> None:
        """Where the process that holds the store hangs, whoever asks it hangs too."""
        while not self._over.wait(_SECONDS_BETWEEN_BEATS):
            if time.monotonic() - self._heard > _SECONDS_OF_SILENCE:
                return self._stop(self._silent(0))
        return None

    def _silent(self, rank: int) -> str:
        return (
            f"{self._names[rank]} is gone: it was killed, or does not answer. Nothing that was done is lost: give the same "
            "command again to go on, with as many processes as you like."
        )

    def _stop(self, fault: str) -> None:
        """Interrupts the main thread; where that waits for the network, ends the process."""
        self.fault = fault
        _thread.interrupt_main()
        if not self._over.wait(_GRACE):
            logger.error("%s", fault)
            os._exit(EXIT_CODE)
