"""A slow way cannot come back unseen: counts that no machine changes. No test here looks at a clock."""

from __future__ import annotations

import sys
from contextlib import contextmanager

import pytest
import torch
from datasets import Dataset
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hf_sense import SenseModel, compute_sense_targets
from hf_sense.coded import choose_coded
from hf_sense.collator import SenseDataCollator
from hf_sense.evaluation import embed
from hf_sense.fused import choose_senses, sense_loss
from hf_sense.residual_codes import ResidualCodes
from hf_sense.senses import Senses

# What a tensor passes through on its way to NumPy, and other names for the same bytes: no work.
NO_WORK = (
    "detach",
    "resolve_conj",
    "resolve_neg",
    "to",
    "reshape",
    "view",
    "view_as",
    "squeeze",
    "unsqueeze",
    "slice",
    "alias",
)


class Counter(TorchDispatchMode):
    """Counts kernels and the bytes of the new tensors that they return."""

    def __init__(self):
        super().__init__()
        self.kernels, self.bytes, self.largest = 0, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        given = {leaf.untyped_storage().data_ptr() for leaf in tree_leaves((args, kwargs)) if is_plain(leaf)}
        self.kernels += function._schema.name.split("::")[1] not in NO_WORK
        made = [leaf for leaf in tree_leaves(result) if is_plain(leaf)]
        sizes = [leaf.nbytes for leaf in made if leaf.untyped_storage().data_ptr() not in given]
        self.bytes += sum(sizes)
        self.largest = max([self.largest, *sizes])
        return result


def is_plain(leaf):
    return isinstance(leaf, torch.Tensor) and leaf.layout == torch.strided


@contextmanager
def python_calls():
    """Counts the Python functions that are entered."""
    count = [0]

    def see(frame, event, argument):
        count[0] += event == "call"

    sys.setprofile(see)
    try:
        yield count
    finally:
        sys.setprofile(None)


@pytest.fixture(params=["compiled", "torch"])
def way(request, monkeypatch):
    """Both kinds of kernels are held to the same."""
    if request.param == "compiled":
        pytest.importorskip("numba")
    monkeypatch.setenv("HF_SENSE_COMPILED", "1" if request.param == "compiled" else "0")
    return request.param


def case(tokens, vocabulary=50, count=20, dim=64):
    """Every token has ``count`` senses."""
    torch.manual_seed(0)
    senses = Senses(torch.arange(vocabulary + 1) * count, torch.randn(vocabulary * count, dim))
    ids = torch.randint(0, vocabulary, (tokens,))
    return torch.randn(tokens, dim), ids, torch.arange(tokens), senses


def choose(hidden, ids, places, senses):
    choose_senses(hidden, ids, places, senses, "dot", output_replaced=True)


def train(hidden, ids, places, senses):
    states = hidden.clone().requires_grad_(True)
    sense_loss(states, ids, places, senses, "dot", senses.offsets[ids])[0].sum().backward()


@pytest.mark.parametrize("work", [choose, train])
def test_work_a_batch_does_not_grow_with_its_tokens(way, work):
    """A loop over tokens, or over distinct tokens, comes back: in Python, or in kernels launched."""
    kernels, calls = [], []
    for tokens in (64, 2048):
        given = case(tokens)
        work(*given)  # compiles, and fills what is kept
        with Counter() as counter:
            work(*given)
        with python_calls() as count:
            work(*given)
        kernels.append(counter.kernels)
        calls.append(count[0])
    assert kernels[0] == kernels[1] <= (45 if way == "compiled" else 125)
    assert abs(calls[0] - calls[1]) <= 20
    assert calls[1] <= 250


@pytest.mark.parametrize(("work", "times"), [(choose, 3), (train, 6)])
def test_senses_are_not_gathered_for_each_token(way, work, times):
    """Each token gets a copy of its senses: twenty times the states, and past the cache."""
    given = case(2048)
    work(*given)
    with Counter() as counter:
        work(*given)
    states, pairs = given[0].nbytes, 20 * 2048
    # Tensors of the states' size, and for PyTorch's kernels numbers a pair; rows for each pair would be 20 states.
    assert counter.bytes <= times * states + (0 if way == "compiled" else 140 * pairs) + 2**18


def test_codes_take_a_few_kernels_a_level(way):
    """Codes are looked for token by token, or the states are copied again for each level."""
    hidden, ids, places, senses = case(2048)
    counts = {}
    for levels in (1, 3):
        codes = ResidualCodes(torch.randn(levels, 64, 64))
        for tokens in (64, 2048):
            given = hidden[:tokens], ids[:tokens], places[:tokens], senses, "l2", codes
            choose_coded(*given, output_replaced=True)
            with Counter() as counter:
                choose_coded(*given, output_replaced=True)
            counts[levels, tokens] = counter.kernels
    assert counts[1, 64] == counts[1, 2048]
    assert counts[3, 64] == counts[3, 2048] <= counts[1, 64] + 2 * 12


def test_memory_of_codes_does_not_grow_with_tokens_times_codes(way):
    """All scores of a batch are held at once: gigabytes for many codes and tokens."""
    hidden, ids, places, senses = case(4096)
    codes = ResidualCodes(torch.randn(1, 4096, 64))
    largest = {}
    for name, work in (
        ("hard", lambda: choose_coded(hidden, ids, places, senses, "l2", codes, output_replaced=True)),
        ("soft", lambda: codes.expected(hidden, 1.0)),
    ):
        work()
        with Counter() as counter:
            work()
        largest[name] = counter.largest
    # Four megabytes of scores, where all of them are sixty-seven.
    assert max(largest.values()) <= 2**22


def test_narrow_senses_are_widened_as_they_are_read(monkeypatch):
    """A bfloat16 or int8 table is copied as float32, whole or for the batch."""
    pytest.importorskip("numba")
    monkeypatch.setenv("HF_SENSE_COMPILED", "1")
    hidden, ids, places, senses = case(256, vocabulary=500)
    narrow = Senses(senses.offsets, senses.rows.bfloat16())
    choose_senses(hidden, ids, places, narrow, "l2")
    with Counter() as counter:
        choose_senses(hidden, ids, places, narrow, "l2")
    assert counter.bytes < narrow.rows.nbytes / 20


def test_a_models_replacement_is_a_few_kernels(teacher, dictionary, texts):
    """Replacing takes more launches than a layer of the student, or computes norms again for each batch."""
    model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1).eval()
    counts = {}
    for few in (4, 24):
        batch = teacher.tokenizer(list(texts[:few]), padding=True, return_tensors="pt")
        for selection in ("none", "hard"):
            model.config.selection = selection
            with torch.inference_mode():
                model(**batch)
                with Counter() as counter:
                    model(**batch)
            counts[few, selection] = counter.kernels
    assert counts[24, "hard"] - counts[24, "none"] == counts[4, "hard"] - counts[4, "none"] <= 15


def test_targets_take_one_pass_and_no_python_a_token(teacher, dictionary, texts, tmp_path, monkeypatch):
    """The teacher or the tokenizer reads a text twice, or Python handles each token."""
    passes, tokenized = [], []
    states, tokenize = type(teacher).hidden_states, type(teacher.tokenizer).__call__
    monkeypatch.setattr(type(teacher), "hidden_states", lambda own, **inputs: passes.append(1) or states(own, **inputs))
    monkeypatch.setattr(
        type(teacher.tokenizer),
        "__call__",
        lambda own, given, *rest, **options: tokenized.extend(given) or tokenize(own, given, *rest, **options),
    )
    calls = []
    for name, factor in (("short", 1), ("long", 8)):
        long = [" ".join([text] * factor) for text in texts[:32]]
        data = Dataset.from_dict({"text": long})
        passes.clear()
        tokenized.clear()
        with python_calls() as count:
            compute_sense_targets(
                data, teacher, dictionary, cache_dir=tmp_path / name, batch_size=8, coded=True, disable_tqdm=True
            )
        assert len(passes) == 4
        assert len(tokenized) == 32
        calls.append(count[0])
    assert calls[1] < 1.3 * calls[0]


def test_a_batch_is_padded_without_python_a_token(teacher, dictionary):
    """The collator converts labels number by number."""
    calls = []
    for length in (8, 400):
        rows = [{"input_ids": [5] * length, "sense_indices": [0] * length} for _ in range(8)]
        with python_calls() as count:
            SenseDataCollator(teacher.tokenizer, offsets=dictionary.offsets)(rows)
        calls.append(count[0])
    assert calls[0] == calls[1] <= 60


def test_embedding_runs_few_padded_tokens(teacher, dictionary, texts, monkeypatch):
    """Long and short texts share batches, so that most of the work is padding."""
    model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1)
    seen = []
    forward = SenseModel.forward

    def counting(own, input_ids, attention_mask, **rest):
        seen.append((input_ids.numel(), int(attention_mask.sum())))
        return forward(own, input_ids, attention_mask, **rest)

    monkeypatch.setattr(SenseModel, "forward", counting)
    mixed = [" ".join([text] * (1 + 9 * (number % 2))) for number, text in enumerate(texts[:32])]
    embed(model, teacher.tokenizer, mixed, batch_size=8, disable_tqdm=True)
    run, real = (sum(part) for part in zip(*seen))
    assert run <= 1.5 * real
