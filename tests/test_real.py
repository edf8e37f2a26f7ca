"""The real teacher on real text: what random weights cannot show."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset

from hf_sense import (
    SenseDistillationConfig,
    SenseDistillationTrainer,
    SenseModelForSequenceClassification,
    build_dictionary,
    load_teacher,
)
from hf_sense.evaluation import evaluate_classifier, fit_linear_head
from hf_sense.temperature import natural_temperature

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from real_data import reuters_r8, teacher_folder

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def stories():
    try:
        teacher = load_teacher(str(teacher_folder(fetch=False)))
        return teacher, *reuters_r8("train", fetch=False)
    except FileNotFoundError as error:
        pytest.skip(str(error))


def test_senses_keep_a_real_teachers_accuracy_and_a_student_learns_them(stories, tmp_path):
    """Replaced vectors no longer tell stories apart, or a student does not come nearer to its teacher's choices."""
    teacher, texts, labels = stories
    train, test = slice(0, 400), slice(400, 600)
    dictionary = build_dictionary(teacher, texts[train], max_length=48)
    assert natural_temperature(dictionary) == pytest.approx(0.48, abs=0.02)  # stands in docs/how-it-works.md
    accuracy = {}
    for selection in ("none", "hard"):
        model = SenseModelForSequenceClassification.from_teacher(
            teacher, dictionary, selection=selection, pooling="frequency"
        )
        fit_linear_head(model, teacher.tokenizer, texts[train], labels[train], max_length=48)
        kept = [n for n in range(test.start, test.stop) if labels[n] in model.config.label2id]
        found = evaluate_classifier(
            model, teacher.tokenizer, [texts[n] for n in kept], [labels[n] for n in kept], max_length=48
        )
        accuracy[selection] = found["accuracy"]
    assert accuracy["none"] > 0.8
    assert accuracy["hard"] > accuracy["none"] - 0.05
    student = SenseModelForSequenceClassification.from_teacher(teacher, dictionary, num_hidden_layers=2)
    config = SenseDistillationConfig(
        str(tmp_path), max_steps=15, learning_rate=1e-3, per_device_train_batch_size=16, max_length=48, save_strategy="no",
        use_cpu=True, target_cache_dir=str(tmp_path / "cache"),
    )  # fmt: skip
    data = Dataset.from_dict({"text": texts[train]})
    trainer = SenseDistillationTrainer(student, config, teacher=teacher, train_dataset=data)
    before = trainer.evaluate(trainer.train_dataset)["eval_agreement"]
    trainer.train()
    assert trainer.evaluate(trainer.train_dataset)["eval_agreement"] > before + 0.1


def test_int8_senses_choose_as_float32_ones_do(stories):
    """One large number in a row makes its scale so coarse that a real teacher's senses are mixed up."""
    teacher, texts, _ = stories
    dictionary = build_dictionary(teacher, texts[:150], max_length=48)
    inputs = teacher.tokenizer(texts[150:200], padding=True, truncation=True, max_length=48, return_tensors="pt")
    arguments = inputs["input_ids"], teacher.hidden_states(**inputs), inputs["attention_mask"]
    plain, small = (kept.lookup(*arguments) for kept in (dictionary, dictionary.to(torch.int8)))
    counted = (dictionary.offsets.diff()[arguments[0]] > 1) & (plain >= 0)
    assert int(counted.sum()) > 1000
    assert float((plain == small)[counted].float().mean()) > 0.985
