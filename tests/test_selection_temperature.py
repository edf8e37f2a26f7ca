"""The temperature of soft selection: that it is the best there is, is kept, and is refused where it says nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset

from hf_sense import (
    SenseDistillationConfig,
    SenseDistillationTrainer,
    SenseModel,
    build_dictionary,
    compute_sense_targets,
)
from hf_sense.selection_temperature import TemperatureGrid, fit_temperature


@pytest.fixture
def student(teacher, dictionary):
    return SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1, selection="soft").eval()


@torch.no_grad()
def losses_of(student, teacher, texts, temperature):
    """Both criteria by a plain loop over tokens."""
    table, lost = student.sense_table, {"states": [], "choices": []}
    bounds = table.offsets.tolist()
    for text in texts:
        inputs = teacher.tokenizer(text, return_tensors="pt")
        states = student(**inputs, output_contextual=True).contextual_hidden_state[0]
        for token, own, goal in zip(inputs["input_ids"][0].tolist(), states, teacher.hidden_states(**inputs)[0]):
            rows = table.senses[bounds[token] : bounds[token + 1]]
            if len(rows) < 2:
                continue
            halves = rows.square().sum(1) / 2
            logits = (rows @ own - halves) / temperature
            lost["states"].append((logits.softmax(0) @ rows - goal).square().mean())
            lost["choices"].append(-logits.log_softmax(0)[(rows @ goal - halves).argmax()])
    return {name: float(torch.stack(values).mean()) for name, values in lost.items()}


@pytest.mark.parametrize("criterion", ["states", "choices"])
def test_no_other_temperature_is_better(student, teacher, texts, criterion):
    """The search ends at a temperature that its own criterion, computed by hand, likes less than another."""
    held_out = texts[40:]
    found = fit_temperature(student, teacher, held_out, criterion=criterion, disable_tqdm=True)
    assert student.config.selection_temperature == found
    best = losses_of(student, teacher, held_out, found)[criterion]
    for factor in (0.5, 0.8, 1.25, 2.0):
        assert best <= losses_of(student, teacher, held_out, found * factor)[criterion] + 1e-5


def test_batches_change_nothing(student, teacher, texts):
    """The temperature depends on how texts are cut into batches, or on padding."""
    alone = copy.deepcopy(student)
    found = fit_temperature(student, teacher, texts[40:], disable_tqdm=True)
    assert fit_temperature(alone, teacher, texts[40:], batch_size=1, disable_tqdm=True) == pytest.approx(
        found, rel=1e-3
    )


def test_it_is_saved_and_used(student, teacher, texts, tmp_path):
    """A fitted student answers with the old temperature after it is loaded."""
    before = student.config.selection_temperature
    found = fit_temperature(student, teacher, texts[40:], disable_tqdm=True)
    assert found != before
    student.save_pretrained(tmp_path)
    loaded = SenseModel.from_pretrained(tmp_path).eval()
    batch = teacher.tokenizer(texts[:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        own, other = student(**batch).last_hidden_state, loaded(**batch).last_hidden_state
        student.config.selection_temperature = before
        unfitted = student(**batch).last_hidden_state
    assert torch.equal(own, other)
    assert not torch.allclose(own, unfitted, atol=1e-4)


def test_a_search_that_ends_at_an_end_says_so(student, teacher, texts, caplog):
    """A start that is far off gives a poor temperature in silence, and a second fit does not go on from there."""
    good = fit_temperature(copy.deepcopy(student), teacher, texts[40:], disable_tqdm=True)
    student.config.selection_temperature = good * 200
    fit_temperature(student, teacher, texts[40:], disable_tqdm=True)
    assert "at an end" in caplog.text
    assert fit_temperature(student, teacher, texts[40:], disable_tqdm=True) == pytest.approx(good, rel=0.05)


def test_what_cannot_be_fitted(student, teacher, texts, dictionary):
    """Nothing to weigh ends in a temperature of chance, or a misspelt criterion is taken for the default."""
    with pytest.raises(ValueError, match="criterion must be one of states, choices"):
        fit_temperature(student, teacher, texts, criterion="state", disable_tqdm=True)
    one = build_dictionary(teacher, texts, max_senses=1, disable_tqdm=True)
    bare = SenseModel.from_teacher(teacher, one, num_hidden_layers=1)
    with pytest.raises(ValueError, match="two senses or more"):
        fit_temperature(bare, teacher, texts, disable_tqdm=True)
    with pytest.raises(ValueError, match="hidden states are needed"):
        TemperatureGrid(student).add(teacher.tokenizer(texts[:2], padding=True, return_tensors="pt"), None, "states")


@pytest.mark.parametrize("with_teacher", [True, False])
def test_the_trainer_fits_it(student, teacher, dictionary, texts, tmp_path, with_teacher):
    """The trainer fits on other tokens or targets than the function, or wants a teacher where stored choices would do."""
    held_out = Dataset.from_dict({"text": texts[40:]})
    train = compute_sense_targets(
        Dataset.from_dict({"text": texts[:32]}), teacher, dictionary, cache_dir=tmp_path, disable_tqdm=True
    )
    stored = compute_sense_targets(held_out, teacher, dictionary, cache_dir=tmp_path, disable_tqdm=True)
    args = SenseDistillationConfig(
        str(tmp_path / "out"), max_steps=2, per_device_train_batch_size=8, report_to="none", save_strategy="no",
        disable_tqdm=True, use_cpu=True, fit_temperature=True,
    )  # fmt: skip
    trainer = SenseDistillationTrainer(
        student, args, teacher=teacher if with_teacher else None, train_dataset=train,
        eval_dataset={"one": stored.select(range(7)), "two": stored.select(range(7, len(stored)))},
        processing_class=teacher.tokenizer,
    )  # fmt: skip
    start = student.config.selection_temperature
    trainer.train()
    found = student.config.selection_temperature
    student.config.selection_temperature = start
    criterion = "states" if with_teacher else "choices"
    assert found == pytest.approx(
        fit_temperature(student, teacher, texts[40:], criterion=criterion, disable_tqdm=True), rel=1e-3
    )


def test_the_trainer_wants_held_out_text(student, teacher, texts, tmp_path):
    """A temperature is fitted on training texts, where the student is surer than it should be."""
    args = SenseDistillationConfig(str(tmp_path), fit_temperature=True, use_cpu=True)
    with pytest.raises(ValueError, match="pass eval_dataset"):
        SenseDistillationTrainer(student, args, teacher=teacher, train_dataset=Dataset.from_dict({"text": texts}))
