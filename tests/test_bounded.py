"""A build within a limit of memory: the same dictionary, and what cannot be is refused before the teacher runs."""

from __future__ import annotations

import shutil
import subprocess

import pytest
import torch

from hf_sense import build_dictionary
from hf_sense.memory import MemoryLimit, bytes_in_use, bytes_of
from hf_sense.teacher import Teacher


@pytest.mark.parametrize(("given", "found"), [("4GB", 4e9), ("1.5 gib", 1.5 * 2**30), (1000, 1000), ("250MB", 25e7)])
def test_sizes(given, found):
    """A size is taken for another."""
    assert bytes_of(given) == found


@pytest.mark.parametrize("given", ["much", "4XB", 0, -1, True, "0GB", ""])
def test_no_sizes(given):
    """A slip becomes a limit."""
    with pytest.raises(ValueError, match='should be a size such as "4GB"'):
        bytes_of(given)


@pytest.mark.parametrize("options", [{}, {"budget": 150}, {"max_senses": 1, "codes": 4}, {"dtype": torch.int8}])
def test_a_limit_changes_no_byte(teacher, texts, tmp_path, monkeypatch, options):
    """Windows, chunks or row blocks leave seams."""
    monkeypatch.setattr("hf_sense.parts._PART_WORK", 300)
    monkeypatch.setattr("hf_sense.embedding._BYTES_A_PIECE", 2000)
    given = {"max_occurrences": 9, **options}
    whole = build_dictionary(teacher, texts, **given)
    for stage, most in (("vectors", 2000 // (4 * teacher.dim)), ("waiting", 50), ("pieces", 900), ("senses", 500)):
        monkeypatch.setattr(MemoryLimit, stage, lambda *given, most=most: most)
    bounded = build_dictionary(teacher, texts, max_memory="4GB", work_dir=tmp_path / "work", **given)
    assert bounded.fingerprint == whole.fingerprint
    assert torch.equal(bounded.counts, whole.counts)
    for name, one in (("a", whole), ("b", bounded)):
        one.save_pretrained(tmp_path / name)
    files = [(tmp_path / name / "sense_dictionary.json").read_text() for name in "ab"]
    assert files[0] == files[1]
    assert not (tmp_path / "work").exists()


def test_without_a_work_dir_a_temporary_folder_serves(teacher, texts, tmp_path, monkeypatch):
    """The limit is not kept, or the folder stays."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    bounded = build_dictionary(teacher, texts, max_senses=3, max_memory=bytes_in_use() + 10**9)
    assert bounded.fingerprint == build_dictionary(teacher, texts, max_senses=3).fingerprint
    assert list(tmp_path.iterdir()) == []


def test_a_stage_gets_what_is_left_when_it_begins():
    """A limit is shared out once, and what the first stages hold makes the last ones pass it."""
    limit = MemoryLimit.of(bytes_in_use() + 500 * 10**6)
    before = [limit.vectors(64), limit.waiting(), limit.pieces(), limit.senses()]
    held = torch.ones(75_000_000)  # 300 MB
    after = [limit.vectors(64), limit.waiting(), limit.pieces(), limit.senses()]
    assert all(0.2 < low / high < 0.7 for low, high in zip(after, before))
    assert float(held[0]) == 1
    assert limit.vectors(10**9) == 1
    assert [MemoryLimit().vectors(64), MemoryLimit().waiting(), MemoryLimit().pieces(), MemoryLimit().senses()] == [
        None
    ] * 4


def test_too_small_a_limit_says_what_would_do(teacher, texts, monkeypatch):
    """The build dies hours later."""
    monkeypatch.setattr(Teacher, "hidden_states", lambda *a, **k: pytest.fail("the teacher ran"))
    with pytest.raises(ValueError, match=r"max_memory is 10MB, and this process holds .* already.*Give at least"):
        build_dictionary(teacher, texts, max_memory="10MB")


def test_a_disk_that_is_too_small_is_refused(teacher, texts, tmp_path, monkeypatch):
    """The disk is full after an hour."""
    monkeypatch.setattr(Teacher, "hidden_states", lambda *a, **k: pytest.fail("the teacher ran"))
    monkeypatch.setattr("hf_sense.builder.free_bytes", lambda folder: 1000)
    with pytest.raises(ValueError, match=r"needs room for .* its disk has 1.0 kB free"):
        build_dictionary(teacher, texts, work_dir=tmp_path / "work")


def test_two_builds_in_one_folder(teacher, texts, tmp_path, monkeypatch):
    """Two processes write into each other's work; or a build that was stopped keeps its folder locked."""
    original = Teacher.hidden_states
    inner = []

    def meanwhile(self, *args, **kwargs):
        if not inner:
            inner.append(1)
            with pytest.raises(ValueError, match="Another process is at work"):
                build_dictionary(teacher, texts, work_dir=tmp_path / "work")
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Teacher, "hidden_states", meanwhile)
    with pytest.raises(KeyboardInterrupt):
        build_dictionary(teacher, texts, work_dir=tmp_path / "work")
    assert build_dictionary(teacher, texts, work_dir=tmp_path / "work").num_senses


def test_damaged_work_is_done_again(teacher, texts, tmp_path, monkeypatch, caplog):
    """A bad sector in the work folder ends up in the senses, or throws all of it away."""
    import hf_sense.assembly as assembly

    whole = build_dictionary(teacher, texts, max_senses=3, batch_size=4)
    monkeypatch.setattr("hf_sense.embedding._BYTES_A_PIECE", 1000)
    original = assembly.cluster

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(assembly, "cluster", stop)
    with pytest.raises(KeyboardInterrupt):
        build_dictionary(teacher, texts, max_senses=3, batch_size=4, work_dir=tmp_path / "work")
    monkeypatch.setattr(assembly, "cluster", original)
    pieces = sorted((tmp_path / "work").glob("vectors-*"))
    assert len(pieces) > 5
    content = bytearray(pieces[2].read_bytes())
    content[-2] ^= 64
    pieces[2].write_bytes(bytes(content))
    calls, states = [], Teacher.hidden_states
    monkeypatch.setattr(Teacher, "hidden_states", lambda *a, **k: calls.append(1) or states(*a, **k))
    found = build_dictionary(teacher, texts, max_senses=3, batch_size=4, work_dir=tmp_path / "work")
    assert found.fingerprint == whole.fingerprint
    assert 1 <= len(calls) < 6
    assert "damaged" in caplog.text


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of its own, of so many kilobytes; a function that makes it larger."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size, *more):
        command = ["mount", "-t", "tmpfs", "-o", ",".join((f"size={size}k", *more)), "tmpfs", str(folder)]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    if shutil.which("mount") is None or mount(96).returncode:
        pytest.skip("this machine does not let a test mount a disk")
    yield folder, lambda size: mount(size, "remount")
    subprocess.run(["umount", str(folder)], check=False)


def test_a_disk_that_fills_up_in_the_middle(teacher, texts, small_disk, monkeypatch):
    """A full disk leaves half a piece, or the work before it is lost."""
    folder, grow = small_disk
    monkeypatch.setattr("hf_sense.embedding._BYTES_A_PIECE", 2000)
    monkeypatch.setattr("hf_sense.builder.free_bytes", lambda folder: 10**9)  # as if others filled it meanwhile
    whole = build_dictionary(teacher, texts, max_senses=3, batch_size=4)
    calls, original = [], Teacher.hidden_states
    monkeypatch.setattr(Teacher, "hidden_states", lambda *a, **k: calls.append(1) or original(*a, **k))
    with pytest.raises(OSError, match=r"could not take .*make room, and give the same command again"):
        build_dictionary(teacher, texts, max_senses=3, batch_size=4, work_dir=folder / "work")
    before = len(calls)
    assert 3 < before < 15
    assert list((folder / "work").glob("vectors-*"))
    assert grow(4000).returncode == 0
    found = build_dictionary(teacher, texts, max_senses=3, batch_size=4, work_dir=folder / "work")
    assert found.fingerprint == whole.fingerprint
    assert len(calls) <= 15 + 2  # the batch that failed, and what waited with it
