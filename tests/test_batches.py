"""What runs a model over texts pads as little as batches of that size can, and does nothing a text that it can do once."""

from __future__ import annotations

import numpy as np
import pytest
from datasets import Dataset

from hf_sense import (
    SenseModel,
    SenseModelForSequenceClassification,
    build_dictionary,
    compute_sense_targets,
    load_teacher,
)
from hf_sense.evaluation import embed, predict
from hf_sense.vectorizer import SenseVectorizer

BATCH = 7


class Counted:
    """Counts the positions that a module is run on, those of tokens and those of padding."""

    def __init__(self, module):
        self.tokens = self.padding = 0
        module.register_forward_pre_hook(self, with_kwargs=True)

    def __call__(self, module, args, kwargs):
        mask = kwargs["attention_mask"]
        self.tokens += int(mask.sum())
        self.padding += int((mask == 0).sum())


@pytest.fixture
def fresh(tiny_teacher_folder):
    """A teacher of its own, since hooks stay."""
    return load_teacher(str(tiny_teacher_folder))


def _embed(teacher, dictionary, texts, folder):
    model = SenseModel.from_teacher(teacher, dictionary)
    counted = Counted(model.backbone)
    embed(model, teacher.tokenizer, texts, batch_size=BATCH)
    return counted


def _predict(teacher, dictionary, texts, folder):
    model = SenseModelForSequenceClassification.from_teacher(teacher, dictionary)
    counted = Counted(model.model.backbone)
    predict(model, teacher.tokenizer, texts, batch_size=BATCH)
    return counted


def _vectorizer(teacher, dictionary, texts, folder):
    SenseModel.from_teacher(teacher, dictionary).save_pretrained(folder)
    teacher.tokenizer.save_pretrained(folder)
    vectorizer = SenseVectorizer(str(folder), batch_size=BATCH).fit(texts)
    counted = Counted(vectorizer._load()[0].backbone)
    vectorizer.transform(texts)
    return counted


def _targets(teacher, dictionary, texts, folder):
    counted = Counted(teacher.model)
    compute_sense_targets(
        Dataset.from_dict({"text": texts}), teacher, dictionary, batch_size=BATCH, cache_dir=str(folder)
    )
    return counted


def _build(teacher, dictionary, texts, folder):
    counted = Counted(teacher.model)
    build_dictionary(teacher, texts, max_senses=2, batch_size=BATCH)
    return counted


def _encode(teacher, dictionary, texts, folder):
    counted = Counted(teacher.model)
    teacher.encode(texts, batch_size=BATCH)
    return counted


@pytest.mark.parametrize("run", [_embed, _predict, _vectorizer, _targets, _build, _encode])
def test_batches_are_of_like_length(run, fresh, dictionary, texts, tmp_path):
    """Texts are batched as they come, or by letters, and the model runs on padding."""
    # Letters are tokens here: a word of them is short to look at, and long to the model.
    texts = [*texts, *("zqzqzqzqzqz " * number for number in range(1, 4))]
    order = np.random.default_rng(0).permutation(len(texts))
    texts = [texts[number] for number in order]
    lengths = np.array([len(fresh.tokenizer(text)["input_ids"]) for text in texts])

    def padding(lengths):
        batches = [lengths[begin : begin + BATCH] for begin in range(0, len(lengths), BATCH)]
        return sum(int((batch.max() - batch).sum()) for batch in batches)

    least = padding(-np.sort(-lengths))
    assert 2 * least < padding(lengths)
    counted = run(fresh, dictionary, texts, tmp_path)
    assert counted.tokens == lengths.sum()
    assert counted.padding == least


@pytest.mark.parametrize("run", [_embed, _predict, _vectorizer])
def test_texts_are_tokenized_in_one_call(run, fresh, dictionary, texts, tmp_path, monkeypatch):
    """The tokenizer is called text by text, or batch by batch, and its threads wait."""
    calls = []
    kind = type(fresh.tokenizer)
    call = kind.__call__

    def counted(self, *args, **kwargs):
        calls.append(args)
        return call(self, *args, **kwargs)

    monkeypatch.setattr(kind, "__call__", counted)
    run(fresh, dictionary, texts, tmp_path)
    assert len(calls) == 1


def test_modules_that_train_among_those_that_do_not(fresh, dictionary, texts):
    """A layer put into a finished model drops states at random, because the model itself says that it evaluates."""
    model = SenseModel.from_teacher(fresh, dictionary, selection="none").eval()
    expected = embed(model, fresh.tokenizer, texts)
    dropouts = [module for module in model.modules() if hasattr(module, "p") and "Dropout" in type(module).__name__]
    assert dropouts
    for module in dropouts:
        module.p = 0.5
        module.train()
    assert (embed(model, fresh.tokenizer, texts) == expected).all()
