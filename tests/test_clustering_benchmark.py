"""The clustering benchmark runs to its end on tiny texts, in this process: starting another costs more than it."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
BENCHMARK = Path(__file__).parent.parent / "benchmarks" / "clustering.py"


def test_clustering_benchmark(tmp_path, tiny_teacher_folder, texts, monkeypatch, capsys):
    """The figures of the results cannot be taken again, or compare unlike things."""
    for name in ("banking77", "tweeteval_emotion", "sst2", "cola"):
        (tmp_path / name).mkdir()
        lines = [json.dumps({"text": f"{text} {name[0]}"}) for text in texts]
        (tmp_path / name / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    output, plot = tmp_path / "figures.json", tmp_path / "growth.svg"

    monkeypatch.syspath_prepend(BENCHMARK.parent)

    def run(teacher: str) -> str:
        arguments = (
            f"--data {tmp_path} --work {tmp_path}/work --teacher {teacher} --texts 15 --tokens 30 --senses 3 --rounds 1 "
            f"--sizes 200 900 --counts 2 4 --output {output} --plot {plot}"
        )
        monkeypatch.setattr(sys, "argv", [str(BENCHMARK), *arguments.split()])
        threads = torch.get_num_threads()
        try:
            runpy.run_path(str(BENCHMARK), run_name="__main__")
        finally:
            torch.set_num_threads(threads)
        return capsys.readouterr().out

    run(str(tiny_teacher_folder))
    printed = run("no/such/teacher")  # the vectors are in --work now
    figures = json.loads(output.read_text(encoding="utf-8"))
    inertia = figures["compared"]["inertia"]
    assert inertia["ours, 1"] == inertia["ours, 2"]
    assert inertia["ours, 1"] == pytest.approx(inertia["theirs, 1"], rel=0.1)
    assert [one["occurrences"] >= size for one, size in zip(figures["growth"], (200, 900))] == [True, True]
    assert set(figures["steps"]) == {"tokenizing", "sampling", "teacher", "clustering"}
    assert sum(figures["profile"].values()) == pytest.approx(1)
    assert "ours on two, times scikit-learn on one" in printed
    assert plot.read_text(encoding="utf-8").count("<svg") == 1
