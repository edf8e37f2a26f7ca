"""Senses that are trained: their gradients against plain loops, what must not move, and what is saved."""

from __future__ import annotations

import copy

import pytest
import torch
from datasets import Dataset
from test_fused import case
from transformers import AutoModel, Trainer, TrainingArguments

from hf_sense import (
    SenseConfig,
    SenseDictionary,
    SenseDistillationConfig,
    SenseDistillationTrainer,
    SenseModel,
    SenseModelForSequenceClassification,
)
from hf_sense.ragged import NO_SENSE
from hf_sense.recount import recount
from hf_sense.replaced_losses import expected_loss, straight_through_loss
from hf_sense.row_optimizer import RowAdamW, row_optimizer


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model


@pytest.fixture
def student(teacher, dictionary):
    model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1, selection="soft", learned_senses=True)
    return without_dropout(model)


@pytest.fixture(scope="module")
def data(texts):
    return Dataset.from_dict({"text": list(texts[:32])})


def config(folder, **options):
    defaults = {
        "per_device_train_batch_size": 4, "max_steps": 8, "learning_rate": 1e-2, "report_to": "none", "save_strategy": "no",
        "logging_steps": 1, "disable_tqdm": True, "use_cpu": True, "target_cache_dir": str(folder / "cache"), "seed": 1,
        "lr_scheduler_type": "constant", "sense_weight": 0.0, "replaced_weight": 1.0,
    }  # fmt: skip
    return SenseDistillationConfig(str(folder / "out"), **{**defaults, **options})


def scores_of(state, rows, metric):
    products = rows @ state
    if metric == "cosine":
        return products / (rows.norm(dim=-1) * state.norm())
    return products - rows.square().sum(-1) / 2 if metric == "l2" else products


@pytest.mark.parametrize("metric", ["dot", "cosine", "l2"])
@pytest.mark.parametrize("kind", ["soft", "straight_through"])
def test_losses_and_gradients_are_those_of_a_plain_loop(metric, kind):
    """A row gets another row's gradient, commitment pulls the row, or the straight-through gradient is lost."""
    hidden, ids, _, senses, _ = case(lengths=(3, 0, 1, 40, 2))
    goal = torch.randn(hidden.shape, generator=torch.Generator().manual_seed(1))
    states, rows = hidden.clone().requires_grad_(True), senses.rows.clone().requires_grad_(True)
    own = type(senses)(senses.offsets, rows)
    if kind == "soft":
        loss = expected_loss(states, goal, own, ids, metric, 0.7)
    else:
        loss = straight_through_loss(states, goal, own, ids, metric, 0.25)
    (loss * torch.arange(len(loss))).sum().backward()
    plain_states, plain_rows = (tensor.detach().double().requires_grad_(True) for tensor in (states, rows))
    total, bounds, terms = 0.0, senses.offsets.tolist(), []
    for number, token in enumerate(ids.tolist()):
        part, state = plain_rows[bounds[token] : bounds[token + 1]], plain_states[number]
        if len(part) == 0:
            term = (state - goal[number]).square().mean()
        elif kind == "soft":
            shares = (scores_of(state, part, metric) / 0.7).softmax(0)
            term = (shares @ part - goal[number]).square().mean()
        else:
            chosen = part[scores_of(state, part, metric).argmax()]
            identity = chosen.detach() + state - state.detach()
            codebook = (chosen - goal[number]).square().mean()
            through = (identity - goal[number]).square().mean()
            term = codebook + through - through.detach() + 0.25 * (state - chosen.detach()).square().mean()
        terms.append(term.detach())
        total = total + number * term
    total.backward()
    torch.testing.assert_close(loss.detach().double(), torch.stack(terms), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(states.grad.double(), plain_states.grad, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(rows.grad.double(), plain_rows.grad, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("selection", ["hard", "straight_through", "soft"])
def test_a_model_passes_gradients_to_its_rows(teacher, dictionary, texts, selection):
    """Labels do not reach the senses, or reach those of tokens that the batch does not hold."""
    model = SenseModel.from_teacher(
        teacher, dictionary, num_hidden_layers=1, selection=selection, learned_senses=True
    ).train()
    batch = teacher.tokenizer(texts[:2], padding=True, return_tensors="pt")
    output = model(**batch, output_senses=True)
    output.last_hidden_state[batch["attention_mask"].bool()].square().sum().backward()
    moved = model.table.senses.grad.ne(0).any(1).nonzero().squeeze(-1)
    allowed = output.sense_ids[output.sense_ids != NO_SENSE].unique()
    if selection == "soft":
        tokens = batch["input_ids"].unique().tolist()
        spans = [range(*model.table.offsets[token : token + 2].tolist()) for token in tokens]
        assert set(moved.tolist()) <= {row for span in spans for row in span}
        assert set(allowed.tolist()) <= set(moved.tolist())
    else:
        assert torch.equal(moved, allowed)
    reached = any(p.grad is not None and p.grad.any() for p in model.backbone.parameters())
    assert reached == (selection != "hard")
    with torch.no_grad():
        fixed = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1, selection=selection).train()
        without_dropout(fixed), without_dropout(model)
        torch.testing.assert_close(model(**batch).last_hidden_state, fixed(**batch).last_hidden_state)


@pytest.mark.parametrize("options", [{"selection": "soft"}, {"selection": "hard"}, {"selection": "straight_through"}])
def test_training_lowers_the_loss_more_than_with_frozen_rows(teacher, dictionary, data, tmp_path, options):
    """Rows do not move, or move away from the teacher's states."""
    last = {}
    for learned in (False, True):
        model = without_dropout(
            SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1, learned_senses=learned, **options)
        )
        before = model.table.senses.detach().clone()
        trainer = SenseDistillationTrainer(
            model,
            config(tmp_path, max_steps=40, learning_rate=3e-3),
            teacher=teacher,
            train_dataset=data,
            eval_dataset=data,
        )
        first = trainer.evaluate()["eval_loss"]
        trainer.train()
        last[learned] = trainer.evaluate()["eval_loss"]
        assert last[learned] < first
        assert torch.equal(before, model.table.senses) == (not learned)
    assert last[True] < last[False]


@pytest.mark.parametrize("selection", ["soft", "hard"])
def test_accumulation_gives_the_full_batch_update(teacher, dictionary, data, tmp_path, selection):
    """Rows move otherwise when a step is cut into micro-batches."""
    ends = []
    for size, steps in ((16, 1), (4, 4)):
        torch.manual_seed(0)
        model = without_dropout(
            SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1, selection=selection, learned_senses=True)
        )
        args = config(
            tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=1,
            max_grad_norm=0.0, adam_epsilon=1e-3,
        )  # fmt: skip
        SenseDistillationTrainer(model, args, teacher=teacher, train_dataset=data).train()
        ends.append(model.table.senses.detach().clone())
    torch.testing.assert_close(ends[0], ends[1], atol=1e-4, rtol=1e-4)


def test_rows_of_absent_tokens_stay(student, teacher, texts, tmp_path):
    """Momentum or weight decay moves the senses of tokens that the data does not hold, or that a batch did not."""
    few = Dataset.from_dict({"text": texts[:2]})
    before = student.table.senses.detach().clone()
    trainer = SenseDistillationTrainer(
        student, config(tmp_path, weight_decay=0.5, max_steps=5), teacher=teacher, train_dataset=few
    )
    trainer.train()
    held = teacher.tokenizer(texts[:2], padding=True, return_tensors="pt")["input_ids"].unique()
    own = torch.zeros(len(before), dtype=torch.bool)
    for token in held.tolist():
        own[student.table.offsets[token] : student.table.offsets[token + 1]] = True
    assert torch.equal(student.table.senses[~own], before[~own])
    moved = (student.table.senses[own] != before[own]).any(1)
    assert moved.float().mean() > 0.8  # a share of zero is no gradient


def test_the_optimizer_is_adam_for_rows_that_are_always_seen_and_keeps_others():
    """A row's moments are those of another, or a row without gradient is moved by its momentum."""
    generator = torch.Generator().manual_seed(0)
    table = torch.nn.Parameter(torch.randn(5, 4, generator=generator))
    matrix = torch.nn.Parameter(torch.randn(3, 4, generator=generator))
    plain, plain_matrix = (torch.nn.Parameter(tensor.detach().clone()) for tensor in (table, matrix))
    own = RowAdamW([{"params": [matrix], "weight_decay": 0.1}, {"params": [table], "by_row": True}], lr=0.1)
    other = torch.optim.AdamW(
        [{"params": [plain_matrix], "weight_decay": 0.1}, {"params": [plain], "weight_decay": 0.0}], lr=0.1
    )
    for step in range(4):
        grad = torch.randn(5, 4, generator=generator)
        grad[4] = grad[4] if step == 0 else 0.0
        for tables, matrices, optimizer in ((table, matrix, own), (plain, plain_matrix, other)):
            tables.grad, matrices.grad = grad.clone(), grad[:3].clone()
            optimizer.step()
        if step == 0:
            alone = table[4].detach().clone()
    torch.testing.assert_close(table[:4], plain[:4])
    torch.testing.assert_close(matrix, plain_matrix)
    assert torch.equal(table[4], alone)
    assert not torch.equal(plain[4], alone)  # what a dense optimizer does
    fresh = RowAdamW([{"params": [matrix], "weight_decay": 0.1}, {"params": [table], "by_row": True}], lr=0.1)
    fresh.load_state_dict(own.state_dict())
    assert fresh.state[table]["step"].squeeze(1).tolist() == [4, 4, 4, 4, 1]
    with pytest.raises(ValueError, match="amsgrad"):
        RowAdamW([table], amsgrad=True)


def test_only_matrices_decay_and_senses_have_a_rate_of_their_own(student):
    """Weight decay pulls senses to zero, which no text asked for."""
    groups = row_optimizer(student, 1e-3, 1e-2, weight_decay=0.1).param_groups
    rows = next(group for group in groups if group.get("by_row"))
    assert rows["params"] == [student.table.senses]
    assert (rows["weight_decay"], rows["lr"]) == (0.0, 1e-2)
    assert sum(len(group["params"]) for group in groups) == len(list(student.parameters()))
    assert all(p.ndim > 1 for group in groups if group["weight_decay"] for p in group["params"])
    with pytest.raises(ValueError, match="nothing to train"):
        row_optimizer(student.requires_grad_(False))


def test_saved_loaded_folded_and_said(student, teacher, dictionary, data, texts, tmp_path):
    """A trained table is lost on saving, is loaded as another, or passes for the clusters that it started from."""
    trainer = SenseDistillationTrainer(student, config(tmp_path), teacher=teacher, train_dataset=data)
    trainer.train()
    student.eval()
    trainer.save_model(tmp_path / "model")
    loaded = AutoModel.from_pretrained(tmp_path / "model")
    fixed = AutoModel.from_pretrained(tmp_path / "model", learned_senses=False)
    assert isinstance(loaded.table.senses, torch.nn.Parameter)
    assert not isinstance(fixed.table.senses, torch.nn.Parameter)
    batch = teacher.tokenizer(texts[:3], padding=True, return_tensors="pt")
    with torch.no_grad():
        answers = [model(**batch).last_hidden_state for model in (student, loaded, fixed)]
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])
    learned = loaded.to_dictionary()
    assert learned.fingerprint != dictionary.fingerprint
    assert learned.metadata["learned_senses"]["started_from"] == dictionary.fingerprint
    learned.save_pretrained(tmp_path / "dictionary")
    assert SenseDictionary.from_pretrained(tmp_path / "dictionary").fingerprint == learned.fingerprint
    with torch.no_grad():
        loaded.table.senses.add_(1.0)
    assert not torch.equal(learned.senses, loaded.table.senses)  # a dictionary does not move with the model
    classifier = SenseModelForSequenceClassification.from_teacher(
        teacher, learned, backbone="selector", hidden_size=4, num_labels=2, learned_senses=True
    ).eval()
    with torch.no_grad():
        torch.testing.assert_close(classifier.fold()(**batch).logits, classifier(**batch).logits, atol=1e-4, rtol=1e-4)
    assert not any(p.requires_grad for p in classifier.fold().parameters())
    loaded.resize_token_embeddings(int(loaded.config.vocab_size) - 3)
    assert isinstance(loaded.table.senses, torch.nn.Parameter)
    assert len(loaded.table.senses) == int(loaded.table.offsets[-1])


def test_a_run_goes_on_from_a_checkpoint(teacher, dictionary, data, tmp_path):
    """Rows or their moments are not restored, so that a resumed run ends elsewhere."""
    ends = []
    for resume in (False, True):
        torch.manual_seed(0)
        model = without_dropout(
            SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1, selection="soft", learned_senses=True)
        )
        args = config(tmp_path, max_steps=6, save_strategy="steps", save_steps=3)
        trainer = SenseDistillationTrainer(model, args, teacher=teacher, train_dataset=data)
        trainer.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3") if resume else None)
        ends.append(model.table.senses.detach().clone())
    torch.testing.assert_close(ends[0], ends[1], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("selection", ["soft", "straight_through"])
def test_labels_train_senses_through_the_plain_trainer(teacher, dictionary, texts, tmp_path, selection):
    """Fine-tuning needs a trainer of the house, or leaves the senses where they were."""
    torch.manual_seed(0)
    model = SenseModelForSequenceClassification.from_teacher(
        teacher, dictionary, num_hidden_layers=1, num_labels=2, selection=selection, learned_senses=True
    )
    model.model.backbone.requires_grad_(False)
    before = model.sense_table.senses.detach().clone()
    rows = [{**teacher.tokenizer(text), "labels": int("river" in text)} for text in texts]
    args = TrainingArguments(
        str(tmp_path),
        max_steps=30,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(
        model, args, train_dataset=rows, eval_dataset=rows, processing_class=teacher.tokenizer,
        optimizers=(row_optimizer(model, 1e-2), None),
    )  # fmt: skip
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < first
    assert not torch.equal(before, model.sense_table.senses)


def test_what_cannot_be_learned(teacher, dictionary, data, texts, tmp_path):
    """Steps are rounded away in half precision, integers are asked for gradients, or a shared dictionary is written to."""
    with pytest.raises(ValueError, match="sense_dtype='int8'"):
        SenseConfig(learned_senses=True, sense_dtype="int8")
    with pytest.raises(ValueError, match="sense_dictionary='senses'"):
        SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1, learned_senses=True, dictionary_path="senses")
    model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1, learned_senses=True).half()
    batch = teacher.tokenizer(texts[:2], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert model.bfloat16()(**batch).last_hidden_state.dtype == torch.bfloat16  # to serve is no harm
    with pytest.raises(ValueError, match=r"model\.float\(\)"):
        model(**batch)
    with pytest.raises(ValueError, match="adamw_torch"):
        SenseDistillationTrainer(
            model.float(), config(tmp_path, optim="adafactor"), teacher=teacher, train_dataset=data
        ).train()
    unchanged = copy.deepcopy(model)
    unchanged.config.selection = "none"
    with pytest.raises(ValueError, match="replaced_weight has nothing"):
        SenseDistillationTrainer(unchanged, config(tmp_path), teacher=teacher, train_dataset=data)
    for wrong in ({"commitment_weight": -1.0}, {"sense_learning_rate": 0.0}, {"replaced_weight": -1.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            config(tmp_path, **wrong)


def test_counts_and_spread_can_be_made_true_again(student, teacher, data, texts, tmp_path):
    """A trained table goes on telling the counts and the spread of clusters that are no more."""
    SenseDistillationTrainer(student, config(tmp_path), teacher=teacher, train_dataset=data).train()
    recount(student, teacher, texts, batch_size=7, disable_tqdm=True)
    learned = student.to_dictionary()
    counts, away = torch.zeros(learned.num_senses), torch.zeros(learned.num_senses)
    for text in texts:
        inputs = teacher.tokenizer(text, return_tensors="pt")
        states = teacher.hidden_states(**inputs)
        for sense, state in zip(learned.lookup(inputs["input_ids"], states)[0].tolist(), states[0]):
            if sense >= 0:
                counts[sense] += 1
                away[sense] += (learned.senses[sense] - state).square().sum()
    assert torch.equal(learned.counts.float(), counts)
    torch.testing.assert_close(learned.spread, away / counts.clamp_min(1), atol=1e-3, rtol=1e-4)
    assert learned.metadata["recounted"]["texts"] == len(texts)
    student.save_pretrained(tmp_path / "model")
    assert torch.equal(SenseModel.from_pretrained(tmp_path / "model").table.counts, student.table.counts)
    outside = SenseModel.from_teacher(teacher, learned, num_hidden_layers=1, dictionary_path="senses")
    with pytest.raises(ValueError, match="lies outside"):
        recount(outside, teacher, texts)
