"""Targets, losses and the distillation trainer: what must not change the update, and what must be refused."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict

from hf_sense import (
    SenseDictionary,
    SenseDistillationConfig,
    SenseDistillationTrainer,
    SenseModel,
    SenseModelForSequenceClassification,
    compute_sense_targets,
)
from hf_sense.losses import cosine_loss, hard_sense_loss, soft_sense_loss, squared_error_loss
from hf_sense.ragged import RaggedIndex, sense_scores
from hf_sense.temperature import natural_temperature


@pytest.fixture
def student(teacher, dictionary):
    model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.fixture(scope="module")
def data(texts):
    return Dataset.from_dict({"text": list(texts[:32]), "label": [i % 2 for i in range(32)]})


def config(folder, **options):
    defaults = {
        "per_device_train_batch_size": 8, "max_steps": 3, "learning_rate": 1e-2, "report_to": "none", "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "target_cache_dir": str(folder / "cache"), "seed": 1,
        "max_grad_norm": 0.0, "optim": "sgd", "lr_scheduler_type": "constant",
    }  # fmt: skip
    return SenseDistillationConfig(str(folder / "out"), **{**defaults, **options})


def weights(model):
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def test_targets_are_what_the_teacher_picks(teacher, dictionary, data, tmp_path):
    """Stored labels sit at another token than the one they were computed for."""
    targets = compute_sense_targets(data, teacher, dictionary, cache_dir=tmp_path, batch_size=5, disable_tqdm=True)
    assert targets.column_names[:2] == ["text", "label"]
    assert str(targets.features["sense_labels"].feature.dtype) == "int32"
    for row in targets.select(range(8)):
        ids = torch.tensor([row["input_ids"]])
        assert row["input_ids"] == teacher.tokenizer(row["text"])["input_ids"]
        states = teacher.hidden_states(ids, torch.ones_like(ids))
        assert dictionary.lookup(ids, states)[0].tolist() == row["sense_labels"]


def test_targets_are_found_again(teacher, dictionary, data, tmp_path, monkeypatch):
    """A second run calls the teacher again; another dictionary or metric finds the first one's targets."""
    first = compute_sense_targets(data, teacher, dictionary, cache_dir=tmp_path, disable_tqdm=True)
    files = set(tmp_path.glob("*.arrow"))
    monkeypatch.setattr(type(teacher), "hidden_states", lambda *a, **k: pytest.fail("the teacher was called"))
    again = compute_sense_targets(
        data.remove_columns("label"), teacher, dictionary, cache_dir=tmp_path, disable_tqdm=True
    )
    assert again["sense_labels"] == first["sense_labels"]
    monkeypatch.undo()
    other = SenseDictionary(
        dictionary.senses, dictionary.offsets, metric="dot", tokenizer_fingerprint=dictionary.tokenizer_fingerprint
    )
    compute_sense_targets(data, teacher, other, cache_dir=tmp_path, disable_tqdm=True)
    assert len(set(tmp_path.glob("*.arrow")) - files) == len(files)
    assert not list(tmp_path.glob("*.tmp"))


@pytest.mark.parametrize("accumulation", [2, 4, 8])
def test_accumulation_gives_the_full_batch_update(teacher, data, student, tmp_path, accumulation):
    """Micro-batches of unlike length weigh alike, so that the update depends on how a step is cut."""
    results = []
    for size, steps in ((16, 1), (16 // accumulation, accumulation)):
        model = copy.deepcopy(student)
        args = config(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        trainer = SenseDistillationTrainer(model, args, teacher=teacher, train_dataset=data)
        trainer.train()
        results.append((weights(model), [log["loss"] for log in trainer.state.log_history if "loss" in log]))
    assert not torch.allclose(results[0][0], weights(student), atol=1e-4)
    torch.testing.assert_close(results[1][0], results[0][0], atol=1e-5, rtol=1e-4)
    assert results[1][1] == pytest.approx(results[0][1], abs=1e-4)


def test_cached_targets_equal_a_live_teacher(teacher, data, student, tmp_path):
    """Targets computed once train another student than a teacher in the loop."""
    losses = []
    for live in (False, True):
        trainer = SenseDistillationTrainer(
            copy.deepcopy(student),
            config(tmp_path, live_teacher=live),
            teacher=teacher,
            train_dataset=data,
            eval_dataset=data,
        )
        trainer.train()
        figures = trainer.evaluate()
        history = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        losses.append([*history, figures["eval_loss"], figures["eval_agreement"]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_a_live_teacher_overrules_stored_targets(teacher, dictionary, data, student, tmp_path):
    """The teacher runs at every step, and the loss is still that of old labels."""
    stored = compute_sense_targets(data, teacher, dictionary, cache_dir=tmp_path / "cache", disable_tqdm=True)
    first = dictionary.offsets.tolist()
    wrong = stored.map(lambda row: {"sense_labels": [first[token] for token in row["input_ids"]]})
    losses = [
        SenseDistillationTrainer(
            student, config(tmp_path, live_teacher=live), teacher=teacher, eval_dataset=columns
        ).evaluate()["eval_loss"]
        for live, columns in ((False, stored), (True, wrong), (False, wrong))
    ]
    assert losses[1] == pytest.approx(losses[0], abs=1e-4)
    assert abs(losses[2] - losses[0]) > 1e-2


def test_evaluation_is_weighted_by_token(teacher, dictionary, data, student, tmp_path):
    """Loss and agreement depend on the batch size, as means of means do."""
    figures = [
        SenseDistillationTrainer(
            student, config(tmp_path, per_device_eval_batch_size=size), teacher=teacher, eval_dataset=data
        ).evaluate()
        for size in (1, 32)
    ]
    for name in ("eval_loss", "eval_agreement"):
        assert figures[0][name] == pytest.approx(figures[1][name], abs=1e-5)
    targets = compute_sense_targets(data, teacher, dictionary, cache_dir=tmp_path / "cache", disable_tqdm=True)
    agreed = total = 0
    for row in targets:
        ids = torch.tensor([row["input_ids"]])
        labels = torch.tensor(row["sense_labels"])
        chosen = student(ids, output_senses=True).sense_ids[0]
        agreed, total = agreed + int(((chosen == labels) & (labels >= 0)).sum()), total + int((labels >= 0).sum())
    assert figures[0]["eval_agreement"] == pytest.approx(agreed / total, abs=1e-6)


def test_full_student_agrees_with_its_teacher(teacher, dictionary, data, tmp_path):
    """The student is compared with shifted or foreign labels."""
    model = SenseModel.from_teacher(teacher, dictionary)
    figures = SenseDistillationTrainer(model, config(tmp_path), teacher=teacher, eval_dataset={"a": data}).evaluate()
    assert figures["eval_a_agreement"] == 1.0


@pytest.mark.parametrize("options", [{"soft_weight": 1.0}, {"mse_weight": 1.0}, {"cosine_weight": 1.0}, {}])
def test_each_loss_falls(teacher, data, student, tmp_path, options):
    """A loss whose gradient does not reach the student."""
    options = {"sense_weight": float(not options), **options, "optim": "adamw_torch", "max_steps": 12}
    trainer = SenseDistillationTrainer(student, config(tmp_path, **options), teacher=teacher, train_dataset=data)
    trainer.train()
    history = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    assert sum(history[-4:]) < 0.9 * sum(history[:4])


def test_losses_by_hand():
    """A formula is wrong in sign, factor or reduction."""
    hidden, senses = torch.randn(2, 3), torch.randn(5, 3)
    index = RaggedIndex.of(torch.tensor([0, 1]), torch.tensor([0, 2, 5]))
    scores = sense_scores(hidden, index, senses, "l2")
    teacher_scores = torch.randn(5)
    hard = hard_sense_loss(scores, index, torch.tensor([1, -100]), temperature=2.0)
    expected = -torch.log_softmax(scores[:2] / 2, 0)[1]
    torch.testing.assert_close(hard, torch.stack([expected, torch.tensor(0.0)]))
    soft = soft_sense_loss(scores, teacher_scores, index, temperature=2.0)
    for row, part in enumerate((slice(0, 2), slice(2, 5))):
        p, q = torch.softmax(teacher_scores[part] / 2, 0), torch.softmax(scores[part] / 2, 0)
        torch.testing.assert_close(soft[row], 4 * (p * (p / q).log()).sum())
    other = torch.randn(2, 3)
    torch.testing.assert_close(squared_error_loss(hidden, other), ((hidden - other) ** 2).mean(-1))
    torch.testing.assert_close(
        cosine_loss(hidden, other), 1 - (hidden * other).sum(-1) / hidden.norm(dim=-1) / other.norm(dim=-1)
    )


def test_resumed_training_equals_undisturbed(teacher, data, student, tmp_path):
    """A checkpoint loses the optimizer, the order of the data or the senses."""
    whole = copy.deepcopy(student)
    options = {"optim": "adamw_torch", "save_strategy": "steps", "save_steps": 3, "max_steps": 6}
    SenseDistillationTrainer(whole, config(tmp_path / "a", **options), teacher=teacher, train_dataset=data).train()
    begun = copy.deepcopy(student)
    stopped = config(tmp_path / "b", **options)
    SenseDistillationTrainer(begun, stopped, teacher=teacher, train_dataset=data).train()
    checkpoint = tmp_path / "b" / "out" / "checkpoint-3"
    fresh = copy.deepcopy(student)
    SenseDistillationTrainer(fresh, stopped, teacher=teacher, train_dataset=data).train(
        resume_from_checkpoint=str(checkpoint)
    )
    torch.testing.assert_close(weights(fresh), weights(whole), atol=1e-6, rtol=1e-5)


def test_without_a_teacher_targets_are_enough(teacher, dictionary, data, student, tmp_path):
    """The teacher is needed although its senses are there; or it is not, and the message does not say so."""
    targets = compute_sense_targets(data, teacher, dictionary, cache_dir=tmp_path, disable_tqdm=True)
    SenseDistillationTrainer(
        student, config(tmp_path), train_dataset=targets, processing_class=teacher.tokenizer
    ).train()
    with pytest.raises(ValueError, match="no sense_labels"):
        SenseDistillationTrainer(student, config(tmp_path), train_dataset=data, processing_class=teacher.tokenizer)
    with pytest.raises(ValueError, match="pass teacher"):
        SenseDistillationTrainer(
            student, config(tmp_path, mse_weight=1.0), train_dataset=targets, processing_class=teacher.tokenizer
        )


def test_mismatches_are_refused(teacher, dictionary, data, student, tmp_path):
    """Sense ids of one vocabulary are learned on another's tokens."""
    alien = copy.deepcopy(student)
    alien.config.tokenizer_fingerprint = "0" * 64
    with pytest.raises(
        ValueError, match=r"teacher [0-9a-f]{64}, dictionary 0{64}, student \(processing_class\) [0-9a-f]{64}"
    ):
        SenseDistillationTrainer(alien, config(tmp_path), teacher=teacher, train_dataset=data)
    with pytest.raises(ValueError, match="SenseModel"):
        SenseDistillationTrainer(teacher.model, config(tmp_path), teacher=teacher, train_dataset=data)
    with pytest.raises(ValueError, match="Choose a split"):
        compute_sense_targets(DatasetDict(train=data), teacher, dictionary)
    with pytest.raises(ValueError, match="no column 'body'"):
        compute_sense_targets(data, teacher, dictionary, text_column="body")
    rows = [{"input_ids": [5, 6], "attention_mask": [1, 1], "sense_labels": [dictionary.num_senses - 1, 0]}]
    wrong = SenseDistillationTrainer(
        student, config(tmp_path), train_dataset=Dataset.from_list(rows * 8), processing_class=teacher.tokenizer
    )
    with pytest.raises(ValueError, match="not senses of their token"):
        wrong.train()
    for options in ({"sense_weight": 0.0}, {"mse_weight": -1.0}, {"temperature": 0.0}):
        with pytest.raises(ValueError, match=r"should"):
            config(tmp_path, **options)


def test_student_with_its_dictionary_outside_learns_the_same(teacher, dictionary, data, tmp_path):
    """Targets are global ids, and the senses of a batch from outside are numbered anew: the two are mixed up."""
    dictionary.save_pretrained(tmp_path / "senses", max_shard_size=2000)
    opened = SenseDictionary.from_pretrained(tmp_path / "senses")
    results = []
    for senses, path in ((dictionary, None), (opened, str(tmp_path / "senses"))):
        model = SenseModel.from_teacher(teacher, senses, num_hidden_layers=1, dictionary_path=path)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        trainer = SenseDistillationTrainer(model, config(tmp_path), teacher=teacher, train_dataset=data)
        trainer.train()
        results.append(weights(model.backbone))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)


def test_a_live_teacher_needs_the_column_too(teacher, data, student, tmp_path):
    """A missing column ends in a KeyError of another package."""
    with pytest.raises(ValueError, match="no column 'body'; it has 'text', 'label'"):
        SenseDistillationTrainer(
            student, config(tmp_path, live_teacher=True, text_column="body"), teacher=teacher, train_dataset=data
        )


def test_lora_student_learns(teacher, dictionary, data, tmp_path):
    """A student wrapped by PEFT is not recognised, or its adapters get no gradient."""
    from peft import LoraConfig, get_peft_model

    model = SenseModelForSequenceClassification.from_teacher(teacher, dictionary, num_hidden_layers=1)
    wrapped = get_peft_model(model, LoraConfig(target_modules=["query", "value"], r=2))
    trainer = SenseDistillationTrainer(
        wrapped, config(tmp_path, max_steps=2), teacher=teacher, train_dataset=data, processing_class=teacher.tokenizer
    )
    trainer.train()
    assert any(p.abs().sum() > 0 for name, p in wrapped.named_parameters() if "lora_B" in name)


def test_two_processes_give_the_same_update_and_dictionary(tiny_teacher_folder, texts, tmp_path):
    """Each process takes its own mean, so that two of them train another student than one; or they build another table."""
    script = Path(__file__).with_name("distill_on_ranks.py")
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    results = []
    for ranks in (1, 2):
        output = tmp_path / f"{ranks}.pt"
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
        command += [str(script), str(tiny_teacher_folder), str(tmp_path / "texts.txt"), str(output), str(16 // ranks)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(torch.load(output, weights_only=True))
    assert torch.equal(results[0]["senses"], results[1]["senses"])
    torch.testing.assert_close(results[1]["weights"], results[0]["weights"], atol=1e-5, rtol=1e-4)
    assert results[1]["agreement"] == pytest.approx(results[0]["agreement"], abs=1e-6)


def test_temperature_comes_from_the_table_unless_it_is_given(teacher, dictionary, data, tmp_path):
    """Scores of a teacher with long states are all but 0 and 1 in the loss, or a temperature that is given is not used."""
    expected = natural_temperature(dictionary)
    assert abs(expected - 1) > 0.1  # else the test says nothing
    student = SenseModelForSequenceClassification.from_teacher(teacher, dictionary, num_hidden_layers=1)
    assert student.config.selection_temperature == pytest.approx(expected)
    losses = {}
    for given in (None, expected, 5 * expected):
        trainer = SenseDistillationTrainer(
            student, config(tmp_path, temperature=given), teacher=teacher, eval_dataset=data
        )
        losses[given] = trainer.evaluate()["eval_loss"]
    assert losses[None] == pytest.approx(losses[expected])
    assert abs(losses[None] - losses[5 * expected]) > 0.01
    model = SenseModelForSequenceClassification.from_teacher(teacher, dictionary, selection_temperature=3.0)
    assert model.config.selection_temperature == 3.0


def test_a_headless_student_is_not_trained_towards_a_classifiers_folder(
    teacher, dictionary, data, student, tmp_path, monkeypatch
):
    """The refusal to save over a classifier comes at the end of the training."""
    classifier = SenseModelForSequenceClassification.from_teacher(teacher, dictionary, num_hidden_layers=1)
    classifier.save_pretrained(tmp_path / "out")
    SenseDistillationTrainer(classifier, config(tmp_path), teacher=teacher, train_dataset=data)
    monkeypatch.setattr(type(teacher), "hidden_states", lambda *_, **__: pytest.fail("the teacher ran"))
    with pytest.raises(ValueError, match="Give another folder"):
        SenseDistillationTrainer(student, config(tmp_path), teacher=teacher, train_dataset=data)
