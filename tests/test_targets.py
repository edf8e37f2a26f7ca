"""Targets on disk: a byte or two each, decoded to what the teacher picked, padded as the tokenizer pads."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_sense import compute_sense_targets
from hf_sense.collator import SenseDataCollator
from hf_sense.targets import index_dtype


@pytest.fixture(scope="module")
def data(texts):
    return Dataset.from_dict({"text": list(texts[:32])})


def test_a_target_takes_a_byte_and_means_the_same(teacher, dictionary, data, tmp_path, monkeypatch):
    """Coded targets belong to another token, or the teacher runs again to decode them."""
    coded = compute_sense_targets(data, teacher, dictionary, cache_dir=tmp_path, coded=True, disable_tqdm=True)
    assert "sense_labels" not in coded.column_names
    assert coded.features["sense_indices"].feature.dtype == "int8"
    monkeypatch.setattr(type(teacher), "hidden_states", lambda *a, **k: pytest.fail("the teacher was called"))
    plain = compute_sense_targets(data, teacher, dictionary, cache_dir=tmp_path, disable_tqdm=True)
    collate = SenseDataCollator(teacher.tokenizer, offsets=dictionary.offsets)
    rows = [coded[number] for number in range(32)]
    labels = collate(rows)["sense_labels"]
    assert (labels >= 0).any()
    for number, row in enumerate(labels.tolist()):
        own = plain[number]["sense_labels"]
        assert row == own + [-100] * (len(row) - len(own))
    with pytest.raises(ValueError, match="needs offsets="):
        SenseDataCollator(teacher.tokenizer)(rows)


def test_the_width_of_an_index_follows_the_richest_token():
    """A token's 128th sense wraps round to a negative index."""
    assert index_dtype(np.array([0, 127, 128])) == np.int8
    assert index_dtype(np.array([0, 128, 129])) == np.int16
    with pytest.raises(ValueError, match=r"at most 32767 senses a token.* has 32768"):
        index_dtype(np.array([0, 32768]))


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("multiple", [None, 8])
def test_batches_are_padded_as_the_tokenizer_pads(teacher, dictionary, data, side, multiple, monkeypatch):
    """Labels shift against their tokens, or a padded place counts as text."""
    monkeypatch.setattr(teacher.tokenizer, "padding_side", side)
    encoded = [teacher.tokenizer(text) for text in data["text"][:7]]
    rows = [{**one, "sense_labels": [token % 5 for token in one["input_ids"]]} for one in encoded]
    batch = SenseDataCollator(teacher.tokenizer, pad_to_multiple_of=multiple)(rows)
    expected = teacher.tokenizer.pad(encoded, pad_to_multiple_of=multiple, return_tensors="pt")
    for name, values in expected.items():
        assert torch.equal(batch[name], values), name
    kept = expected["attention_mask"].bool()
    assert torch.equal(batch["sense_labels"][kept], expected["input_ids"][kept] % 5)
    assert (batch["sense_labels"][~kept] == -100).all()
    bare = [{"input_ids": one["input_ids"]} for one in encoded]
    again = SenseDataCollator(teacher.tokenizer, pad_to_multiple_of=multiple)(bare)
    assert torch.equal(again["attention_mask"], expected["attention_mask"])
