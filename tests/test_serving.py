"""The benchmark of serving runs to its end on tiny data, and what it measures is of the right kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_sense import SenseModelForSequenceClassification

pytest.importorskip("sklearn")
BENCHMARK = Path(__file__).parent.parent / "benchmarks/serving.py"


def test_serving_runs_to_its_end(tmp_path, tiny_teacher_folder, texts):
    """The benchmark has rotted, a way has lost its columns, or one that should run says that it does not."""
    rows = [{"text": text, "label": "water" if "river" in text or "rain" in text else "dry"} for text in texts]
    for split in ("train", "test"):
        lines = "\n".join(json.dumps(row) for row in rows)
        (tmp_path / f"{split}.jsonl").write_text(lines + "\n", encoding="utf-8")
    command = [sys.executable, str(BENCHMARK), "--data", str(tmp_path), "--teacher", str(tiny_teacher_folder)]
    command += [
        "--steps",
        "2",
        "--rounds",
        "2",
        "--layers",
        "1",
        "--threads",
        "1",
        "--no-compile",
        "--memory-runs",
        "0",
    ]
    command += ["--output", str(tmp_path / "out.json"), "--plot", str(tmp_path / "out.svg")]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = {row["name"]: row for row in json.loads((tmp_path / "out.json").read_text())["threads"]["1"]}
    assert len([line for line in done.stdout.splitlines() if line.startswith("| ")]) == len(found) + 2
    for name in ("teacher", "teacher with senses", "1 layer, senses", "TF-IDF, logistic regression"):
        assert found[name]["failure"] is None
        assert 0 < found[name]["few_shot"] <= 1
    for row in found.values():
        if row["failure"] is None:
            assert 0.5 < row["accuracy"] <= 1
            assert row["batch_ratio"]["low"] <= row["batch_ratio"]["median"] <= row["batch_ratio"]["high"]
            assert row["megabytes"] > 0
    for name in ("1 layer, ONNX Runtime", "model2vec"):
        assert found[name]["failure"] is None or "pip install" in found[name]["failure"]
    assert found["teacher"]["batch_ratio"]["median"] == 1
    assert (tmp_path / "out.svg").read_text(encoding="utf-8").count("<svg") == 1


def test_memory_is_that_of_the_model(tmp_path, teacher, dictionary, texts):
    """The process that is measured does not run, or counts what its libraries take."""
    SenseModelForSequenceClassification.from_teacher(teacher, dictionary, num_labels=2).save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    asked = tmp_path / "asked.json"
    asked.write_text(json.dumps(texts), encoding="utf-8")
    command = [sys.executable, str(BENCHMARK.with_name("served.py")), "model", str(tmp_path), str(asked), "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert 0 < found["added"] < 100 < found["in_all"]
