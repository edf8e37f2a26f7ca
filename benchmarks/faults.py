"""Stops builds, targets and distillations in every way a machine knows, starts them again, and compares what comes out.

    python benchmarks/faults.py

Each fault is injected at a random moment, again and again, into the ``hf-sense`` command on made-up text; the same command is
then given until it ends. *Equal*: the files have the bytes of an undisturbed run. *Lost*: the longest time between the last save
and a fault. It needs no network and no data.
"""

from __future__ import annotations

import argparse
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from measure import machine, save
from synthetic import make_teacher, texts_of

HERE = Path(__file__).resolve().parent
Strike = Callable[["Task", list[subprocess.Popen[bytes]], random.Random], None]


@dataclass
class Task:
    """A command that is to come to the same end, whatever happens to it.

    Attributes:
        name: as the table calls it.
        command: after ``hf-sense``, without the output.
        results: the files of the output that are compared.
        work: where unfinished work lies, within the folder of the run.
        seconds: an undisturbed run takes.
        start: seconds of it until the work begins.
    """

    name: str
    command: list[str]
    results: tuple[str, ...]
    work: tuple[str, ...]
    folder: Path
    seconds: float = 0.0
    start: float = 4.0
    lost: list[float] = field(default_factory=list)

    def output(self, run: str) -> Path:
        return self.folder / f"{self.name}-{run}"

    def begin(self, run: str, processes: int = 1, limit: int | None = None) -> list[subprocess.Popen[bytes]]:
        """Starts it; ``limit`` is the most bytes that a file may have, as on a disk that is full."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = []
        for rank in range(processes):
            command = [sys.executable, "-m", "hf_sense", *self.command, "--output", str(self.output(run))]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "CI": "1"}
            environment |= {"ACCELERATE_USE_CPU": "true"}
            if processes > 1:
                environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
                environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            with open(self.folder / f"said-{rank}.txt", "ab") as said:
                started.append(
                    subprocess.Popen(
                        command, env=environment, stdout=said, stderr=said, preexec_fn=lambda: _prepare(limit)
                    )
                )
        return started

    def equal(self, run: str) -> bool:
        """Whether a run's files are those of the undisturbed one."""
        pairs = [(self.output("whole") / name, self.output(run) / name) for name in self.results]
        return all(b.is_file() and a.read_bytes() == b.read_bytes() for a, b in pairs)

    def ended(self, run: str) -> bool:
        """Whether a run had saved all, so that a fault that came then struck nothing; the card is the last file."""
        return all((self.output(run) / name).is_file() for name in (*self.results, "README.md"))

    def files(self, run: str) -> list[Path]:
        """What unfinished work there is."""
        return [
            file
            for part in self.work
            for file in self.folder.glob(part.format(output=self.output(run).name))
            if file.is_file()
        ]

    def struck(self, run: str) -> None:
        """Notes how long ago the last save was."""
        newest = max((file.stat().st_mtime for file in self.files(run)), default=None)
        if newest is not None:
            self.lost.append(max(0.0, time.time() - newest))


def _prepare(limit: int | None) -> None:
    """Of a process that begins: where a shell runs this in the background it would ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def signalled(sign: signal.Signals) -> Strike:
    """Sends a signal to the first process."""

    def strike(task: Task, processes: list[subprocess.Popen[bytes]], draw: random.Random) -> None:
        processes[0].send_signal(sign)

    return strike


def out_of_memory(task: Task, processes: list[subprocess.Popen[bytes]], draw: random.Random) -> None:
    """Takes from a process the right to any further memory, so that it dies at its next allocation."""
    pid = processes[0].pid
    size = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.prlimit(pid, resource.RLIMIT_AS, (size // 2, size // 2))
    time.sleep(2.0)
    processes[0].kill()  # if it lives on with what it has


def one_rank(task: Task, processes: list[subprocess.Popen[bytes]], draw: random.Random) -> None:
    """Kills one process of several; the others must stop by themselves within a minute."""
    victim = draw.choice(processes)
    victim.kill()
    for process in processes:
        if process is not victim:
            process.wait(timeout=60)


def damaged(task: Task, processes: list[subprocess.Popen[bytes]], draw: random.Random) -> None:
    """Kills, and then turns over one bit in one of the files of the unfinished work."""
    processes[0].kill()
    processes[0].wait()
    files = [file for file in task.files("struck") if file.suffix == ".safetensors" and file.stat().st_size]
    if files:
        file = draw.choice(files)
        content = bytearray(file.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        file.write_bytes(content)


FAULTS: dict[str, tuple[Strike | None, int]] = {
    "SIGINT": (signalled(signal.SIGINT), 1),
    "SIGTERM": (signalled(signal.SIGTERM), 1),
    "SIGKILL": (signalled(signal.SIGKILL), 1),
    "no more memory": (out_of_memory, 1),
    "a disk that is full": (None, 1),
    "SIGKILL and a flipped bit": (damaged, 1),
    "SIGKILL of one of two processes": (one_rank, 2),
}


def _meet(processes: list[subprocess.Popen[bytes]]) -> None:
    """Waits until each has found the first: before that a launcher alone can tell that one is missing."""
    for process in processes[1:]:
        while process.poll() is None and not any(
            one.status == psutil.CONN_ESTABLISHED for one in psutil.Process(process.pid).net_connections("tcp")
        ):
            time.sleep(0.05)


def inject(task: Task, fault: str, times: int, draw: random.Random) -> dict[str, Any]:
    """Runs a task under a fault until it has struck so often and the task has ended."""
    strike, processes = FAULTS[fault]
    struck, ended, equal = 0, 0, 0
    task.lost.clear()
    while struck < times:
        shutil.rmtree(task.output("struck"), ignore_errors=True)
        for file in task.files("struck"):
            file.unlink()
        while True:
            limit = draw.choice([2**14, 2**16, 2**18]) if strike is None and struck < times else None
            started = task.begin("struck", processes, limit)
            alive = (
                draw.uniform(0.7 * task.start, task.start + 0.8 * (task.seconds - task.start))
                if struck < times
                else None
            )
            if strike is None:
                alive = None
            if processes > 1:
                _meet(started)
                alive = alive and draw.uniform(0.5, 0.8 * (task.seconds - task.start))
            try:
                for process in started:
                    process.wait(timeout=alive)
                over = all(process.returncode == 0 for process in started)
                if over:
                    break
                if limit is None:
                    raise SystemExit(f"{task.name} failed by itself after {fault}: see {task.folder}/said-0.txt.")
                struck += 1
            except subprocess.TimeoutExpired:
                task.struck("struck")
                assert strike is not None
                strike(task, started, draw)
                for process in started:
                    process.wait(timeout=60)
                if task.ended("struck"):
                    break
                struck += 1
        ended += 1
        equal += task.equal("struck")
    return {
        "task": task.name, "fault": fault, "struck": struck, "ended": ended, "equal": equal, "lost": max(task.lost, default=0.0)
    }  # fmt: skip


def main() -> None:
    """Runs it and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=6, help="strikes of each fault on each task")
    parser.add_argument("--tokens", type=float, default=6e5, help="of the made-up text")
    parser.add_argument("--tasks", nargs="+", default=["build", "distill"], choices=["build", "distill"])
    parser.add_argument("--faults", nargs="+", default=list(FAULTS), choices=list(FAULTS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a new folder; a temporary one if not given")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as own:
        folder = options.work or Path(own)
        folder.mkdir(parents=True, exist_ok=True)
        teacher = make_teacher(folder / "teacher", width=128, layers=2)
        texts = folder / "texts.txt"
        texts.write_text("\n".join(texts_of(options.tokens)) + "\n", encoding="utf-8")
        few = folder / "few.txt"
        few.write_text("\n".join(texts_of(options.tokens / 6, seed=1)) + "\n", encoding="utf-8")
        build = [
            "build",
            "--teacher",
            str(teacher),
            "--dataset",
            str(texts),
            "--max-occurrences",
            "150",
            "--max-senses",
            "5",
        ]
        tasks = [
            Task(
                "build", build, ("sense_dictionary.safetensors", "sense_dictionary.json"), ("{output}.work/*",), folder
            ),
        ]
        distill = [
            "distill", "--teacher", str(teacher), "--dictionary", str(folder / "build-whole"), "--dataset", str(few),
            "--num-hidden-layers", "1", "--max-steps", "150", "--save-seconds", "3", "--report-to", "none",
            "--target-cache-dir", str(folder / "targets"), "--per-device-train-batch-size", "64", "--save-total-limit", "2",
        ]  # fmt: skip
        tasks.append(Task("distill", distill, ("model.safetensors",), ("{output}/**/*", "targets/*"), folder))
        rows = []
        print("| task | fault | times injected | runs that ended | equal | longest since the last save, s |")
        print("| --- | --- | --- | --- | --- | --- |", flush=True)
        for task in tasks[: 2 if "distill" in options.tasks else 1]:  # distillation takes the dictionary of the build
            begin = time.monotonic()
            if any(process.wait() for process in task.begin("whole")):
                raise SystemExit(f"The undisturbed {task.name} failed: see {folder}/said-0.txt.")
            task.seconds = time.monotonic() - begin
            print(f"{task.name}: {task.seconds:.0f} s undisturbed", file=sys.stderr, flush=True)
            for fault in options.faults if task.name in options.tasks else ():
                if task.name == "distill" and fault in ("SIGKILL and a flipped bit", "SIGKILL of one of two processes"):
                    continue  # a checkpoint is the Trainer's, and so is what it does with two processes
                row = inject(task, fault, options.times, random.Random(f"{options.seed} {task.name} {fault}"))
                rows.append(row)
                print(
                    f"| {task.name} | {fault} | {row['struck']} | {row['ended']} | {row['equal']} | {row['lost']:.0f} |",
                    flush=True,
                )
        save(options.output, {"machine": machine(), "rows": rows})
    if any(row["equal"] != row["ended"] for row in rows):
        raise SystemExit("A run ended otherwise than the undisturbed one.")


if __name__ == "__main__":
    main()
