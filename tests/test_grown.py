"""Samples that are kept: a dictionary that grew is the one that all texts would have given at once."""

from __future__ import annotations

import json

import pytest
import torch

from hf_sense import build_dictionary
from hf_sense.teacher import Teacher

OPTIONS = {"max_senses": 3, "max_occurrences": 6}


def same(one, other):
    """The same senses within rounding: batches differ, and with them the last bits."""
    assert torch.equal(one.offsets, other.offsets)
    assert torch.equal(one.counts, other.counts)
    torch.testing.assert_close(one.senses, other.senses, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("in_files", [False, True])
def test_grown_equals_built_at_once(teacher, texts, tmp_path, monkeypatch, in_files):
    """Places are lost, counted twice, or belong to other vectors; or the teacher reads the old texts again."""
    work = {"work_dir": tmp_path / "work"} if in_files else {}
    added = texts[25:] + texts[:5]  # some that it knows
    whole = build_dictionary(teacher, texts[:25] + added, **OPTIONS)
    first = build_dictionary(teacher, texts[:25], keep_samples=tmp_path / "samples", **work, **OPTIONS)
    assert first.fingerprint == build_dictionary(teacher, texts[:25], **OPTIONS).fingerprint
    read = []
    original = Teacher.hidden_states

    def noting(self, input_ids, attention_mask, **kwargs):
        read.append(len(input_ids))
        return original(self, input_ids, attention_mask, **kwargs)

    monkeypatch.setattr(Teacher, "hidden_states", noting)
    grown = build_dictionary(teacher, added, update=tmp_path / "samples", **work, **OPTIONS)
    assert sum(read) <= len(texts) - 25
    same(grown, whole)
    corpus = grown.metadata["corpus"]
    assert corpus["texts"] == len(texts) + 5
    assert corpus["tokens"] == whole.metadata["corpus"]["tokens"]


def test_grown_twice_in_the_same_folder(teacher, texts, tmp_path):
    """A third part does not see the second, or what was kept is lost when it is replaced."""
    folder = tmp_path / "samples"
    whole = build_dictionary(teacher, texts, **OPTIONS)
    build_dictionary(teacher, texts[:20], keep_samples=folder, **OPTIONS)
    build_dictionary(teacher, texts[20:40], update=folder, keep_samples=folder, **OPTIONS)
    same(build_dictionary(teacher, texts[40:], update=folder, **OPTIONS), whole)
    assert [path.name for path in tmp_path.iterdir()] == ["samples"]


def test_rare_tokens_come_of_age(teacher, texts, tmp_path):
    """A token that was too rare in each part, and is not in both together, has no vectors."""
    options = {**OPTIONS, "min_count": 4}
    whole = build_dictionary(teacher, texts, **options)
    build_dictionary(teacher, texts[:30], keep_samples=tmp_path / "samples", **options)
    same(build_dictionary(teacher, texts[30:], update=tmp_path / "samples", **options), whole)


def test_other_budgets_and_codes_on_the_same_samples(teacher, texts, tmp_path):
    """What is kept serves one kind of dictionary alone."""
    build_dictionary(teacher, texts[:30], keep_samples=tmp_path / "samples", max_occurrences=6)
    for options in ({"budget": 150}, {"max_senses": 1, "codes": 4}, {"method": "spherical_kmeans", "metric": "cosine"}):
        whole = build_dictionary(teacher, texts, max_occurrences=6, **options)
        grown = build_dictionary(teacher, texts[30:], update=tmp_path / "samples", max_occurrences=6, **options)
        if "codes" in options:
            torch.testing.assert_close(grown.codes.vectors, whole.codes.vectors, atol=1e-3, rtol=1e-3)
        same(grown, whole)


def test_other_settings_and_damage_are_refused_before_the_teacher_runs(teacher, texts, tmp_path, monkeypatch):
    """Two samples that do not fit are put together; or a damaged one is."""
    folder = tmp_path / "samples"
    build_dictionary(teacher, texts[:20], keep_samples=folder, **OPTIONS)
    monkeypatch.setattr(Teacher, "hidden_states", lambda *a, **k: pytest.fail("the teacher ran"))
    for change in ({"seed": 1}, {"max_occurrences": 7}, {"special_tokens": False}, {"max_length": 20}):
        with pytest.raises(ValueError, match=rf"of another kind.*'{next(iter(change))}'"):
            build_dictionary(teacher, texts[20:], update=folder, **{**OPTIONS, **change})
    with pytest.raises(FileNotFoundError, match="holds no samples"):
        build_dictionary(teacher, texts[20:], update=tmp_path / "nowhere", **OPTIONS)
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="keep_samples should be a new or empty folder"):
        build_dictionary(teacher, texts[20:], keep_samples=tmp_path, **OPTIONS)
    about = json.loads((folder / "sense_samples.json").read_text())
    (folder / "sense_samples.json").write_text(json.dumps({**about, "format_version": 9}))
    with pytest.raises(ValueError, match="format version 9"):
        build_dictionary(teacher, texts[20:], update=folder, **OPTIONS)
    (folder / "sense_samples.json").write_text(json.dumps(about))
    content = bytearray((folder / "sample.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "sample.safetensors").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"sample\.safetensors is missing or damaged"):
        build_dictionary(teacher, texts[20:], update=folder, **OPTIONS)
    assert (folder / "sample.safetensors").exists()
