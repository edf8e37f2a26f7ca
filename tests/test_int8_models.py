"""Sense models with int8 senses: they answer as float32 senses of the same values, survive casts and files, and learn."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, AutoModelForSequenceClassification

import hf_sense.sense_table
from hf_sense import (
    SenseConfig,
    SenseDictionary,
    SenseDistillationConfig,
    SenseDistillationTrainer,
    SenseModel,
    SenseModelForSequenceClassification,
)


@pytest.fixture(scope="module")
def small(dictionary):
    return dictionary.to(torch.int8)


@pytest.fixture
def batch(teacher, texts):
    return teacher.tokenizer(texts[:6], padding=True, return_tensors="pt")


def same_table(model, small):
    """The model's senses and scales are those of the dictionary, bit for bit."""
    table = model.sense_table
    assert (table.senses.dtype, table.scales.dtype) == (torch.int8, torch.float32)
    assert torch.equal(table.senses, small.senses)
    assert torch.equal(table.scales, small.scales)
    assert model.to_dictionary().fingerprint == small.fingerprint == model.config.dictionary_fingerprint


@pytest.mark.parametrize("metric", ["dot", "cosine", "l2"])
@pytest.mark.parametrize("selection", ["hard", "straight_through", "soft"])
def test_answers_are_those_of_float32_senses_of_the_same_values(teacher, small, batch, selection, metric):
    """The layer forgets a scale, or points past the batch's own rows."""
    options = {"selection": selection, "metric": metric, "selection_temperature": 1.0}
    model, plain = (SenseModel.from_teacher(teacher, d, **options) for d in (small, small.to(torch.float32)))
    same_table(model, small)
    assert plain.sense_table.scales is None
    found, expected = (m(**batch, output_senses=True) for m in (model, plain))
    assert torch.equal(found.sense_ids, expected.sense_ids)
    assert torch.equal(found.sense_scores, expected.sense_scores)
    if selection == "soft":  # sums over the senses may be taken in another order
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)
    else:
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)


def test_gradients_are_those_of_float32_senses_of_the_same_values(teacher, small, batch):
    """Soft selection over the batch's own rows sends its gradient to another token."""
    gradients = []
    for dictionary in (small, small.to(torch.float32)):
        model = SenseModel.from_teacher(teacher, dictionary, selection="soft", num_hidden_layers=1)
        model(**batch).last_hidden_state.square().sum().backward()
        gradients.append(model.get_input_embeddings().weight.grad)
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("compiled", ["0", "1"])
def test_only_the_batchs_own_rows_are_unpacked(teacher, small, batch, monkeypatch, compiled):
    """A forward pass unpacks the whole table."""
    monkeypatch.setenv("HF_SENSE_COMPILED", compiled)
    model = SenseModel.from_teacher(teacher, small)
    unpacked = []
    plain = hf_sense.senses.dequantize
    for module in (hf_sense.senses, hf_sense.fused):
        monkeypatch.setattr(module, "dequantize", lambda *parts: unpacked.append(len(parts[0])) or plain(*parts))
    model(**batch)
    tokens = batch["input_ids"][batch["attention_mask"].bool()].unique()
    own = int((small.offsets[tokens + 1] - small.offsets[tokens]).sum())
    assert own < small.num_senses
    # The compiled kernels unpack as they go.
    assert unpacked == ([] if compiled == "1" else [own])


@pytest.mark.parametrize("cast", ["bfloat16", "half", "double", "float", "deepcopy"])
def test_casts_leave_the_table_alone(teacher, small, batch, cast):
    """A cast to half precision rounds the scales, so that a student's senses are no longer its teacher's."""
    model = SenseModelForSequenceClassification.from_teacher(teacher, small, num_labels=3, num_hidden_layers=1)
    model = copy.deepcopy(model) if cast == "deepcopy" else getattr(model, cast)()
    same_table(model, small)
    same_table(model.to("cpu"), small)
    output = model.model(**batch, output_senses=True)
    assert output.last_hidden_state.dtype == model.dtype
    chosen = output.sense_ids[output.sense_ids >= 0]
    replaced = output.last_hidden_state[output.sense_ids >= 0]
    assert torch.equal(replaced, small.rows(chosen).to(model.dtype))
    # It is float32 senses among which even a narrow hidden state chooses.
    mask, states = batch["attention_mask"], output.contextual_hidden_state.float()
    assert torch.equal(small.lookup(batch["input_ids"], states, mask), output.sense_ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device_map", [None, "auto"])
def test_round_trip_through_the_auto_classes(teacher, small, batch, tmp_path, dtype, device_map):
    """A saved student comes back with rounded scales, with senses cast to floats, or not at all."""
    student = SenseModelForSequenceClassification.from_teacher(teacher, small, num_labels=3, pooling="frequency")
    student = student.to(dtype)
    student.save_pretrained(tmp_path, max_shard_size="20KB")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, device_map=device_map)
    assert (loaded.dtype, loaded.config.sense_dtype) == (dtype, "int8")
    same_table(loaded, small)
    assert torch.equal(loaded(**batch).logits, student(**batch).logits)
    for other in (torch.float16, torch.bfloat16, torch.float32):
        same_table(AutoModel.from_pretrained(tmp_path, dtype=other), small)


def test_resized_embeddings_cut_the_scales_too(teacher, small, batch):
    """Senses of tokens that were cut off leave their scales behind."""
    model = SenseModel.from_teacher(teacher, small)
    expected = model(**batch).last_hidden_state
    old = model.config.vocab_size
    model.resize_token_embeddings(old + 3)
    assert torch.equal(model(**batch).last_hidden_state, expected)
    size = int((small.offsets < small.num_senses // 2).sum())
    kept = int(small.offsets[size])
    assert 0 < kept < small.num_senses
    model.resize_token_embeddings(size)
    assert torch.equal(model.sense_table.scales, small.scales[:kept])
    assert torch.equal(model.to_dictionary().rows(torch.arange(kept)), small.rows(torch.arange(kept)))


def test_the_configuration_decides_how_senses_are_kept(teacher, dictionary, small):
    """A student is made int8 with the float32 dictionary's fingerprint, or integers are cast to floats without scales."""
    made = SenseModel.from_teacher(teacher, dictionary, sense_dtype="int8")
    same_table(made, small)
    plain = SenseModel.from_teacher(teacher, small, sense_dtype=None)
    assert torch.equal(plain.sense_table.senses, small.to(torch.float32).senses)
    assert plain.config.dictionary_fingerprint == plain.to_dictionary().fingerprint
    assert "table.scales" not in plain.state_dict()
    assert "table.scales" in made.state_dict()
    with pytest.raises(ValueError, match='sense_dtype should be "int8" or None'):
        SenseConfig(sense_dtype="int4")
    with pytest.raises(ValueError, match="a dictionary outside keeps its own"):
        SenseModel.from_teacher(teacher, small, sense_dtype="int8", dictionary_path="senses")


def test_int8_outside_the_model(teacher, small, batch, tmp_path):
    """A model cannot open an int8 dictionary that lies outside, or picks otherwise than with its senses inside."""
    small.save_pretrained(tmp_path / "senses", max_shard_size=500)
    opened = SenseDictionary.from_pretrained(tmp_path / "senses")
    SenseModel.from_teacher(teacher, opened, dictionary_path=str(tmp_path / "senses")).save_pretrained(tmp_path / "m")
    loaded = AutoModel.from_pretrained(tmp_path / "m")
    assert loaded.sense_table.senses.numel() == 0
    expected = SenseModel.from_teacher(teacher, small)(**batch)
    assert torch.equal(loaded(**batch).last_hidden_state, expected.last_hidden_state)


def test_a_token_without_senses_keeps_its_hidden_state(teacher, small, batch):
    """A table without rows crashes."""
    empty = SenseDictionary(
        torch.zeros(0, small.dim), torch.zeros_like(small.offsets), tokenizer_fingerprint=small.tokenizer_fingerprint
    ).to(torch.int8)
    for selection in ("hard", "soft"):
        model = SenseModel.from_teacher(teacher, empty, selection=selection)
        kept = batch["attention_mask"].bool()
        torch.testing.assert_close(model(**batch).last_hidden_state[kept], teacher.hidden_states(**batch)[kept])


@pytest.mark.parametrize("losses", [{}, {"soft_weight": 1.0, "live_teacher": True}], ids=["stored", "live"])
def test_training_is_that_of_float32_senses_of_the_same_values(teacher, small, texts, tmp_path, losses):
    """Targets or losses belong to rows of another number, or are those of the dictionary before rounding."""
    data = Dataset.from_dict({"text": texts[:32]})
    histories = []
    for dictionary in (small, small.to(torch.float32)):
        student = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1)
        for module in student.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        args = SenseDistillationConfig(
            str(tmp_path / "out"), per_device_train_batch_size=8, max_steps=4, learning_rate=1e-2, report_to="none", seed=1,
            save_strategy="no", logging_steps=1, disable_tqdm=True, use_cpu=True, target_cache_dir=str(tmp_path), **losses,
        )  # fmt: skip
        trainer = SenseDistillationTrainer(student, args, teacher=teacher, train_dataset=data)
        trainer.train()
        histories.append([(log["loss"], log["agreement"]) for log in trainer.state.log_history if "loss" in log])
    assert len(histories[0]) == 4
    assert histories[0][-1][0] < histories[0][0][0]
    for found, expected in zip(*histories):
        assert found == pytest.approx(expected, abs=1e-3)
