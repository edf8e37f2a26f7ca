"""A build's state in pieces: whole, checksummed, found again by whoever comes."""

from __future__ import annotations

import errno

import pytest
import torch

from hf_sense.segments import Segments, read_checked, remove, write_checked


def pieces(folder):
    return {tuple(piece.numbers.tolist()): piece.open()["a"].tolist() for piece in Segments(folder, "x").pieces}


@pytest.fixture
def kept(tmp_path):
    """Two pieces in a folder."""
    segments = Segments(tmp_path, "x")
    segments.add([1, 2], {"a": torch.tensor([1.0, 2.0])})
    segments.add([7], {"a": torch.tensor([3.0])})
    return segments


def test_pieces_are_found_again(kept, tmp_path):
    """Another process does not see what is done."""
    assert pieces(tmp_path) == {(1, 2): [1.0, 2.0], (7,): [3.0]}
    assert Segments(tmp_path, "x").done() == {1, 2, 7}
    assert Segments(tmp_path, "y").done() == set()
    Segments(tmp_path, "x").add([9], {"a": torch.zeros(1)})
    kept.refresh()
    assert kept.done() == {1, 2, 7, 9}


def test_pieces_in_memory():
    """Without a folder nothing is written, and all is there."""
    segments = Segments(None, "x")
    segments.add([3], {"a": torch.ones(2)})
    segments.refresh()
    assert segments.done() == {3}
    assert segments.pieces[0].open()["a"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("damage", ["cut", "flip", "header", "empty", "pickle"])
def test_a_damaged_piece_is_made_again_and_the_others_stay(kept, tmp_path, caplog, damage):
    """A torn write, or a bad disk, becomes a sense; or takes everything with it."""
    path = tmp_path / kept.pieces[0].name
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:-3]
    elif damage == "flip":
        content[-1] ^= 1
    elif damage == "header":
        content[:8] = b"\xff" * 8
    elif damage == "empty":
        content = b""
    else:
        content = b"\x80\x04cos\nsystem\n."
    path.write_bytes(bytes(content))
    assert Segments(tmp_path, "x").done() == {7}
    assert not path.exists()
    assert "made again" in caplog.text


def test_a_flipped_number_is_found(kept, tmp_path):
    """A piece whose numbers changed passes for other work."""
    path = tmp_path / kept.pieces[0].name
    content = bytearray(path.read_bytes())
    at = content.index((1).to_bytes(8, "little"), 8)
    content[at] = 5
    path.write_bytes(bytes(content))
    assert read_checked(path, keep=True) is None
    assert path.exists()


def test_a_full_disk_leaves_what_was_there(kept, tmp_path, monkeypatch):
    """The write that fails takes the last state along, leaves half a file, or says nothing of what to do."""

    def full(tensors, path, metadata=None):
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hf_sense.segments.save_file", full)
    with pytest.raises(OSError, match=r"could not take .* bytes more .*same command again"):
        kept.add([8], {"a": torch.zeros(3)})
    assert pieces(tmp_path) == {(1, 2): [1.0, 2.0], (7,): [3.0]}
    assert len(list(tmp_path.iterdir())) == 2


def test_remove_takes_cut_off_writes_too(kept, tmp_path):
    """Temporary files of a killed process keep the folder from being removed."""
    (tmp_path / ".x-1.safetensors.abc.tmp").write_bytes(b"half")
    (tmp_path / "thesis.txt").write_text("x")
    remove(tmp_path, "x-*.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_piece_is_written_under_its_name_last(tmp_path, monkeypatch):
    """A reader sees a file that is not whole."""
    seen = []
    original = write_checked.__globals__["save_file"]

    def looking(tensors, path, metadata=None):
        seen.append([file.name for file in tmp_path.glob("x-*")])
        original(tensors, path, metadata=metadata)

    monkeypatch.setattr("hf_sense.segments.save_file", looking)
    Segments(tmp_path, "x").add([1], {"a": torch.zeros(1)})
    assert seen == [[]]
    assert len(list(tmp_path.glob("x-*"))) == 1
