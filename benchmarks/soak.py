"""Builds from a stream of made-up text under a limit of memory, killed at random again and again: is anything lost?

    python benchmarks/soak.py --tokens 2e7 --kills 20

First undisturbed, in a process whose memory and progress are watched; then with SIGKILL at random moments, started again each
time until it ends. Both dictionaries must have the same bytes. ``--tokens 2e9 --kills 200`` takes about a day.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from measure import machine, save
from safetensors import safe_open
from synthetic import WIDTH, make_teacher, texts_of

HERE = Path(__file__).resolve().parent
_SECONDS_BETWEEN_LOOKS = 0.25


def work(options: argparse.Namespace) -> None:
    """The build itself, in a process of its own; tells its progress on standard output."""
    import torch

    from hf_sense import build_dictionary

    torch.set_num_threads(options.threads)

    def counted() -> Any:
        begin, told = time.monotonic(), 0
        for number, text in enumerate(texts_of(options.tokens)):
            yield text
            if number // 4096 > told:
                told = number // 4096
                print(json.dumps({"texts": number + 1, "at": time.monotonic() - begin}), flush=True)
        print(json.dumps({"read": time.time()}), flush=True)

    made = build_dictionary(
        str(options.work / "teacher"), counted(), max_senses=options.senses, max_occurrences=options.occurrences,
        max_memory=options.memory, work_dir=options.work / "unfinished", batch_size=128, disable_tqdm=True,
    )  # fmt: skip
    made.save_pretrained(options.output)


def start(options: argparse.Namespace, output: Path) -> subprocess.Popen[bytes]:
    """Begins a build, or goes on with it."""
    command = [sys.executable, str(HERE / "soak.py"), "--worker", "--work", str(options.work), "--output", str(output)]
    for name in ("tokens", "memory", "senses", "occurrences", "threads"):
        command += [f"--{name}", str(getattr(options, name))]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1"}
    with open(options.work / "said.txt", "w", encoding="utf-8") as said:
        return subprocess.Popen(command, stdout=said, stderr=subprocess.DEVNULL, env=environment)


def watched(options: argparse.Namespace) -> dict[str, Any]:
    """An undisturbed build: seconds, memory of each stage over time in MB, and how fast texts were read and embedded."""
    begin, unfinished = time.monotonic(), options.work / "unfinished"
    process = start(options, options.work / "whole")
    about = psutil.Process(process.pid)
    seen: dict[str, list[tuple[float, float, int]]] = {}
    while process.poll() is None:
        try:
            size = _peak(about) / 1e6
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            break
        stage, done = _stage(unfinished)
        seen.setdefault(stage, []).append((time.monotonic() - begin, size, done))
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    lines = (options.work / "said.txt").read_text(encoding="utf-8").splitlines()
    said = [json.loads(line) for line in lines if line.startswith('{"texts"')]
    if process.wait():
        raise SystemExit("The undisturbed build failed; run it with --worker to see why.")
    seconds = time.monotonic() - begin
    rates = {"reading": _halves([(one["at"], one["texts"]) for one in said])}
    rates["embedding"] = _halves([(at, done) for at, _, done in seen.get("embedding", ())])
    return {
        "seconds": seconds, "memory": {stage: _memory(own) for stage, own in seen.items()},
        "peak": max(size for own in seen.values() for _, size, _ in own), "rates": rates,
    }  # fmt: skip


def _peak(process: psutil.Process) -> int:
    """The most that a process held since the last look, in bytes; where the system does not tell, what it holds now."""
    about = Path(f"/proc/{process.pid}")
    if not about.is_dir():
        return int(process.memory_info().rss)
    most = re.search(r"VmHWM:\s+(\d+) kB", (about / "status").read_text(encoding="ascii"))
    (about / "clear_refs").write_text("5", encoding="ascii")
    return 1024 * int(most[1]) if most else 0


def _stage(folder: Path) -> tuple[str, int]:
    """What a build is at, read off the names in its folder, and the bytes that embedding has written."""
    names = [path for path in folder.glob("*") if path.suffix == ".safetensors"] if folder.is_dir() else []
    kinds = {path.name.partition("-")[0] for path in names}
    if "part" in kinds:
        return "clustering", 0
    if "sample" in kinds:
        sample = next(path for path in names if path.name.startswith("sample-"))
        try:
            sizes = [path.stat().st_size for path in names if path.name.startswith("vectors-")]
            with safe_open(sample, framework="np") as file:
                places = file.get_slice("token_ids").get_shape()[0]
        except OSError:
            return "clustering", 0  # the folder is removed at the end
        # A file has a header beside its vectors and their numbers.
        return "embedding" if sum(sizes) < places * (4 * WIDTH + 8) else "clustering", sum(sizes)
    return ("sampling" if (folder / "corpus.json").is_file() else "reading") if kinds else "loading", 0


def _memory(seen: list[tuple[float, float, int]]) -> dict[str, float]:
    """The peaks of the two halves of a stage's time, in MB."""
    middle = (seen[0][0] + seen[-1][0]) / 2
    first = max(size for at, size, _ in seen if at <= middle)
    second = max((size for at, size, _ in seen if at > middle), default=first)
    return {"first half": first, "second half": second, "ratio": second / first}


def _halves(amounts: list[tuple[float, float]]) -> dict[str, float]:
    """How much a second, of the first and of the second half of an amount that grew with time, and their ratio."""
    steps = [one for number, one in enumerate(amounts) if number == 0 or one[1] > amounts[number - 1][1]]
    if len(steps) < 5:
        return {}
    middle = min(range(1, len(steps) - 1), key=lambda n: abs(2 * steps[n][1] - steps[0][1] - steps[-1][1]))
    first, second = ((b[1] - a[1]) / (b[0] - a[0]) for a, b in ((steps[0], steps[middle]), (steps[middle], steps[-1])))
    return {"first half": first, "second half": second, "ratio": second / first}


def disturbed(options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    """The same build, killed so many times at random moments; what each kill cost."""
    draw, kills, ends, equal, lost = random.Random(options.seed), 0, 0, 0, []
    begin, ended = time.monotonic(), False
    while kills < options.kills or not ended:
        began, process = time.time(), start(options, options.work / "again")
        # Long enough, on average, to get a part of the way.
        share = seconds / max(1, options.kills) + options.least
        try:
            process.wait(timeout=draw.uniform(0.05, 1.9) * share if kills < options.kills else None)
        except subprocess.TimeoutExpired:
            lost.append(_lost(options.work, began))
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills, ended = kills + 1, False
            print(f"[{time.monotonic() - begin:5.0f} s] killed {kills} times", file=sys.stderr, flush=True)
            continue
        if process.returncode:
            raise SystemExit(f"The build failed after {kills} kills.")
        ends, ended = ends + 1, True
        equal += _same(options.work / "whole", options.work / "again")
        shutil.rmtree(options.work / "again")
    return {
        "kills": kills, "ends": ends, "equal": equal == ends, "seconds": time.monotonic() - begin,
        "most lost": max(lost, default=0.0), "median lost": statistics.median(lost) if lost else 0.0,
        "left over": (options.work / "unfinished").exists(),
    }  # fmt: skip


def _lost(work: Path, began: float) -> float:
    """Seconds of new work since the last save, or since a process had read again what was read before it."""
    folder, now = work / "unfinished", time.time()
    saves = [file.stat().st_mtime for file in folder.glob("*") if file.suffix != ".lock"] if folder.is_dir() else []
    lines = (work / "said.txt").read_text(encoding="utf-8").splitlines()
    read = [json.loads(line)["read"] for line in lines if line.startswith('{"read"')]
    if (folder / "corpus.json").is_file() and not read:
        return 0.0  # it was about to compare the texts, or did
    return now - max([began, *saves, *read])


def _same(one: Path, other: Path) -> bool:
    """Whether two dictionaries have the same bytes; the card beside them names its folder."""
    names = sorted(path.name for path in one.glob("sense_*"))
    return all((other / name).is_file() and (one / name).read_bytes() == (other / name).read_bytes() for name in names)


def main() -> None:
    """Runs it and prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=2e7, help="of the stream")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--least", type=float, default=8.0, help="seconds a process lives on average beside its share")
    parser.add_argument("--memory", default="1GB", help="limit of the process")
    parser.add_argument("--senses", type=int, default=4)
    parser.add_argument("--occurrences", type=int, default=200)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="a new folder; a temporary one if not given")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        options.work = options.work or Path(folder)
        options.work.mkdir(parents=True, exist_ok=True)
        make_teacher(options.work / "teacher")
        whole = watched(options)
        print(
            f"{options.tokens:,.0f} tokens, limit {options.memory}, {options.threads} threads: {whole['seconds']:.0f} s"
        )
        print(f"peak memory {whole['peak']:.0f} MB; of each stage's two halves:")
        for stage, own in whole["memory"].items():
            print(f"  {stage}: {own['first half']:.0f} and {own['second half']:.0f} MB, {own['ratio'] - 1:+.1%}")
        for stage, own in whole["rates"].items():
            if own:
                shown = ", ".join(f"{own[half]:.4g}" for half in ("first half", "second half"))
                unit = "texts" if stage == "reading" else "bytes of embeddings"
                print(f"{unit} a second while {stage}, of its two halves: {shown}, {own['ratio'] - 1:+.1%}")
        found = disturbed(options, whole["seconds"])
        print(f"killed {found['kills']} times, ended {found['ends']} times, {found['seconds']:.0f} s in all:")
        print("the same bytes" if found["equal"] else "OTHER BYTES")
        print(
            f"work lost at most {found['most lost']:.0f} s, in the median {found['median lost']:.0f} s; beside it a build"
        )
        print("reads its texts again when it goes on, and compares them")
        save(options.output, {"machine": machine(), "tokens": options.tokens, "undisturbed": whole, "killed": found})
    if not found["equal"] or found["left over"]:
        raise SystemExit("Something was lost, or left over.")


if __name__ == "__main__":
    main()
