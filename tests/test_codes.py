"""Codes that all tokens share: the choice against a plain loop, how they are fitted, files, dtypes, merging."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from hf_sense import SenseDictionary, build_dictionary
from hf_sense import residual_codes as module
from hf_sense.code_training import fit_codes
from hf_sense.residual_codes import ResidualCodes
from hf_sense.storage import JSON_NAME, TENSORS_NAME, sha256_of


def random_codes(levels=2, num_codes=5, dim=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    values = torch.randn(levels, num_codes, dim, generator=draw) / (1 + torch.arange(levels)[:, None, None])
    values[:, 0] = 0
    return ResidualCodes(values)


def make(metric="l2", **options):
    """Senses of unlike number, a token without any, codes."""
    draw = torch.Generator().manual_seed(1)
    offsets = torch.tensor([0, 3, 0, 1, 5, 2]).cumsum(0)
    return SenseDictionary(
        torch.randn(11, 8, generator=draw), offsets, metric=metric, **{"codes": random_codes(), **options}
    )


def batch(seed=2):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(0, 5, (4, 9), generator=draw), 2 * torch.randn(4, 9, 8, generator=draw)


def plainly(dictionary, ids, hidden, mask):
    """Senses, codes and states by the definition, token by token."""
    rows, scales = dictionary.senses.double(), dictionary.scales
    rows = rows if scales is None else rows * scales.double()[:, None]
    codes = dictionary.codes.vectors.double()
    sense_ids, code_ids = torch.full(ids.shape, -100), torch.full((*ids.shape, len(codes)), -100)
    states = hidden.clone().double()
    for place in mask.nonzero().tolist():
        first, last = dictionary.offsets[ids[tuple(place)]], dictionary.offsets[ids[tuple(place)] + 1]
        if first == last:
            continue
        state, own = hidden[tuple(place)].double(), rows[first:last]
        scores = {
            "l2": -(own - state).square().sum(1),
            "dot": own @ state,
            "cosine": torch.nn.functional.cosine_similarity(own, state[None]),
        }[dictionary.metric]
        best = int(scores.argmax())
        total = own[best].clone()
        for level, table in enumerate(codes):
            nearest = int((table - (state - total)).square().sum(1).argmin())
            code_ids[(*place, level)] = nearest
            total += table[nearest]
        sense_ids[tuple(place)], states[tuple(place)] = first + best, total
    return sense_ids, code_ids, states


@pytest.fixture(params=["compiled", "torch"])
def way(request, monkeypatch):
    """Both kinds of kernels."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    monkeypatch.setenv("HF_SENSE_COMPILED", "1" if request.param == "compiled" else "0")


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_choice_is_that_of_a_plain_loop(way, metric, dtype):
    """A code is taken for the state instead of what the sense left, or for padding, or for a token without senses."""
    dictionary = make(metric).to(dtype)
    ids, hidden = batch()
    mask = torch.arange(9) < torch.tensor([9, 4, 1, 0])[:, None]
    senses, codes, states = plainly(dictionary, ids, hidden, mask)
    found_senses, found_codes = dictionary.encode(ids, hidden, mask)
    assert torch.equal(found_senses, senses)
    assert torch.equal(found_senses, dictionary.lookup(ids, hidden, mask))
    assert torch.equal(found_codes, codes)
    assert (codes >= 0).any()
    assert (codes < 0).any()
    torch.testing.assert_close(dictionary.replace(ids, hidden, mask), states.float(), atol=1e-5, rtol=1e-5)


def test_rows_from_several_files_take_the_same_codes(way, tmp_path):
    """Rows that are brought together leave residuals of other rows."""
    make().save_pretrained(tmp_path / "d", max_shard_size=3 * 8 * 4)
    loaded = SenseDictionary.from_pretrained(tmp_path / "d")
    assert loaded.in_place() is None
    ids, hidden = batch()
    for mine, theirs in zip(loaded.encode(ids, hidden), make().encode(ids, hidden), strict=True):
        assert torch.equal(mine, theirs)
    assert torch.equal(loaded.replace(ids, hidden), make().replace(ids, hidden))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 40), st.integers(1, 3), st.integers(1, 9), st.integers(0, 10**6))
def test_chunks_change_nothing(rows, levels, num_codes, seed):
    """A chunk's end loses a row, or a row takes another chunk's codes."""
    codes = random_codes(levels, num_codes, 4, seed)
    residuals = torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed))
    whole = codes.quantize(residuals)
    soft = codes.expected(residuals, 0.7)
    kept = module._SCORES_AT_ONCE
    module._SCORES_AT_ONCE = 3 * num_codes
    try:
        parts = codes.quantize(residuals)
        torch.testing.assert_close(codes.expected(residuals, 0.7), soft)
    finally:
        module._SCORES_AT_ONCE = kept
    assert torch.equal(parts[0], whole[0])
    torch.testing.assert_close(parts[1], whole[1])
    torch.testing.assert_close(codes.decode(whole[0]), whole[1])
    # The zero at each level: no state comes farther away.
    assert bool(((residuals - whole[1]).norm(dim=1) <= residuals.norm(dim=1) + 1e-5).all())


def test_soft_codes_are_hard_ones_when_cold():
    """The mean of a level's codes is taken under the scores of what another level has left."""
    codes, residuals = random_codes(3), torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(codes.expected(residuals, 1e-6), codes.quantize(residuals)[1], atol=1e-3, rtol=1e-3)
    weights = (codes.scores(residuals, 0) / 2).softmax(-1)
    one = ResidualCodes(codes.vectors[:1]).expected(residuals, 2.0)
    torch.testing.assert_close(one, weights @ codes.vectors[0])


def test_losses_are_their_definition_and_their_gradients_are_right():
    """The second level's loss sees the whole residual, or a gradient is that of another level."""
    codes = ResidualCodes(random_codes().vectors.double())
    residuals = torch.randn(6, 8, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(6, 8, dtype=torch.float64)
    wanted = codes.encode(teacher)
    losses, chosen = codes.cross_entropy(residuals, wanted, 0.5)
    divergence = codes.divergence(residuals, teacher, wanted, 0.5)
    for row in range(6):
        mine, theirs = residuals[row].detach(), teacher[row]
        for level in range(2):
            table = codes.vectors[level]
            scores = [-(own - table).square().sum(1) / 2 for own in (mine, theirs)]
            student, other = ((own / 0.5).log_softmax(0) for own in scores)
            assert losses[row, level].item() == pytest.approx(-float(student[wanted[row, level]]))
            assert divergence[row, level].item() == pytest.approx(float((other.exp() * (other - student)).sum()) * 0.25)
            assert int(chosen[row, level]) == int(scores[0].argmax())
            mine, theirs = mine - table[wanted[row, level]], theirs - table[wanted[row, level]]
    for loss in (lambda h: codes.cross_entropy(h, wanted, 0.5)[0], lambda h: codes.divergence(h, teacher, wanted, 0.5)):
        assert torch.autograd.gradcheck(loss, (residuals,))
    assert torch.autograd.gradcheck(lambda h: codes.expected(h, 0.5), (residuals,))
    with pytest.raises(ValueError, match="belong to one dictionary"):
        codes.cross_entropy(residuals, wanted + 5)


def test_fitting_finds_clusters_level_by_level():
    """Centres lie between clusters, a level fits what was there before the one above it, or the zero is missing."""
    draw = torch.Generator().manual_seed(0)
    coarse, fine = 50 * torch.randn(6, 12, generator=draw), 5 * torch.randn(4, 12, generator=draw)
    residuals = torch.cat(
        [coarse[i] + fine[j] + 0.1 * torch.randn(20, 12, generator=draw) for i in range(6) for j in range(4)]
    )
    codes = fit_codes(residuals, torch.ones(len(residuals)), 7, 2)
    assert codes.values.shape == (2, 7, 12)
    assert not bool(codes.values[:, 0].any())
    left = residuals - codes.quantize(residuals)[1]
    first = residuals - ResidualCodes(codes.values[:1]).quantize(residuals)[1]
    assert float(first.square().sum(1).mean()) < 1.05 * float((fine - fine.mean(0)).square().sum(1).mean()) + 1
    assert float(left.square().sum(1).mean()) < 0.3 * float(first.square().sum(1).mean())


def test_weights_count_as_copies_do():
    """An occurrence that stands for many counts once."""
    points = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 40.0]])
    weighted = fit_codes(points, torch.tensor([3.0, 1.0, 1.0]), 3)
    copied = fit_codes(points[[0, 0, 0, 1, 2]], torch.ones(5), 3)
    assert sorted(weighted.values[0].tolist()) == sorted(copied.values[0].tolist())
    assert [1.5, 0.0] in weighted.values[0].tolist()


@pytest.mark.parametrize("points", [1, 3])
def test_fewer_residuals_than_codes(points):
    """A rare corpus ends in NaN or in an endless loop."""
    residuals = torch.randn(points, 4)
    codes = fit_codes(residuals, torch.ones(points), 9, 2)
    assert bool(torch.isfinite(codes.values).all())
    torch.testing.assert_close(codes.quantize(residuals)[1], residuals, atol=1e-5, rtol=1e-5)


@pytest.fixture(scope="module")
def coded(teacher, texts):
    return build_dictionary(teacher, texts, max_senses=1, codes=8, code_levels=2, disable_tqdm=True)


def test_a_build_gives_codes_that_help(teacher, texts, coded):
    """Codes are of other vectors than the senses leave, or not the same on the next run."""
    plain = build_dictionary(teacher, texts, max_senses=1, disable_tqdm=True)
    assert torch.equal(plain.senses, coded.senses)
    assert plain.codes is None
    assert coded.metadata["clustering"] | {"codes": 8, "code_levels": 2} == coded.metadata["clustering"]
    inputs = dict(teacher.tokenizer(list(texts), padding=True, return_tensors="pt"))
    states = teacher.hidden_states(**inputs)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    away = [float((d.replace(ids, states, mask) - states)[mask.bool()].square().sum(1).mean()) for d in (plain, coded)]
    assert away[1] < 0.5 * away[0]
    again = build_dictionary(teacher, texts, max_senses=1, codes=8, code_levels=2, disable_tqdm=True)
    assert torch.equal(again.codes.values, coded.codes.values)
    assert again.fingerprint == coded.fingerprint != plain.fingerprint


def test_a_build_from_a_file_of_vectors_gives_the_same_bytes(teacher, texts, coded, tmp_path):
    """Residuals are written into the vectors that a build keeps on disk, or another part of them is taken."""
    made = build_dictionary(
        teacher, texts, max_senses=1, codes=8, code_levels=2, work_dir=tmp_path / "work", disable_tqdm=True
    )
    assert made.fingerprint == coded.fingerprint
    assert not (tmp_path / "work").exists()


def test_a_build_takes_a_bounded_part(teacher, texts, monkeypatch):
    """Residuals of a large sample are all held at once, or the part is not the same from run to run."""
    from hf_sense import code_training

    seen = []
    fit = code_training.fit_codes
    monkeypatch.setattr(code_training, "_MOST_POINTS", 100)
    monkeypatch.setattr(
        code_training, "fit_codes", lambda own, *rest, **more: seen.append(own.clone()) or fit(own, *rest, **more)
    )
    for _ in range(2):
        build_dictionary(teacher, texts, max_senses=1, codes=8, disable_tqdm=True)
    assert len(seen[0]) == 100
    assert torch.equal(seen[0], seen[1])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"codes": 1}, "codes should be a whole number from 2 to 65536, but is 1"),
        ({"codes": True}, "codes should be"),
        ({"codes": 8, "code_levels": 0}, "code_levels should be a whole number from 1"),
        ({"code_levels": 2}, "needs codes"),
    ],
)
def test_options_are_refused_before_the_teacher_loads(options, words):
    """A bad number is found after an hour of the teacher's work."""
    with pytest.raises(ValueError, match=words):
        build_dictionary("no/teacher", ["a text"], **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int8])
def test_files_come_back(tmp_path, coded, dtype):
    """Codes are lost, cast or taken for senses on the way to the disk; or files without codes are written anew."""
    stored = coded.to(dtype)
    stored.save_pretrained(tmp_path / "d")
    description = json.loads((tmp_path / "d" / JSON_NAME).read_text(encoding="utf-8"))
    assert (description["format_version"], description["code_levels"], description["num_codes"]) == (3, 2, 8)
    loaded = SenseDictionary.from_pretrained(tmp_path / "d")
    assert torch.equal(loaded.codes.values, stored.codes.values)
    assert (loaded.codes.scales is not None) == (dtype == torch.int8)
    assert loaded.fingerprint == stored.fingerprint
    assert "code_levels" not in loaded.metadata
    assert loaded.summary() == stored.summary()
    assert (stored.summary()["code_levels"], stored.summary()["num_codes"]) == (2, 8)
    halfway = (stored.codes.vectors - coded.codes.vectors).abs()
    assert float(halfway.max()) <= float(coded.codes.vectors.abs().max()) * (2**-7 if dtype != torch.float32 else 0)
    loaded.save_pretrained(tmp_path / "again")
    for name in (TENSORS_NAME, JSON_NAME):
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "d" / name).read_bytes()
    card = (tmp_path / "d" / "README.md").read_text(encoding="utf-8")
    assert "| num codes | 8 |" in card


@pytest.mark.parametrize(("dtype", "version"), [(torch.float32, 1), (torch.int8, 2)])
def test_files_without_codes_keep_their_version(tmp_path, dtype, version):
    """A release that knows no codes cannot read a dictionary that has none."""
    make(codes=None).to(dtype).save_pretrained(tmp_path)
    assert json.loads((tmp_path / JSON_NAME).read_text(encoding="utf-8"))["format_version"] == version


def damaged(folder, change, **described):
    """Changes tensors and their description, with true checksums."""
    tensors = load_file(folder / TENSORS_NAME)
    change(tensors)
    save_file(tensors, folder / TENSORS_NAME)
    path = folder / JSON_NAME
    description = json.loads(path.read_text(encoding="utf-8")) | described
    description["sha256"] = {name: sha256_of([tensor]) for name, tensor in tensors.items()}
    path.write_text(json.dumps(description), encoding="utf-8")


@pytest.mark.parametrize(
    ("change", "described", "words"),
    [
        (lambda t: t.pop("codes"), {}, "lacks the tensors codes"),
        (lambda t: t.update(codes=t["codes"][:, :3].contiguous()), {}, r"codes should be \(2, 5, 8\)"),
        (lambda t: t.update(codes=t["codes"].long()), {}, "codes should be"),
        (lambda t: t["codes"][0, 1].fill_(float("nan")), {}, "NaN or infinite"),
        (lambda t: t.update(code_scales=torch.ones(2, 5)), {}, "int8 codes need code_scales and others take none"),
        (lambda t: None, {"num_codes": "5"}, "'num_codes' should be"),
        (lambda t: None, {"num_codes": 2**40}, "codes should be"),
        (lambda t: None, {"format_version": 2}, "does not belong in a sense dictionary"),
        (lambda t: None, {"format_version": 4}, "pip install --upgrade"),
    ],
)
def test_damaged_files_are_refused(tmp_path, change, described, words):
    """A damaged or hostile file is opened, or fails without saying what is wrong."""
    make().save_pretrained(tmp_path)
    damaged(tmp_path, change, **described)
    with pytest.raises(ValueError, match=words):
        SenseDictionary.from_pretrained(tmp_path)


def test_other_bytes_are_noticed(tmp_path):
    """Codes of another save are taken for these."""
    make().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / TENSORS_NAME)
    tensors["codes"][0, 1, 0] += 1
    save_file(tensors, tmp_path / TENSORS_NAME)
    with pytest.raises(ValueError, match="bytes of codes"):
        SenseDictionary.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("values", "scales", "words"),
    [
        (torch.zeros(3, 4), None, r"\(levels, num_codes, dim\)"),
        (torch.zeros(1, 2, 4, dtype=torch.int64), None, "floating or int8"),
        (torch.zeros(1, 2, 4, dtype=torch.int8), None, "need code_scales"),
        (torch.zeros(1, 2, 4, dtype=torch.int8), torch.zeros(1, 3), "code_scales should be"),
        (torch.full((1, 2, 4), -128, dtype=torch.int8), torch.ones(1, 2), "from -127"),
        (torch.full((1, 2, 4), torch.inf), None, "infinite"),
    ],
)
def test_codes_that_do_not_fit_are_refused(values, scales, words):
    """Codes of another shape fail deep in a product."""
    with pytest.raises(ValueError, match=words):
        ResidualCodes(values, scales)


def test_widths_are_compared():
    """Codes of another teacher stand beside the senses."""
    with pytest.raises(ValueError, match="as wide as the senses, 8, but are 4"):
        make(codes=random_codes(dim=4))
    with pytest.raises(ValueError, match=r"\(n, 8\), as wide"):
        random_codes().encode(torch.zeros(2, 3))


@pytest.mark.parametrize(
    "dtypes", [(torch.float32, torch.float32), (torch.int8, torch.int8), (torch.int8, torch.float32)]
)
def test_merging_keeps_the_codes_of_both(dtypes):
    """A merged dictionary stands farther from a state than one of its parts."""
    first = make().to(dtypes[0])
    second = make(codes=random_codes(3, 4, seed=9)).to(dtypes[1])
    merged = first.merge(second)
    assert (merged.codes.levels, merged.codes.num_codes) == (3, 9)
    assert torch.equal(merged.codes.vectors[:2, :5], first.codes.vectors)
    assert torch.equal(merged.codes.vectors[:, 5:], second.codes.vectors)
    assert not bool(merged.codes.vectors[2, :5].any())
    assert merged.codes.values.dtype == (torch.int8 if dtypes == (torch.int8, torch.int8) else torch.float32)
    for one, other in ((first, make(codes=None)), (make(codes=None), first), (first, first)):
        assert torch.equal(one.merge(other).codes.vectors, first.codes.vectors)
