"""``accelerate launch`` of the command on two processes over gloo, against one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig

from hf_sense.cli import main


@pytest.fixture(autouse=True)
def as_many_threads_after_as_before():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def folder(tmp_path, tiny_teacher_folder, texts):
    """A folder with a teacher without dropout, whose random numbers no two numbers of processes share, and texts."""
    config = AutoConfig.from_pretrained(tiny_teacher_folder)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    (tmp_path / "teacher").mkdir()
    for file in tiny_teacher_folder.iterdir():
        (tmp_path / "teacher" / file.name).write_bytes(file.read_bytes())
    config.save_pretrained(tmp_path / "teacher")
    rows = [{"text": text, "label": "water" if "river" in text or "rain" in text else "dry"} for text in texts[:48]]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return tmp_path


def launch(folder, arguments):
    """The command on two processes; returns what they printed."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        [*command, "-m", "hf_sense", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_two_processes_build_and_distil_what_one_does(folder, monkeypatch, capsys):
    """Each process does all the work and writes over the other's, or the number of processes changes what is learned."""
    monkeypatch.chdir(folder)
    torch.set_num_threads(1)  # as the processes have it: threads change the last bits

    def build(name):
        given = ["build", "--teacher", "teacher", "--dataset", "train.jsonl", "--output", str(folder / name / "senses")]
        return [*given, "--max-senses", "4", "--batch-size", "4"]

    def distill(name, batch_size):
        given = [
            "distill",
            "--teacher",
            "teacher",
            "--dictionary",
            str(folder / "one" / "senses"),
            "--dataset",
            "train.jsonl",
        ]
        given += ["--output", str(folder / name / "student"), "--num-hidden-layers", "1", "--label-column", "label"]
        given += [
            "--max-steps",
            "3",
            "--save-steps",
            "3",
            "--logging-steps",
            "1",
            "--learning-rate",
            "1e-2",
            "--optim",
            "sgd",
        ]
        given += ["--target-cache-dir", str(folder / name / "targets"), "--report-to", "none"]
        return [*given, "--per-device-train-batch-size", str(batch_size)]

    for name in ("one", "two"):
        (folder / name).mkdir()
    assert main(build("one")) == 0
    assert main(distill("one", 16)) == 0
    capsys.readouterr()
    printed = launch(folder, build("two"))
    assert printed.count("Saved in") == 1
    one, two = (sorted((folder / name / "senses").iterdir()) for name in ("one", "two"))
    assert [file.name for file in two] == [file.name for file in one]
    assert [file.read_bytes() for file in two] == [file.read_bytes() for file in one]
    assert not (folder / "two" / "senses.work").exists()

    printed = launch(folder, distill("two", 8))
    assert printed.count("Saved in") == 1
    students = [folder / name / "student" for name in ("one", "two")]
    histories = [
        json.loads((student / "checkpoint-3" / "trainer_state.json").read_text())["log_history"] for student in students
    ]
    for key in ("loss", "agreement", "grad_norm"):
        values = [[logs[key] for logs in history if key in logs] for history in histories]
        assert values[1] == pytest.approx(values[0], abs=1e-4), key
    weights = [load_file(student / "model.safetensors") for student in students]
    assert set(weights[1]) == set(weights[0])
    for name, expected in weights[0].items():
        # The head's regression stops near its optimum, not at it.
        tolerance = 1e-2 if name.startswith("classifier.") else 1e-5
        torch.testing.assert_close(weights[1][name], expected, atol=tolerance, rtol=tolerance)


def test_two_processes_adapt_a_decoder(base, texts, tmp_path, monkeypatch):
    """Adapting breaks on two processes, each writes over the other's adapters, or what they wrote cannot be loaded."""
    from hf_sense import load_teacher

    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    given = ["adapt", "--base", str(base), "--dataset", "texts.txt", "--output", "adapted", "--mntp-steps", "2"]
    given += [
        "--simcse-steps",
        "2",
        "--mntp-batch-size",
        "4",
        "--per-device-train-batch-size",
        "4",
        "--max-length",
        "32",
    ]
    printed = launch(tmp_path, [*given, "--mask-token", "and", "--held-out", "8"])
    assert printed.count("Saved in adapted") == 1
    report = json.loads((tmp_path / "adapted" / "adaptation.json").read_text(encoding="utf-8"))
    assert report["run"]["settings"]["processes"] == 2
    assert report["simcse"]["steps"] == 2
    adapters = [str(tmp_path / "adapted" / stage) for stage in ("mntp", "simcse")]
    assert load_teacher(str(base), adapters=adapters).attention == "bidirectional"
