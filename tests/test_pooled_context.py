"""Text vectors of a context table that pools first: the same as those of its states."""

from __future__ import annotations

import pytest
import torch

from hf_sense import SenseModel, SenseModelForSequenceClassification, pooled_context
from hf_sense.evaluation import embed
from hf_sense.pooling import POOLINGS


def batch_of(tokenizer, texts, side="right"):
    batch = tokenizer(texts, return_tensors="pt", padding=True, padding_side=side)
    return {name: batch[name] for name in ("input_ids", "attention_mask")}


def shaken(model):
    """Every weight moved, so that no term is left out unseen."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return model.eval()


def through_states(model, batch, counted=None):
    states = model(**batch).last_hidden_state
    return model.pool(states, batch["input_ids"], batch["attention_mask"] if counted is None else counted)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    "size", [{"hidden_size": 6, "window": 5}, {"hidden_size": 16}, {"hidden_size": 4, "window": 1}]
)
def test_vectors_are_those_of_the_states(teacher, dictionary, texts, size, pooling, side):
    """A window sees the next text, a bias is counted once a token, or a token without senses has a vector."""
    model = shaken(SenseModel.from_teacher(teacher, dictionary, backbone="context", pooling=pooling, **size))
    batch = batch_of(teacher.tokenizer, [*texts[:5], "zebra quiz", "", texts[6]], side)
    assert (model.table.offsets.diff()[batch["input_ids"][batch["attention_mask"].bool()]] == 0).any()
    counted = batch["attention_mask"] * (torch.arange(batch["input_ids"].shape[1]) % 3 > 0)
    for mask in (None, counted):
        with torch.no_grad():
            assert pooled_context.can_pool_first(model)
            found = model.text_vectors(**batch, pooled=mask)
        expected = through_states(model, batch, mask)
        torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(model.text_vectors(**batch, pooled=mask), expected)  # with gradients: the states


@pytest.mark.parametrize("dtype", ["int8", None])
def test_every_user_of_vectors_takes_the_way(teacher, dictionary, texts, monkeypatch, dtype):
    """A classifier or embed makes all states, or answers otherwise than with them."""
    options = {"backbone": "context", "hidden_size": 6, "num_labels": 3, "sense_dtype": dtype}
    model = shaken(SenseModelForSequenceClassification.from_teacher(teacher, dictionary, **options))
    batch = batch_of(teacher.tokenizer, texts[:7])
    expected = model(**batch).logits.detach()
    vectors = through_states(model.model, batch).detach()
    monkeypatch.setattr(SenseModel, "forward", None)
    with torch.inference_mode():
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(model.text_vectors(**batch), vectors, atol=1e-4, rtol=1e-4)
    found = embed(model, teacher.tokenizer, texts[:7], batch_size=3, disable_tqdm=True)
    torch.testing.assert_close(found, vectors, atol=1e-4, rtol=1e-4)


def test_texts_without_tokens(teacher, dictionary):
    """A batch of padding alone ends in an error of PyTorch."""
    model = shaken(SenseModel.from_teacher(teacher, dictionary, backbone="context", hidden_size=6))
    ids = torch.zeros(2, 3, dtype=torch.int64)
    with torch.no_grad():
        assert model.text_vectors(ids, torch.zeros_like(ids)).eq(0).all()
        with pytest.raises(ValueError, match=r"but are \(3,\). One text is input_ids\[None\]"):
            model.text_vectors(ids[0])


@pytest.mark.parametrize(
    "change", [{"selection": "hard"}, {"backbone": "selector"}, {"num_hidden_layers": 1, "backbone": None}]
)
def test_others_go_through_their_states(teacher, dictionary, texts, change):
    """What chooses among senses, or has layers, is pooled before the choice."""
    options = {"backbone": "context", "hidden_size": 6} | change
    if options["backbone"] is None:
        options = change | {}
        options.pop("backbone")
    model = shaken(SenseModel.from_teacher(teacher, dictionary, **options))
    batch = batch_of(teacher.tokenizer, texts[:4])
    with torch.no_grad():
        assert not pooled_context.can_pool_first(model)
        torch.testing.assert_close(model.text_vectors(**batch), through_states(model, batch))


@pytest.mark.parametrize("part", ["", "backbone", "table", "backbone.embeddings"])
def test_weights_that_are_moved_about_are_asked_for(teacher, dictionary, texts, part):
    """accelerate's hook, which brings a layer's weights when it is called, is passed by."""
    from accelerate.hooks import ModelHook, add_hook_to_module

    model = shaken(SenseModel.from_teacher(teacher, dictionary, backbone="context", hidden_size=6))
    module = model.get_submodule(part)
    with torch.no_grad():
        assert pooled_context.can_pool_first(model)
        add_hook_to_module(module, ModelHook())
        assert not pooled_context.can_pool_first(model)
        batch = batch_of(teacher.tokenizer, texts[:4])
        torch.testing.assert_close(model.text_vectors(**batch), through_states(model, batch))


@pytest.mark.parametrize("target", ["outer", "inner", "window", "sense_projection"])
def test_adapters_are_not_passed_by(teacher, dictionary, texts, target):
    """LoRA in a layer is left out of the vectors; or a hook on it is not called."""
    from peft import LoraConfig, get_peft_model

    model = shaken(SenseModel.from_teacher(teacher, dictionary, backbone="context", hidden_size=6))
    batch = batch_of(teacher.tokenizer, texts[:4])
    with torch.no_grad():
        before = model.text_vectors(**batch)
        hook = dict(model.named_modules())[("" if target == "sense_projection" else "backbone.") + target]
        handle = hook.register_forward_hook(lambda module, given, found: found * 2)
        assert not torch.allclose(model.text_vectors(**batch), before)
        handle.remove()
        assert pooled_context.can_pool_first(model)
        wrapped = get_peft_model(model, LoraConfig(target_modules=[target], r=2, init_lora_weights=False)).eval()
        assert not torch.allclose(wrapped.base_model.model.text_vectors(**batch), before)
