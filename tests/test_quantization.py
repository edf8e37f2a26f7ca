"""int8 senses: what rounding may cost, that nothing is unpacked for a batch, and the files that hold them."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import hf_sense.quantization
import hf_sense.row_blocks
from hf_sense import SenseDictionary, build_dictionary
from hf_sense.quantization import dequantize, dequantize_table, quantize
from hf_sense.ragged import METRICS
from hf_sense.row_blocks import RowBlocks
from hf_sense.storage import JSON_NAME, TENSORS_NAME


def make(lengths=(3, 0, 1, 5, 2, 0, 4, 1, 7), dtype=torch.int8, seed=0, **options):
    """A dictionary of so many senses a token."""
    draw = torch.Generator().manual_seed(seed)
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    total = int(offsets[-1])
    senses = torch.randn(total, 8, generator=draw) * torch.rand(total, 1, generator=draw)
    return SenseDictionary(senses, offsets, torch.randint(1, 9, (total,), generator=draw), **options).to(dtype)


@st.composite
def tables(draw):
    """Rows of any size, the smallest numbers and rows of zeros included."""
    torch.manual_seed(draw(st.integers(0, 2**16)))
    rows = torch.randn(draw(st.integers(0, 6)), draw(st.integers(1, 9)))
    exponents = [draw(st.sampled_from([0, 3, 30, -5, -38, -44, -60])) for _ in range(len(rows))]
    return rows * torch.tensor([10.0**exponent for exponent in exponents]).view(-1, 1)


@settings(max_examples=80, deadline=None)
@given(tables(), st.sampled_from([torch.float32, torch.bfloat16]))
def test_no_entry_moves_by_more_than_half_a_scale(rows, dtype):
    """A row is clipped or takes its neighbour's scale, or tiny rows divide by zero."""
    rows = rows.to(dtype).float()
    values, scales = quantize(rows)
    assert (values.dtype, scales.dtype) == (torch.int8, torch.float32)
    back = dequantize(values, scales)
    assert ((back - rows).abs() <= scales[:, None] / 2 * (1 + 1e-4)).all()
    assert (values.abs().amax(1) <= 127).all()
    assert (back[rows == 0] == 0).all()
    normal = rows.abs().amax(1) > 1e-30
    assert (values[normal].abs().amax(1) == 127).all()
    assert torch.equal(quantize(back)[0], values)


def test_a_large_table_is_taken_in_parts_without_seams(monkeypatch):
    """The rows at the seam of two parts are left out, or get the scales of the part before."""
    rows = torch.randn(23, 8)
    values, scales = quantize(rows)
    whole = dequantize_table(values, scales, torch.bfloat16)
    monkeypatch.setattr(hf_sense.quantization, "_NUMBERS_AT_ONCE", 40)
    assert all(torch.equal(a, b) for a, b in zip(quantize(rows), (values, scales)))
    assert torch.equal(dequantize_table(values, scales, torch.bfloat16), whole)
    assert torch.equal(whole, dequantize(values, scales).to(torch.bfloat16))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 5) | st.just(30), min_size=1, max_size=8),
    st.sampled_from(METRICS),
    st.sampled_from([torch.int8, torch.float16, torch.bfloat16]),
    st.sampled_from([torch.float32, torch.bfloat16]),
    st.integers(0, 2**16),
)
def test_replacement_is_that_of_float32_senses_of_the_same_values(lengths, metric, dtype, hidden_dtype, seed):
    """The batch's rows are numbered wrongly, take the wrong scales, or round twice."""
    small = make(lengths, dtype, seed, metric=metric)
    exact = small.to(torch.float32)
    assert torch.equal(exact.senses, small.rows(torch.arange(small.num_senses)).float())
    torch.manual_seed(seed)
    ids, hidden = torch.randint(0, len(lengths), (3, 5)), torch.randn(3, 5, 8).to(hidden_dtype)
    mask = torch.rand(3, 5) > 0.2
    assert torch.equal(small.lookup(ids, hidden, mask), exact.lookup(ids, hidden, mask))
    assert torch.equal(small.replace(ids, hidden, mask), exact.replace(ids, hidden, mask))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16])
def test_only_the_batchs_own_rows_are_read(monkeypatch, tmp_path, dtype):
    """A table larger than memory is unpacked for a batch of three tokens."""
    dictionary = make((3,) * 500, dtype)
    dictionary.save_pretrained(tmp_path, max_shard_size=5000)
    dictionary = SenseDictionary.from_pretrained(tmp_path)
    read = []
    plain = RowBlocks._stored
    monkeypatch.setattr(RowBlocks, "_stored", lambda d, ids: read.append(ids.tolist()) or plain(d, ids))
    monkeypatch.setattr(hf_sense.row_blocks, "dequantize_table", lambda *_: pytest.fail("the table was unpacked"))
    ids = torch.tensor([[7, 400, 7], [7, 400, 9]])
    dictionary.lookup(ids, torch.randn(2, 3, 8), torch.tensor([[1, 1, 1], [1, 1, 0]]))
    assert read == [[21, 22, 23, 1200, 1201, 1202]]
    dictionary.replace(ids, torch.randn(2, 3, 8))
    assert [len(rows) for rows in read[1:]] == [9]


@pytest.mark.parametrize("shard", [10**9, 60])
def test_int8_comes_back_from_disk(tmp_path, shard):
    """Scales are lost or go with other rows, whole or in several files."""
    dictionary = make(metric="cosine")
    dictionary.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*-of-*"))) > 2) == (shard == 60)
    assert json.loads((tmp_path / JSON_NAME).read_text(encoding="utf-8"))["format_version"] == 2
    loaded = SenseDictionary.from_pretrained(tmp_path)
    assert torch.equal(loaded.senses, dictionary.senses)
    assert torch.equal(loaded.scales, dictionary.scales)
    assert loaded.fingerprint == dictionary.fingerprint
    ids, hidden = torch.arange(9), torch.randn(9, 8)
    assert torch.equal(loaded.replace(ids, hidden), dictionary.replace(ids, hidden))
    assert torch.equal(loaded.to(torch.float32).senses, dictionary.to(torch.float32).senses)
    assert torch.equal(loaded.senses_of(3).vectors, dictionary.to(torch.float32).senses_of(3).vectors)


def test_floating_senses_are_still_version_1(tmp_path):
    """A release that knows no int8 cannot read a dictionary that has none."""
    make(dtype=torch.float16).save_pretrained(tmp_path)
    description = json.loads((tmp_path / JSON_NAME).read_text(encoding="utf-8"))
    assert description["format_version"] == 1
    assert set(description["sha256"]) == {"senses", "offsets", "counts", "spread"}
    assert set(load_file(tmp_path / TENSORS_NAME)) == {"senses", "offsets", "counts", "spread"}
    make().save_pretrained(tmp_path)
    make(dtype=torch.float16).save_pretrained(tmp_path)
    assert SenseDictionary.from_pretrained(tmp_path).scales is None


def rewrite(folder, version=2, **changes):
    """Writes other tensors (``None`` leaves one out) with checksums that fit, and another version."""
    from hf_sense.storage import sha256_of

    tensors = {
        name: value.clone() for name, value in (load_file(folder / TENSORS_NAME) | changes).items() if value is not None
    }
    description = json.loads((folder / JSON_NAME).read_text(encoding="utf-8"))
    save_file(tensors, folder / TENSORS_NAME)
    description |= {"sha256": {name: sha256_of([value]) for name, value in tensors.items()}, "format_version": version}
    (folder / JSON_NAME).write_text(json.dumps(description), encoding="utf-8")


def scales_with(value):
    scales = make().scales.clone()
    scales[4] = value
    return scales


FAULTS = {
    "no scales": ({"scales": None}, "int8 senses need the tensor scales .* missing"),
    "scales of floats": ({"senses": make(dtype=torch.float32).senses}, "others take none, but senses is torch.float32"),
    "version 1": ({"version": 1}, "senses should be .* of F16, BF16, F32, but is .* I8"),
    "NaN": ({"scales": scales_with(float("nan"))}, "scales has entries that are negative or not finite"),
    "infinite": ({"scales": scales_with(float("inf"))}, "scales has entries"),
    "negative": ({"scales": scales_with(-0.1)}, "scales has entries"),
    "too large": ({"scales": scales_with(3e38)}, "too large for a finite sense"),
    "too few": ({"scales": make().scales[:-1]}, "scales should be .* of F32"),
    "half precision": ({"scales": make().scales.half()}, "scales should be .* of F32, but is .* F16"),
    "-128": ({"senses": torch.full_like(make().senses, -128)}, "from -127 to 127, but hold -128"),
    "uint8": ({"senses": make().senses.view(torch.uint8)}, "U8"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_hostile_int8_files_are_refused(tmp_path, fault):
    """Rows of integers pass for senses, or a scale makes them infinite, with checksums that fit."""
    changes, message = FAULTS[fault]
    make().save_pretrained(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        SenseDictionary.from_pretrained(tmp_path)


def test_other_scales_are_another_dictionary(tmp_path):
    """Scales of another save are taken for these: by a load without a full check, or by targets that were stored."""
    dictionary = make()
    dictionary.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / TENSORS_NAME)
    tensors["scales"] = tensors["scales"] * 2
    save_file(tensors, tmp_path / TENSORS_NAME)
    with pytest.raises(ValueError, match="bytes of scales are not those that were saved"):
        SenseDictionary.from_pretrained(tmp_path, verify=False)
    other = SenseDictionary(dictionary.senses, dictionary.offsets, scales=dictionary.scales * 2)
    assert other.fingerprint != dictionary.fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": None}, "int8 senses need scales and others take none, but senses is torch.int8 and scales missing"),
        ({"senses": torch.ones(2, 1)}, "senses is torch.float32 and scales given"),
        ({"scales": torch.ones(3)}, "scales should be torch.float32"),
        ({"scales": torch.ones(2).double()}, "scales should be torch.float32"),
        ({"scales": torch.tensor([1.0, -1.0])}, "scales should be at least 0"),
        ({"scales": torch.tensor([1.0, float("nan")])}, "scales should be at least 0"),
        ({"senses": torch.tensor([[-128], [3]], dtype=torch.int8)}, "hold -128"),
    ],
)
def test_parts_that_do_not_fit_are_refused(arguments, message):
    """Integers without scales are taken for senses."""
    good = {"senses": torch.ones(2, 1, dtype=torch.int8), "offsets": torch.tensor([0, 2]), "scales": torch.ones(2)}
    with pytest.raises(ValueError, match=message):
        SenseDictionary(**{**good, **arguments})


def test_conversions_change_no_more_than_the_dtype():
    """A conversion drops counts or metric, quantizes twice, or overflows in silence."""
    dictionary = make(dtype=torch.float32, metric="dot", metadata={"corpus": {"texts": 3}})
    small = dictionary.to(torch.int8)
    for name in ("metric", "metadata", "num_senses", "dim"):
        assert getattr(small, name) == getattr(dictionary, name), name
    assert torch.equal(small.counts, dictionary.counts)
    assert small.summary()["megabytes"] == pytest.approx((dictionary.senses.numel() + 4 * len(small.scales)) / 1e6)
    assert torch.equal(small.to(torch.int8).scales, small.scales)
    assert torch.equal(small.to(torch.float32).to(torch.int8).senses, small.senses)
    assert small.to(torch.bfloat16).scales is None
    large = SenseDictionary(torch.tensor([[1e6, 1.0]]), torch.tensor([0, 1])).to(torch.int8)
    with pytest.raises(ValueError, match=r"1e\+06 overflows torch.float16"):
        large.to(torch.float16)


def test_merging_keeps_int8_and_its_values():
    """Merged rows take scales of the other dictionary, or integers are joined to floats."""
    first, second = make(seed=1), make(seed=2)
    both = first.merge(second)
    mixed = first.merge(second.to(torch.float32))
    assert (both.dtype, mixed.dtype) == (torch.int8, torch.float32)
    for token in range(first.vocab_size):
        expected = torch.cat([part.senses_of(token).vectors for part in (first, second)])
        assert torch.equal(both.senses_of(token).vectors, expected)
        assert torch.equal(mixed.senses_of(token).vectors, expected)


def test_a_build_stores_int8(teacher, texts):
    """The option is refused, or rounds the centres before clustering has ended."""
    small, plain = (
        build_dictionary(teacher, texts[:20], max_senses=2, dtype=dtype, disable_tqdm=True)
        for dtype in (torch.int8, torch.float32)
    )
    assert small.fingerprint == plain.to(torch.int8).fingerprint
    with pytest.raises(ValueError, match=r"or torch\.int8, but is torch\.int16"):
        build_dictionary(teacher, texts[:20], dtype=torch.int16)
