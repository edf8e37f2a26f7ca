"""Faults of a dictionary in several files, and headers that lie. ``test_dictionary`` has those of a single file."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_sense.dictionary import SenseDictionary
from hf_sense.storage import INDEX_NAME, JSON_NAME, TENSORS_NAME


def make():
    """A dictionary of 23 senses for 12 tokens."""
    random = torch.Generator().manual_seed(0)
    offsets = torch.tensor([0, 3, 0, 1, 5, 2, 0, 0, 4, 1, 3, 3, 1]).cumsum(0)
    return SenseDictionary(torch.randn(23, 8, generator=random), offsets)


@pytest.fixture
def sharded(tmp_path):
    """Its folder, six rows a file."""
    make().save_pretrained(tmp_path / "d", max_shard_size=6 * 8 * 4)
    assert len(list((tmp_path / "d").glob("*-of-00004.safetensors"))) == 4
    return tmp_path / "d"


def refused(folder, kind, words):
    """Opening raises this, and the attempt changes no file."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(kind, match=words):
        SenseDictionary.from_pretrained(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_rows_across_files(sharded):
    """A token whose senses lie in two files gets rows of the wrong one."""
    loaded = SenseDictionary.from_pretrained(sharded)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(1)).repeat(2)
    assert torch.equal(loaded.rows(order), make().senses[order])
    assert loaded.rows(order[:0]).shape == (0, 8)
    assert torch.equal(loaded.senses_of(3).vectors, make().senses[4:9])
    ids = torch.arange(12)
    hidden = torch.randn(12, 8, generator=torch.Generator().manual_seed(2))
    mask = torch.arange(12) % 3 > 0
    found = loaded.lookup(ids, hidden, mask)
    assert (found >= 0).any()
    assert torch.equal(found, make().lookup(ids, hidden, mask))
    assert torch.equal(loaded.replace(ids, hidden, mask), make().replace(ids, hidden, mask))


def test_a_missing_shard_is_named(sharded):
    """A download that stopped leaves a dictionary whose later tokens have no rows."""
    (sharded / "sense_dictionary-00003-of-00004.safetensors").unlink()
    refused(sharded, FileNotFoundError, r"00003-of-00004.safetensors, which is missing")


def test_a_missing_index_is_named(sharded):
    """Shards without their index are not to be guessed together."""
    (sharded / INDEX_NAME).unlink()
    refused(sharded, FileNotFoundError, "neither .* nor .*index")


def test_a_shard_left_out_of_the_index_is_missed(sharded):
    """Offsets that point past the rows that were opened would crash in the first lookup."""
    index = json.loads((sharded / INDEX_NAME).read_text())
    del index["weight_map"]["senses.3"]
    (sharded / INDEX_NAME).write_text(json.dumps(index))
    refused(sharded, ValueError, "hold 18 rows, but .* says 23")


def test_shards_in_each_others_place_are_refused(sharded):
    """Two shards of like size that changed names would give tokens each other's senses."""
    first, second = (sharded / f"sense_dictionary-0000{number}-of-00004.safetensors" for number in (2, 3))
    swapped = first.read_bytes().replace(b"senses.1", b"senses.2")
    second.write_bytes(second.read_bytes().replace(b"senses.2", b"senses.1"))
    first.write_bytes(swapped)
    refused(sharded, ValueError, "bytes of senses are not those that were saved")


def test_the_same_rows_twice_are_refused(sharded):
    """Of two files that claim one block, the later would win in silence."""
    path = sharded / "sense_dictionary-00003-of-00004.safetensors"
    path.write_bytes(path.read_bytes().replace(b"senses.2", b"senses.1"))
    refused(sharded, ValueError, "senses.1 is stored twice")


def test_an_old_single_file_does_not_hide_new_shards(tmp_path):
    """A single file of an earlier save is opened before the index is looked at, so it must go."""
    SenseDictionary(make().senses + 1, make().offsets).save_pretrained(tmp_path)
    make().save_pretrained(tmp_path, max_shard_size=192)
    assert not (tmp_path / TENSORS_NAME).exists()
    assert torch.equal(SenseDictionary.from_pretrained(tmp_path).senses, make().senses)
    make().save_pretrained(tmp_path, max_shard_size=384)
    assert {path.name for path in tmp_path.glob("*-of-*")} == {
        f"sense_dictionary-0000{number}-of-00002.safetensors" for number in (1, 2)
    }


def change_header(path, change):
    """Rewrites the header of a safetensors file; the tensors' bytes stay."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


HEADERS = {
    "overlap": lambda header: header["counts"].update(data_offsets=header["offsets"]["data_offsets"]),
    "backwards": lambda header: header["senses"]["data_offsets"].reverse(),
    "past the end": lambda header: header["senses"].update(data_offsets=[0, 10**9]),
    "shape too large": lambda header: header["senses"].update(shape=[99, 8]),
}


@pytest.mark.parametrize("lie", HEADERS)
def test_headers_that_lie_are_refused(tmp_path, lie):
    """A tensor that reaches past its bytes would be mapped over another's, or past the end of the file."""
    make().save_pretrained(tmp_path)
    change_header(tmp_path / TENSORS_NAME, HEADERS[lie])
    refused(tmp_path, ValueError, "not a sound safetensors file")


def test_a_header_of_another_length_is_refused(tmp_path):
    """A length of 2**60 must not be read into memory."""
    make().save_pretrained(tmp_path)
    path = tmp_path / TENSORS_NAME
    path.write_bytes((2**60).to_bytes(8, "little") + path.read_bytes()[8:])
    refused(tmp_path, ValueError, "not a sound safetensors file")


def test_garbage_senses_open_unread(tmp_path):
    """verify=False on a table larger than memory must not touch its rows; NaN in them would be seen if it did."""
    make().save_pretrained(tmp_path)
    path = tmp_path / TENSORS_NAME
    data = path.read_bytes()
    start = data.index(make().senses.numpy().tobytes())
    path.write_bytes(data[:start] + b"\x01" * (23 * 8 * 4) + data[start + 23 * 8 * 4 :])
    assert SenseDictionary.from_pretrained(tmp_path, verify=False).num_senses == 23
    refused(tmp_path, ValueError, "senses are not those that were saved")


def test_a_folder_in_a_folder_and_a_file_in_its_place(tmp_path):
    """A subfolder that is ignored opens another dictionary; a file given for a folder should be named."""
    make().save_pretrained(tmp_path / "a" / "b")
    assert SenseDictionary.from_pretrained(tmp_path / "a", subfolder="b").num_senses == 23
    with pytest.raises(FileNotFoundError, match=JSON_NAME):
        SenseDictionary.from_pretrained(tmp_path / "a")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match="should be a folder"):
        make().save_pretrained(tmp_path / "file")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads /proc")
def test_opening_looks_at_every_sense_and_keeps_none_in_memory(tmp_path):
    """Opening a table pulls all of it into memory, though a batch needs a few of its rows."""
    megabytes = 64
    senses = torch.randn(megabytes * 2**20 // 256, 128).to(torch.float16)
    offsets = torch.arange(0, len(senses) + 1, 8)
    SenseDictionary(senses, offsets).save_pretrained(tmp_path / "d")
    script = (
        "import sys, torch\n"
        "from hf_sense import SenseDictionary\n"
        "def status(name):\n"
        "    return int(next(l for l in open('/proc/self/status') if l.startswith(name)).split()[1]) / 1024\n"
        "open('/proc/self/clear_refs', 'w').write('5')\n"  # the highest mark starts anew
        "before = status('VmRSS')\n"
        "dictionary = SenseDictionary.from_pretrained(sys.argv[1])\n"
        "dictionary.rows(torch.arange(100))\n"
        "print(status('VmHWM') - before)\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "d")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < megabytes / 2, done.stdout
