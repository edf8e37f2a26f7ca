"""The comparison runs to its end on tiny data, goes on where it was stopped, and its page says what its results say."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")
ROOT = Path(__file__).parent.parent
BENCHMARKS = ROOT / "benchmarks"
ROWS = (
    "teacher",
    "senses in the teacher",
    "TF-IDF",
    "context table, 64",
    "selector, 64",
    "1 layer, senses",
    "1 layer, logits",
)


@pytest.fixture
def data(tmp_path, texts):
    """Five data sets of few texts, no two with the same."""
    for name in ("banking77", "tweeteval_emotion", "sst2", "cola", "r8"):
        (tmp_path / name).mkdir()
        rows = [{"text": f"{text} {name[0]}", "label": "water" if "r" in text.split()[1] else "dry"} for text in texts]
        for split in ("train", "validation" if name == "cola" else "test"):
            (tmp_path / name / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return tmp_path


def run(monkeypatch, script, arguments):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", [str(BENCHMARKS / script), *map(str, arguments)])
    threads = torch.get_num_threads()
    try:
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
    finally:
        torch.set_num_threads(threads)


def test_comparison_runs_to_its_end(data, tiny_teacher_folder, monkeypatch, capsys):
    """The script has rotted, runs again what it has, or compares rows that did not see the same texts."""
    results, page = data / "results.json", data / "docs" / "page.md"
    page.parent.mkdir()
    arguments = [
        "--data",
        data,
        "--teacher",
        tiny_teacher_folder,
        "--work",
        data / "work",
        "--results",
        results,
        "--page",
        page,
    ]
    arguments += ["--steps", 2, "--epochs", 0.5, "--seeds", 1, "--rounds", 1, "--only", *ROWS]
    arguments += ["--datasets", "emotion"]
    run(monkeypatch, "compare.py", arguments)
    first = results.read_text(encoding="utf-8")
    found = json.loads(first)
    for key, job in found["jobs"].items():
        for poolings in job["rows"].values():
            for score in poolings.values():
                assert len(score["draws"]) == (2 if key.startswith("dev") and "logits" in key else 10)
                assert 0 <= min(score["draws"]) <= max(score["draws"]) <= 1
    same = found["compared"]["teacher, 20 senses, hard | teacher"]["draws"]["emotion"]
    assert same["low"] <= same["points"] <= same["high"]
    assert found["served"]["emotion"]["teacher"]["times"]["median"] == 1
    assert (
        found["served"]["emotion"]["context table, 64"]["MB float16"]
        < found["served"]["emotion"]["teacher"]["MB float16"]
    )
    capsys.readouterr()
    run(monkeypatch, "compare.py", [*arguments, "--stages", "dev", "test", "foreign"])
    assert "dev |" not in capsys.readouterr().out
    assert json.loads(results.read_text(encoding="utf-8"))["jobs"] == found["jobs"]


def test_pages_say_what_the_results_say(tmp_path, monkeypatch):
    """A figure on a page was written by hand, or is of another run than the results beside it."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import compare_page
    import defaults_page

    compared, defaults = (
        json.loads((BENCHMARKS / f"{name}.json").read_text(encoding="utf-8")) for name in ("comparison", "defaults")
    )
    compare_page.write_page(compared, tmp_path / "results.md")
    defaults_page.write_page(compared, defaults, tmp_path / "recipes.md")
    for name in ("results.md", "recipes.md"):
        assert (tmp_path / name).read_text(encoding="utf-8") == (ROOT / "docs" / name).read_text(encoding="utf-8")


def test_defaults_run_to_their_end(data, tiny_teacher_folder, monkeypatch):
    """The script has rotted, or a setting that is tried is not the one that is named."""
    results, page = data / "results.json", data / "page.md"
    arguments = ["--data", data, "--teacher", tiny_teacher_folder, "--results", results, "--page", page, "--steps", 2]
    compared = data / "compared.json"
    compared.write_text('{"jobs": {}}', encoding="utf-8")
    arguments += ["--compared", compared]
    arguments += ["--datasets", "emotion", "--only", "metric", "max_senses", "selection", "temperature"]
    run(monkeypatch, "defaults.py", arguments)
    jobs = json.loads(results.read_text(encoding="utf-8"))["jobs"]
    senses = jobs["dev | emotion | max_senses | {} | 0"]["rows"]
    assert senses["1"] != senses["20"]
    assert len([key for key in jobs if "temperature_times" in key]) == 4
    assert "| **20** |" in page.read_text(encoding="utf-8")


def test_interval_of_paired_differences(monkeypatch):
    """A difference that is there is called chance, or chance a difference."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from compared_pairs import interval

    draw = np.random.default_rng(0)
    one = draw.random((3, 10, 400)) < 0.8
    same = interval([(one, one)])
    assert (same["points"], same["low"], same["high"]) == (0, 0, 0)
    worse = one & (draw.random((1, 1, 400)) < 0.9)
    found = interval([(one, worse), (one, one)])
    assert found["points"] == pytest.approx(50 * (one.mean() - worse.mean()))
    assert 0 < found["low"] < found["points"] < found["high"]
    other = draw.random((3, 10, 400)) < 0.8
    chance = interval([(one, other)])
    assert chance["low"] < 0 < chance["high"]
