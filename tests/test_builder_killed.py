"""A build that is killed, not interrupted: what stood in its folder at that moment must be enough to go on from."""

import shutil

import pytest

from hf_sense import build_dictionary, load_teacher
from hf_sense.teacher import Teacher


@pytest.mark.parametrize(("seconds", "kept"), [(0.0, 6), (1e9, 0)])
def test_killed_and_resumed_gives_the_same_bytes(tiny_teacher_folder, texts, tmp_path, monkeypatch, seconds, kept):
    """SIGKILL runs no ``finally``: with what was saved on time, or with none, the result must have the same bytes."""
    teacher = load_teacher(str(tiny_teacher_folder))
    monkeypatch.setattr("hf_sense.embedding._SECONDS_BETWEEN_SAVES", seconds)
    original, calls = Teacher.hidden_states, []

    def copying(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 7:
            shutil.copytree(tmp_path / "work", tmp_path / "killed")
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Teacher, "hidden_states", copying)
    options = {"max_senses": 4, "batch_size": 4}
    build_dictionary(teacher, texts, work_dir=tmp_path / "work", **options).save_pretrained(tmp_path / "whole")
    assert len(calls) == 15
    calls.clear()
    monkeypatch.setattr(Teacher, "hidden_states", lambda *a, **k: calls.append(1) or original(*a, **k))
    build_dictionary(teacher, texts, work_dir=tmp_path / "killed", **options).save_pretrained(tmp_path / "resumed")
    assert len(calls) == 15 - kept
    name = "sense_dictionary.safetensors"
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "resumed" / name).read_bytes()


def test_work_of_another_teacher_or_corpus_is_refused(tiny_teacher_folder, texts, tmp_path, monkeypatch):
    """Vectors of other texts, or of a teacher trained further, would be mixed into one dictionary."""
    teacher = load_teacher(str(tiny_teacher_folder))
    original = Teacher.hidden_states

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(Teacher, "hidden_states", stop)
    with pytest.raises(KeyboardInterrupt):
        build_dictionary(teacher, texts, work_dir=tmp_path / "work")
    monkeypatch.setattr(Teacher, "hidden_states", original)
    with pytest.raises(ValueError, match=r"another build.*'corpus'"):
        build_dictionary(teacher, texts[1:], work_dir=tmp_path / "work")
    other = load_teacher(str(tiny_teacher_folder))
    other.model.encoder.layer[0].output.dense.bias.data[0] += 1e-3
    with pytest.raises(ValueError, match=r"another build.*'teacher_sha256'"):
        build_dictionary(other, texts, work_dir=tmp_path / "work")


def test_a_folder_with_other_files_is_refused_and_kept(tiny_teacher_folder, texts, tmp_path):
    """A work_dir is removed at the end; one that holds somebody's files must not be."""
    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ValueError, match="new or empty folder"):
        build_dictionary(str(tiny_teacher_folder), texts, work_dir=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
