"""Folded models of dictionaries with codes: equal answers, files, what is counted and refused."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertModel

from hf_sense import SenseModel, SenseModelForSequenceClassification, build_dictionary
from hf_sense import folded_codes as module


@pytest.fixture(scope="module")
def coded(teacher, texts):
    """At most three senses a token, none for special ones; three levels of codes."""
    return build_dictionary(
        teacher, texts, max_senses=3, codes=6, code_levels=3, special_tokens=False, disable_tqdm=True
    )


@pytest.fixture(scope="module")
def sparse(teacher, texts):
    """One sense for most tokens, and three codes: folded without a projection it takes less."""
    return build_dictionary(
        teacher, texts, max_senses="n/40,3", codes=3, code_levels=2, special_tokens=False, disable_tqdm=True
    )


@pytest.fixture(scope="module")
def narrow(teacher):
    """A backbone half as wide as the teacher."""
    torch.manual_seed(1)
    config = {**teacher.model.config.to_dict(), "hidden_size": 8, "num_hidden_layers": 1}
    return BertModel(BertConfig(**config)).eval()


def student(model_class, teacher, dictionary, backbone, **options):
    """Every weight counts: projection and classifier have biases."""
    torch.manual_seed(2)
    options |= {"num_labels": 2} if model_class is SenseModelForSequenceClassification else {}
    shape = {"num_hidden_layers": 2} if backbone is None else {"backbone": backbone}
    model = model_class.from_teacher(teacher, dictionary, **shape, **options)
    for layer in (model.base_model.sense_projection, getattr(model, "classifier", None)):
        if layer is not None:
            torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias)
    return model


def batch_of(teacher, texts):
    return teacher.tokenizer(texts[:8], padding=True, return_tensors="pt")


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
@pytest.mark.parametrize("selection", ["hard", "straight_through", "soft"])
@pytest.mark.parametrize("projected", [False, True])
def test_a_folded_classifier_gives_the_same_logits(teacher, coded, sparse, narrow, texts, metric, selection, projected):
    """A code's score forgets the sense, the level before, or the projection's bias."""
    if (metric, selection, projected) == ("cosine", "soft", True):
        pytest.skip("refused, as without codes")
    model = student(
        SenseModelForSequenceClassification, teacher, coded if projected else sparse, narrow if projected else None,
        metric=metric, selection=selection, selection_temperature=2.0,
    )  # fmt: skip
    batch = batch_of(teacher, texts)
    found, expected = (m(**batch, output_senses=True) for m in (model.fold(), model))
    close(found.logits, expected.logits)
    kept = batch["attention_mask"].bool()
    assert torch.equal(found.sense_ids[kept], expected.sense_ids[kept])
    assert torch.equal(found.code_ids[kept], expected.code_ids[kept])
    assert (expected.code_ids[kept] >= 0).any()
    assert (expected.code_ids[kept] < 0).any()


@pytest.mark.parametrize("selection", ["hard", "soft"])
@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_folded_model_gives_the_same_states_and_comes_back(teacher, coded, narrow, texts, tmp_path, selection, dtype):
    """States are not in the teacher's width, int8 codes lose their scales, or a file lacks the products."""
    model = student(SenseModel, teacher, coded.to(dtype), narrow, selection=selection, pooling="frequency")
    folded, batch = model.fold(), batch_of(teacher, texts)
    kept = batch["attention_mask"].bool()
    close(folded(**batch).last_hidden_state[kept], model(**batch).last_hidden_state[kept])
    folded.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    with torch.inference_mode():
        assert torch.equal(loaded(**batch).last_hidden_state, folded(**batch).last_hidden_state)


@pytest.mark.parametrize("max_senses", [1, 3])
@pytest.mark.parametrize("selection", ["hard", "soft"])
def test_a_folded_selector_gives_the_same_logits(teacher, texts, tmp_path, selection, max_senses):
    """A token's mean, which is added to its state, is taken from the codes' scores twice or not at all."""
    dictionary = build_dictionary(
        teacher, texts, max_senses=max_senses, codes=6, code_levels=2, special_tokens=False, disable_tqdm=True
    )
    torch.manual_seed(3)
    model = SenseModelForSequenceClassification.from_teacher(
        teacher, dictionary, backbone="selector", hidden_size=4, num_labels=2, selection=selection
    )
    for weight in model.parameters():
        torch.nn.init.normal_(weight)
    folded, batch = model.eval().fold(), batch_of(teacher, texts)
    close(folded(**batch).logits, model(**batch).logits)
    assert folded.config.codes_see_senses == (max_senses > 1)
    assert (len(folded.sense_table.codes.with_senses) > 0) == (max_senses > 1)
    folded.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    with torch.inference_mode():
        assert torch.equal(loaded(**batch).logits, folded(**batch).logits)


def test_chunks_change_nothing(teacher, coded, narrow, texts, monkeypatch):
    """A chunk's end takes the products of another chunk's senses."""
    batch = batch_of(teacher, texts)
    for selection in ("hard", "soft"):
        folded = student(SenseModel, teacher, coded, narrow, selection=selection).fold()
        whole = folded(**batch).last_hidden_state
        monkeypatch.setattr(module, "_SCORES_AT_ONCE", 60)
        close(folded(**batch).last_hidden_state, whole)
        monkeypatch.undo()


def test_folding_that_saves_nothing_is_refused(teacher, coded):
    """Products of senses and many codes take more than the senses did, and nobody is told."""
    wide = coded.to("float32")
    wide.codes = type(wide.codes)(torch.randn(1, 200, wide.dim))
    model = SenseModelForSequenceClassification.from_teacher(teacher, wide, num_hidden_layers=1, num_labels=2)
    with pytest.raises(ValueError, match="no projection to save"):
        model.fold()
