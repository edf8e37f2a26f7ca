"""``SenseVectorizer`` in scikit-learn's own hands: clones, pipelines, searches, pickles, and its checks of estimators."""

from __future__ import annotations

import importlib
import pickle
import sys

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.utils import estimator_checks

from hf_sense import SenseModel, SenseModelForSequenceClassification
from hf_sense.evaluation import embed
from hf_sense.vectorizer import SenseVectorizer


@pytest.fixture(scope="module")
def student(teacher, dictionary, tmp_path_factory):
    """A saved student with a classifier, which the vectorizer leaves out."""
    folder = tmp_path_factory.mktemp("student")
    model = SenseModelForSequenceClassification.from_teacher(
        teacher, dictionary, num_hidden_layers=1, pooling="frequency"
    )
    model.save_pretrained(folder)
    teacher.tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def labels(texts):
    return ["water" if "river" in text or "rain" in text else "dry" for text in texts]


def test_vectors_are_those_of_the_model(student, teacher, texts):
    """Vectors come in the order of their lengths, of another pooling, or depend on the batch."""
    inner = SenseModel.from_pretrained(student)
    expected = embed(inner, teacher.tokenizer, texts, disable_tqdm=True).numpy()
    found = SenseVectorizer(student, batch_size=7).fit_transform(texts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(
        SenseVectorizer(student).transform(np.array(texts)), SenseVectorizer(student).transform(texts)
    )
    unit = SenseVectorizer(student, normalize=True).fit_transform(texts)
    np.testing.assert_allclose(unit, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    inner.config.pooling, inner.config.selection = "mean", "none"
    other = embed(inner, teacher.tokenizer, texts, max_length=8, disable_tqdm=True).numpy()
    chosen = SenseVectorizer(student, pooling="mean", selection="none", max_length=8)
    np.testing.assert_allclose(chosen.fit_transform(texts), other, atol=1e-5)
    assert not np.allclose(other, expected, atol=1e-2)
    assert np.isfinite(chosen.transform([""])).all()


def test_parameters_changed_after_fitting_count(student, texts):
    """The model loaded for the first parameters answers for the second."""
    vectorizer = SenseVectorizer(student).fit(texts)
    before = vectorizer.transform(texts)
    vectorizer.set_params(selection="none")
    np.testing.assert_array_equal(
        vectorizer.transform(texts), SenseVectorizer(student, selection="none").transform(texts)
    )
    assert not np.allclose(vectorizer.transform(texts), before)
    assert clone(vectorizer).get_params() == vectorizer.get_params()


def test_names_of_the_columns(student, teacher, texts):
    """A frame of vectors has no names, or as many as another model's."""
    vectorizer = SenseVectorizer(student)
    names = vectorizer.get_feature_names_out()
    assert list(names[:2]) == ["sensevectorizer0", "sensevectorizer1"]
    assert len(names) == vectorizer.fit_transform(texts).shape[1] == teacher.dim
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"text": texts, "other": range(len(texts))})
    columns = make_column_transformer((vectorizer, "text"), remainder="drop").set_output(transform="pandas")
    assert list(columns.fit_transform(frame).columns[:1]) == ["sensevectorizer__sensevectorizer0"]


def test_grid_search_over_pooling_and_selection(student, texts, labels):
    """A search cannot clone the estimator, cannot send it to its workers, or scores one model under many names."""
    pipeline = Pipeline([("senses", SenseVectorizer(student)), ("regression", LogisticRegression(C=10.0))])
    grid = {"senses__selection": ["hard", "none"], "senses__pooling": ["mean", "cls"]}
    searches = [
        GridSearchCV(pipeline, grid, cv=2, n_jobs=jobs, error_score="raise").fit(texts, labels) for jobs in (None, 2)
    ]
    scores = [search.cv_results_["mean_test_score"].tolist() for search in searches]
    assert scores[1] == scores[0]
    assert len(set(scores[0])) > 2
    assert searches[1].predict(texts).tolist() == searches[0].predict(texts).tolist()


def test_pickled_and_with_joblib(student, texts, labels, tmp_path):
    """A fitted pipeline does not come back, or a file of it holds the model once more."""
    pipeline = Pipeline([("senses", SenseVectorizer(student, normalize=True)), ("regression", LogisticRegression())])
    pipeline.fit(texts, labels)
    expected = pipeline.predict_proba(texts)
    joblib.dump(pipeline, tmp_path / "pipeline.joblib")
    assert (tmp_path / "pipeline.joblib").stat().st_size < 20_000
    for again in (joblib.load(tmp_path / "pipeline.joblib"), pickle.loads(pickle.dumps(pipeline))):
        np.testing.assert_allclose(again.predict_proba(texts), expected, atol=1e-6)
    torch.testing.assert_close(
        torch.from_numpy(pipeline[0].transform(texts)), torch.from_numpy(clone(pipeline[0]).transform(texts))
    )


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("the bank", r"one str \('the bank'\); pass a list"),
        (None, "but got None"),
        (np.array([["the bank"], ["a mole"]]), r"ndarray of shape \(2, 1\)"),
        ([["the bank"], ["a mole"]], "Text 0 should be a string"),
        (["the bank", float("nan")], r"Text 1 should be a string, but is nan \(float\)"),
        ({"text": ["the bank"]}, "but got a dict"),
        ([], "but got none"),
        (3, "but got a int"),
    ],
)
def test_what_is_no_list_of_texts_is_refused(student, data, message):
    """The letters of one text, or the names of a frame's columns, are taken for texts."""
    for method in ("fit", "transform"):
        with pytest.raises(ValueError, match=message):
            getattr(SenseVectorizer(student), method)(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "nonsense"}, "pooling must be one of"),
        ({"selection": "nonsense"}, "selection must be one of"),
        ({"batch_size": 0}, "batch_size should be at least 1"),
        ({"max_length": 2}, "more than the 2 special tokens and at most the 64"),
        ({"max_length": 65}, "more than the 2 special tokens and at most the 64"),
    ],
)
def test_parameters_are_checked_when_fitting(student, texts, options, message):
    """A parameter is refused at construction, where scikit-learn forbids it, or never."""
    vectorizer = SenseVectorizer(student, **options)
    with pytest.raises(ValueError, match=message):
        vectorizer.fit(texts)


def test_another_kind_of_model_is_refused(tiny_teacher_folder, texts):
    """A plain encoder's weights are read into an empty table."""
    with pytest.raises(ValueError, match="is a bert model, not a sense model"):
        SenseVectorizer(tiny_teacher_folder).fit(texts)


@pytest.mark.parametrize(
    "check",
    [
        "check_estimator_cloneable",
        "check_estimator_repr",
        "check_estimator_tags_renamed",
        "check_get_params_invariance",
        "check_no_attributes_set_in_init",
        "check_set_params",
        "check_valid_tag_types",
    ],
)
def test_as_scikit_learn_checks_estimators(student, check):
    """The estimator breaks one of scikit-learn's conventions. Its other checks feed numbers, which are no texts."""
    if not hasattr(estimator_checks, check):
        pytest.skip(f"this scikit-learn has no {check}")
    getattr(estimator_checks, check)("SenseVectorizer", SenseVectorizer(student))


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    """The import ends in a line about a package nobody asked for."""
    monkeypatch.delitem(sys.modules, "hf_sense.vectorizer")
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r"pip install hf-sense\[eval\]"):
        importlib.import_module("hf_sense.vectorizer")
