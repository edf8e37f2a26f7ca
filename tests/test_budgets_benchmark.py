"""The benchmark of budgets runs to its end on tiny texts, and compares like with like."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "budgets.py"


def test_budgets_benchmark(tmp_path, tiny_teacher_folder, texts, monkeypatch):
    """The figures of the docs cannot be taken again, or a budget is drawn beside a dictionary of another size."""
    for split in ("train", "test"):
        rows = [{"text": text, "label": "water" if "river" in text else "dry"} for text in texts]
        (tmp_path / "banking77").mkdir(exist_ok=True)
        (tmp_path / "banking77" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    monkeypatch.syspath_prepend(BENCHMARK.parent)
    output, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
    arguments = (
        f"--data {tmp_path} --sets banking77 --teacher {tiny_teacher_folder} --samples 2 --draws 1 --size 6kB --fixed 1 3 "
        f"--rules n/10,100 --counts 1 30 "
        f"--output {output} --plot {plot}"
    )
    monkeypatch.setattr(sys, "argv", [str(BENCHMARK), *arguments.split()])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(BENCHMARK), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    rows = json.loads(output.read_text())["figures"]["banking77"]
    fixed = {row["label"]: row for row in rows if row["kind"] in ("fixed", "rule")}
    shared = [row for row in rows if row["label"].startswith("budget of as many as ")]
    assert [len(fixed), len(shared)] == [3, 2]
    assert {row["without senses %"] == 0 for row in rows if "min_count=" in row["label"]} == {True, False}
    for row in shared:
        beside = fixed[row["label"].removeprefix("budget of as many as ")]
        assert row["senses"] <= beside["senses"]
        assert row["error, train"] <= 1.02 * beside["error, train"] + 1e-6
    assert "<svg" in plot.read_text(encoding="utf-8")
