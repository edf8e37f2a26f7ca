"""The benchmarks of growth, kills and faults run to their end on little, and say that nothing was lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(script, *arguments):
    environment = {**os.environ, "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_growth_and_two_processes(tmp_path):
    """The table of growth cannot be made any more, or two processes build something else."""
    said = run(
        "scale.py", "--sizes", 4e3, "--bound", 4e3, "--rounds", 1, "--memory", "3GB", "--output", tmp_path / "f.json"
    )
    assert "the same bytes" in said
    figures = json.loads((tmp_path / "f.json").read_text())
    assert figures["sizes"][0]["senses"] > 0


def test_soak(tmp_path):
    """A killed build loses something, or the soak cannot be run."""
    said = run(
        "soak.py", "--tokens", 3e4, "--kills", 2, "--least", 2, "--memory", "3GB", "--output", tmp_path / "f.json"
    )
    assert "killed 2 times" in said
    assert "the same bytes" in said


def test_faults(tmp_path):
    """The table of faults cannot be made, or a build ends otherwise after one."""
    given = ["--times", 1, "--tokens", 3e4, "--tasks", "build", "--output", tmp_path / "f.json"]
    run("faults.py", *given, "--faults", "SIGKILL and a flipped bit", "a disk that is full")
    rows = json.loads((tmp_path / "f.json").read_text())["rows"]
    assert len(rows) == 2
    for row in rows:
        assert row["struck"] >= 1
        assert row["ended"] == row["equal"] == 1


def test_what_a_cluster_would_do():
    """The arithmetic cannot be done, or the merge of samples is wrong at size."""
    said = run("cluster.py", "--tokens", 1e6, "--vocabulary", 2000, "--most", 20, "--ranks", 1, 8)
    assert "| in all, hours |" in said


def test_one_pass(tmp_path, tiny_teacher_folder, texts):
    """The table of one pass cannot be made."""
    for split in ("train", "test"):
        rows = [{"text": text, "label": "water" if "river" in text or "rain" in text else "dry"} for text in texts]
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    given = ["--data", tmp_path, "--teacher", tiny_teacher_folder, "--start", 20, "--shots", 4]
    assert "| one pass, shuffled |" in run("one_pass.py", *given)
