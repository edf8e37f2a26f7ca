"""The best sense and the loss in one pass: both kinds of kernels against the plain loop, and what they may not cost."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_sense import SenseModel, fused, kernel_calls
from hf_sense.fused import choose_senses, sense_loss
from hf_sense.quantization import dequantize, quantize
from hf_sense.ragged import NO_SENSE, RaggedIndex
from hf_sense.senses import Senses

pytest.importorskip("numba", reason="the compiled kernels need numba")
DTYPES = ["float32", "bfloat16", "float16", "int8"]


@pytest.fixture(params=["compiled", "torch"], autouse=True)
def way(request, monkeypatch):
    """Each test runs with Numba's kernels and with PyTorch's."""
    monkeypatch.setenv("HF_SENSE_COMPILED", "1" if request.param == "compiled" else "0")
    return request.param


@pytest.fixture(params=[1, 2])
def threads(request, monkeypatch):
    """A part of the batch for each thread, however small it is."""
    monkeypatch.setattr(kernel_calls, "_WORTH_A_THREAD", 1)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def case(seed=0, lengths=(3, 0, 1, 40, 2, 7), tokens=100, dim=10, dtype="float32"):
    """Hidden states, token ids, which count, and senses; and these as float32."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor(lengths)
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    rows, scales = torch.randn(int(lengths.sum()), dim, generator=generator), None
    if dtype == "int8":
        rows, scales = quantize(rows)
        wide = dequantize(rows, scales)
    else:
        rows = rows.to(getattr(torch, dtype))
        wide = rows.float()
    ids = torch.randint(0, len(lengths), (tokens,), generator=generator)
    hidden = 2 * torch.randn(tokens, dim, generator=generator)
    places = (torch.rand(tokens, generator=generator) < 0.8).nonzero().squeeze(-1)
    return hidden, ids, places, Senses(offsets, rows, scales), wide


def scores_of(state, rows, metric):
    """As the docstring of ``sense_scores`` defines them."""
    products = rows @ state
    if metric == "cosine":
        return products / (rows.norm(dim=-1) * state.norm())
    return products - rows.square().sum(-1) / 2 if metric == "l2" else products


def loop(hidden, ids, places, senses, wide, metric):
    """One token after the other; the scores of each place."""
    bounds = senses.offsets.tolist()
    rows = [wide[bounds[token] : bounds[token + 1]] for token in ids[places].tolist()]
    return [scores_of(hidden[place].double(), own.double(), metric) for place, own in zip(places.tolist(), rows)]


@pytest.mark.parametrize("metric", ["dot", "cosine", "l2"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [1, 10, 67])
def test_choice_is_that_of_the_plain_loop(threads, metric, dtype, dim):
    """A token gets another's sense, a narrow row is widened wrongly, or a cut between threads loses a token."""
    hidden, ids, places, senses, wide = case(dtype=dtype, dim=dim)
    best, replaced, scores = choose_senses(
        hidden, ids, places, senses, metric, output_replaced=True, output_scores=True
    )
    expected = loop(hidden, ids, places, senses, wide, metric)
    torch.testing.assert_close(scores, torch.cat(expected).float(), atol=1e-4, rtol=1e-4)
    index = RaggedIndex.of(ids[places], senses.offsets)
    for number, (place, own) in enumerate(zip(places.tolist(), expected)):
        if len(own) == 0:
            assert best[place] == NO_SENSE
        else:
            local = int(best[place] - index.sense_ids[index.starts[number]])
            assert own[local] >= own.max() - 1e-4
    elsewhere = torch.ones(len(ids), dtype=torch.bool)
    elsewhere[places] = False
    assert (best[elsewhere] == NO_SENSE).all()
    found = best >= 0
    assert torch.equal(replaced[found], wide[best[found]])
    assert torch.equal(replaced[~found], hidden[~found])


@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=8),
    tokens=st.integers(0, 150),
    seed=st.integers(0, 10**6),
    dtype=st.sampled_from(DTYPES),
    metric=st.sampled_from(["dot", "cosine", "l2"]),
    temperature=st.sampled_from([0.3, 1.0, 20.0]),
)
@settings(max_examples=60, deadline=None)
def test_both_ways_agree(lengths, tokens, seed, dtype, metric, temperature):
    """The loss, its gradient or the choice depends on whether Numba is installed."""
    hidden, ids, places, senses, _ = case(seed, lengths, tokens, dtype=dtype)
    bounds = senses.offsets
    places = places[bounds[ids[places] + 1] > bounds[ids[places]]]
    targets = torch.full_like(ids, NO_SENSE)
    own = ids[places]
    targets[places] = bounds[own] + torch.arange(len(own)) % (bounds[own + 1] - bounds[own]).clamp_min(1)
    found = []
    for compiled in ("0", "1"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HF_SENSE_COMPILED", compiled)
            states = hidden.clone().requires_grad_(True)
            loss, best = sense_loss(states, ids, places, senses, metric, targets, temperature)
            (loss * torch.arange(len(loss))).sum().backward()
            choice = choose_senses(hidden, ids, places, senses, metric).sense_ids
            found.append((loss.detach(), states.grad, best, choice[places]))
    for one, other in zip(*found):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=1e-3)
    assert torch.equal(found[1][2], found[1][3])


def test_gradient_is_that_of_the_formula(threads):
    """The gradient forgets the temperature, the target, or the length of a cosine's senses."""
    for metric in ("dot", "cosine", "l2"):
        hidden, ids, places, senses, wide = case(lengths=(3, 5, 33, 2))
        own = ids[places]
        targets = torch.full_like(ids, NO_SENSE)
        targets[places] = senses.offsets[own + 1] - 1
        states = hidden.clone().requires_grad_(True)
        loss, _ = sense_loss(states, ids, places, senses, metric, targets, 0.7)
        loss.sum().backward()
        plain = hidden.double().requires_grad_(True)
        bounds = senses.offsets.tolist()
        total = torch.zeros((), dtype=torch.float64)
        for place in places.tolist():
            first, last = bounds[ids[place]], bounds[ids[place] + 1]
            scores = scores_of(plain[place], wide[first:last].double(), metric) / 0.7
            total = total + torch.nn.functional.cross_entropy(scores, targets[place] - first)
        total.backward()
        torch.testing.assert_close(loss.sum().double(), total.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(states.grad.double(), plain.grad, rtol=1e-4, atol=1e-4)


def test_a_target_of_another_token_is_refused():
    """Targets of another dictionary train the student on noise."""
    hidden, ids, places, senses, _ = case(lengths=(3, 5))
    targets = senses.offsets[ids]
    targets[places[4]] += 5
    with pytest.raises(ValueError, match=r"1 of .* targets are not senses of their token"):
        sense_loss(hidden, ids, places, senses, "l2", targets)


def test_nan_and_width_and_nothing():
    """NaN picks a sense at random, a narrow student reads past its rows, or an empty batch fails."""
    hidden, ids, places, senses, _ = case()
    owned = places[senses.offsets[ids[places] + 1] > senses.offsets[ids[places]]]
    hidden[owned[0]] = torch.nan
    best, replaced, _ = choose_senses(hidden, ids, places, senses, "l2", output_replaced=True)
    assert best[owned[0]] == NO_SENSE
    assert replaced[owned[0]].isnan().all()
    assert (best[owned[1:]] >= 0).all()
    with pytest.raises(ValueError, match="not finite"):
        choose_senses(hidden, ids, places, senses, "l2", check_finite=True)
    with pytest.raises(ValueError, match="of one width"):
        choose_senses(hidden[:, :4], ids, places, senses, "l2")
    none = places[:0]
    assert (choose_senses(hidden, ids, none, senses, "l2")[0] == NO_SENSE).all()
    states = torch.randn(5, 10, requires_grad=True)
    loss, best = sense_loss(states, ids[:5], none, senses, "l2", ids[:5])
    loss.sum().backward()
    assert len(loss) == len(best) == 0
    assert not states.grad.any()
    empty = Senses(torch.zeros(7, dtype=torch.int64), torch.zeros(0, 10))
    best, replaced, scores = choose_senses(hidden, ids, places, empty, "l2", output_replaced=True, output_scores=True)
    assert (best == NO_SENSE).all()
    assert len(scores) == 0
    assert torch.equal(replaced[owned[1:]], hidden[owned[1:]])


def test_what_lies_outside_the_table_is_refused(monkeypatch):
    """A kernel that looks at no bounds reads what is not its own: ids of another tokenizer, or a damaged file's offsets."""
    hidden, ids, places, senses, _ = case()
    for wrong in (len(senses.offsets) - 1, 10**9, -1):
        other = ids.clone()
        other[places[3]] = wrong
        with pytest.raises(ValueError, match="vocabulary of the senses"):
            choose_senses(hidden, other, places, senses, "l2")
        with pytest.raises(ValueError, match="vocabulary of the senses"):
            sense_loss(hidden, other, places, senses, "l2", senses.offsets[ids])
    for offsets in (senses.offsets + 1, senses.offsets - 1, senses.offsets * 10**9, senses.offsets.flip(0)):
        damaged = Senses(offsets, senses.rows)
        with pytest.raises(ValueError, match="by its offsets, and the table has"):
            sense_loss(hidden, ids, places, damaged, "l2", offsets[ids])
    monkeypatch.setenv("HF_SENSE_COMPILED", "1")
    with pytest.raises(ValueError, match="by its offsets, and the table has"):
        choose_senses(hidden, ids, places, damaged, "l2")
    with pytest.raises(ValueError, match="one hidden state a token"):
        choose_senses(hidden[:9], ids, places, senses, "l2")
    with pytest.raises(ValueError, match="should be one a row"):
        Senses(senses.offsets, senses.rows, half_norms=torch.zeros(3))
    with pytest.raises(ValueError, match="int8 need scales"):
        Senses(senses.offsets, senses.rows.to(torch.int8))


def test_a_damaged_models_offsets_are_refused(teacher, dictionary, texts, tmp_path):
    """A model's file whose offsets point outside its senses makes the process read foreign memory."""
    model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1)
    model.sense_table.offsets[1:] += 10**7
    model.save_pretrained(tmp_path)
    loaded = SenseModel.from_pretrained(tmp_path)
    batch = teacher.tokenizer(list(texts[:2]), padding=True, return_tensors="pt")
    with pytest.raises(ValueError, match="by its offsets"):
        loaded(**batch)


def test_float16_numbers_below_the_normal_and_bfloat16_states():
    """Tiny float16 values come out as zero, or a model in bfloat16 gets float32 rows."""
    rows = torch.tensor([[6e-8, -3e-5, 65504.0, -1.0]], dtype=torch.float16)
    senses = Senses(torch.tensor([0, 1]), rows)
    one = torch.zeros(1, dtype=torch.int64)
    replaced = choose_senses(torch.zeros(1, 4), one, one, senses, "l2", output_replaced=True).replaced
    assert torch.equal(replaced, rows.float())
    hidden, ids, places, senses, wide = case(dtype="bfloat16")
    best, replaced, _ = choose_senses(hidden.bfloat16(), ids, places, senses, "l2", output_replaced=True)
    assert replaced.dtype == torch.bfloat16
    assert torch.equal(replaced[best >= 0].float(), wide[best[best >= 0]])


def test_trained_senses_go_to_pytorch(way):
    """Senses that are parameters get no gradient from the compiled kernels."""
    hidden, ids, places, senses, _ = case(lengths=(3, 5))
    trained = Senses(senses.offsets, senses.rows.clone().requires_grad_(True))
    loss, _ = sense_loss(hidden, ids, places, trained, "l2", senses.offsets[ids])
    loss.sum().backward()
    assert trained.rows.grad.abs().sum() > 0
    assert fused.runs_compiled(hidden, senses) == (way == "compiled")


def test_without_numba_pytorch_answers():
    """A user without Numba cannot use the package, or importing it costs Numba's second."""
    script = (
        "import sys; sys.modules['numba'] = None\n"
        "import importlib.util; find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *a: None if name == 'numba' else find(name, *a)\n"
        "import torch, hf_sense\nfrom hf_sense.fused import *\nfrom hf_sense.senses import Senses\n"
        "senses = Senses(torch.tensor([0, 2]), torch.eye(2))\n"
        "one = torch.zeros(1, dtype=torch.int64)\n"
        "assert choose_senses(torch.tensor([[0., 1.]]), one, one, senses, 'l2')[0].tolist() == [1]\n"
        "assert not has_compiled_kernels()"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lazy = "import sys, hf_sense; assert 'numba' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", lazy], check=False).returncode == 0
