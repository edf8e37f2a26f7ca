"""Codes in targets, losses, the trainer and models: what must be equal, what must be kept, what must be refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, AutoModelForSequenceClassification

from hf_sense import (
    SenseDictionary,
    SenseDistillationConfig,
    SenseDistillationTrainer,
    SenseModel,
    SenseModelForSequenceClassification,
    build_dictionary,
    compute_sense_targets,
)
from hf_sense.collator import SenseDataCollator
from hf_sense.export import PaddedSenses
from hf_sense.temperature import natural_temperature


@pytest.fixture(scope="module", params=[1, 3], ids=["one sense", "three senses"])
def coded(request, teacher, texts):
    """A dictionary that knows the first half of the texts, so that some tokens have no sense."""
    texts = [text for text in texts if "mole" not in text]
    return build_dictionary(
        teacher, texts, max_senses=request.param, codes=8, code_levels=2, special_tokens=False, disable_tqdm=True
    )


@pytest.fixture
def batch(teacher, texts):
    chosen = sorted(texts, key=len)[::9]
    assert any("mole" in text for text in chosen)
    return teacher.tokenizer(chosen, padding=True, return_tensors="pt")


@pytest.fixture(scope="module")
def data(texts):
    return Dataset.from_dict({"text": list(texts[:32])})


def config(folder, **options):
    defaults = {
        "per_device_train_batch_size": 8, "max_steps": 3, "learning_rate": 1e-2, "report_to": "none", "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "target_cache_dir": str(folder / "cache"), "seed": 1,
        "max_grad_norm": 0.0, "optim": "sgd", "lr_scheduler_type": "constant",
    }  # fmt: skip
    return SenseDistillationConfig(str(folder / "out"), **{**defaults, **options})


@pytest.fixture
def student(teacher, coded):
    model = SenseModel.from_teacher(teacher, coded, num_hidden_layers=1)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.mark.parametrize("as_stored", [True, False])
def test_targets_are_the_codes_that_the_teacher_takes(teacher, coded, data, tmp_path, as_stored):
    """Codes stand at another token, at another level, or take more than a byte."""
    options = {"cache_dir": tmp_path, "batch_size": 5, "disable_tqdm": True, "coded": as_stored}
    targets = compute_sense_targets(data, teacher, coded, **options)
    for level in (1, 2):
        assert targets.features[f"code_labels_{level}"].feature.dtype == "uint8"
    for row in targets.select(range(8)):
        ids = torch.tensor([row["input_ids"]])
        _, code_ids = coded.encode(ids, teacher.hidden_states(ids, torch.ones_like(ids)))
        found = np.stack([row["code_labels_1"], row["code_labels_2"]], -1)
        assert found.tolist() == code_ids[0].clamp_min(0).tolist()


def test_many_codes_take_two_bytes(teacher, coded, data, tmp_path):
    """Code 300 is stored as 44."""
    values = torch.randn(1, 300, coded.dim)
    values[:, :280] += 1000
    wide = copy.copy(coded)
    wide.codes, wide._checksums = type(coded.codes)(values), None
    targets = compute_sense_targets(data, teacher, wide, cache_dir=tmp_path, disable_tqdm=True)
    assert targets.features["code_labels_1"].feature.dtype == "uint16"
    assert max(map(max, targets["code_labels_1"])) > 255


@pytest.mark.parametrize("side", ["left", "right"])
def test_the_collator_stacks_levels(teacher, coded, side):
    """Codes are padded on the other side, or a pad counts as code 0."""
    tokenizer = copy.deepcopy(teacher.tokenizer)
    tokenizer.padding_side = side
    token = int(coded.offsets.diff().argmax())
    rows = [
        {
            "input_ids": [token] * n,
            "sense_indices": [0] * (n - 1) + [-1],
            "code_labels_1": list(range(n)),
            "code_labels_2": [7] * n,
        }
        for n in (3, 5)
    ]
    made = SenseDataCollator(tokenizer, offsets=coded.offsets)(rows)
    assert "code_labels_1" not in made
    first, pads = [[0, 7], [1, 7], [-100, -100]], [[-100, -100]] * 2
    assert made["code_labels"][0].tolist() == (pads + first if side == "left" else first + pads)
    assert made["code_labels"].shape == (2, 5, 2)
    assert (made["sense_labels"] >= 0).tolist() == (made["code_labels"][..., 0] >= 0).tolist()


@pytest.mark.parametrize("options", [{}, {"soft_weight": 0.5, "sense_weight": 0.3}])
def test_cached_targets_equal_a_live_teacher(teacher, data, student, tmp_path, options):
    """Targets computed once train another student than a teacher in the loop."""
    losses = []
    for live in (False, True):
        trainer = SenseDistillationTrainer(
            copy.deepcopy(student), config(tmp_path, live_teacher=live, **options), teacher=teacher, train_dataset=data,
            eval_dataset=data,
        )  # fmt: skip
        trainer.train()
        figures = trainer.evaluate()
        history = [log["loss"] for log in trainer.state.log_history if "loss" in log]
        losses.append([*history, *(figures[f"eval_{name}"] for name in ("loss", "agreement", "code_agreement"))])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_the_loss_and_its_agreement_are_their_definition(teacher, coded, data, student, tmp_path):
    """The loss leaves a level out, counts one twice, or sees what the student's own sense left."""
    trainer = SenseDistillationTrainer(student, config(tmp_path), teacher=teacher, eval_dataset=data)
    figures = trainer.evaluate()
    targets = compute_sense_targets(data, teacher, coded, cache_dir=tmp_path / "cache", disable_tqdm=True)
    total = count = agreed = senses_agreed = 0.0
    for row in targets:
        states = student(torch.tensor([row["input_ids"]]), output_contextual=True).last_hidden_state[0].detach()
        for place, (token, sense) in enumerate(zip(row["input_ids"], row["sense_labels"], strict=True)):
            if sense < 0:
                continue
            first, last = int(coded.offsets[token]), int(coded.offsets[token + 1])
            own, left = coded.senses[first:last], states[place]
            scores = own @ left - own.square().sum(1) / 2
            total -= float((scores / trainer.temperature).log_softmax(0)[sense - first])
            senses_agreed += int(scores.argmax()) == sense - first
            left = left - coded.senses[sense]
            for level in range(2):
                table, wanted = coded.codes.vectors[level], row[f"code_labels_{level + 1}"][place]
                scores = table @ left - table.square().sum(1) / 2
                total -= float((scores / trainer.temperature).log_softmax(0)[wanted])
                agreed += (int(scores.argmax()) == wanted) / 2
                left = left - table[wanted]
            count += 1
    assert figures["eval_loss"] == pytest.approx(total / count, rel=1e-4)
    assert figures["eval_code_agreement"] == pytest.approx(agreed / count, abs=1e-6)
    assert figures["eval_agreement"] == pytest.approx(senses_agreed / count, abs=1e-6)


@pytest.mark.parametrize("accumulation", [2, 8])
def test_accumulation_gives_the_full_batch_update(teacher, data, student, tmp_path, accumulation):
    """Codes are divided by the micro-batch's tokens instead of the step's."""
    results = []
    for size, steps in ((16, 1), (16 // accumulation, accumulation)):
        model = copy.deepcopy(student)
        args = config(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps)
        trainer = SenseDistillationTrainer(model, args, teacher=teacher, train_dataset=data)
        trainer.train()
        results.append(torch.cat([weight.detach().reshape(-1) for weight in model.parameters()]))
    torch.testing.assert_close(results[1], results[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("options", [{}, {"soft_weight": 1.0, "sense_weight": 0.0}])
def test_each_loss_falls_where_tokens_have_one_sense(teacher, texts, data, tmp_path, options):
    """With one sense a token there is nothing to learn but codes: their gradient does not reach the student."""
    means = build_dictionary(teacher, texts, max_senses=1, codes=8, disable_tqdm=True)
    student = SenseModel.from_teacher(teacher, means, num_hidden_layers=1)
    args = config(tmp_path, optim="adamw_torch", max_steps=12, **options)
    trainer = SenseDistillationTrainer(student, args, teacher=teacher, train_dataset=data)
    trainer.train()
    history = [log for log in trainer.state.log_history if "loss" in log]
    assert sum(log["loss"] for log in history[-4:]) < 0.9 * sum(log["loss"] for log in history[:4])
    assert history[-1]["agreement"] == 1.0
    assert history[-1]["code_agreement"] > history[0]["code_agreement"]


def test_a_whole_student_agrees_with_its_teacher(teacher, coded, data, tmp_path):
    """Codes of the student are compared with those of another level or token."""
    model = SenseModel.from_teacher(teacher, coded)
    figures = SenseDistillationTrainer(model, config(tmp_path), teacher=teacher, eval_dataset=data).evaluate()
    assert figures["eval_code_agreement"] == figures["eval_agreement"] == 1.0


def test_targets_without_codes_are_refused(teacher, coded, dictionary, student, data, tmp_path):
    """Old targets train the senses alone, and nobody says so."""
    old = compute_sense_targets(data, teacher, dictionary, cache_dir=tmp_path, disable_tqdm=True)
    with pytest.raises(ValueError, match="targets lack code_labels_1, code_labels_2"):
        SenseDistillationTrainer(student, config(tmp_path), train_dataset=old, processing_class=teacher.tokenizer)


@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_models_replace_as_their_dictionary_and_come_back(teacher, coded, batch, tmp_path, dtype, outside):
    """Codes are left out of the weights, or those of a dictionary outside are not looked for."""
    dictionary = coded.to(dtype)
    model = SenseModel.from_teacher(teacher, dictionary, dictionary_path="senses" if outside else None)
    found = model(**batch, output_senses=True)
    ids, mask, states = batch["input_ids"], batch["attention_mask"], found.contextual_hidden_state
    senses, codes = dictionary.encode(ids, states, mask)
    assert torch.equal(found.sense_ids, senses)
    assert torch.equal(found.code_ids, codes)
    assert (senses[mask.bool()] < 0).any()
    assert torch.equal(found.last_hidden_state, dictionary.replace(ids, states, mask))
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).last_hidden_state, found.last_hidden_state)
    assert loaded.to_dictionary().fingerprint == dictionary.fingerprint
    assert ("table.codes" in loaded.state_dict()) is not outside


@pytest.mark.parametrize("selection", ["hard", "straight_through", "soft"])
def test_padding_changes_nothing(teacher, coded, texts, selection):
    """A text's codes depend on what stands beside it."""
    model = SenseModel.from_teacher(teacher, coded, num_hidden_layers=2, selection=selection)
    together = teacher.tokenizer(list(texts[:5]), padding=True, return_tensors="pt")
    many = model(**together).last_hidden_state
    for row, text in enumerate(texts[:5]):
        alone = model(**teacher.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        torch.testing.assert_close(many[row, : len(alone)], alone, atol=1e-4, rtol=1e-4)


def test_soft_is_hard_when_cold_and_passes_gradients(teacher, coded, batch):
    """The mean of codes is that of another residual, or soft selection trains nothing."""
    model = SenseModel.from_teacher(teacher, coded, num_hidden_layers=2)
    hard = model(**batch, output_senses=True)
    model.config.selection, model.config.selection_temperature = "soft", 1e-6
    cold = model(**batch, output_senses=True)
    torch.testing.assert_close(cold.last_hidden_state, hard.last_hidden_state, atol=1e-2, rtol=1e-2)
    assert torch.equal(cold.sense_ids, hard.sense_ids)
    assert torch.equal(cold.code_ids, hard.code_ids)
    model.config.selection_temperature = 1.0
    model(**batch).last_hidden_state.square().sum().backward()
    assert model.backbone.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_what_inference_keeps_serves_training(teacher, coded, batch, dtype):
    """Codes that were widened under inference_mode cannot be saved for a gradient."""
    model = SenseModel.from_teacher(teacher, coded.to(dtype), num_hidden_layers=1, selection="soft")
    with torch.inference_mode():
        before = model(**batch).last_hidden_state
    after = model(**batch).last_hidden_state
    after.sum().backward()
    torch.testing.assert_close(after.detach(), before.clone())


def test_straight_through_keeps_the_states_gradient(teacher, coded, batch):
    """Codes cut the gradient off."""
    model = SenseModel.from_teacher(teacher, coded, num_hidden_layers=1, selection="straight_through")
    hard = SenseModel.from_teacher(teacher, coded, num_hidden_layers=1)
    torch.testing.assert_close(model(**batch).last_hidden_state, hard(**batch).last_hidden_state, atol=1e-5, rtol=1e-5)
    model(**batch).last_hidden_state.sum().backward()
    assert model.backbone.encoder.layer[0].output.dense.weight.grad.abs().sum() > 0


def test_casts_leave_int8_codes_alone(teacher, coded, batch):
    """Half precision rounds the scales, and every code moves."""
    model = SenseModel.from_teacher(teacher, coded.to("int8"), num_hidden_layers=1)
    before = model.to_dictionary().fingerprint
    model.to(torch.bfloat16)
    assert model.table.code_scales.dtype == torch.float32
    assert model.to_dictionary().fingerprint == before
    assert model(**batch).last_hidden_state.dtype == torch.bfloat16


def test_loading_other_codes_is_seen(teacher, coded, batch):
    """Codes that were widened for use stay in use after other weights came."""
    model = SenseModel.from_teacher(teacher, coded, num_hidden_layers=1)
    before = model(**batch).last_hidden_state
    state = model.state_dict()
    model.load_state_dict(state | {"table.codes": torch.zeros_like(state["table.codes"])})
    after = model(**batch, output_senses=True)
    assert not torch.equal(after.last_hidden_state, before)
    found = after.sense_ids >= 0
    assert torch.equal(after.last_hidden_state[found], coded.senses[after.sense_ids[found]])


def test_classifiers_give_codes_too(teacher, coded, batch, tmp_path):
    """A classifier's output lacks what the sense model's has."""
    model = SenseModelForSequenceClassification.from_teacher(teacher, coded, num_hidden_layers=1, num_labels=3)
    output = model(**batch, output_senses=True)
    assert torch.equal(output.code_ids, model.model(**batch, output_senses=True).code_ids)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, output.logits)


def test_a_selector_learns_codes(teacher, texts, data, tmp_path):
    """A student without a transformer has nothing to choose among with one sense a token, or starts from no direction."""
    means = build_dictionary(teacher, texts, max_senses=1, codes=8, code_levels=2, disable_tqdm=True)
    torch.manual_seed(0)
    student = SenseModel.from_teacher(teacher, means, backbone="selector", hidden_size=8)
    assert student.config.selection == "soft"
    directions = student.sense_projection.weight.detach() * 10
    torch.testing.assert_close(directions.t() @ directions, torch.eye(8), atol=1e-4, rtol=1e-4)
    spanned = means.codes.vectors.flatten(0, 1) @ directions
    assert float(spanned.square().sum() / means.codes.vectors.square().sum()) > 0.9
    args = config(tmp_path, optim="adamw_torch", max_steps=20)
    trainer = SenseDistillationTrainer(student, args, teacher=teacher, train_dataset=data)
    trainer.train()
    history = [log for log in trainer.state.log_history if "loss" in log]
    assert sum(log["loss"] for log in history[-4:]) < 0.9 * sum(log["loss"] for log in history[:4])
    context = SenseModel.from_teacher(teacher, means, backbone="context", hidden_size=8)
    assert (context.config.code_levels, context.table.codes) == (0, None)


@pytest.mark.parametrize("selection", ["hard", "soft"])
def test_graphs_take_the_same_codes(teacher, coded, batch, selection):
    """An exported model leaves the codes out."""
    model = SenseModel.from_teacher(teacher, coded, num_hidden_layers=1, selection=selection)
    found = model(**batch, output_senses=True)
    padded = PaddedSenses(model.table)
    states, sense_ids = padded(
        found.contextual_hidden_state, batch["input_ids"], batch["attention_mask"], selection,
        model.config.selection_temperature,
    )  # fmt: skip
    assert torch.equal(sense_ids, found.sense_ids)
    torch.testing.assert_close(states, found.last_hidden_state, atol=1e-4, rtol=1e-4)


def test_the_temperature_of_means_is_that_of_their_spread(coded):
    """With one sense a token the temperature is 1, whatever the states' length."""
    scaled = SenseDictionary(
        coded.senses * 10,
        coded.offsets,
        coded.counts,
        coded.spread * 100,
        codes=type(coded.codes)(coded.codes.values * 10),
    )
    assert natural_temperature(scaled) == pytest.approx(100 * natural_temperature(coded), rel=1e-4)
    if int(coded.offsets.diff().max()) == 1:
        expected = float((coded.spread * coded.counts).sum() / coded.counts.sum()) / 24
        assert natural_temperature(coded) == pytest.approx(expected, rel=1e-4)
