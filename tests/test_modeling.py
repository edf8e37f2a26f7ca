"""Sense models: the forward pass against a plain loop, saving and loading, and the tools that users put on them."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    pipeline,
)

from hf_sense import (
    SenseConfig,
    SenseDictionary,
    SenseModel,
    SenseModelForSequenceClassification,
    build_dictionary,
    load_teacher,
)
from hf_sense.pooling import POOLINGS


@pytest.fixture
def batch(teacher, texts):
    return teacher.tokenizer(texts[:6], padding=True, return_tensors="pt")


def student_of(teacher, dictionary, **options):
    return SenseModelForSequenceClassification.from_teacher(teacher, dictionary, num_labels=3, **options)


def test_hard_selection_equals_a_plain_loop(teacher, dictionary, batch):
    """The layer picks another sense than the metric says, or touches padding."""
    model = SenseModel.from_teacher(teacher, dictionary)
    output = model(**batch, output_senses=True)
    states = teacher.hidden_states(**batch)
    for row, column in batch["attention_mask"].nonzero().tolist():
        own = dictionary.senses_of(int(batch["input_ids"][row, column]))
        distances = (own.vectors - states[row, column]).square().sum(-1)
        best = int(distances.argmin())
        assert int(output.sense_ids[row, column]) == own.sense_ids[best]
        torch.testing.assert_close(output.last_hidden_state[row, column], own.vectors[best])
    hidden_under_padding = batch["attention_mask"] == 0
    assert (output.sense_ids[hidden_under_padding] == -100).all()
    assert len(output.sense_scores) == sum(
        len(dictionary.senses_of(int(i)).sense_ids) for i in batch["input_ids"][batch["attention_mask"].bool()]
    )


def test_token_without_senses_keeps_its_hidden_state(teacher, dictionary, batch):
    """A token that the corpus did not hold is replaced by somebody else's sense."""
    empty = SenseDictionary(
        torch.zeros(0, dictionary.dim),
        torch.zeros_like(dictionary.offsets),
        tokenizer_fingerprint=dictionary.tokenizer_fingerprint,
    )
    for selection in ("hard", "soft", "straight_through"):
        model = SenseModel.from_teacher(teacher, empty, selection=selection)
        kept = batch["attention_mask"].bool()
        torch.testing.assert_close(model(**batch).last_hidden_state[kept], teacher.hidden_states(**batch)[kept])


@pytest.mark.parametrize("metric", ["dot", "cosine", "l2"])
def test_soft_selection_approaches_hard_as_it_cools(teacher, dictionary, batch, metric):
    """The soft weights are of another metric than the hard choice."""
    soft = SenseModel.from_teacher(teacher, dictionary, selection="soft", metric=metric, selection_temperature=1e-5)
    hard = SenseModel.from_teacher(teacher, dictionary, metric=metric)
    torch.testing.assert_close(soft(**batch).last_hidden_state, hard(**batch).last_hidden_state, atol=1e-3, rtol=1e-3)
    soft.config.selection_temperature = 10.0
    assert not torch.allclose(soft(**batch).last_hidden_state, hard(**batch).last_hidden_state, atol=1e-3)


def test_gradients_flow_as_the_selection_says(teacher, dictionary, batch):
    """Fine-tuning with hard selection trains a backbone that it cannot train, or straight-through trains nothing."""
    for selection, flows in (("hard", False), ("straight_through", True), ("soft", True), ("none", True)):
        model = student_of(teacher, dictionary, selection=selection, num_hidden_layers=1)
        model(**batch, labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss.backward()
        gradient = model.get_input_embeddings().weight.grad
        assert (gradient is not None and bool(gradient.abs().sum() > 0)) == flows, selection


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_on_either_side_changes_nothing(teacher, dictionary, texts, pooling):
    """A text's vector depends on what it was batched with, or on the side of the padding."""
    model = SenseModel.from_teacher(teacher, dictionary, pooling=pooling)
    alone = [teacher.tokenizer(text, return_tensors="pt") for text in texts[:5]]
    expected = torch.cat([model.pool(model(**one).last_hidden_state, one["input_ids"]) for one in alone])
    for side in ("left", "right"):
        both = teacher.tokenizer(texts[:5], padding=True, return_tensors="pt", padding_side=side)
        output = model(**both, output_senses=True)
        found = model.pool(output.last_hidden_state, both["input_ids"], both["attention_mask"])
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("device_map", [None, "cpu", "auto"])
def test_round_trip_through_the_auto_classes(teacher, dictionary, batch, tmp_path, dtype, device_map):
    """A saved student comes back with other senses, weights or logits, whole or in shards."""
    student = student_of(teacher, dictionary, num_hidden_layers=2, pooling="frequency").to(dtype)
    student.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, device_map=device_map)
    assert loaded.dtype == dtype
    assert torch.equal(loaded(**batch).logits, student(**batch).logits)
    inner = AutoModel.from_pretrained(tmp_path)
    assert isinstance(inner, SenseModel)
    assert torch.equal(inner(**batch).last_hidden_state, student.model(**batch).last_hidden_state)
    assert inner.to_dictionary().fingerprint == student.to_dictionary().fingerprint
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, SenseConfig)
    assert config.dictionary_metadata["teacher"]["model_type"] == "bert"


def test_resized_embeddings_come_back(teacher, dictionary, batch, tmp_path):
    """Added tokens break the table's offsets, or the saved folder cannot be loaded."""
    student = student_of(teacher, dictionary)
    expected = student(**batch).logits
    old = student.config.vocab_size
    student.resize_token_embeddings(old + 7)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == loaded.config.backbone_config.vocab_size == old + 7
    torch.testing.assert_close(loaded(**batch).logits, expected)
    added = {"input_ids": torch.tensor([[old + 3]])}
    assert int(loaded.model(**added, output_senses=True).sense_ids) == -100
    loaded.resize_token_embeddings(old)
    torch.testing.assert_close(loaded(**batch).logits, expected)


def test_gradient_checkpointing_gives_the_same_gradient(teacher, dictionary, batch):
    """Checkpointing is accepted and does nothing, or changes the gradient."""
    gradients = []
    for checkpointing in (False, True):
        model = student_of(teacher, dictionary, selection="straight_through")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        torch.manual_seed(0)
        model.train()
        model(**batch, labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss.backward()
        gradients.append(model.model.backbone.encoder.layer[0].output.dense.weight.grad)
    # The classifier is drawn anew for each model, so compare what both have: a gradient that is there.
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)


def test_lora_trains_and_merges(teacher, dictionary, batch, tmp_path):
    """PEFT finds no layers, or its merged model answers otherwise."""
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model

    base = student_of(teacher, dictionary, selection="straight_through")
    base.save_pretrained(tmp_path / "base")
    model = get_peft_model(base, LoraConfig(task_type=TaskType.SEQ_CLS, target_modules=["query", "value"], r=2))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    model(**batch, labels=torch.tensor([0, 1, 2, 0, 1, 2])).loss.backward()
    optimizer.step()
    model.eval()
    model.save_pretrained(tmp_path / "adapter")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    merged = PeftModel.from_pretrained(again, tmp_path / "adapter").merge_and_unload().eval()
    torch.testing.assert_close(merged(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-4)


def test_pipeline_classifies(teacher, dictionary, texts):
    """The text-classification pipeline does not take the model."""
    student = student_of(teacher, dictionary, pooling="frequency")
    answers = pipeline("text-classification", model=student, tokenizer=teacher.tokenizer)(texts[:3])
    logits = student(**teacher.tokenizer(texts[:3], padding=True, return_tensors="pt")).logits
    assert [answer["label"] for answer in answers] == [student.config.id2label[int(i)] for i in logits.argmax(-1)]


def test_dictionary_outside_the_model(teacher, dictionary, batch, tmp_path):
    """Senses that lie outside are saved again, picked otherwise, or exchanged unnoticed."""
    dictionary.save_pretrained(tmp_path / "senses", max_shard_size=2000)
    opened = SenseDictionary.from_pretrained(tmp_path / "senses")
    where = str(tmp_path / "senses")
    outside = SenseModel.from_teacher(teacher, opened, dictionary_path=where)
    inside = SenseModel.from_teacher(teacher, dictionary)
    outside.save_pretrained(tmp_path / "student")
    loaded = AutoModel.from_pretrained(tmp_path / "student")
    assert loaded.sense_table.senses.numel() == 0
    expected = inside(**batch, output_senses=True)
    for model in (outside, loaded):
        found = model(**batch, output_senses=True)
        assert torch.equal(found.sense_ids, expected.sense_ids)
        assert torch.equal(found.last_hidden_state, expected.last_hidden_state)
    dictionary.merge(dictionary).save_pretrained(tmp_path / "senses")
    with pytest.raises(ValueError, match="was made with the dictionary"):
        AutoModel.from_pretrained(tmp_path / "student")


def test_weights_written_in_place_are_noticed(teacher, dictionary, batch):
    """Norms kept from the senses before load_state_dict pick the wrong senses after it."""
    model, other = (SenseModel.from_teacher(teacher, dictionary) for _ in range(2))
    other.table.senses = other.table.senses * torch.linspace(0.1, 3, len(other.table.senses))[:, None]
    before = model(**batch, output_senses=True).sense_ids
    model.load_state_dict(other.state_dict())
    expected = other(**batch, output_senses=True).sense_ids
    assert torch.equal(model(**batch, output_senses=True).sense_ids, expected)
    assert not torch.equal(before, expected)


def test_smaller_backbone_with_a_projection(teacher, dictionary, batch):
    """A narrower backbone cannot choose among the teacher's senses."""
    config = BertConfig(**{**teacher.model.config.to_dict(), "hidden_size": 8, "num_hidden_layers": 1})
    student = SenseModel.from_teacher(teacher, dictionary, backbone=BertModel(config))
    assert student.sense_projection.weight.shape == (dictionary.dim, 8)
    assert student(**batch).last_hidden_state.shape[-1] == dictionary.dim


@pytest.mark.parametrize(
    ("config_class", "model_class"),
    [(BertConfig, BertForSequenceClassification), (RobertaConfig, RobertaForSequenceClassification)],
)
def test_copied_head_answers_as_the_teacher_does(teacher, dictionary, texts, batch, config_class, model_class):
    """The teacher's pooler or classifier is copied to the wrong place, or is not frozen."""
    torch.manual_seed(3)
    fields = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    tokenizer = teacher.tokenizer
    config = config_class(
        vocab_size=len(tokenizer), num_labels=3, id2label={0: "a", 1: "b", 2: "c"}, max_position_embeddings=80,
        pad_token_id=tokenizer.pad_token_id, **fields,
    )  # fmt: skip
    model = model_class(config).eval()
    own = load_teacher(model, tokenizer)
    senses = build_dictionary(own, texts, max_senses=2, disable_tqdm=True)
    student = SenseModelForSequenceClassification.from_teacher(own, senses, copy_head=True, selection="none")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(student(**inputs).logits, model(**inputs).logits, atol=1e-5, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in student.classifier.parameters())
    assert student.config.id2label[2] == "c"


def test_mismatches_are_refused(teacher, dictionary, tmp_path):
    """A student is made from things that do not belong together, and fails later."""
    alien = SenseDictionary(dictionary.senses, dictionary.offsets, tokenizer_fingerprint="of another")
    with pytest.raises(ValueError, match="differ in their vocabulary"):
        SenseModel.from_teacher(teacher, alien)
    narrow = SenseDictionary(torch.ones(1, 3), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="3 wide"):
        SenseModel.from_teacher(teacher, narrow)
    with pytest.raises(ValueError, match="num_hidden_layers"):
        SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=9)
    with pytest.raises(ValueError, match="copy_head"):
        SenseModelForSequenceClassification.from_teacher(teacher, dictionary, copy_head=True)
    for field in ("metric", "selection", "pooling"):
        with pytest.raises(ValueError, match=f"{field} must be one of"):
            SenseConfig(**{field: "nonsense"})
    with pytest.raises(ValueError, match="input_ids"):
        SenseModel.from_teacher(teacher, dictionary)(inputs_embeds=torch.zeros(1, 2, dictionary.dim))


def test_labels_on_hard_senses_say_that_the_backbone_learns_nothing(teacher, dictionary, texts, caplog):
    """Somebody fine-tunes for a day, the loss falls, and only the classifier has learned."""
    model = SenseModelForSequenceClassification.from_teacher(teacher, dictionary, num_hidden_layers=1)
    batch = {**teacher.tokenizer(texts[:4], padding=True, return_tensors="pt"), "labels": torch.tensor([0, 1, 0, 1])}
    model.train()
    for selection, number in (("straight_through", 0), ("hard", 1), ("hard", 1)):
        model.config.selection = selection
        model.zero_grad()
        model(**batch).loss.backward()
        assert caplog.text.count("no gradient reaches the backbone") == number
        learned = any(weight.grad is not None and weight.grad.any() for weight in model.model.backbone.parameters())
        assert learned == (selection == "straight_through")


def test_loading_weights_leaves_the_dictionary_alone(teacher, dictionary):
    """Weights that are loaded into a student are written into the dictionary that it was made from."""
    before = dictionary.senses.clone(), dictionary.counts.clone(), dictionary.offsets.clone()
    student = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1)
    state = {name: torch.zeros_like(tensor) for name, tensor in student.state_dict().items()}
    student.load_state_dict(state)
    assert not student.sense_table.senses.any()
    assert all(torch.equal(a, b) for a, b in zip(before, (dictionary.senses, dictionary.counts, dictionary.offsets)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_layers": 2}, "did you mean 'num_hidden_layers'"),
        ({"poolling": "mean"}, "did you mean 'pooling'"),
        ({"dictionary_path": 5}, "should be text"),
    ],
)
def test_misspelt_options_are_refused(teacher, dictionary, options, message):
    """A student has all of its teacher's layers, because a word in the call was wrong."""
    with pytest.raises(ValueError, match=message):
        SenseModel.from_teacher(teacher, dictionary, **options)
    with pytest.raises(ValueError, match="should be a SenseDictionary"):
        SenseModel.from_teacher(teacher, "senses")


def narrow_classifier(teacher, dictionary):
    """A classifier with a projection, so that there is something to fold."""
    body = BertModel(
        BertConfig(vocab_size=len(teacher.tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    return SenseModelForSequenceClassification.from_teacher(teacher, dictionary, backbone=body).eval()


@pytest.fixture(scope="module")
def saved_classifier(teacher, dictionary, tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    SenseModelForSequenceClassification.from_teacher(teacher, dictionary, num_hidden_layers=1).save_pretrained(folder)
    teacher.tokenizer.save_pretrained(folder)
    return folder


def test_a_classifier_is_not_saved_away(teacher, dictionary, saved_classifier, tmp_path):
    """A model without a classifier is saved over one with it, and hours of training are gone."""
    model = SenseModelForSequenceClassification.from_pretrained(saved_classifier)
    before = (saved_classifier / "model.safetensors").read_bytes()
    small = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1)
    for headless in (model.model, SenseModel.from_pretrained(saved_classifier), small):
        with pytest.raises(ValueError, match="whose classifier a SenseModel saved there would take away"):
            headless.save_pretrained(saved_classifier)
    assert (saved_classifier / "model.safetensors").read_bytes() == before
    narrow_classifier(teacher, dictionary).fold().save_pretrained(tmp_path / "folded")
    with pytest.raises(ValueError, match="holds a FoldedSenseModelForSequenceClassification"):
        small.save_pretrained(tmp_path / "folded")
    # Over its own kind, or over one that has less, it saves as ever.
    for _ in range(2):
        small.save_pretrained(tmp_path / "own")
    for _ in range(2):
        model.save_pretrained(tmp_path / "own")
    assert "classifier.weight" in safetensors.torch.load_file(tmp_path / "own" / "model.safetensors")


def test_a_classifier_returns_its_senses(teacher, dictionary, batch):
    """To see a classifier's senses one has to know what its inner model is called."""
    model = narrow_classifier(teacher, dictionary)
    with torch.no_grad():
        inner, whole, plain = (
            model.model(**batch, output_senses=True),
            model(**batch, output_senses=True),
            model(**batch),
        )
        folded = model.fold()(**batch, output_senses=True)
    assert torch.equal(whole.logits, plain.logits)
    for name in ("contextual_hidden_state", "sense_ids", "sense_scores"):
        assert torch.equal(whole[name], inner[name])
        assert name not in plain
    assert torch.equal(folded.sense_ids, inner.sense_ids)


def test_what_is_no_model_is_refused_by_name(dictionary, tmp_path):
    """A dictionary's folder is said to lack weights, a misspelt path to be a malformed repository."""
    dictionary.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="is a sense dictionary, and a model is wanted here"):
        SenseModel.from_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"There is no folder 'a/b/c'.*'org/name'"):
        SenseModelForSequenceClassification.from_pretrained("a/b/c")


@pytest.mark.parametrize("selection", ["hard", "soft", "straight_through"])
def test_a_compiled_model_answers_as_it_does_plain(teacher, dictionary, texts, selection):
    """torch.compile traces into shapes that follow the text, and fails, or answers otherwise."""
    model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1, selection=selection).eval()
    compiled = torch.compile(model, backend="eager")
    for few in (3, 5):
        batch = teacher.tokenizer(list(texts[:few]), padding=True, return_tensors="pt")
        expected = model(**batch, output_senses=True)
        found = compiled(**batch, output_senses=True)
        assert torch.equal(found.sense_ids, expected.sense_ids)
        torch.testing.assert_close(found.last_hidden_state, expected.last_hidden_state)
