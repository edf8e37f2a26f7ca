"""Each example and the demo run to their end on small data, as a user would call them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run(tmp_path, tiny_teacher_folder, texts):
    """Runs an example on the tiny teacher and the tiny texts."""
    rows = [{"text": text, "label": "water" if "river" in text or "rain" in text else "dry"} for text in texts]
    data = tmp_path / "data"
    data.mkdir()
    for split in ("train", "test"):
        lines = "\n".join(json.dumps(row) for row in rows)
        (data / f"{split}.jsonl").write_text(lines + "\n", encoding="utf-8")
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")

    def call(name, *arguments):
        command = [sys.executable, str(EXAMPLES / name), "--teacher", str(tiny_teacher_folder), *map(str, arguments)]
        environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    call.folder = tmp_path
    return call


def test_build_dictionary(run):
    """The first example of the README's kind breaks."""
    printed = run("build_dictionary.py", "--texts", run.folder / "texts.txt", "--token", "bank")
    assert "SenseDictionary(" in printed
    assert "[bank]" in printed
    assert (run.folder / "runs/dictionary/sense_dictionary.safetensors").is_file()


def test_distil_and_serve(run):
    """A distilled student does not come back through the pipeline."""
    printed = run("distil_and_serve.py", "--dataset", run.folder / "data/train.jsonl", "--steps", 5, "--layers", 1)
    assert "agreement: 0." in printed
    assert "'label': 'dry'" in printed or "'label': 'water'" in printed


def test_drop_in_replacement(run):
    """A fine-tuned classifier's own head cannot be put on replaced vectors."""
    printed = run("drop_in_replacement.py", "--dataset", run.folder / "data/train.jsonl", "--steps", 5)
    assert "selection hard: accuracy" in printed


def test_adapt_decoder(run, base):
    """The way from a decoder to an encoder breaks between its two stages, or what it wrote cannot be read."""
    data = run.folder / "data/train.jsonl"
    options = ["--mntp-steps", 2, "--simcse-steps", 2, "--batch-size", 8, "--mask-token", "and", "--max-length", 32]
    printed = run("adapt_decoder.py", "--base", base, "--dataset", data, "--labelled", data, data, *options)
    assert "few-shot accuracy" in printed
    assert "after simcse" in printed
    assert (run.folder / "runs/adapted/simcse/llm2vec_config.json").is_file()


def test_demo_on_a_folder_of_the_users_own(run):
    """The demo runs on its own teacher and texts alone."""
    printed = run("demo.py", "--dataset", run.folder / "data", "--steps", 5, "--max-length", 32)
    for row in ("table of means", "teacher, replaced", "untrained", "squared error", "2 layers, senses"):
        assert row in printed
    for name in ("dictionary/sense_dictionary.json", "student/config.json", "report.md", "senses_per_token.png"):
        assert (run.folder / "runs/demo" / name).is_file()


def test_round_trip(run):
    """What comes back from the Hub is not what went there, by one of the ways to load it."""
    pytest.importorskip("sentence_transformers")
    printed = run("round_trip.py", "--dataset", run.folder / "data/train.jsonl", "--steps", 3, "--layers", 1)
    assert printed.count("the same") == 8
    assert "DIFFERENT" not in printed
