"""What a build takes as the corpus grows, and what a second process brings.

    python benchmarks/scale.py

Made-up text (``benchmarks/synthetic.py``) from 10^5 to 2 x 10^7 tokens, a small teacher, a limit of memory: peak memory of the
process, tokens a second, seconds of each stage. Then a larger teacher, whose passes take most of the time, on one process and
on two, one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from measure import machine, ratios, save, spread
from synthetic import make_teacher, texts_of

HERE = Path(__file__).resolve().parent


def work(options: argparse.Namespace) -> None:
    """One build, in a process of its own; prints what it took."""
    import torch

    from hf_sense import build_dictionary
    from hf_sense.ranks import processes

    torch.set_num_threads(1)
    begin = time.perf_counter()
    given = {"max_memory": options.memory, "work_dir": options.work / "unfinished"} if options.memory else {}
    made = build_dictionary(
        str(options.teacher), texts_of(options.tokens), max_senses=4, max_occurrences=options.occurrences, batch_size=64,
        disable_tqdm=True, **given,
    )  # fmt: skip
    if processes().is_main_process:
        made.save_pretrained(options.output)
        print(json.dumps({"seconds": time.perf_counter() - begin, "senses": made.num_senses}))


def run(
    options: argparse.Namespace, teacher: Path, tokens: float, processes: int = 1, memory: str = ""
) -> dict[str, Any]:
    """A build on so many processes; its seconds without the start, and the peak memory in MB of the largest of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    output = options.work / f"made-{processes}"
    started = []
    for rank in range(processes):
        command = [
            sys.executable,
            str(HERE / "scale.py"),
            "--worker",
            "--teacher",
            str(teacher),
            "--tokens",
            str(tokens),
        ]
        command += ["--work", str(options.work), "--output", str(output), "--occurrences", str(options.occurrences)]
        command += ["--memory", memory]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
        if processes > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, **pipes))
    peak = 0.0
    while any(process.poll() is None for process in started):
        for process in started:
            try:
                peak = max(peak, psutil.Process(process.pid).memory_info().rss / 1e6)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.1)
    ends = [process.communicate() for process in started]
    if any(process.returncode for process in started):
        raise SystemExit("\n".join(errors[-2000:] for _, errors in ends))
    said = next(line for out, _ in ends for line in out.splitlines() if line.startswith("{"))
    found = json.loads(said)
    return {"tokens": tokens, "processes": processes, "peak_mb": peak, **found, "rate": tokens / found["seconds"]}


def main() -> None:
    """Runs it and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1e5, 1e6, 5e6, 2e7], help="tokens")
    parser.add_argument("--memory", default="1GB", help="limit of the process")
    parser.add_argument("--occurrences", type=int, default=200)
    parser.add_argument("--bound", type=float, default=4e5, help="tokens of the larger teacher's corpus")
    parser.add_argument("--rounds", type=int, default=7, help="by turns, of one process and of two")
    parser.add_argument("--tokens", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--teacher", type=Path, help=argparse.SUPPRESS)
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
        small = make_teacher(options.work / "small")
        rows = []
        print(
            f"limit {options.memory}, one thread, a teacher of 1 layer and width 64, {options.occurrences} occurrences a token"
        )
        print("| tokens | seconds | tokens a second | peak memory, MB | senses |\n| --- | --- | --- | --- | --- |")
        for tokens in options.sizes:
            row = run(options, small, tokens, memory=options.memory)
            rows.append(row)
            print(
                f"| {tokens:,.0f} | {row['seconds']:.1f} | {row['rate']:,.0f} | {row['peak_mb']:.0f} | {row['senses']:,} |",
                flush=True,
            )
        seconds: dict[int, list[float]] = {1: [], 2: []}
        large = make_teacher(options.work / "large", width=256, layers=4)
        for _ in range(options.rounds):
            for processes in seconds:
                seconds[processes].append(run(options, large, options.bound, processes)["seconds"])
        same = [(options.work / f"made-{n}" / "sense_dictionary.safetensors").read_bytes() for n in seconds]
        times = ratios(seconds[1], seconds[2])
        found = spread(times)
        print(f"\na teacher of 4 layers and width 256, {options.bound:,.0f} tokens: two processes are")
        print(f"{found['median']:.2f} times as fast as one ({found['low']:.2f} to {found['high']:.2f}),")
        print(f"which takes {statistics.median(seconds[1]):.1f} s; {options.rounds} rounds;")
        print("the same bytes" if same[0] == same[1] else "OTHER BYTES")
        save(options.output, {"machine": machine(), "sizes": rows, "seconds": {str(n): s for n, s in seconds.items()}})
    if same[0] != same[1]:
        raise SystemExit("The number of processes changed the dictionary.")


if __name__ == "__main__":
    main()
