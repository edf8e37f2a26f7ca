"""Runs the benchmarks of speed one after the other, and writes ``benchmarks/results.json`` and ``docs/performance.md``.

    python benchmarks/performance.py --data FOLDER

The folder holds ``banking77``, ``tweeteval_emotion``, ``sst2`` and ``cola``, each with ``train.jsonl`` and ``test.jsonl``. The
page's words stand in ``benchmarks/performance_page.py``; every figure on it comes from the runs. A run that fails ends it; what
was measured before is kept in the results, and ``--only`` with the names that are left completes them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from performance_page import write_page

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Job:
    """One run: the script, its arguments as a user would give them, and the threads that it is held to, if any."""

    name: str
    script: str
    arguments: str = ""
    threads: int | None = None
    plot: str | None = None
    dictionary: str | None = None  # a name: the jobs that share it build it once

    @property
    def command(self) -> str:
        """What the page shows beside the figures."""
        held = f"OMP_NUM_THREADS={self.threads} " if self.threads else ""
        return f"{held}python benchmarks/{self.script} {self.arguments}".strip()


JOBS = (
    Job("kernels", "sense_kernels.py", "--rounds 7", dictionary="r8"),
    Job("targets, 1 thread", "targets.py", "--count 128 --rounds 9", threads=1, dictionary="r8"),
    Job("targets, 2 threads", "targets.py", "--count 128 --rounds 9", threads=2, dictionary="r8"),
    Job("folding, 1 thread", "folding.py", "--texts 600 --rounds 7", threads=1, dictionary="folding"),
    Job("folding, 2 threads", "folding.py", "--texts 600 --rounds 7", threads=2, dictionary="folding"),
    Job("serving", "serving.py", "--data FOLDER/banking77 --steps 200", plot="serving.svg", dictionary="banking77"),
    Job(
        "small dictionaries, banking77", "small_dictionaries.py", "--data FOLDER/banking77", threads=1, dictionary="banking77",
    ),
    Job(
        "small dictionaries, emotion", "small_dictionaries.py", "--data FOLDER/tweeteval_emotion --probe", threads=1
    ),
    Job("clustering", "clustering.py", "--data FOLDER --tokens 2000", plot="clustering.svg"),
    Job("profiles", "profiles.py"),
)  # fmt: skip


def run(job: Job, data: Path, images: Path, folder: Path) -> dict[str, Any]:
    """Runs a job to its end and returns its figures, with what it printed and how long it took."""
    output = folder / "figures.json"
    arguments = [part.replace("FOLDER", str(data)) for part in job.arguments.split()]
    command = [sys.executable, str(HERE / job.script), *arguments, "--output", str(output)]
    if job.dictionary:
        command += ["--dictionary", str(folder / job.dictionary)]
    if job.plot:
        command += ["--plot", str(images / job.plot)]
    environment = {**os.environ, "TQDM_DISABLE": "1"}
    if job.threads:
        environment["OMP_NUM_THREADS"] = str(job.threads)
    begin = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    seconds = time.perf_counter() - begin
    if done.returncode:
        raise SystemExit(
            f"{job.command} ended with {done.returncode}: its errors stand above. The page was not written."
        )
    print(f"[{seconds:5.0f} s] {job.command}\n{done.stdout}", flush=True)
    lines = [line for line in done.stdout.splitlines() if not line.startswith(("USDT", "{'processor'"))]
    figures = json.loads(output.read_text(encoding="utf-8"))
    output.unlink()
    figures.pop("arguments", None)  # folders of one machine; the command says the rest
    return {"command": job.command, "seconds": seconds, "printed": "\n".join(lines).strip(), "figures": figures}


def main() -> None:
    """Runs all jobs, then writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled texts")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="run these again, and keep the others' last figures")
    parser.add_argument("--results", type=Path, default=HERE / "results.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "performance.md")
    options = parser.parse_args()
    names = [job.name for job in JOBS]
    if unknown := set(options.only or ()) - set(names):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are: {', '.join(names)}.")
    results: dict[str, Any] = {}
    if options.only:
        results = json.loads(options.results.read_text(encoding="utf-8"))
    images = options.page.parent / "images"
    images.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for job in JOBS:
            if options.only is None or job.name in options.only:
                results[job.name] = run(job, options.data, images, Path(folder))
                # What is measured is kept, whatever comes after; the page waits for all.
                temporary = options.results.with_suffix(".tmp")
                temporary.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
                temporary.replace(options.results)
    write_page(results, options.page)
    print(f"{sum(one['seconds'] for one in results.values()) / 60:.1f} minutes in all; wrote {options.page}.")


if __name__ == "__main__":
    main()
