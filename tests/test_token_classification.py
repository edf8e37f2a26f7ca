"""Models that classify tokens: their logits and loss, and every tool that a user puts on them."""

from __future__ import annotations

import copy
import itertools
import json

import pytest
import torch
from datasets import Dataset
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    DataCollatorForTokenClassification,
    LlamaConfig,
    LlamaForTokenClassification,
    RobertaConfig,
    RobertaForTokenClassification,
    Trainer,
    TrainingArguments,
    pipeline,
)

from hf_sense import (
    FoldedSenseModelForTokenClassification,
    SenseDistillationConfig,
    SenseDistillationTrainer,
    SenseModel,
    SenseModelForSequenceClassification,
    SenseModelForTokenClassification,
    build_dictionary,
    load_teacher,
)
from hf_sense.cli import main
from hf_sense.evaluation import evaluate_classifier, fit_linear_head, predict
from hf_sense.export import ExportableModel, export_program
from hf_sense.model_card import model_card
from hf_sense.publishing import auto_class_of
from hf_sense.token_evaluation import evaluate_token_classifier, fit_token_head

NAMES = ["other", "thing", "verb"]
VERBS = {"holds", "opens", "lost", "found", "sees", "pays", "leaves", "breaks"}
THINGS = {"bank", "river", "card", "team", "apple", "club", "mole", "deck", "money", "water", "game", "fruit", "rain"}


def label_of(word):
    return "verb" if word in VERBS else "thing" if word in THINGS else "other"


@pytest.fixture(scope="module")
def tagged(texts):
    """Sentences as lists of words, and a name for each word."""
    words = [text.split() for text in texts]
    return words, [[label_of(word) for word in row] for row in words]


def student_of(teacher, dictionary, **options):
    names = {"id2label": dict(enumerate(NAMES)), "label2id": {name: number for number, name in enumerate(NAMES)}}
    return SenseModelForTokenClassification.from_teacher(teacher, dictionary, **{**names, **options})


def narrow_of(teacher, dictionary, **options):
    """A student with a projection, which can be folded whatever its table."""
    torch.manual_seed(1)
    config = BertConfig(**{**teacher.model.config.to_dict(), "hidden_size": 8, "num_hidden_layers": 1})
    return student_of(teacher, dictionary, backbone=BertModel(config), **options)


def encoded(tokenizer, tagged, count=None):
    """As users of Transformers align labels with pieces: the first piece of a word has its label."""
    batch = tokenizer(tagged[0][:count], is_split_into_words=True, truncation=True)
    rows = []
    for number, labels in enumerate(tagged[1][:count]):
        ids = batch.word_ids(number)
        first = [word is not None and word not in ids[:at] for at, word in enumerate(ids)]
        rows.append([NAMES.index(labels[word]) if new else -100 for word, new in zip(ids, first)])
    return Dataset.from_dict({**batch, "labels": rows})


@pytest.fixture
def batch(teacher, tagged):
    collate = DataCollatorForTokenClassification(teacher.tokenizer)
    return dict(collate(encoded(teacher.tokenizer, tagged, 6).to_list()))


def test_logits_are_those_of_each_tokens_sense(teacher, dictionary, batch):
    """A text's pooled vector is classified, or a state that no sense has replaced; or tokens without label count."""
    model = student_of(teacher, dictionary)
    output = model(**batch, output_senses=True)
    kept = batch["attention_mask"].bool()
    assert output.logits.shape == (*batch["input_ids"].shape, 3)
    senses = dictionary.senses[output.sense_ids[kept]]
    table = senses @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(output.logits[kept], table)
    counted = batch["labels"] != -100
    assert 0 < counted.sum() < kept.sum()
    picked = output.logits.log_softmax(-1)[counted].gather(-1, batch["labels"][counted][:, None])
    torch.testing.assert_close(output.loss, -picked.mean())
    assert torch.equal(model(**batch, return_dict=False)[1], output.logits)


def test_padding_on_either_side_changes_nothing(teacher, dictionary, texts):
    """A token's label depends on what its text was batched with."""
    model = student_of(teacher, dictionary, selection="soft")
    for side in ("left", "right"):
        both = teacher.tokenizer(texts[:5], padding=True, return_tensors="pt", padding_side=side)
        found = model(**both).logits
        for row, text in enumerate(texts[:5]):
            alone = model(**teacher.tokenizer(text, return_tensors="pt")).logits[0]
            torch.testing.assert_close(found[row][both["attention_mask"][row].bool()], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_round_trip_through_the_auto_classes(teacher, dictionary, batch, tmp_path, dtype):
    """A saved model comes back as another class, or with other logits, names or senses."""
    student = student_of(teacher, dictionary, num_hidden_layers=2).to(dtype)
    student.save_pretrained(tmp_path, max_shard_size="20KB")
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert type(loaded) is SenseModelForTokenClassification
    assert torch.equal(loaded(**batch).logits, student(**batch).logits)
    assert [loaded.config.id2label[number] for number in range(3)] == NAMES
    inner = AutoModel.from_pretrained(tmp_path)
    assert isinstance(inner, SenseModel)
    assert inner.to_dictionary().fingerprint == student.to_dictionary().fingerprint
    with pytest.raises(ValueError, match=r"holds a SenseModelForTokenClassification.*AutoModelForTokenClassification"):
        inner.save_pretrained(tmp_path)
    auto_map = AutoConfig.from_pretrained(tmp_path).auto_map
    assert auto_map["AutoModelForTokenClassification"].endswith(".SenseModelForTokenClassification")
    assert "SenseModelForTokenClassification" in (tmp_path / "modeling_hf_sense.py").read_text(encoding="utf-8")


def test_dictionary_beside_and_int8(teacher, dictionary, batch, tmp_path):
    """Senses in a folder beside the weights, or as int8, are not found again."""
    for number, options in enumerate(({"dictionary_path": "senses"}, {"sense_dtype": "int8"})):
        student = student_of(teacher, dictionary, num_hidden_layers=1, **options)
        student.save_pretrained(tmp_path / str(number))
        loaded = AutoModelForTokenClassification.from_pretrained(tmp_path / str(number))
        assert torch.equal(loaded(**batch).logits, student(**batch).logits)


def test_card_names_its_class_and_task(teacher, dictionary):
    """The lines on the Hub that load a tagger load a model without its classifier."""
    student = student_of(teacher, dictionary, num_hidden_layers=1)
    assert auto_class_of(student) == "AutoModelForTokenClassification"
    assert auto_class_of(narrow_of(teacher, dictionary).fold()) == "AutoModelForTokenClassification"
    assert auto_class_of(student.model) == "AutoModel"
    of_texts = SenseModelForSequenceClassification.from_teacher(teacher, dictionary)
    assert auto_class_of(of_texts) == "AutoModelForSequenceClassification"
    card = model_card("org/tagger", auto_class_of(student), None, {})
    assert "- token-classification" in card
    assert "AutoModelForTokenClassification.from_pretrained" in card


@pytest.mark.parametrize("batch_size", [1, 4])
def test_pipeline_from_a_folder(teacher, dictionary, tagged, tmp_path, batch_size):
    """The token-classification pipeline does not take a saved folder, forgets names, or does not join pieces."""
    student = student_of(teacher, dictionary, num_hidden_layers=2)
    fit_token_head(student, teacher.tokenizer, *tagged, disable_tqdm=True)
    student.save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    tag = pipeline("token-classification", str(tmp_path), aggregation_strategy="first")
    texts = ["the bank opens the door", "a riverbank"]
    answers = tag(texts, batch_size=batch_size)
    # The tests' tokenizer joins no pieces, so that words are told by where they stand.
    assert {texts[1][one["start"] : one["end"]] for one in answers[1]} <= {"a", "riverbank", "a riverbank"}
    with torch.no_grad():
        logits = student(**teacher.tokenizer(texts[0], return_tensors="pt")).logits[0, 1:-1].softmax(-1)
    names = [student.config.id2label[int(row.argmax())] for row in logits]
    assert [one["entity_group"] for one in answers[0]] == [name for name, _ in itertools.groupby(names)]
    plain = pipeline("token-classification", str(tmp_path), ignore_labels=[])(texts[0])
    assert [one["entity"] for one in plain] == names
    assert [one["score"] for one in plain] == pytest.approx(logits.amax(-1).tolist(), abs=1e-5)


def arguments(folder, kind=TrainingArguments, **options):
    defaults = {
        "max_steps": 12, "per_device_train_batch_size": 16, "learning_rate": 3e-3, "report_to": [], "save_strategy": "no",
        "disable_tqdm": True, "use_cpu": True, "logging_steps": 1, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return kind(str(folder / "out"), **{**defaults, **options})


@pytest.mark.parametrize("selection", ["hard", "straight_through", "soft"])
def test_trainer_moves_what_the_selection_lets_it(teacher, dictionary, tagged, tmp_path, selection, caplog):
    """The plain Trainer does not take the model, or trains a backbone that gets no gradient and says nothing."""
    model = student_of(teacher, dictionary, num_hidden_layers=1, selection=selection)
    before = {name: tensor.clone() for name, tensor in model.named_parameters()}
    data = encoded(teacher.tokenizer, tagged)
    trainer = Trainer(
        model,
        arguments(tmp_path, learning_rate=5e-2 if selection == "hard" else 3e-3),
        train_dataset=data,
        eval_dataset=data,
        data_collator=DataCollatorForTokenClassification(teacher.tokenizer),
        compute_metrics=lambda found: {
            "right": float((found.predictions.argmax(-1) == found.label_ids)[found.label_ids != -100].mean())
        },
    )
    first = trainer.evaluate()
    trainer.train()
    last = trainer.evaluate()
    assert last["eval_loss"] < first["eval_loss"]
    assert last["eval_right"] > first["eval_right"]
    moved = {name for name, tensor in model.named_parameters() if not torch.equal(tensor, before[name])}
    assert "classifier.weight" in moved
    assert any(".backbone." in name for name in moved) == (selection != "hard")
    assert ("no gradient reaches the backbone" in caplog.text) == (selection == "hard")
    trainer.save_model(str(tmp_path / "tuned"))
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path / "tuned").eval()
    batch = teacher.tokenizer(tagged[0][:4], is_split_into_words=True, padding=True, return_tensors="pt")
    assert torch.equal(loaded(**batch).logits, model.eval()(**batch).logits)


def test_accumulated_steps_are_those_of_the_whole_batch(teacher, dictionary, tagged, tmp_path):
    """Texts have unlike numbers of labels: a mean over each micro-batch gives other weights than the whole batch."""
    data = encoded(teacher.tokenizer, tagged, 16).to_list()
    for row, keep in zip(data, (1, 9) * 8):  # very unlike
        row["labels"] = [label if at <= keep else -100 for at, label in enumerate(row["labels"])]
    found = []
    for size, steps in ((16, 1), (4, 4), (1, 16)):
        torch.manual_seed(0)
        model = student_of(teacher, dictionary, num_hidden_layers=1, selection="straight_through")
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        args = arguments(
            tmp_path, max_steps=1, per_device_train_batch_size=size, gradient_accumulation_steps=steps, optim="sgd"
        )
        collator = DataCollatorForTokenClassification(teacher.tokenizer)
        trainer = Trainer(model, args, train_dataset=Dataset.from_list(data), data_collator=collator)
        trainer.train()
        found.append((trainer.state.log_history[0]["loss"], model.model.backbone.encoder.layer[0].output.dense.weight))
    for loss, weight in found[1:]:
        assert loss == pytest.approx(found[0][0], abs=1e-4)
        torch.testing.assert_close(weight, found[0][1], atol=1e-6, rtol=1e-5)


def test_lora_trained_saved_and_merged(teacher, dictionary, tagged, batch, tmp_path):
    """PEFT finds no layers, forgets the classifier, or its merged model answers otherwise."""
    from peft import LoraConfig, PeftModel, TaskType, get_peft_model

    student_of(teacher, dictionary, num_hidden_layers=1, selection="straight_through").save_pretrained(
        tmp_path / "base"
    )
    base = AutoModelForTokenClassification.from_pretrained(tmp_path / "base")
    lora = LoraConfig(task_type=TaskType.TOKEN_CLS, target_modules=["query", "value"], r=4, lora_alpha=32)
    model = get_peft_model(base, lora)
    data = encoded(teacher.tokenizer, tagged)
    collator = DataCollatorForTokenClassification(teacher.tokenizer)
    trainer = Trainer(model, arguments(tmp_path), train_dataset=data, eval_dataset=data, data_collator=collator)
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < first
    model.eval().save_pretrained(tmp_path / "adapter")
    again = AutoModelForTokenClassification.from_pretrained(tmp_path / "base")
    assert not torch.allclose(again(**batch).logits, model(**batch).logits, atol=1e-3)
    merged = PeftModel.from_pretrained(again, tmp_path / "adapter").merge_and_unload().eval()
    assert type(merged) is SenseModelForTokenClassification
    torch.testing.assert_close(merged(**batch).logits, model(**batch).logits, atol=1e-5, rtol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path / "merged")
    assert torch.equal(loaded(**batch).logits, merged(**batch).logits)


def test_a_tagger_is_distilled(teacher, dictionary, texts, tmp_path):
    """The trainer of senses does not take a model that classifies tokens, or trains its classifier."""
    model = student_of(teacher, dictionary, num_hidden_layers=1)
    head = model.classifier.weight.clone()
    args = arguments(tmp_path, SenseDistillationConfig, target_cache_dir=str(tmp_path / "targets"), max_steps=20)
    data = Dataset.from_dict({"text": texts})
    trainer = SenseDistillationTrainer(model, args, teacher=teacher, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()["eval_agreement"]
    trainer.train()
    assert trainer.evaluate()["eval_agreement"] > before
    assert torch.equal(model.classifier.weight, head)


@pytest.mark.parametrize(
    ("config_class", "model_class"),
    [
        (BertConfig, BertForTokenClassification),
        (RobertaConfig, RobertaForTokenClassification),
        (LlamaConfig, LlamaForTokenClassification),
    ],
)
def test_copied_head_answers_as_the_teacher_does(teacher, texts, batch, config_class, model_class):
    """The classifier of a teacher of tokens is not found, is put after a hidden layer, or is not frozen."""
    torch.manual_seed(3)
    tokenizer = teacher.tokenizer
    config = config_class(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        id2label=dict(enumerate(NAMES)), max_position_embeddings=80, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    model = model_class(config).eval()
    own = load_teacher(model, tokenizer)
    senses = build_dictionary(own, texts, max_senses=2, disable_tqdm=True)
    student = SenseModelForTokenClassification.from_teacher(own, senses, copy_head=True, selection="none")
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    kept = batch["attention_mask"].bool()
    torch.testing.assert_close(student(**inputs).logits[kept], model(**inputs).logits[kept], atol=1e-5, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in student.classifier.parameters())
    assert [student.config.id2label[number] for number in range(3)] == NAMES
    with pytest.raises(ValueError, match="cannot share a head"):
        SenseModelForSequenceClassification.from_teacher(own, senses, copy_head=True)


def test_a_head_of_texts_is_not_one_of_tokens(teacher, texts):
    """A sentence's classifier is put on every token, in silence."""
    config = BertConfig(
        vocab_size=len(teacher.tokenizer),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    own = load_teacher(BertForSequenceClassification(config).eval(), teacher.tokenizer)
    senses = build_dictionary(own, texts, max_senses=2, disable_tqdm=True)
    with pytest.raises(ValueError, match="BertForSequenceClassification and the student a SenseModelForTokenClassi"):
        SenseModelForTokenClassification.from_teacher(own, senses, copy_head=True)


def test_fitted_head_is_scikit_learns(teacher, dictionary, tagged, tmp_path):
    """A fitted model predicts otherwise than the regression it came from, or is not saved with it."""
    model = narrow_of(teacher, dictionary)
    words, labels = tagged
    holes = [[None if at % 4 == 2 else label for at, label in enumerate(row)] for row in labels]
    accuracy = fit_token_head(model, teacher.tokenizer, words, holes, C=0.3, batch_size=7, disable_tqdm=True)
    states, names = [], []
    for row, own in zip(words, holes):
        batch = teacher.tokenizer([row], is_split_into_words=True, return_tensors="pt")
        with torch.no_grad():
            hidden = model.model(**batch).last_hidden_state[0]
        for at, name in enumerate(own):
            if name is not None:
                states.append(hidden[batch.word_ids(0).index(at)].double())
                names.append(name)
    vectors = torch.stack(states).numpy()
    mean = vectors.mean(0)
    scale = ((vectors - mean) ** 2).sum(1).mean() ** 0.5
    scaled = FunctionTransformer(lambda rows: (rows - mean) / scale)
    reference = make_pipeline(scaled, LogisticRegression(max_iter=1000, C=0.3)).fit(vectors, names)
    assert accuracy == pytest.approx(reference.score(vectors, names))
    weights = reference[-1].predict_proba(scaled.transform(vectors))
    with torch.no_grad():
        found = model.classify(torch.stack(states).float()).softmax(-1)
    torch.testing.assert_close(found.double(), torch.from_numpy(weights), atol=1e-3, rtol=1e-3)
    assert model.config.id2label == dict(enumerate(NAMES))
    model.save_pretrained(tmp_path)
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    for judged in (loaded, model.fold()):
        scores = evaluate_token_classifier(judged, teacher.tokenizer, words, holes, batch_size=5, disable_tqdm=True)
        assert scores["accuracy"] == pytest.approx(accuracy)
        assert scores["macro_f1"] == pytest.approx(f1_score(names, reference.predict(vectors), average="macro"))
        assert scores["labelled_words"] == len(names)
        assert scores["sentences_per_second"] > 0


def test_words_that_are_cut_or_in_pieces(teacher, dictionary, tagged, caplog):
    """A word of several pieces is judged by its last, or one past the limit counts as right."""
    model = student_of(teacher, dictionary)
    words, labels = tagged
    fit_token_head(model, teacher.tokenizer, words, labels, disable_tqdm=True)
    long = [["bank"] * 70, ["riverbank", "opens", ""]]
    gold = [["thing"] * 70, ["other", "verb", "verb"]]
    scores = evaluate_token_classifier(model, teacher.tokenizer, long, gold, disable_tqdm=True)
    assert "9 of 73 labelled words have no token" in caplog.text
    batch = teacher.tokenizer(long[:1], is_split_into_words=True, truncation=True, return_tensors="pt")
    right = int((model(**batch).logits[0, 1:-1].argmax(-1) == 1).sum())
    batch = teacher.tokenizer(long[1:], is_split_into_words=True, return_tensors="pt")
    ids = batch.word_ids(0)
    assert ids.count(0) > 1
    guess = model(**batch).logits[0].argmax(-1)
    right += int(guess[ids.index(0)] == 0) + int(guess[ids.index(1)] == 2)
    assert scores["accuracy"] == pytest.approx(right / 73)


def test_slips_are_refused(teacher, dictionary, tagged, texts):
    """A string is read letter by letter, labels of another sentence are taken, or a model of texts is fitted on words."""
    model, tokenizer = student_of(teacher, dictionary), teacher.tokenizer
    words, labels = tagged
    of_texts = SenseModelForSequenceClassification.from_teacher(teacher, dictionary)
    for sentences, given, message in (
        (texts[0], labels, "is one string"),
        (texts, labels, r"Sentence 0 should be a list of words.*text.split"),
        (words, labels[:3], "one length, but are 60 and 3"),
        (words[:1], [labels[0][:-1]], "should have as many labels"),
        (words[:1], ["verb"], "should have as many labels, but has one string"),
        (words[:2], [[None] * len(words[0]), [-100] * len(words[1])], "has a labelled word"),
    ):
        with pytest.raises(ValueError, match=message):
            fit_token_head(model, tokenizer, sentences, given)
    with pytest.raises(ValueError, match=r"SenseModelForTokenClassification is needed.*fit_linear_head"):
        fit_token_head(of_texts, tokenizer, words, labels)
    with pytest.raises(ValueError, match=r"classifies tokens is needed.*evaluate_classifier"):
        evaluate_token_classifier(of_texts, tokenizer, words, labels)
    with pytest.raises(ValueError, match=r"'noun' is not one of the model's 3 labels"):
        evaluate_token_classifier(model, tokenizer, [["bank"]], [["noun"]])
    with pytest.raises(ValueError, match="head_activation='tanh'"):
        fit_token_head(student_of(teacher, dictionary, head_activation="tanh"), tokenizer, words, labels)
    for call in (
        lambda: fit_linear_head(model, tokenizer, texts[:2], ["a", "b"]),
        lambda: predict(narrow_of(teacher, dictionary).fold(), tokenizer, texts[:2]),
        lambda: evaluate_classifier(model, tokenizer, texts[:2], ["a", "b"]),
    ):
        with pytest.raises(ValueError, match=r"classifies tokens, not texts: hf_sense.token_evaluation"):
            call()


@pytest.mark.parametrize("selection", ["hard", "soft"])
def test_folded_answers_as_the_model_did(teacher, dictionary, batch, tmp_path, selection):
    """Folding adds up a sentence's tokens, or the folded folder is loaded as another class."""
    model = narrow_of(teacher, dictionary, selection=selection)
    folded = model.fold()
    assert type(folded) is FoldedSenseModelForTokenClassification
    kept = batch["attention_mask"].bool()
    expected = model(**batch)
    torch.testing.assert_close(folded(**batch).logits[kept], expected.logits[kept], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(folded(**batch).loss, expected.loss, atol=1e-5, rtol=1e-4)
    folded.save_pretrained(tmp_path)
    loaded = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert type(loaded) is FoldedSenseModelForTokenClassification
    assert torch.equal(loaded(**batch).logits, folded(**batch).logits)
    shares = AutoModel.from_pretrained(tmp_path)(**batch).last_hidden_state
    torch.testing.assert_close(shares + folded.bias, folded(**batch).logits)
    with pytest.raises(ValueError, match="cannot be trained"):
        copy.deepcopy(folded).train()(**batch)


def test_exported_graphs_give_each_tokens_logits(teacher, dictionary, batch, tmp_path):
    """A graph pools the states before it classifies them, or the command exports a tagger without its head."""
    model = student_of(teacher, dictionary, num_hidden_layers=1)
    model.save_pretrained(tmp_path / "student")
    exportable = ExportableModel(model)
    assert exportable.output_names == ["logits", "sense_ids"]
    inputs = {name: batch[name] for name in exportable.input_names}
    kept = batch["attention_mask"].bool()
    expected = model(**inputs, output_senses=True)
    logits, sense_ids = export_program(model).module()(**inputs)
    torch.testing.assert_close(logits[kept], expected.logits[kept], atol=1e-4, rtol=1e-4)
    assert torch.equal(sense_ids, expected.sense_ids)
    onnxruntime = pytest.importorskip("onnxruntime")
    assert main(["export", str(tmp_path / "student"), str(tmp_path / "tagger.onnx")]) == 0
    session = onnxruntime.InferenceSession(str(tmp_path / "tagger.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(["logits"], {key: value.numpy() for key, value in inputs.items()})[0]
    torch.testing.assert_close(torch.from_numpy(found)[kept], expected.logits[kept], atol=1e-4, rtol=1e-4)


def test_configuration_says_what_it_is(teacher, dictionary, tmp_path):
    """Tools that read config.json alone take a tagger for a classifier of texts."""
    student_of(teacher, dictionary, num_hidden_layers=1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["SenseModelForTokenClassification"]
    assert config["id2label"] == {str(number): name for number, name in enumerate(NAMES)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8])
def test_a_tagger_on_a_dictionary_with_codes(teacher, texts, batch, tmp_path, dtype):
    """Codes are left out of what is classified, or lost when the tagger is saved or folded."""
    coded = build_dictionary(teacher, texts, max_senses=1, codes=8, code_levels=2, dtype=dtype, disable_tqdm=True)
    model = narrow_of(teacher, coded).eval()
    with torch.no_grad():
        output = model(**batch, output_senses=True)
        kept = (output.sense_ids >= 0) & batch["attention_mask"].bool()
        senses = coded.rows(output.sense_ids[kept]) + coded.codes.decode(output.code_ids[kept])
        torch.testing.assert_close(output.logits[kept], model.classify(senses.float()), atol=1e-4, rtol=1e-4)
        model.save_pretrained(tmp_path)
        loaded = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(loaded(**batch).logits, output.logits)
        folded = model.fold()(**batch)
    inside = batch["attention_mask"].bool()
    torch.testing.assert_close(folded.logits[inside], output.logits[inside], atol=1e-4, rtol=1e-4)
