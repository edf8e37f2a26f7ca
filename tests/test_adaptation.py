"""Adapting a decoder: what is masked, what is learned, what is saved, and that stopped work goes on."""

from __future__ import annotations

import dataclasses
import json
import random

import numpy as np
import pytest
import torch
from conftest import OBJECTS, SUBJECTS, VERBS
from peft import PeftModel
from safetensors.torch import load_file
from torch import nn
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaForCausalLM, TrainerCallback

from hf_sense import adaptation, load_teacher
from hf_sense.adaptation import adapt_decoder
from hf_sense.adaptation_losses import (
    batches_of_like_length,
    contrastive_loss,
    drop_tokens,
    mask_token_id,
    mask_tokens,
    masked_next_token_loss,
)
from hf_sense.adaptation_trainers import AdaptationConfig
from hf_sense.corpus import iterate_texts

SETTINGS = {
    "mntp_steps": 4, "simcse_steps": 4, "mntp_batch_size": 16, "per_device_train_batch_size": 16, "lora_r": 4,
    "attention_dropout": 0.5, "lora_dropout": 0.3, "mask_token": "mask", "eval_steps": 2, "patience": 9, "use_cpu": True,
    "disable_tqdm": True, "learning_rate": 3e-3, "mntp_learning_rate": 1e-2,
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tokenizer, tmp_path_factory):
    """A seeded Llama of two layers with its head, saved with its tokenizer."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=32, max_position_embeddings=64, initializer_range=0.3, tie_word_embeddings=True,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("decoder")
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def texts():
    """Two hundred different sentences, so that twenty can be held out."""
    draw, made = random.Random(0), {}
    while len(made) < 200:
        words = [f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(OBJECTS)}" for _ in range(2)]
        made[" and ".join(words)] = None
    return list(made)


@pytest.fixture(scope="module")
def adapted(base, texts, tmp_path_factory):
    """A finished run of both stages, and its report."""
    folder = tmp_path_factory.mktemp("adapted") / "run"
    return folder, adapt_decoder(base, texts, folder, **SETTINGS)


def tensors_of(folder):
    return {name: load_file(folder / name / "adapter_model.safetensors") for name in ("mntp", "simcse")}


@pytest.mark.parametrize("full", [False, True])
def test_masking(full):
    """Another share is masked than asked for, labels stand at other places, or the first token is to be predicted."""
    ids = torch.randint(5, 1000, (200, 50), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[:, 40:] = 0
    ids[:, 7] = 3
    masked, labels = mask_tokens(ids, mask, 4, share=0.2, full=full, special_ids=[3], vocab_size=1000, seed=1)
    chosen = labels >= 0
    assert torch.equal(labels[chosen], ids[chosen])
    assert torch.equal(masked[~chosen], ids[~chosen])
    assert not chosen[:, [0, 7, *range(40, 50)]].any()
    assert chosen.sum() / (200 * 38) == pytest.approx(0.2, abs=0.02)
    assert (masked[chosen] == 4).float().mean() == pytest.approx(1.0 if full else 0.8, abs=0.03)
    assert (masked[chosen] == ids[chosen]).float().mean() == pytest.approx(0.0 if full else 0.1, abs=0.03)
    again = mask_tokens(ids, mask, 4, share=0.2, full=full, special_ids=[3], vocab_size=1000, seed=1)
    assert torch.equal(again[0], masked)


def test_loss_is_taken_one_place_before():
    """The state at a masked token itself predicts it, which is masked LM and not what a decoder learned."""
    torch.manual_seed(0)
    head, states = nn.Linear(4, 9), torch.randn(2, 5, 4)
    labels = torch.full((2, 5), -100)
    labels[0, 3], labels[1, 1] = 7, 2
    scores = head(states).log_softmax(-1)
    expected = -(scores[0, 2, 7] + scores[1, 0, 2])
    assert masked_next_token_loss(states, labels, head).item() == pytest.approx(expected.item(), rel=1e-5)
    assert masked_next_token_loss(states, torch.full((2, 5), -100), head).item() == 0


def test_contrast_by_hand():
    """Another vector than its own view counts as a text's pair, or the temperature multiplies."""
    first = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    second = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    logits = torch.tensor([[1.0, 0.5**0.5], [0.0, 0.5**0.5]]) / 0.1
    expected = -(logits.log_softmax(1).diag().mean())
    assert contrastive_loss(first, second, 0.1).item() == pytest.approx(expected.item(), rel=1e-5)


def test_tokens_are_dropped_but_never_the_first():
    """A view is left without a token, or padding comes to life."""
    mask = torch.ones(400, 12, dtype=torch.int64)
    mask[:, :5] = 0
    torch.manual_seed(0)
    found = drop_tokens(mask, 0.25)
    assert not found[:, :5].any()
    assert found[:, 5].all()
    assert found.dtype == mask.dtype
    assert 0.7 < found[:, 6:].float().mean() < 0.8
    assert not torch.equal(found, drop_tokens(mask, 0.25))


def test_batches_are_of_like_length_and_use_every_text():
    """Padding costs more than the texts, or some texts are never trained on."""
    lengths = np.random.default_rng(0).integers(1, 60, 96)
    order = batches_of_like_length(lengths, 8, 12, seed=3)
    assert sorted(order) == list(range(96))
    assert np.ptp(lengths[order].reshape(12, 8), axis=1).max() < 15
    assert len(batches_of_like_length(lengths[:10], 8, 5, seed=3)) == 40


def test_both_stages_learn_and_report(adapted):
    """A stage trains nothing, or its report is of other texts than the held-out ones."""
    folder, report = adapted
    assert report == json.loads((folder / "adaptation.json").read_text(encoding="utf-8"))
    for name in ("mntp", "simcse"):
        assert report[name]["held_out_loss_after"] < report[name]["held_out_loss_before"], report
        assert report[name]["steps"] == 4
        assert report[name]["held_out_loss_after"] == pytest.approx(min(report[name]["held_out_losses"]), rel=1e-4)
    assert sorted(path.name for path in folder.iterdir()) == ["adaptation.json", "mntp", "simcse"]


def test_head_is_the_language_models_own(base, adapted, texts, tokenizer):
    """MNTP is measured on other logits than the language model's, or with attention to the left alone."""
    folder, report = adapted
    config = AutoConfig.from_pretrained(base)
    adaptation.open_attention(config)
    model = LlamaForCausalLM.from_pretrained(base, config=config)
    run = adaptation._Run(base, texts, folder, "text", "bidirectional", None, AdaptationConfig("unused", **SETTINGS))
    total, count = 0.0, 0
    for number, rows in enumerate(run.texts.corpus.batches(16, run.texts.held)):
        batch = run.texts.corpus.padded(rows, tokenizer.pad_token_id)
        ids, labels = mask_tokens(
            batch["input_ids"], batch["attention_mask"], tokenizer.mask_token_id, vocab_size=len(tokenizer),
            special_ids=tokenizer.all_special_ids, seed=number,
        )  # fmt: skip
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=batch["attention_mask"]).logits
        losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
        total, count = total + losses.sum().item(), count + int((labels >= 0).sum())
    assert report["mntp"]["held_out_loss_before"] == pytest.approx(total / count, rel=1e-5)


def test_adapters_fit_the_bare_model_in_llm2vecs_layout(base, adapted, texts, tokenizer):
    """Adapters cannot be loaded as LLM2Vec's are: merged in turn into the bare model, with the config beside them."""
    folder, _ = adapted
    config = AutoConfig.from_pretrained(folder / "mntp")
    assert config.is_causal is False
    assert config.use_cache is False
    assert config.attention_dropout == 0
    model = AutoModel.from_pretrained(base, config=config)
    batch = tokenizer(texts[:3], padding=True, return_tensors="pt", return_token_type_ids=False)
    states = [model(**batch).last_hidden_state]
    for name in ("mntp", "simcse"):
        keys = load_file(folder / name / "adapter_model.safetensors")
        assert {key.partition(".layers.")[0] for key in keys} == {"base_model.model"}
        assert len(keys) == 2 * 7 * 2
        for file in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            assert (folder / name / file).is_file()
        settings = json.loads((folder / name / "llm2vec_config.json").read_text(encoding="utf-8"))
        assert settings == {
            "pooling_mode": "mean", "max_length": 512, "doc_max_length": 400, "skip_instruction": True,
        }  # fmt: skip
        saved = json.loads((folder / name / "adapter_config.json").read_text(encoding="utf-8"))
        assert saved["base_model_name_or_path"] == base
        peft = PeftModel.from_pretrained(model, str(folder / name)).eval()
        live = peft(**batch).last_hidden_state
        model = peft.merge_and_unload()
        states.append(model(**batch).last_hidden_state)
        assert torch.allclose(live, states[-1], atol=1e-4)
        assert not torch.allclose(states[-2], states[-1], atol=1e-2)


def test_adapters_make_a_teacher(base, adapted, texts, tokenizer):
    """A teacher with the adapters is causal, or its vectors are others than those that were trained."""
    folder, _ = adapted
    teacher = load_teacher(base, adapters=[str(folder / "mntp"), str(folder / "simcse")])
    assert teacher.attention == "bidirectional"
    model = AutoModel.from_pretrained(base, config=AutoConfig.from_pretrained(folder / "mntp"))
    for name in ("mntp", "simcse"):
        model = PeftModel.from_pretrained(model, str(folder / name)).merge_and_unload()
    batch = tokenizer(texts[:3], padding=True, return_tensors="pt", return_token_type_ids=False)
    expected = model(**batch).last_hidden_state
    found = teacher.hidden_states(batch["input_ids"], batch["attention_mask"])
    kept = batch["attention_mask"].bool()
    assert torch.allclose(found[kept], expected[kept], atol=1e-5)


class _Stop(TrainerCallback):
    """Ends the run as a killed one ends: in the middle of a stage."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == 3:
            raise KeyboardInterrupt


@pytest.mark.parametrize("stage", ["mntp", "simcse"])
def test_stopped_run_goes_on_to_the_same_adapters(base, adapted, texts, tmp_path, monkeypatch, stage):
    """A stopped run starts over, or goes on with other masks, batches or dropout than the undisturbed one."""
    begin = adaptation.StageTrainer.__init__

    def stopped(self, model, args, texts):
        begin(self, model, args, texts)
        if args.output_dir.endswith(f"{stage}.work"):
            self.add_callback(_Stop())

    with monkeypatch.context() as patch:
        patch.setattr(adaptation.StageTrainer, "__init__", stopped)
        with pytest.raises(KeyboardInterrupt):
            adapt_decoder(base, texts, tmp_path / "run", **SETTINGS)
    work = tmp_path / "run" / f"{stage}.work"
    assert (work / "checkpoint-2" / "trainer_state.json").is_file()
    (work / "checkpoint-3").mkdir()  # a checkpoint cut short
    report = adapt_decoder(base, texts, tmp_path / "run", **SETTINGS)
    assert report[stage]["held_out_losses"] == adapted[1][stage]["held_out_losses"]
    expected, found = tensors_of(adapted[0]), tensors_of(tmp_path / "run")
    for name, tensors in expected.items():
        for key, tensor in tensors.items():
            assert torch.equal(tensor, found[name][key]), f"{name} {key}"


def test_finished_stages_are_not_run_again(base, adapted, texts, monkeypatch):
    """A finished run trains again."""
    monkeypatch.setattr(adaptation._Run, "stage", lambda *_: pytest.fail("a stage ran"))
    folder, report = adapted
    assert adapt_decoder(base, texts, folder, **SETTINGS) == report


def test_causal_has_no_mntp_and_stays_causal(base, texts, tmp_path):
    """A causal adaptation opens attention in silence."""
    report = adapt_decoder(base, texts, tmp_path / "run", attention="causal", **SETTINGS)
    assert "mntp" not in report
    assert not (tmp_path / "run" / "mntp").exists()
    assert getattr(AutoConfig.from_pretrained(tmp_path / "run" / "simcse"), "is_causal", True) is not False
    assert report["simcse"]["held_out_loss_after"] < report["simcse"]["held_out_loss_before"]


def test_views_are_told_apart_more_gently_than_pairs(base, texts, tmp_path):
    """Two views of a text are trained at the temperature of pairs, or one that is given is not used."""
    run = adaptation._Run(base, texts, tmp_path / "a", "text", "causal", None, AdaptationConfig("unused", **SETTINGS))
    found = []
    for given in ({}, {"temperature": 0.07}):
        trainer = adaptation.ContrastTrainer.__new__(adaptation.ContrastTrainer)
        trainer.texts, trainer.args = run.texts, AdaptationConfig("unused", **SETTINGS, **given)
        found.append(trainer.temperature)
        trainer.texts = dataclasses.replace(run.texts, pairs=True)
        found.append(trainer.temperature)
    assert found == [0.2, 0.05, 0.07, 0.07]


def test_useless_stage_says_so(base, texts, tmp_path, caplog):
    """A stage that made the model worse ends without a word."""
    adapt_decoder(
        base, texts, tmp_path / "run", **{**SETTINGS, "mntp_steps": 0, "simcse_steps": 2, "learning_rate": 1e3}
    )
    assert "did not lower the held-out loss" in caplog.text


def test_pairs(base, texts, tmp_path):
    """Pairs are contrasted as two views of one text, or their two columns are mixed up."""
    pairs = [{"a": text, "b": " ".join(reversed(text.split()))} for text in texts]
    report = adapt_decoder(
        base, [tuple(row.values()) for row in pairs], tmp_path / "run", **{**SETTINGS, "simcse_steps": 8}
    )
    assert report["run"]["texts"]["pairs"]
    assert report["simcse"]["held_out_loss_after"] < report["simcse"]["held_out_loss_before"]


def test_stops_where_held_out_texts_gain_no_more(base, texts, tmp_path):
    """A stage trains to its last step whatever the held-out loss says."""
    settings = {**SETTINGS, "mntp_steps": 0, "simcse_steps": 40, "min_gain": 100.0, "patience": 1}
    report = adapt_decoder(base, texts, tmp_path / "run", **settings)
    assert report["simcse"]["steps"] < 10


def test_bad_input_is_refused_before_work(base, adapted, texts, tiny_teacher_folder, tokenizer, tmp_path, monkeypatch):
    """A slip is found after an hour of training, or an earlier run is overwritten."""
    monkeypatch.setattr(adaptation._Run, "stage", lambda *_: pytest.fail("a stage ran"))
    new, rows = tmp_path / "new", [{"text": text} for text in texts]

    def refused(message, *arguments, **settings):
        with pytest.raises(ValueError, match=message):
            adapt_decoder(*arguments, **{**SETTINGS, **settings})

    refused("not a decoder", str(tiny_teacher_folder), texts, new)
    refused("no 'body'", base, rows, new, text_column="body")
    refused("all blank", base, [" ", ""], new)
    refused("too few", base, texts[:12], new)
    refused("no such token", base, texts, new, mask_token="blank")
    refused("attention should be", base, texts, new, attention="both")
    refused("no field stepz", base, texts, new, stepz=3)
    refused("mask_share should be", base, texts, new, mask_share=0.0)
    refused("another run.*0.003.*1.0", base, texts, adapted[0], learning_rate=1.0)
    refused("another run.*sha256", base, texts[1:], adapted[0])
    (new / "other").mkdir(parents=True)
    refused("should be new", base, texts, new)
    assert mask_token_id(tokenizer, "bank") == tokenizer.convert_tokens_to_ids("bank")
    assert next(iter(iterate_texts(texts))) == texts[0]


def test_end_token_pads_where_there_is_no_pad_token(base, texts, tokenizer, tmp_path):
    """A tokenizer without a pad token, as most decoders' are, ends in an error."""
    import copy
    import shutil

    folder = tmp_path / "base"
    shutil.copytree(base, folder)
    other = copy.deepcopy(tokenizer)
    other.pad_token, other.eos_token = None, "[SEP]"
    other.save_pretrained(folder)
    settings = {**SETTINGS, "mntp_steps": 1, "simcse_steps": 0}
    assert adapt_decoder(str(folder), texts, tmp_path / "run", **settings)["mntp"]["steps"] == 1
    other.eos_token = None
    other.save_pretrained(folder)
    with pytest.raises(ValueError, match="neither a pad token nor an end token"):
        adapt_decoder(str(folder), texts, tmp_path / "run2", **settings)
