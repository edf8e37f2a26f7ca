"""Python processes that begin with PyTorch imported: forked from a server that did it once, which spares each test seconds.

A process has its own environment, folder and output, and imports transformers, huggingface_hub and hf_sense itself: these read
the environment when they are imported.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO

# Heavy, and none of them reads a variable that a test sets.
PRELOADED = ["torch._dynamo", "torch.distributed.tensor", "torch.distributed.checkpoint", "torch.optim", "scipy.optimize",
             "sklearn.linear_model", "pandas", "pyarrow", "safetensors.torch"]  # fmt: skip
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def _run(what: Sequence[str], environment: dict[str, str], folder: str, output: Connection, errors: str) -> None:
    """In the process: what ``python`` does with these arguments."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    os.dup2(output.fileno(), 1)
    output.close()
    with open(errors, "ab") as file:
        os.dup2(file.fileno(), 2)
    os.write(1, b"\n")  # begun
    sys.stdout, sys.stderr = (
        os.fdopen(1, "w", buffering=1, closefd=False),
        os.fdopen(2, "w", buffering=1, closefd=False),
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.path.insert(0, "")
    try:
        if what[0] == "-m":
            sys.argv = list(what[1:])
            runpy.run_module(what[1], run_name="__main__", alter_sys=True)
        elif what[0] == "-c":
            sys.argv = ["-c", *what[2:]]
            exec(compile(what[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = list(what)
            runpy.run_path(what[0], run_name="__main__")
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()


class PythonProcess:
    """What ``subprocess.Popen([sys.executable, *what], env=..., cwd=...)`` with pipes gives, as far as tests use it.

    Args:
        what: a script, ``-c`` and code, or ``-m`` and a module; then arguments.
        environment: all its variables.
        folder: where it runs.
    """

    def __init__(self, what: Sequence[str], environment: Mapping[str, str], folder: str | Path = ".") -> None:
        reader, writer = _context.Pipe(duplex=False)
        with tempfile.NamedTemporaryFile() as errors:
            given = ([str(one) for one in what], dict(environment), str(Path(folder).resolve()), writer, errors.name)
            self._process = _context.Process(target=_run, args=given)
            self._process.start()
            writer.close()
            os.read(reader.fileno(), 1)  # it has opened the files by their names
            self._errors = open(errors.name, "rb")  # noqa: SIM115
        self.stdout: IO[str] = open(os.dup(reader.fileno()), encoding="utf-8")  # noqa: SIM115
        reader.close()
        assert self._process.pid is not None
        self.pid: int = self._process.pid

    @property
    def returncode(self) -> int | None:
        """Its exit code; that of a signal is negative; ``None`` while it runs."""
        return self._process.exitcode

    def said(self) -> str:
        """What it wrote to its errors so far."""
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", errors="replace")

    def send_signal(self, sign: signal.Signals) -> None:
        """Sends it a signal if it still runs."""
        if self.returncode is None:
            os.kill(self.pid, sign)

    def kill(self) -> None:
        """Ends it at once."""
        self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Waits for its end; its output that was not read yet, and its errors.

        Raises:
            subprocess.TimeoutExpired: if it runs on.
        """
        read: list[str] = []
        reader = threading.Thread(target=lambda: read.append(self.stdout.read() if not self.stdout.closed else ""))
        reader.start()
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired("python", timeout or 0, stderr=self.said().encode())
        reader.join(timeout)
        self.stdout.close()
        return "".join(read), self.said()


def run_python(
    what: Sequence[str], environment: Mapping[str, str], folder: str | Path = ".", timeout: float = 300
) -> subprocess.CompletedProcess[str]:
    """``subprocess.run`` for such a process."""
    process = PythonProcess(what, environment, folder)
    try:
        output, errors = process.communicate(timeout)
    finally:
        process.kill()
    return subprocess.CompletedProcess(list(what), process.returncode or 0, output, errors)
