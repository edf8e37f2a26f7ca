"""Students without a transformer: their network against plain loops, and every tool that other students go through."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, Trainer, TrainingArguments, pipeline

from hf_sense import (
    ContextNetwork,
    ContextNetworkConfig,
    SenseDictionary,
    SenseDistillationConfig,
    SenseDistillationTrainer,
    SenseModel,
    SenseModelForSequenceClassification,
    build_dictionary,
    compute_sense_targets,
)
from hf_sense.evaluation import embed, fit_linear_head
from hf_sense.export import ExportableModel, export_program
from hf_sense.small_students import SELECTIONS, token_mean_dictionary

KINDS = tuple(SELECTIONS)


@pytest.fixture(scope="module")
def halved(dictionary):
    """The dictionary without the senses of every third token, so that some tokens of the texts are unknown."""
    owners = torch.repeat_interleave(dictionary.offsets.diff())
    kept = owners % 3 > 0
    lengths = dictionary.offsets.diff().where(torch.arange(dictionary.vocab_size) % 3 > 0, 0)
    return SenseDictionary(
        dictionary.senses[kept], torch.nn.functional.pad(lengths.cumsum(0), (1, 0)), dictionary.counts[kept],
        dictionary.spread[kept], tokenizer_fingerprint=dictionary.tokenizer_fingerprint, metadata=dictionary.metadata,
    )  # fmt: skip


@pytest.fixture
def batch(teacher, texts):
    return teacher.tokenizer(texts[:6], padding=True, return_tensors="pt")


def student_of(teacher, dictionary, kind, model_class=SenseModel, **options):
    torch.manual_seed(0)
    return model_class.from_teacher(teacher, dictionary, backbone=kind, **{"hidden_size": 8, "window": 3, **options})


def test_the_network_equals_a_plain_loop():
    """A token's state is made from other neighbours than its window's, or from another text's mean."""
    torch.manual_seed(0)
    network = ContextNetwork(ContextNetworkConfig(6, 4, hidden_size=3, window=3)).eval()
    network.rows[:] = torch.tensor([0, 1, 2, 3, 0, 2], dtype=torch.int32)
    ids, mask = torch.tensor([[1, 5, 3, 4, 2], [3, 2, 0, 0, 0]]), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    found = network(ids, mask).last_hidden_state
    weight, bias = network.window.weight, network.window.bias
    for row, length in enumerate(mask.sum(1).tolist()):
        vectors = [network.embeddings.weight[network.rows[token]] for token in ids[row, :length]]
        mean = sum(vectors) / length
        for place, own in enumerate(vectors):
            total = bias.clone()
            for column in range(3):
                if 0 <= place + column - 1 < length:
                    total = total + weight[:, :, column] @ vectors[place + column - 1]
            near = total[:3] * torch.sigmoid(total[3:])
            expected = network.outer(torch.nn.functional.gelu(network.inner(torch.cat([own, near, mean]))))
            torch.testing.assert_close(found[row, place], expected)


def test_the_state_is_the_tokens_mean_and_a_projection(teacher, halved, batch):
    """The mean counts every sense alike, stands at another token, or a token without senses says what nobody taught it."""
    model = student_of(teacher, halved, "selector")
    output = model(**batch, output_senses=True)
    states = model.sense_projection(model.backbone(batch["input_ids"], batch["attention_mask"]).last_hidden_state)
    unknown = 0
    for row, column in batch["attention_mask"].nonzero().tolist():
        own = halved.senses_of(int(batch["input_ids"][row, column]))
        unknown += len(own.counts) == 0
        mean = (own.vectors * own.counts[:, None]).sum(0) / max(1, int(own.counts.sum()))
        expected = states[row, column] + mean if len(own.counts) else torch.zeros_like(mean)
        torch.testing.assert_close(output.contextual_hidden_state[row, column], expected)
        if len(own.counts):
            scores = own.vectors @ expected - own.vectors.square().sum(1) / 2
            expected = (scores / model.config.selection_temperature).softmax(0) @ own.vectors
        torch.testing.assert_close(output.last_hidden_state[row, column], expected, atol=1e-5, rtol=1e-4)
    assert unknown


def test_means_are_those_of_a_dictionary_of_one_sense(teacher, texts, dictionary, batch):
    """The context table's rows are not the means that a build with one sense a token finds."""
    single = build_dictionary(teacher, texts, max_senses=1, disable_tqdm=True)
    means = token_mean_dictionary(dictionary)
    torch.testing.assert_close(means.senses, single.senses, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(means.spread, single.spread, atol=1e-4, rtol=1e-3)
    assert torch.equal(means.offsets, single.offsets)
    assert torch.equal(means.counts, single.counts)
    model = student_of(teacher, dictionary, "context")
    assert len(model.sense_table.senses) == single.num_senses
    untrained = SenseModel.from_teacher(teacher, dictionary, backbone="context", hidden_size=8)
    torch.nn.init.zeros_(untrained.sense_projection.weight)
    kept = batch["attention_mask"].bool()
    expected = single.replace(batch["input_ids"], torch.zeros(*kept.shape, single.dim), batch["attention_mask"])
    torch.testing.assert_close(untrained(**batch).last_hidden_state[kept], expected[kept], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_either_side_changes_nothing(teacher, halved, texts, kind):
    """A window reaches into the padding, or the mean counts it."""
    model = student_of(teacher, halved, kind, pooling="frequency")
    alone = embed(model, teacher.tokenizer, texts[:6], batch_size=1)
    for side in ("left", "right"):
        both = teacher.tokenizer(texts[:6], padding=True, return_tensors="pt", padding_side=side)
        found = model.pool(model(**both).last_hidden_state, both["input_ids"], both["attention_mask"])
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-4)
        vectors = model.get_input_embeddings()(model.backbone.rows[both["input_ids"]])
        vectors = vectors.masked_fill(both["attention_mask"].unsqueeze(-1) == 0, torch.nan)
        given = {"inputs_embeds": vectors, "attention_mask": both["attention_mask"]}
        bare = model.backbone(both["input_ids"], both["attention_mask"]).last_hidden_state
        torch.testing.assert_close(model.backbone(**given).last_hidden_state, bare)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip_through_the_auto_classes(teacher, halved, batch, tmp_path, kind, dtype):
    """A saved student comes back with other rows, means or logits."""
    student = student_of(teacher, halved, kind, SenseModelForSequenceClassification, num_labels=3).to(dtype)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert loaded.dtype == dtype
    assert torch.equal(loaded(**batch).logits, student(**batch).logits)
    inner = AutoModel.from_pretrained(tmp_path)
    assert torch.equal(inner(**batch).last_hidden_state, student.model(**batch).last_hidden_state)
    exact = student.float()(**batch).logits
    torch.testing.assert_close(loaded(**batch).logits.float(), exact, atol=0.1, rtol=0.1)


def test_the_network_is_a_model_of_its_own(tmp_path):
    """AutoModel does not know the backbone without a student around it."""
    made = AutoModel.from_config(AutoConfig.for_model("sense_context_network", vocab_size=9, num_embeddings=5))
    made.rows[:5] = torch.arange(5, dtype=torch.int32)
    made.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    ids = torch.tensor([[1, 8, 3]])
    assert torch.equal(loaded(ids)[0], made(ids, return_dict=False)[0])


@pytest.mark.parametrize("kind", KINDS)
def test_training_reaches_every_weight_and_lowers_the_loss(teacher, dictionary, texts, tmp_path, kind):
    """A part of the student gets no gradient, or the trainer's loss is another than a plain loop's."""
    data = Dataset.from_dict({"text": list(texts)})
    losses = {} if kind == "selector" else {"sense_weight": 0.0, "mse_weight": 1.0}
    args = SenseDistillationConfig(
        str(tmp_path / "out"), max_steps=60, per_device_train_batch_size=20, learning_rate=1e-2, report_to="none",
        logging_steps=1, disable_tqdm=True, use_cpu=True, save_strategy="no", target_cache_dir=str(tmp_path), **losses,
    )  # fmt: skip
    student = student_of(teacher, dictionary, kind)
    before = {name: weight.detach().clone() for name, weight in student.named_parameters()}
    trainer = SenseDistillationTrainer(student, args, teacher=teacher, train_dataset=data)
    rows = compute_sense_targets(data.select(range(3)), teacher, dictionary, cache_dir=tmp_path, disable_tqdm=True)
    total, tokens = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        state = student(ids, output_contextual=True).last_hidden_state[0]
        wanted = teacher.hidden_states(ids, torch.ones_like(ids))[0]
        for place, label in enumerate(row["sense_labels"]):
            own = dictionary.senses_of(int(ids[0, place]))
            scores = (own.vectors @ state[place] - own.vectors.square().sum(1) / 2) / trainer.temperature
            entropy = scores.logsumexp(0) - scores[label - own.sense_ids[0]]
            total += (entropy if kind == "selector" else (state[place] - wanted[place]).square().mean()).item()
            tokens += 1
    found = trainer.compute_loss(student, trainer.data_collator([trainer.train_dataset[i] for i in range(3)]))
    assert found.item() == pytest.approx(total / tokens, rel=1e-4)
    trainer.train()
    losses = [logs["loss"] for logs in trainer.state.log_history if "loss" in logs]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    for name, weight in student.named_parameters():
        assert not torch.equal(weight, before[name]), name


@pytest.mark.parametrize("kind", KINDS)
def test_labels_train_the_network(teacher, dictionary, texts, tmp_path, kind):
    """The plain Trainer trains the classifier alone, or does not take the model; nor does a pipeline."""
    student = student_of(teacher, dictionary, kind, SenseModelForSequenceClassification, num_labels=2)
    before = student.model.backbone.window.weight.detach().clone()
    rows = [
        {**teacher.tokenizer(text, padding="max_length", max_length=40), "labels": n % 2}
        for n, text in enumerate(texts)
    ]
    args = TrainingArguments(str(tmp_path), max_steps=2, learning_rate=1e-2, report_to="none", use_cpu=True)
    Trainer(student, args, train_dataset=Dataset.from_list(rows)).train()
    assert not torch.equal(student.model.backbone.window.weight, before)
    fit_linear_head(student, teacher.tokenizer, texts[:20], ["a", "b"] * 10)
    assert pipeline("text-classification", student, tokenizer=teacher.tokenizer)(texts[0])[0]["label"] in "ab"


@pytest.mark.parametrize("kind", KINDS)
def test_sentence_transformers_gives_the_same_vectors(teacher, halved, texts, tmp_path, kind):
    """Sentence Transformers cannot open the folder, or pools it otherwise."""
    sentence_transformers = pytest.importorskip("sentence_transformers")
    model = student_of(teacher, halved, kind, pooling="frequency")
    model.save_for_sentence_transformers(tmp_path, teacher.tokenizer)
    found = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu").encode(texts[:8])
    torch.testing.assert_close(
        torch.from_numpy(found), embed(model, teacher.tokenizer, texts[:8]), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("metric", ["l2", "dot"])
@pytest.mark.parametrize("selection", ["hard", "soft"])
def test_folded_selectors_answer_alike(teacher, halved, batch, metric, selection):
    """Folding forgets the token's mean, or adds it to the wrong key."""
    model = student_of(teacher, halved, "selector", metric=metric, selection=selection)
    torch.nn.init.normal_(model.sense_projection.weight, std=0.5)
    torch.nn.init.normal_(model.sense_projection.bias)
    folded = model.fold()
    kept = batch["attention_mask"].bool()
    found, expected = (m(**batch, output_senses=True) for m in (folded, model))
    assert folded.sense_table.keys.shape[1] == 8
    assert torch.equal(found.sense_ids, expected.sense_ids)
    torch.testing.assert_close(found.last_hidden_state[kept], expected.last_hidden_state[kept], atol=1e-4, rtol=1e-3)
    wide = student_of(teacher, halved, "selector", SenseModelForSequenceClassification, hidden_size=halved.dim)
    with pytest.raises(ValueError, match="smaller hidden_size"):
        wide.fold()


@pytest.mark.parametrize("kind", KINDS)
def test_exported_programs_answer_alike(teacher, halved, batch, kind):
    """An exported graph leaves the token's mean out."""
    model = student_of(teacher, halved, kind)
    run = export_program(model).module()
    inputs = {name: batch[name] for name in ExportableModel(model).input_names}
    kept = batch["attention_mask"].bool()
    expected = model(**batch).last_hidden_state
    torch.testing.assert_close(run(**inputs)[0][kept], expected[kept], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_senses_as_int8_and_outside(teacher, dictionary, batch, tmp_path, kind):
    """The token's mean is read from bytes as if they were numbers, or from a table that is not there."""
    exact = student_of(teacher, dictionary, kind)(**batch).last_hidden_state
    small = student_of(teacher, dictionary, kind, sense_dtype="int8")
    assert small.sense_table.senses.dtype == torch.int8
    torch.testing.assert_close(small(**batch).last_hidden_state, exact, atol=0.05, rtol=0.05)
    dictionary.save_pretrained(tmp_path / "senses")
    if kind == "context":
        with pytest.raises(ValueError, match="means of the dictionary's tokens"):
            student_of(teacher, dictionary, kind, dictionary_path=str(tmp_path / "senses"))
        return
    student_of(teacher, dictionary, kind, dictionary_path=str(tmp_path / "senses")).save_pretrained(tmp_path / "out")
    torch.testing.assert_close(AutoModel.from_pretrained(tmp_path / "out")(**batch).last_hidden_state, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_resizing_keeps_answers(teacher, dictionary, batch, tmp_path, kind):
    """Added tokens get rows that are others' embeddings, or the folder cannot be loaded."""
    model = student_of(teacher, dictionary, kind)
    expected, size = model(**batch).last_hidden_state, model.config.vocab_size
    rows = len(model.get_input_embeddings().weight)
    model.resize_token_embeddings(size + 5)
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert loaded.config.vocab_size == loaded.config.backbone_config.vocab_size == size + 5
    assert torch.equal(loaded(**batch).last_hidden_state, expected)
    loaded(torch.tensor([[size + 4]]))
    loaded.resize_token_embeddings(size)
    assert torch.equal(loaded(**batch).last_hidden_state, expected)
    assert len(loaded.get_input_embeddings().weight) == rows


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "selektor"}, '"selector" or "context"'),
        ({"backbone": "selector", "hidden_size": 0}, "hidden_size should be from 1 to"),
        ({"backbone": "context", "hidden_size": 17}, "hidden_size should be from 1 to .* 16, but is 17"),
        ({"backbone": "context", "hidden_size": 8, "window": 4}, "window should be odd"),
        ({"backbone": "context", "hidden_size": 8, "window": 0}, "window should be odd"),
        ({"backbone": "selector", "num_hidden_layers": 1}, "not both"),
        ({"hidden_size": 8}, '"selector" or "context"'),
        ({"backbone": "selector", "hiden_size": 8}, "did you mean 'hidden_size'"),
    ],
)
def test_what_cannot_be_is_refused(teacher, dictionary, options, message):
    """A slip in the call gives another student than was meant, or an error from deep inside."""
    with pytest.raises(ValueError, match=message):
        SenseModel.from_teacher(teacher, dictionary, **options)


def test_a_table_with_nothing_to_choose_is_not_trained_on_choices(teacher, dictionary, texts, tmp_path):
    """Somebody trains a context table on senses: the loss is 0 from the first step, and nothing is learned."""
    args = SenseDistillationConfig(str(tmp_path), report_to="none", use_cpu=True)
    with pytest.raises(ValueError, match="Set mse_weight"):
        SenseDistillationTrainer(student_of(teacher, dictionary, "context"), args, teacher=teacher)
