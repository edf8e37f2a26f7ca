"""The dictionary and its files: what is saved comes back, and what is damaged is refused."""

from __future__ import annotations

import json
import logging
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_sense import SenseDictionary
from hf_sense.vocabulary import tokenizer_fingerprint

TENSORS, DESCRIPTION = "sense_dictionary.safetensors", "sense_dictionary.json"


def make(dtype=torch.float32, **options):
    torch.manual_seed(0)
    lengths = torch.randint(0, 5, (50,))
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    total = int(offsets[-1])
    return SenseDictionary(
        torch.randn(total, 8).to(dtype), offsets, torch.randint(1, 9, (total,)), torch.rand(total), **options
    )


@pytest.fixture
def saved(tmp_path):
    make(tokenizer_fingerprint="f", metadata={"teacher": {"name": "t"}}).save_pretrained(tmp_path / "d")
    return tmp_path / "d"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shard", [10**9, 300])
def test_round_trip(tmp_path, dtype, shard):
    """A saved dictionary comes back with other senses, or sharded rows are found in the wrong file."""
    dictionary = make(dtype, metric="cosine", tokenizer_fingerprint="f", metadata={"corpus": {"texts": 3}})
    dictionary.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*-of-*"))) > 3) == (shard == 300)
    loaded = SenseDictionary.from_pretrained(tmp_path)
    for name in ("senses", "offsets", "counts", "spread"):
        assert torch.equal(getattr(loaded, name), getattr(dictionary, name)), name
    for name in ("dtype", "metric", "fingerprint", "tokenizer_fingerprint", "metadata"):
        assert getattr(loaded, name) == getattr(dictionary, name), name
    ids, hidden = torch.randint(0, 50, (3, 7)), torch.randn(3, 7, 8)
    assert torch.equal(loaded.lookup(ids, hidden), dictionary.lookup(ids, hidden))
    assert torch.equal(loaded.replace(ids, hidden), dictionary.replace(ids, hidden))


def test_saving_again_leaves_nothing_of_the_old_layout(tmp_path):
    """Old shards stay beside the new file and are loaded instead of it, or a user's README is overwritten."""
    (tmp_path / "README.md").write_text("mine", encoding="utf-8")
    make().save_pretrained(tmp_path, max_shard_size=300)
    make(torch.float16).save_pretrained(tmp_path)
    assert SenseDictionary.from_pretrained(tmp_path).dtype == torch.float16
    assert {path.name for path in tmp_path.iterdir()} == {TENSORS, DESCRIPTION, "README.md"}
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == "mine"


def test_lookup_equals_a_plain_loop():
    """The batch's senses are numbered wrongly, or a masked token gets one."""
    for metric, worth in (
        ("l2", lambda h, s: -(h - s).square().sum(-1)),
        ("dot", lambda h, s: s @ h),
        ("cosine", lambda h, s: torch.nn.functional.cosine_similarity(h[None], s)),
    ):
        dictionary = make(metric=metric)
        ids, hidden = torch.randint(0, 50, (4, 9)), torch.randn(4, 9, 8)
        mask = torch.rand(4, 9) > 0.3
        found = dictionary.lookup(ids, hidden, mask)
        for place in torch.cartesian_prod(torch.arange(4), torch.arange(9)).tolist():
            own = dictionary.senses_of(int(ids[tuple(place)]))
            if not mask[tuple(place)] or not own.sense_ids:
                assert found[tuple(place)] == -100
            else:
                assert found[tuple(place)] == own.sense_ids[int(worth(hidden[tuple(place)], own.vectors).argmax())]


def rewrite_tensors(folder, **changes):
    tensors = load_file(folder / TENSORS)
    save_file({name: tensor.clone() for name, tensor in (tensors | changes).items()}, folder / TENSORS)


def rewrite_description(folder, **changes):
    path = folder / DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def flip(folder):
    data = bytearray((folder / TENSORS).read_bytes())
    data[len(data) * 2 // 3] ^= 1
    (folder / TENSORS).write_bytes(data)


def damaged_offsets(folder, place, value):
    offsets = load_file(folder / TENSORS)["offsets"].clone()
    offsets[place] = value
    rewrite_tensors(folder, offsets=offsets)


FAULTS = {
    "truncated": (lambda d: (d / TENSORS).write_bytes((d / TENSORS).read_bytes()[:-9]), "not a sound safetensors"),
    "empty": (lambda d: (d / TENSORS).write_bytes(b""), "not a sound safetensors"),
    "pickle": (lambda d: (d / TENSORS).write_bytes(pickle.dumps({"senses": [1.0] * 99})), "not a sound safetensors"),
    "bit flipped": (flip, "not those that were saved"),
    "NaN": (lambda d: rewrite_tensors(d, senses=torch.full_like(make().senses, float("nan"))), "NaN or infinite"),
    "offsets step back": (lambda d: damaged_offsets(d, 20, 0), "without a step back"),
    "offsets past the end": (lambda d: damaged_offsets(d, -1, 10**6), "rise from 0"),
    "negative counts": (lambda d: rewrite_tensors(d, counts=-make().counts), "negative"),
    "other dtype": (lambda d: rewrite_tensors(d, senses=make().senses.double()), "F64"),
    "other shape": (lambda d: rewrite_tensors(d, spread=torch.zeros(3)), "spread should be"),
    "tensor missing": (lambda d: save_file({"senses": make().senses}, d / TENSORS), "lacks the tensors offsets"),
    "tensor too many": (lambda d: rewrite_tensors(d, extra=torch.zeros(3)), "does not belong"),
    "future version": (lambda d: rewrite_description(d, format_version=99), "pip install --upgrade hf-sense"),
    "no version": (lambda d: rewrite_description(d, format_version=None), "'format_version' should be"),
    "huge claim": (lambda d: rewrite_description(d, num_senses=2**60), "senses|should be"),
    "unknown metric": (lambda d: rewrite_description(d, metric="l7"), "one of dot, cosine, l2"),
    "not JSON": (lambda d: (d / DESCRIPTION).write_text("{"), "is not JSON"),
    "deep JSON": (lambda d: (d / DESCRIPTION).write_text("[" * 10**5), "is not JSON"),
    "a list": (lambda d: (d / DESCRIPTION).write_text("[]"), "one JSON object"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_files_are_refused(saved, fault):
    """A damaged or hostile file is loaded, crashes the process, or is changed by the attempt."""
    damage, message = FAULTS[fault]
    damage(saved)
    before = {path.name: path.read_bytes() for path in saved.iterdir()}
    with pytest.raises(ValueError, match=message):
        SenseDictionary.from_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


@pytest.mark.parametrize("name", ["../x.safetensors", "a" * 10_000, "\u00e9" * 200, 3, None, "/etc/passwd"])
def test_hostile_index_is_refused(tmp_path, name):
    """An index makes the loader read a file outside the folder, or the system raise an error that does not name the index."""
    make().save_pretrained(tmp_path / "d", max_shard_size=300)
    index = tmp_path / "d" / "sense_dictionary.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"senses.0": name}}), encoding="utf-8")
    with pytest.raises(ValueError, match="not a file of this folder") as caught:
        SenseDictionary.from_pretrained(tmp_path / "d")
    assert len(str(caught.value)) < 1000
    index.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="not an index"):
        SenseDictionary.from_pretrained(tmp_path / "d")


def test_missing_files_are_named(saved, tmp_path):
    """A half-copied folder fails without a word of what is missing."""
    with pytest.raises(FileNotFoundError, match="no folder"):
        SenseDictionary.from_pretrained(tmp_path / "nowhere")
    (saved / TENSORS).unlink()
    with pytest.raises(FileNotFoundError, match="not complete"):
        SenseDictionary.from_pretrained(saved)
    (saved / DESCRIPTION).unlink()
    with pytest.raises(FileNotFoundError, match="not a sense dictionary"):
        SenseDictionary.from_pretrained(saved)


def test_an_interrupted_save_leaves_the_old_files(saved, monkeypatch):
    """A save that fails half-way leaves half a dictionary."""
    before = {path.name: path.read_bytes() for path in saved.iterdir()}

    def fail(tensors, path, **kwargs):
        path.write_bytes(b"half")
        raise OSError("No space left on device")

    monkeypatch.setattr("hf_sense.saving.save_file", fail)
    with pytest.raises(OSError, match="No space"):
        make(torch.float16).save_pretrained(saved)
    assert {path.name: path.read_bytes() for path in saved.iterdir()} == before


def test_unknown_keys_are_kept_and_warned_about(saved, caplog, tmp_path):
    """A later release's field is lost, or nobody learns of it."""
    rewrite_description(saved, colour="green")
    with caplog.at_level(logging.WARNING):
        loaded = SenseDictionary.from_pretrained(saved)
    assert "colour" in caplog.text
    loaded.save_pretrained(tmp_path / "again")
    assert json.loads((tmp_path / "again" / DESCRIPTION).read_text(encoding="utf-8"))["colour"] == "green"


def test_opening_a_large_one_reads_no_senses(saved):
    """Loading reads the whole table: with the check switched off, damaged senses go unread."""
    rewrite_tensors(saved, senses=make().senses + 1)
    loaded = SenseDictionary.from_pretrained(saved, verify=False)
    assert torch.equal(loaded.senses, make().senses + 1)
    with pytest.raises(ValueError, match="not those that were saved"):
        SenseDictionary.from_pretrained(saved, verify=True)


def test_merge_puts_both_tokens_senses_together():
    """Senses of the second dictionary end up with another token."""
    first, second = make(), make()
    second = SenseDictionary(second.senses + 10, second.offsets, second.counts, second.spread)
    both = first.merge(second)
    for token in range(50):
        own = both.senses_of(token)
        assert torch.equal(own.vectors, torch.cat([d.senses_of(token).vectors for d in (first, second)]))
        assert torch.equal(own.counts, torch.cat([d.senses_of(token).counts for d in (first, second)]))
    with pytest.raises(ValueError, match="share their metric"):
        first.merge(make(metric="dot"))


def test_dtype_that_overflows_is_refused():
    """Large senses become infinite in float16."""
    dictionary = SenseDictionary(torch.tensor([[1e6, 1.0]]), torch.tensor([0, 1]))
    assert dictionary.to(torch.bfloat16).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="bfloat16"):
        dictionary.to(torch.float16)


def test_senses_of_takes_text_and_ids(tokenizer):
    """An unknown word is looked up as the unknown token."""
    size = len(tokenizer)
    dictionary = SenseDictionary(torch.randn(size, 2), torch.arange(size + 1), tokenizer=tokenizer)
    bank = tokenizer.get_vocab()["bank"]
    assert dictionary.senses_of("bank").sense_ids == dictionary.senses_of(bank).sense_ids == range(bank, bank + 1)
    with pytest.raises(ValueError, match=r"is not a token of the vocabulary; the tokenizer makes \['bank', '##s'\]"):
        dictionary.senses_of("banks")
    with pytest.raises(ValueError, match="outside the vocabulary"):
        dictionary.senses_of(size)


def test_a_loaded_dictionary_says_that_it_has_no_tokenizer(teacher, texts, tmp_path):
    """What worked after the build fails after loading, and nobody knows where the tokenizer is to come from."""
    from hf_sense import build_dictionary

    built = build_dictionary(teacher, texts, max_senses=2)
    built.save_pretrained(tmp_path)
    again = SenseDictionary.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not saved with a dictionary: pass it") as said:
        again.senses_of("bank")
    assert f"from_pretrained({teacher.name!r})" in str(said.value)
    assert again.senses_of("bank", teacher.tokenizer).sense_ids == built.senses_of("bank").sense_ids


def test_wrong_kinds_are_refused(dictionary, teacher):
    """A slip in the kind of an argument ends in an error about something inside."""
    assert dictionary.to("int8").fingerprint == dictionary.to(torch.int8).fingerprint
    for dtype in ("int4", torch.int32, None):
        with pytest.raises(ValueError, match="dtype should be one of float16, bfloat16, float32, int8, but is"):
            dictionary.to(dtype)
    with pytest.raises(ValueError, match="merge takes a SenseDictionary, but a Teacher came"):
        dictionary.merge(teacher)
    with pytest.raises(ValueError, match="should be a folder or an id on the Hub, but is a NoneType"):
        SenseDictionary.from_pretrained(None)


def test_fingerprint_tells_vocabularies_apart(tokenizer):
    """Two tokenizers that number a token differently pass for one."""
    import copy

    other = copy.deepcopy(tokenizer)
    other.add_tokens(["brandnew"])
    assert tokenizer_fingerprint(tokenizer) == tokenizer_fingerprint(copy.deepcopy(tokenizer))
    assert tokenizer_fingerprint(tokenizer) != tokenizer_fingerprint(other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"senses": torch.ones(2)}, "senses should be"),
        ({"senses": torch.ones(2, 3, dtype=torch.float64)}, "float16, bfloat16 or float32"),
        ({"senses": torch.tensor([[1.0], [float("inf")]])}, "NaN or infinite"),
        ({"offsets": torch.tensor([0, 3])}, "rise from 0 to num_senses = 2"),
        ({"offsets": torch.tensor([0, 2], dtype=torch.int32)}, "int64"),
        ({"counts": torch.ones(3, dtype=torch.int64)}, "counts should be"),
        ({"metric": "manhattan"}, "metric must be one of"),
    ],
)
def test_parts_that_do_not_fit_are_refused(arguments, message):
    """A wrong table is found out at its first use, or never."""
    good = {"senses": torch.ones(2, 1), "offsets": torch.tensor([0, 2])}
    with pytest.raises(ValueError, match=message):
        SenseDictionary(**{**good, **arguments})


def test_lookup_refuses_what_does_not_fit():
    """Ids of another tokenizer read somebody else's rows."""
    dictionary = make()
    with pytest.raises(ValueError, match=r"in 0\.\.49"):
        dictionary.lookup(torch.tensor([50]), torch.ones(1, 8))
    with pytest.raises(ValueError, match="hidden_states should be"):
        dictionary.lookup(torch.tensor([1]), torch.ones(1, 4))
