"""The benchmarks of tokens and of search run to their end on tiny texts, in this process: starting another costs more."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("sklearn")
BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


@pytest.fixture
def run(monkeypatch, capsys, tiny_teacher_folder):
    """Runs a benchmark and gives what it prints."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    threads = torch.get_num_threads()

    def call(script: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [script, "--teacher", str(tiny_teacher_folder), *map(str, arguments)])
        runpy.run_path(str(BENCHMARKS / script), run_name="__main__")
        return capsys.readouterr().out

    yield call
    torch.set_num_threads(threads)


def words_of(texts, folder):
    """Two words whose senses the next word tells."""
    for word in ("bank", "river"):
        rows = []
        for text in texts:
            tokens = text.split()
            rows += [
                {"word": word, "position": at, "tokens": tokens, "sense": f"{word}_{tokens[at + 1]}"}
                for at, token in enumerate(tokens[:-1])
                if token == word and tokens[at + 1] in ("holds", "opens", "pays")
            ]
        (folder / word).mkdir()
        for split in ("train", "test"):
            lines = "\n".join(map(json.dumps, rows))
            (folder / word / f"{split}.jsonl").write_text(lines + "\n", encoding="utf-8")


def test_token_classification(run, texts, tmp_path):
    """The figures of the page cannot be taken again, or a head is fitted on the wrong token."""
    words_of(texts, tmp_path)
    printed = run(
        "token_classification.py", "--data", tmp_path, "--steps", 2, "--senses", 3, "--output", tmp_path / "out.json"
    )
    scores = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["scores"]
    assert set(scores["teacher, continuous"]) == {"bank", "river"}
    # What is tested was trained on, and the teacher's state at the word knows the next word.
    assert min(scores["teacher, continuous"].values()) > 0.9
    assert max(scores["most frequent sense"].values()) < 0.9
    assert "2 layers of senses, hard senses" in scores
    assert "2 layers of squared error, continuous" in scores
    assert len([line for line in printed.splitlines() if line.startswith("| ")]) == len(scores) + 2


def test_retrieval(run, texts, tmp_path):
    """The figures of the page cannot be taken again, or a model is judged by another one's vectors."""
    pytest.importorskip("sentence_transformers")
    rows = [{"text": text, "label": "river" if "river" in text else "dry"} for text in texts]
    for split in ("train", "test"):
        lines = "\n".join(map(json.dumps, rows))
        (tmp_path / f"{split}.jsonl").write_text(lines + "\n", encoding="utf-8")
    options = ["--steps", 2, "--pairs", 200, "--queries", 3, "--draws", 2, "--output", tmp_path / "out.json"]
    printed = run("retrieval.py", "--data", tmp_path, *options)
    scores = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["scores"]
    for name, figures in scores.items():
        assert set(figures) == {"Spearman", "AP", "nDCG@10", "MAP@100"}, name
        assert all(len(draws) == 2 for draws in figures.values()), name
    assert scores["teacher, continuous"] != scores["teacher, hard senses"]
    assert min(scores["teacher, continuous"]["AP"]) > 40
    for name in ("table of means", "2 layers, soft senses, frequency pooling"):
        assert name in scores
    assert "6 queries among 54 texts" in printed


def test_word_senses(run, texts, tmp_path):
    """The figures of the page cannot be taken again, or a word's neighbours are other words than those beside it."""
    words_of(texts, tmp_path)
    options = ["--seeds", 2, "--restarts", 1, "--reach", 1, "--output", tmp_path / "out.json"]
    printed = run("word_senses.py", "--data", tmp_path, *options)
    scores = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    for word in scores.values():
        # The sense is the next word, which the neighbours hold as it is.
        name = "spherical_kmeans, cosine, word and neighbours, k = 20"
        assert min(score[0] for score in word[name]) > 80
        assert len(word[name]) == 2
        assert word["nearest labelled neighbour, word and neighbours"] == [[100]]
    assert "spherical_kmeans from Ward's start, cosine, word and neighbours, k = gold number" in printed
