"""The benchmarks of speed run to their end on small data, and the page says what their results say."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"


@pytest.mark.parametrize(
    ("script", "options"),
    [
        ("sense_kernels.py", ["--rounds", "1", "--width", "48", "--threads", "1"]),
        ("targets.py", ["--rounds", "1", "--count", "16"]),
        ("profiles.py", ["--repeats", "1", "--count", "32"]),
    ],
)
def test_benchmark_runs_to_its_end(script, options, tmp_path, tiny_teacher_folder, texts):
    """The script has rotted, or its figures are not written."""
    given = tmp_path / "texts.txt"
    given.write_text("\n".join(texts), encoding="utf-8")
    command = [sys.executable, str(BENCHMARKS / script), "--teacher", str(tiny_teacher_folder), "--texts", str(given)]
    command += [*options, "--output", str(tmp_path / "out.json")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "threads" in json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["machine"]


def test_page_says_what_the_results_say(tmp_path, monkeypatch):
    """A figure on the page was written by hand, or is of another run than the results beside it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from performance_page import write_page

    results = json.loads((BENCHMARKS / "results.json").read_text(encoding="utf-8"))
    write_page(results, tmp_path / "page.md")
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == (ROOT / "docs" / "performance.md").read_text(
        encoding="utf-8"
    )
