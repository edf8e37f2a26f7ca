"""Several processes at one folder or one cache: each sees a whole old state or a whole new one."""

from __future__ import annotations

import os
import textwrap
import threading

import pytest
import torch
from datasets import Dataset
from processes import PythonProcess

from hf_sense import build_dictionary, compute_sense_targets, load_teacher, mapped_file, storage
from hf_sense.dictionary import SenseDictionary
from hf_sense.folders import JSON_NAME
from hf_sense.storage import SAVING_NAME

WRITER = textwrap.dedent(
    """
    import sys
    from hf_sense.dictionary import SenseDictionary
    first, second, folder, times = sys.argv[1:]
    both = [SenseDictionary.from_pretrained(path) for path in (first, second)]
    print("ready", flush=True)
    for number in range(int(times)):
        # Layouts change too: one file, several, and back.
        both[number % 2].save_pretrained(folder, max_shard_size=(10**9, 600)[number // 2 % 2])
    """
)


def test_a_reader_while_a_writer_replaces_the_folder(dictionary, tmp_path):
    """A reader gets senses of one save with the counts of another, or an error because a file was just renamed."""
    torch.manual_seed(0)
    # As alike as can be: the same offsets and counts, other senses.
    other = SenseDictionary(
        torch.randn_like(dictionary.senses), dictionary.offsets, dictionary.counts, dictionary.spread,
        metadata=dictionary.metadata, tokenizer_fingerprint=dictionary.tokenizer_fingerprint,
    )  # fmt: skip
    dictionary.save_pretrained(tmp_path / "a")
    other.save_pretrained(tmp_path / "b")
    dictionary.save_pretrained(tmp_path / "c")
    known = {dictionary.fingerprint, other.fingerprint}
    writer = PythonProcess(["-c", WRITER, *(str(tmp_path / name) for name in "abc"), "300"], os.environ)
    assert writer.stdout.readline() == "ready\n", writer.said()
    seen, loads = set(), 0
    while writer.returncode is None:
        found = SenseDictionary.from_pretrained(tmp_path / "c", verify=loads % 2 == 0)
        found._checksums = None  # what its bytes are, not what its description says
        seen.add(found.fingerprint)
        loads += 1
    assert writer.returncode == 0, writer.said()
    assert seen <= known
    assert len(seen) == 2
    assert loads > 20
    assert not (tmp_path / "c" / SAVING_NAME).exists()


@pytest.mark.parametrize(
    ("module", "where"), [(mapped_file, "safe_open"), (storage, "mapped"), (storage, "_signature")]
)
def test_a_save_at_the_worst_moment(dictionary, tmp_path, monkeypatch, module, where):
    """The header of one save and the rows of the next; or a save that ends while the reader asks whether one runs."""
    other = SenseDictionary(dictionary.senses + 1, dictionary.offsets, dictionary.counts, dictionary.spread)
    dictionary.save_pretrained(tmp_path / "a")
    if where == "_signature":  # a save that has renamed its tensors and not yet its description
        old = (tmp_path / "a" / JSON_NAME).read_bytes()
        other.save_pretrained(tmp_path / "a")
        (tmp_path / "a" / JSON_NAME).write_bytes(old)
        (tmp_path / "a" / SAVING_NAME).touch()
    plain, calls = getattr(module, where), []

    def slow(*arguments, **options):
        found = plain(*arguments, **options) if where == "_signature" else None
        calls.append(where)
        if len(calls) == (2 if where == "_signature" else 1):
            other.save_pretrained(tmp_path / "a")
        return found if where == "_signature" else plain(*arguments, **options)

    monkeypatch.setattr(module, where, slow)
    found = SenseDictionary.from_pretrained(tmp_path / "a", verify=False)
    assert torch.equal(found.senses, dictionary.senses if where == "mapped" else other.senses)
    assert torch.equal(found.spread, dictionary.spread)


def test_what_a_killed_writer_left_is_told_and_not_waited_for(dictionary, tmp_path):
    """Files of two saves pass for one; or a marker that a dead process left makes every load slow."""
    dictionary.save_pretrained(tmp_path / "a")
    changed = SenseDictionary(dictionary.senses + 1, dictionary.offsets, dictionary.counts, dictionary.spread)
    changed.save_pretrained(tmp_path / "b")
    name = "sense_dictionary.safetensors"
    (tmp_path / "a" / name).write_bytes((tmp_path / "b" / name).read_bytes())
    with pytest.raises(ValueError, match="two different saves"):
        SenseDictionary.from_pretrained(tmp_path / "a", verify=False)
    dictionary.save_pretrained(tmp_path / "a")
    assert SenseDictionary.from_pretrained(tmp_path / "a").fingerprint == dictionary.fingerprint


def test_two_builds_and_two_loads_at_once(tiny_teacher_folder, texts, tmp_path):
    """Work of one thread or process ends up in another's dictionary, or two targets passes spoil one cache."""
    whole = build_dictionary(str(tiny_teacher_folder), texts, max_senses=3)
    whole.save_pretrained(tmp_path / "made")
    data = Dataset.from_dict({"text": texts})
    expected = compute_sense_targets(data, str(tiny_teacher_folder), whole, cache_dir=tmp_path / "alone")[
        "sense_labels"
    ]
    found, faults = {}, []

    def work(number):
        try:
            teacher = load_teacher(str(tiny_teacher_folder))
            options = {"max_senses": 3, "work_dir": tmp_path / f"work-{number}"}
            made = build_dictionary(teacher, texts, **options)
            loaded = SenseDictionary.from_pretrained(tmp_path / "made")
            made.save_pretrained(tmp_path / "made")
            targets = compute_sense_targets(data, teacher, loaded, cache_dir=tmp_path / "shared")
            found[number] = (made.fingerprint, loaded.fingerprint, targets["sense_labels"])
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults
    for made, loaded, labels in found.values():
        assert made == loaded == whole.fingerprint
        assert list(labels) == list(expected)
