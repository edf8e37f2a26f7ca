"""Folded models: they answer as the model did, need less, are loaded like any, and what they cannot keep is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaModel,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_sense import (
    FoldedSenseConfig,
    FoldedSenseModel,
    FoldedSenseModelForSequenceClassification,
    SenseDictionary,
    SenseModel,
    SenseModelForSequenceClassification,
    build_dictionary,
    load_teacher,
)
from hf_sense.evaluation import embed, evaluate_classifier, predict
from hf_sense.pooling import POOLINGS

# A soft choice by cosine through a projection is refused.
COMBINATIONS = [
    (metric, selection, projected)
    for metric in ("dot", "l2", "cosine")
    for selection in ("hard", "straight_through", "soft")
    for projected in (False, True)
    if (metric, selection, projected) != ("cosine", "soft", True)
]


@pytest.fixture(scope="module")
def mixed(dictionary):
    """The dictionary with tokens of no sense, of one, of equal senses, and of several."""
    torch.manual_seed(0)
    parts, lengths = [], []
    for token in range(dictionary.vocab_size):
        own = dictionary.senses_of(token).vectors
        # The teacher ends in a layer norm, so that its senses have like lengths.
        own = own * torch.linspace(0.5, 2.0, len(own))[torch.randperm(len(own))][:, None]
        if token % 2 == 1:
            own = own[:1]
        elif token % 4 == 0 and token != 0:
            own = own[:0]
        elif token % 8 == 2:
            own = torch.cat([own, own])
        parts.append(own)
        lengths.append(len(own))
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    made = SenseDictionary(
        torch.cat(parts), offsets, tokenizer_fingerprint=dictionary.tokenizer_fingerprint, metadata=dictionary.metadata
    )
    assert {0, 1, 4, 8} <= set(lengths)
    return made


@pytest.fixture(scope="module")
def narrow(teacher):
    """A backbone half as wide as the teacher."""
    torch.manual_seed(1)
    config = {**teacher.model.config.to_dict(), "hidden_size": 8, "num_hidden_layers": 1}
    return BertModel(BertConfig(**config)).eval()


def student(model_class, teacher, dictionary, backbone=None, **options):
    """A student whose every weight counts: projection and classifier with biases."""
    torch.manual_seed(2)
    options |= {"num_labels": 2} if model_class is SenseModelForSequenceClassification else {}
    shape = {"backbone": backbone} if backbone is not None else {"num_hidden_layers": 2}
    model = model_class.from_teacher(teacher, dictionary, **shape, **options)
    for layer in (model.base_model.sense_projection, getattr(model, "classifier", None)):
        if layer is not None:
            torch.nn.init.normal_(layer.weight)
            torch.nn.init.normal_(layer.bias)
    return model


def batch_of(teacher, texts, side="right"):
    return teacher.tokenizer(texts[:8], padding=True, return_tensors="pt", padding_side=side)


def close(found, expected):
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("metric", "selection", "projected"), COMBINATIONS)
def test_a_folded_classifier_gives_the_same_logits(teacher, mixed, narrow, texts, metric, selection, projected):
    """A bias or a norm is folded wrongly, a key is another token's, or a token without senses adds nothing."""
    model = student(
        SenseModelForSequenceClassification, teacher, mixed, narrow if projected else None, metric=metric,
        selection=selection, selection_temperature=2.0,
    )  # fmt: skip
    folded = model.fold()
    assert isinstance(folded, FoldedSenseModelForSequenceClassification)
    bare = (mixed.offsets.diff() == 0)[batch_of(teacher, texts)["input_ids"]]
    assert bare.any()
    for side in ("left", "right"):
        batch = batch_of(teacher, texts, side)
        expected = model.model(**batch, output_senses=True).sense_ids
        assert torch.equal(folded.model(**batch, output_senses=True).sense_ids, expected)
        for pooling in POOLINGS:
            model.config.pooling = folded.config.pooling = pooling
            close(folded(**batch).logits, model(**batch).logits)
        without = {**batch, "attention_mask": torch.zeros_like(batch["attention_mask"])}
        close(folded(**without).logits, model(**without).logits)
    alone = {"input_ids": batch["input_ids"][:1, -5:]}
    close(folded(**alone).logits, model(**alone).logits)


@pytest.mark.parametrize("selection", ["hard", "soft"])
@pytest.mark.parametrize("metric", ["dot", "l2", "cosine"])
def test_a_folded_model_gives_the_same_states(teacher, mixed, narrow, texts, metric, selection):
    """The states of a folded projection differ where there are tokens."""
    model = student(SenseModel, teacher, mixed, narrow, metric=metric, selection=selection, pooling="frequency")
    if (metric, selection) == ("cosine", "soft"):
        with pytest.raises(ValueError, match="length of the projected state"):
            model.fold()
        return
    folded = model.fold()
    assert isinstance(folded, FoldedSenseModel)
    batch = batch_of(teacher, texts, "left")
    mask = batch["attention_mask"].bool()
    found, expected = folded(**batch, output_senses=True), model(**batch, output_senses=True)
    assert torch.equal(found.sense_ids, expected.sense_ids)
    close(found.last_hidden_state[mask], expected.last_hidden_state[mask])
    assert not found.last_hidden_state[~mask].any()
    close(embed(folded, teacher.tokenizer, texts[:9]), embed(model, teacher.tokenizer, texts[:9]))


@pytest.mark.parametrize("metric", ["dot", "l2", "cosine"])
def test_without_a_projection_choices_are_the_same_to_the_last_bit(teacher, mixed, texts, metric):
    """Folding exchanges senses whose scores differ in the last bit, though nothing had to be rounded."""
    model = student(SenseModelForSequenceClassification, teacher, mixed, metric=metric)
    folded = model.fold()
    table = folded.sense_table
    own = torch.repeat_interleave(mixed.offsets.diff() > 1, mixed.offsets.diff())
    assert torch.equal(table.keys, mixed.senses[own])
    if metric != "dot":
        assert torch.equal(table.shifts, model.sense_table.half_norms()[own])
    batch = batch_of(teacher, texts)
    seen = model.model(**batch, output_senses=True)
    assert torch.equal(folded.model(**batch, output_senses=True).sense_ids, seen.sense_ids)


def test_a_folded_classifier_needs_less(teacher, mixed, narrow, tmp_path):
    """Wide senses travel on in a folded model, in memory or in its files."""
    sizes = {}
    for name, backbone in (("plain", None), ("projected", narrow)):
        model = student(SenseModelForSequenceClassification, teacher, mixed, backbone)
        for kind, one in (("before", model), ("after", model.fold())):
            one.save_pretrained(tmp_path / name / kind)
            held = sum(tensor.nbytes for tensor in one.state_dict().values())
            written = (tmp_path / name / kind / "model.safetensors").stat().st_size
            assert held <= written < held + 20_000
            sizes[name, kind] = held
    assert model.fold().sense_table.values.shape == (mixed.num_senses, 2)
    assert sizes["plain", "after"] < sizes["plain", "before"]
    assert sizes["projected", "after"] < sizes["projected", "before"]


def test_a_folded_classifier_is_loaded_like_any_model(teacher, mixed, narrow, texts, tmp_path):
    """The folder of a folded model cannot be opened, or answers otherwise, by some way of loading it."""
    model = student(SenseModelForSequenceClassification, teacher, mixed, narrow, pooling="frequency")
    batch = batch_of(teacher, texts)
    expected = model(**batch).logits
    folded = model.fold()
    folded.save_pretrained(tmp_path, max_shard_size="10KB")
    teacher.tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is FoldedSenseModelForSequenceClassification
    assert type(loaded.config) is FoldedSenseConfig
    assert torch.equal(loaded(**batch).logits, folded(**batch).logits)
    close(loaded(**batch).logits, expected)
    inner = AutoModel.from_pretrained(tmp_path)
    shares = inner.pool(inner(**batch).last_hidden_state, batch["input_ids"], batch["attention_mask"])
    close(shares + folded.bias, expected)
    answers = pipeline("text-classification", model=str(tmp_path))(texts[:8])
    assert [answer["label"] for answer in answers] == [f"LABEL_{int(i)}" for i in expected.argmax(-1)]
    assert "FoldedSenseModelForSequenceClassification" in (tmp_path / "modeling_hf_sense.py").read_text()
    close(predict(loaded, teacher.tokenizer, texts[:8]), expected)
    labels = expected.argmax(-1).tolist()
    assert evaluate_classifier(loaded, teacher.tokenizer, texts[:8], labels)["accuracy"] == 1.0


def test_a_folded_model_is_loaded_like_any_model(teacher, mixed, narrow, texts, tmp_path):
    """A folded model without a classifier comes back with other states."""
    folded = student(SenseModel, teacher, mixed, narrow).fold()
    folded.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    batch = batch_of(teacher, texts)
    assert torch.equal(loaded(**batch).last_hidden_state, folded(**batch).last_hidden_state)
    assert torch.equal(loaded(**batch, return_dict=False)[0], folded(**batch).last_hidden_state)


def test_the_model_that_was_folded_stays_as_it_was(teacher, mixed, narrow, texts):
    """Folding changes the model, or training the model afterwards changes what was folded."""
    model = student(SenseModelForSequenceClassification, teacher, mixed, narrow).train()
    before = copy.deepcopy(model.state_dict())
    folded = model.fold()
    assert model.training
    assert not folded.training
    assert all(weight.requires_grad for weight in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert folded.config.backbone_config is folded.model.backbone.config
    assert folded.config.backbone_config is not model.config.backbone_config
    batch = batch_of(teacher, texts)
    expected = folded(**batch).logits
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    assert torch.equal(folded(**batch).logits, expected)


@pytest.mark.parametrize("kind", ["int8", "outside", "outside float16"])
def test_senses_kept_otherwise_are_folded_too(teacher, mixed, narrow, texts, tmp_path, kind):
    """Folding reads int8 integers without their scales, or finds no senses where they lie outside."""
    dictionary = mixed.to({"int8": torch.int8, "outside float16": torch.float16}.get(kind, torch.float32))
    options = {}
    if kind.startswith("outside"):
        dictionary.save_pretrained(tmp_path / "senses", max_shard_size=2000)
        dictionary = SenseDictionary.from_pretrained(tmp_path / "senses")
        options["dictionary_path"] = "senses"
    model = student(SenseModelForSequenceClassification, teacher, dictionary, narrow, **options)
    folded = model.fold()
    batch = batch_of(teacher, texts)
    close(folded(**batch).logits, model(**batch).logits)
    folded.save_pretrained(tmp_path / "folded")
    assert not (tmp_path / "folded" / "senses").exists()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "folded")
    assert torch.equal(loaded(**batch).logits, folded(**batch).logits)


def test_a_table_without_senses_is_folded(teacher, mixed, narrow, texts):
    """A dictionary that knows none of the tokens breaks the folded table."""
    empty = SenseDictionary(
        torch.zeros(0, mixed.dim), torch.zeros_like(mixed.offsets), tokenizer_fingerprint=mixed.tokenizer_fingerprint
    )
    model = student(SenseModelForSequenceClassification, teacher, empty, narrow, selection="soft")
    batch = batch_of(teacher, texts)
    close(model.fold()(**batch).logits, model(**batch).logits)


def test_what_cannot_be_kept_exact_is_refused(teacher, mixed, narrow, texts):
    """A model is folded that would answer otherwise, or for nothing."""
    kind = SenseModelForSequenceClassification
    with pytest.raises(ValueError, match="neither a projection nor a classifier"):
        student(SenseModel, teacher, mixed).fold()
    with pytest.raises(ValueError, match="no sense is chosen"):
        student(kind, teacher, mixed, narrow, selection="none").fold()
    with pytest.raises(ValueError, match="hidden layer"):
        student(kind, teacher, mixed, narrow, head_activation="tanh").fold()
    with pytest.raises(ValueError, match="length of the projected state"):
        student(kind, teacher, mixed, narrow, metric="cosine", selection="soft").fold()
    with pytest.raises(ValueError, match=r"dtype=torch\.float32"):
        student(kind, teacher, mixed, narrow).bfloat16().fold()
    for dictionary, labels in ((mixed.to(torch.int8), 2), (mixed, 100)):
        model = kind.from_teacher(teacher, dictionary, num_hidden_layers=1, num_labels=labels)
        with pytest.raises(ValueError, match="no projection to save either"):
            model.fold()
    with pytest.raises(ValueError, match="key_metric must be one of"):
        FoldedSenseConfig(key_metric="manhattan")
    folded = student(kind, teacher, mixed, narrow, metric="cosine").fold()
    folded.config.selection = "soft"  # as from_pretrained(folder, selection="soft") sets it
    with pytest.raises(ValueError, match="length of the projected state"):
        folded(**batch_of(teacher, texts))
    with pytest.raises(ValueError, match="cannot be resized"):
        folded.resize_token_embeddings(100)


def test_a_resized_model_is_folded(teacher, mixed, narrow, texts):
    """Tokens added to a model have no place in the folded table, or those cut off keep one."""
    model = student(SenseModelForSequenceClassification, teacher, mixed, copy.deepcopy(narrow))
    batch = batch_of(teacher, texts)
    for size in (mixed.vocab_size + 5, mixed.vocab_size - 1):
        model.resize_token_embeddings(size)
        batch["input_ids"][0, 1] = size - 1
        close(model.fold()(**batch).logits, model(**batch).logits)


def test_a_decoders_student_is_folded(base, texts, tmp_path):
    """A decoder's tables of positions, which no file holds, are lost on the way into the folded model or its folder."""
    teacher = load_teacher(str(base), attention="bidirectional")
    senses = build_dictionary(teacher, texts, max_senses=2, disable_tqdm=True)
    config = {**teacher.model.config.to_dict(), "hidden_size": 8, "intermediate_size": 8, "head_dim": 4}
    backbone = LlamaModel(LlamaConfig(**config)).eval()
    model = student(SenseModelForSequenceClassification, teacher, senses, backbone, pooling="weighted_mean")
    folded = model.fold()
    batch = teacher.tokenizer(texts[:8], padding=True, return_tensors="pt", padding_side="left")
    close(folded(**batch).logits, model(**batch).logits)
    folded.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(**batch).logits, folded(**batch).logits)


def test_sentence_transformers_open_a_folded_model(teacher, mixed, narrow, texts, tmp_path):
    """Saved for Sentence Transformers, a folded model gives other vectors than the model it came from."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = student(SenseModel, teacher, mixed, narrow, pooling="frequency")
    model.fold().save_for_sentence_transformers(tmp_path, teacher.tokenizer)
    found = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu").encode(
        texts[:8], convert_to_tensor=True
    )
    close(found, embed(model, teacher.tokenizer, texts[:8]))


def test_the_attention_backend_is_kept(teacher, mixed, narrow, texts):
    """A model loaded with eager attention returns attentions, and folded it returns none."""
    model = student(SenseModelForSequenceClassification, teacher, mixed, narrow)
    model.set_attn_implementation("eager")
    folded = model.fold()
    assert folded.config._attn_implementation == "eager"
    batch = batch_of(teacher, texts)
    found, expected = (one.eval()(**batch, output_attentions=True).attentions for one in (folded, model))
    assert torch.equal(found[0], expected[0])


def test_adapters_are_merged_first(teacher, mixed):
    """A model with LoRA layers is folded into a folder that drops them when it is loaded."""
    from peft import LoraConfig, TaskType, get_peft_model

    base = student(SenseModelForSequenceClassification, teacher, mixed)
    model = get_peft_model(base, LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["query", "value"], r=2))
    with pytest.raises(ValueError, match="Merge adapters first"):
        model.fold()


def test_trainer_evaluates_and_does_not_train(teacher, mixed, narrow, texts, tmp_path):
    """Trainer cannot evaluate a folded model, or trains one in vain."""
    model = student(SenseModelForSequenceClassification, teacher, mixed, narrow)
    folded = model.fold()
    rows = [{**teacher.tokenizer(text), "labels": number % 2} for number, text in enumerate(texts[:8])]
    args = TrainingArguments(
        str(tmp_path), per_device_eval_batch_size=4, max_steps=1, report_to=[], dataloader_pin_memory=False
    )
    found, expected = (
        Trainer(one, args, processing_class=teacher.tokenizer, train_dataset=rows, eval_dataset=rows)
        for one in (folded, model)
    )
    assert found.evaluate()["eval_loss"] == pytest.approx(expected.evaluate()["eval_loss"], abs=1e-5)
    with pytest.raises(ValueError, match="cannot be trained"):
        found.train()
