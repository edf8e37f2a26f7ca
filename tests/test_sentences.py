"""Sense models in Sentence Transformers and in MTEB: the real packages, and the same vectors."""

from __future__ import annotations

import json
import random
import shutil
import sys
from pathlib import Path

import pytest
import torch

import hf_sense  # noqa: F401 (registers the model type)
from hf_sense import SenseModel, SenseModelForSequenceClassification, build_dictionary, load_teacher
from hf_sense.evaluation import embed, few_shot_accuracy

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from real_data import reuters_r8, teacher_folder

sentence_transformers = pytest.importorskip("sentence_transformers")


def loaded(folder, **options):
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu", **options)


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "frequency", "cls", "last_token"])
def test_vectors_are_the_models_own(pooling, teacher, dictionary, texts, tmp_path):
    """SentenceTransformer pools a sense model otherwise than its configuration says."""
    model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=2, pooling=pooling)
    model.save_for_sentence_transformers(tmp_path / "st", teacher.tokenizer)
    encoder = loaded(tmp_path / "st")
    expected = embed(model, teacher.tokenizer, texts)
    torch.testing.assert_close(torch.from_numpy(encoder.encode(texts)), expected, rtol=1e-5, atol=1e-6)
    encoder.save_pretrained(str(tmp_path / "again"))
    torch.testing.assert_close(
        torch.from_numpy(loaded(tmp_path / "again").encode(texts)), expected, rtol=1e-5, atol=1e-6
    )
    similarity = encoder.similarity(encoder.encode(texts[:2]), encoder.encode(texts[2:4]))
    expected = torch.nn.functional.normalize(expected)
    torch.testing.assert_close(similarity, expected[:2] @ expected[2:4].T, rtol=1e-4, atol=1e-5)


def test_a_classifier_gives_the_vectors_inside_it(teacher, dictionary, texts, tmp_path):
    """A classifier's folder loses its classifier, or Sentence Transformers stumbles on it."""
    model = SenseModelForSequenceClassification.from_teacher(teacher, dictionary, num_hidden_layers=1)
    model.save_for_sentence_transformers(tmp_path, teacher.tokenizer, normalize=True, max_seq_length=12)
    encoder = loaded(tmp_path)
    assert encoder.max_seq_length == 12
    expected = torch.nn.functional.normalize(embed(model, teacher.tokenizer, texts, max_length=12))
    torch.testing.assert_close(torch.from_numpy(encoder.encode(texts)), expected, rtol=1e-4, atol=1e-5)
    again = SenseModelForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    with pytest.raises(ValueError, match="whose classifier a SenseModel saved there would take away"):
        SenseModel.from_pretrained(tmp_path).save_for_sentence_transformers(tmp_path, teacher.tokenizer)
    with pytest.raises(ValueError, match="whose classifier a SenseModel saved there would take away"):
        encoder.save_pretrained(str(tmp_path))
    model.save_for_sentence_transformers(tmp_path, teacher.tokenizer)
    loaded(tmp_path)


def test_prompts_of_an_instruction_model(base, decoder_tokenizer, texts, tmp_path):
    """A decoder's instruction is forgotten, or counted in the text's vector where it should not be."""
    shutil.copytree(base, tmp_path / "base")
    made = json.loads((tmp_path / "base" / "tokenizer.json").read_text())
    made["post_processor"]["single"].pop()  # the end token, after which decoders' texts do not end
    (tmp_path / "base" / "tokenizer.json").write_text(json.dumps(made))
    teacher = load_teacher(str(tmp_path / "base"), attention="causal", instruction="the game", pooling="mean")
    assert len(teacher.tokenizer("the")["input_ids"]) == 2
    dictionary = build_dictionary(teacher, texts, max_senses=3, disable_tqdm=True)
    model = SenseModel.from_teacher(teacher, dictionary, pooling="mean")
    model.save_for_sentence_transformers(tmp_path / "own", teacher.tokenizer)
    encoder = loaded(tmp_path / "own")
    assert encoder.prompts["instruction"] == "the game "
    assert encoder.default_prompt_name == "instruction"
    expected = embed(model, teacher.tokenizer, texts)
    torch.testing.assert_close(torch.from_numpy(encoder.encode(texts)), expected, rtol=1e-5, atol=1e-6)
    plain = torch.from_numpy(encoder.encode(texts, prompt=""))
    assert not torch.allclose(plain, expected, atol=1e-3)
    given = {"query": "a river ", "text": ""}
    model.save_for_sentence_transformers(
        tmp_path / "given", teacher.tokenizer, prompts=given, default_prompt_name="text"
    )
    encoder = loaded(tmp_path / "given")
    torch.testing.assert_close(torch.from_numpy(encoder.encode(texts)), plain, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(torch.from_numpy(encoder.encode(texts, prompt_name="query")), plain, atol=1e-3)
    ended = load_teacher(str(base), attention="causal", instruction="the game")
    endless = SenseModel.from_teacher(ended, build_dictionary(ended, texts, max_senses=2, disable_tqdm=True))
    with pytest.raises(ValueError, match="leave 3 tokens of each text out"):
        endless.save_for_sentence_transformers(tmp_path / "chat", ended.tokenizer)
    chat = load_teacher(str(base), attention="causal", chat=True)
    chatty = SenseModel.from_teacher(chat, build_dictionary(chat, texts, max_senses=2, disable_tqdm=True))
    with pytest.raises(ValueError, match="nothing after it"):
        chatty.save_for_sentence_transformers(tmp_path / "chat", chat.tokenizer)
    assert not (tmp_path / "chat").exists()


def test_what_cannot_be_said_there_is_refused(teacher, dictionary, decoder_tokenizer, tmp_path):
    """A folder is written that pools otherwise, or whose prompt does not exist."""
    model = SenseModel.from_teacher(teacher, dictionary, pooling="first_content_token")
    with pytest.raises(ValueError, match="no counterpart in Sentence Transformers"):
        model.save_for_sentence_transformers(tmp_path / "a", teacher.tokenizer)
    model.config.pooling = "weighted_mean"
    with pytest.raises(ValueError, match="default_prompt_name is 'query'"):
        model.save_for_sentence_transformers(tmp_path / "a", teacher.tokenizer, default_prompt_name="query")
    with pytest.raises(ValueError, match="weighted_mean would differ"):
        model.save_for_sentence_transformers(
            tmp_path / "a", teacher.tokenizer, prompts={"q": "a river "}, include_prompt=False
        )
    other = type(teacher.tokenizer)(tokenizer_object=teacher.tokenizer.backend_tokenizer)
    other.add_tokens(["zebra"])
    with pytest.raises(ValueError, match="not the model's"):
        model.save_for_sentence_transformers(tmp_path / "a", other)
    assert not (tmp_path / "a").exists()


def labelled(texts):
    """Eight training texts of each of four subjects, so that a draw of eight is all of them; the rest to test on."""
    groups = {}
    for text in texts:
        groups.setdefault(text.split()[1], []).append(text)
    train, test = [], []
    for number, rows in enumerate(groups.values()):
        rows = [rows[i % len(rows)] + (" and the bank" if i >= len(rows) else "") for i in range(12)]
        train += [{"text": row, "label": number} for row in rows[:8]]
        test += [{"text": row, "label": number} for row in rows[8:]]
    random.Random(0).shuffle(train)
    return train, test


def mteb_task(mteb, train, test):
    """A classification task of MTEB over texts that are at hand."""
    from datasets import Dataset, DatasetDict
    from mteb.abstasks.classification import AbsTaskClassification

    class Subjects(AbsTaskClassification):
        metadata = mteb.TaskMetadata(
            name="Subjects", description="Which subject a text has.", reference=None, type="Classification",
            category="t2c", modalities=["text"], eval_splits=["test"], eval_langs=["eng-Latn"], main_score="accuracy",
            dataset={"path": "local/subjects", "revision": "1"}, date=("2024-01-01", "2024-01-02"), domains=["Written"],
            task_subtypes=[], license="cc0-1.0", annotations_creators="derived", dialect=[], sample_creation="found",
            bibtex_citation="",
        )  # fmt: skip

        def load_data(self, **_):
            self.dataset = DatasetDict(train=Dataset.from_list(train), test=Dataset.from_list(test))
            self.data_loaded = True

    return Subjects()


def accuracies(mteb, folder, model, tokenizer, train, test, **options):
    """MTEB's accuracy of a model's folder, and ours of the model; eight training texts a label, so that all are drawn."""
    results = mteb.evaluate(loaded(folder), mteb_task(mteb, train, test), cache=None, encode_kwargs={"batch_size": 8})
    vectors = [embed(model, tokenizer, [row["text"] for row in rows], **options) for rows in (train, test)]
    labels = [[row["label"] for row in rows] for rows in (train, test)]
    ours = few_shot_accuracy(vectors[0], labels[0], vectors[1], labels[1], samples_per_label=8)
    assert ours.spread < 1e-9
    return results.task_results[0].scores["test"][0]["accuracy"], ours.mean


def test_mteb_gives_the_figures_of_evaluation(teacher, dictionary, texts, tmp_path, monkeypatch):
    """MTEB's own evaluator, on a task over local texts, reads other figures than hf_sense.evaluation."""
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))
    mteb = pytest.importorskip("mteb")
    train, test = labelled(texts)
    for pooling in ("mean", "frequency"):
        model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1, pooling=pooling)
        model.save_for_sentence_transformers(tmp_path / pooling, teacher.tokenizer, normalize=True)
        theirs, ours = accuracies(mteb, tmp_path / pooling, model, teacher.tokenizer, train, test)
        assert theirs == pytest.approx(ours, abs=1e-4), json.dumps([theirs, ours])
        assert 1.5 / len({row["label"] for row in train}) < ours


@pytest.mark.real
def test_mteb_on_a_real_teacher_with_senses(tmp_path, monkeypatch):
    """On real texts, longer than the model takes and of eight kinds, MTEB reads other figures of a real encoder with senses."""
    monkeypatch.setenv("MTEB_CACHE", str(tmp_path / "mteb"))
    mteb = pytest.importorskip("mteb")
    try:
        encoder, (stories, kinds) = load_teacher(str(teacher_folder(fetch=False))), reuters_r8("train", fetch=False)
    except FileNotFoundError as error:
        pytest.skip(str(error))
    names, train, test = sorted(set(kinds)), [], []
    for number, name in enumerate(names):
        rows = [{"text": text, "label": number} for text, kind in zip(stories, kinds) if kind == name]
        train += rows[:8]
        test += rows[8:38]
    assert (len(names), len(train)) == (8, 64)
    assert len(test) > 200
    dictionary = build_dictionary(encoder, [row["text"] for row in train], max_length=48, disable_tqdm=True)
    model = SenseModel.from_teacher(encoder, dictionary, pooling="frequency")
    model.save_for_sentence_transformers(tmp_path / "st", encoder.tokenizer, normalize=True, max_seq_length=48)
    theirs, ours = accuracies(mteb, tmp_path / "st", model, encoder.tokenizer, train, test, max_length=48)
    print(f"\naccuracy on {len(test)} stories: MTEB {theirs:.4f}, hf_sense.evaluation {ours:.4f}")
    assert theirs == pytest.approx(ours, abs=1e-4)
    assert ours > 0.6
