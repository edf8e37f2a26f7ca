"""Pipelines, PEFT and ``Trainer`` on saved sense models, as their users call them."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_sense import (
    SenseDistillationConfig,
    SenseDistillationTrainer,
    SenseModel,
    SenseModelForSequenceClassification,
    build_dictionary,
    load_teacher,
)
from hf_sense.evaluation import fit_linear_head

LORA = {"target_modules": ["query", "value"], "r": 4, "lora_alpha": 32, "lora_dropout": 0.0}


def label_of(text):
    return "water" if "river" in text or "rain" in text else "dry"


def saved(model, tokenizer, folder):
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def student(teacher, dictionary, texts, tmp_path_factory):
    """The folder of a student with a fitted classifier."""
    model = SenseModelForSequenceClassification.from_teacher(
        teacher, dictionary, num_hidden_layers=2, pooling="frequency"
    )
    fit_linear_head(model, teacher.tokenizer, texts, [label_of(text) for text in texts], disable_tqdm=True)
    return saved(model, teacher.tokenizer, tmp_path_factory.mktemp("student"))


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("side", ["left", "right"])
def test_text_classification_from_a_folder(student, teacher, texts, batch_size, side):
    """A pipeline of a saved student does not batch, forgets the labels' names, or padding changes its scores."""
    classify = pipeline("text-classification", model=student)
    classify.tokenizer.padding_side = side
    answers = classify(texts[:9], batch_size=batch_size, top_k=None)
    model = AutoModelForSequenceClassification.from_pretrained(student)
    for text, answer in zip(texts, answers):
        with torch.no_grad():
            expected = model(**teacher.tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0]
        assert {one["label"] for one in answer} == {"dry", "water"}
        for one in answer:
            assert one["score"] == pytest.approx(float(expected[model.config.label2id[one["label"]]]), abs=1e-5)
    (pair,) = classify([{"text": texts[0], "text_pair": texts[1]}])
    with torch.no_grad():
        expected = model(**teacher.tokenizer(texts[0], texts[1], return_tensors="pt")).logits.softmax(-1)
    assert pair["score"] == pytest.approx(float(expected.max()), abs=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_feature_extraction_from_a_folder(student, teacher, texts, batch_size):
    """The first output of a pipeline is not the replaced hidden state, or another text's padding is in it."""
    extract = pipeline("feature-extraction", model=student)
    assert isinstance(extract.model, SenseModel)
    found = extract(texts[:6], batch_size=batch_size, return_tensors=True)
    model = AutoModel.from_pretrained(student)
    for text, states in zip(texts, found):
        batch = teacher.tokenizer(text, return_tensors="pt")
        with torch.no_grad():
            expected = model(**batch).last_hidden_state
        length = expected.shape[1]
        torch.testing.assert_close(states[:, :length], expected, atol=1e-5, rtol=1e-4)
    assert len(extract(texts[0])[0][0]) == model.config.sense_dim


def lora_of(model, task):
    torch.manual_seed(0)
    return get_peft_model(model, LoraConfig(task_type=task, init_lora_weights="gaussian", **LORA))


def check_adapter(model, student_folder, kind, batch, folder):
    """The adapter loaded onto the base again, merged, and saved merged all answer as ``model`` does."""
    model.eval()
    model.save_pretrained(folder / "adapter")
    base = kind.from_pretrained(student_folder)

    def answer(one):
        with torch.no_grad():
            return one(**batch)[0]

    assert not torch.allclose(answer(base), answer(model), atol=1e-3)
    again = PeftModel.from_pretrained(base, folder / "adapter").eval()
    torch.testing.assert_close(answer(again), answer(model), atol=1e-5, rtol=1e-5)
    merged = again.merge_and_unload()
    assert type(merged) is type(model.get_base_model())
    torch.testing.assert_close(answer(merged), answer(model), atol=1e-5, rtol=1e-5)
    merged.save_pretrained(folder / "merged")
    loaded = kind.from_pretrained(folder / "merged")
    torch.testing.assert_close(answer(loaded), answer(merged), atol=0, rtol=0)
    assert loaded.to_dictionary().fingerprint == model.get_base_model().to_dictionary().fingerprint


def arguments(folder, kind=TrainingArguments, **options):
    defaults = {
        "max_steps": 12, "per_device_train_batch_size": 16, "learning_rate": 5e-2, "report_to": [], "save_strategy": "no",
        "disable_tqdm": True, "use_cpu": True, "logging_steps": 1, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return kind(str(folder / "out"), **{**defaults, **options})


def labelled(teacher, texts, label2id):
    encoded = teacher.tokenizer(texts)
    return Dataset.from_dict({**encoded, "labels": [label2id[label_of(text)] for text in texts]})


def losses(trainer):
    return [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]


def test_lora_distilled_saved_and_merged(teacher, dictionary, texts, tmp_path):
    """A distilled adapter cannot be loaded onto its base, or merging changes what it says."""
    plain = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1, selection="none")
    folder = saved(plain, teacher.tokenizer, tmp_path / "base")
    model = lora_of(AutoModel.from_pretrained(folder), TaskType.FEATURE_EXTRACTION)
    args = arguments(tmp_path, SenseDistillationConfig, target_cache_dir=str(tmp_path / "targets"))
    data = Dataset.from_dict({"text": texts})
    trainer = SenseDistillationTrainer(model, args, teacher=teacher, train_dataset=data)
    trainer.train()
    assert losses(trainer)[-1] < losses(trainer)[0]
    batch = teacher.tokenizer(texts[:6], padding=True, return_tensors="pt")
    check_adapter(model, folder, AutoModel, batch, tmp_path)


def test_lora_fine_tuned_saved_and_merged(student, teacher, texts, tmp_path):
    """A fine-tuned adapter forgets its classifier, cannot be loaded, or merging changes what it says."""
    base = AutoModelForSequenceClassification.from_pretrained(student, selection="straight_through")
    model = lora_of(base, TaskType.SEQ_CLS)
    data = labelled(teacher, texts, base.config.label2id)
    torch.nn.init.zeros_(base.classifier.weight)  # fitted, it has nothing left to learn
    args = arguments(tmp_path, learning_rate=3e-3, max_steps=24)
    trainer = Trainer(
        model, args, train_dataset=data, eval_dataset=data, data_collator=DataCollatorWithPadding(teacher.tokenizer)
    )
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < first
    batch = teacher.tokenizer(texts[:6], padding=True, return_tensors="pt")
    check_adapter(model, student, AutoModelForSequenceClassification, batch, tmp_path)


@pytest.mark.parametrize("selection", ["hard", "straight_through", "soft", "none"])
def test_trainer_moves_what_the_selection_lets_it(student, teacher, texts, tmp_path, selection):
    """Fine-tuning leaves a backbone as it was, trains one that gets no gradient, or loses what it learned when saved."""
    model = AutoModelForSequenceClassification.from_pretrained(student, selection=selection)
    torch.nn.init.zeros_(model.classifier.weight)  # fitted, it has nothing left to learn
    data = labelled(teacher, texts, model.config.label2id)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    table = model.sense_table.senses.clone()
    args = arguments(tmp_path, learning_rate=3e-3, max_steps=24)
    trainer = Trainer(
        model, args, train_dataset=data, eval_dataset=data, data_collator=DataCollatorWithPadding(teacher.tokenizer)
    )
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    last = trainer.evaluate()["eval_loss"]
    assert last < first
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    backbone = {name for name in before if ".backbone." in name}
    assert "classifier.weight" in moved
    if selection == "hard":
        assert not moved & backbone
    else:
        assert len(moved & backbone) > 0.9 * len(backbone)
    assert torch.equal(model.sense_table.senses, table)
    trainer.save_model(str(tmp_path / "tuned"))
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "tuned")
    assert loaded.config.selection == selection
    batch = teacher.tokenizer(texts[:4], padding=True, return_tensors="pt")
    assert torch.equal(loaded.eval()(**batch).logits, model.eval()(**batch).logits)


def test_snippets_of_the_docs_run(student, tmp_path, monkeypatch):
    """Somebody copies a snippet from docs/neighbours.md and it fails."""
    page = (Path(__file__).parent.parent / "docs" / "neighbours.md").read_text(encoding="utf-8")
    snippets = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(snippets) == 4
    shutil.copytree(student, tmp_path / "student")
    monkeypatch.chdir(tmp_path)
    names = {}
    for snippet in snippets:
        exec(compile(snippet, "docs/neighbours.md", "exec"), names)
    assert names["states"].shape[-1] == names["model"].config.sense_dim
    assert (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size < 20_000
    assert names["logits"].shape == (1, 2)


@pytest.mark.real
def test_pipelines_of_a_real_student(texts, tmp_path):
    """What random weights cannot show: a student of a real encoder answers its pipeline with meanings."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from real_data import teacher_folder

    try:
        teacher = load_teacher(str(teacher_folder(fetch=False)))
    except FileNotFoundError as error:
        pytest.skip(str(error))
    senses = build_dictionary(teacher, texts, max_senses=3, disable_tqdm=True)
    model = SenseModelForSequenceClassification.from_teacher(teacher, senses, num_hidden_layers=2, pooling="frequency")
    fit_linear_head(model, teacher.tokenizer, texts[:40], [label_of(text) for text in texts[:40]], disable_tqdm=True)
    folder = saved(model, teacher.tokenizer, tmp_path)
    answers = pipeline("text-classification", model=folder)(texts[40:], batch_size=8)
    right = [answer["label"] == label_of(text) for text, answer in zip(texts[40:], answers)]
    assert sum(right) / len(right) > 0.85
    states = pipeline("feature-extraction", model=folder)(texts[:3], batch_size=3, return_tensors=True)
    assert states[0].shape[-1] == 384
