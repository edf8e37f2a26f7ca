"""Protocols of evaluation: vectors, labels or sense ids in, numbers out. They know no model."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

Label: TypeAlias = str | int
Vectors: TypeAlias = torch.Tensor | np.ndarray


@dataclass(frozen=True)
class Score:
    """The accuracies of several random draws.

    Attributes:
        mean: over the draws, from 0 to 1.
        spread: their standard deviation.
        draws: each draw's accuracy.
    """

    mean: float
    spread: float
    draws: list[float]


@dataclass(frozen=True)
class WordSenseScores:
    """How well clusters match gold senses.

    Attributes:
        accuracy: share of test occurrences whose cluster's majority sense (over train) is their own.
        nmi: normalised mutual information of clusters and gold senses on test.
        ari: adjusted Rand index of the two on test.
    """

    accuracy: float
    nmi: float
    ari: float


def few_shot_accuracy(
    train_vectors: Vectors,
    train_labels: Sequence[Label],
    test_vectors: Vectors,
    test_labels: Sequence[Label],
    *,
    samples_per_label: int = 8,
    draws: int = 10,
    seed: int = 42,
) -> Score:
    """MTEB's classification protocol: logistic regression on a few examples a label, over several random draws.

    Vectors are scaled to norm 1. Use ``linear_probe`` when all training texts are labelled.

    Args:
        train_vectors: floating ``(train, dim)``.
        train_labels: one a row.
        test_vectors: floating ``(test, dim)``.
        test_labels: one a row, each among ``train_labels``.
        samples_per_label: examples of each label in a draw.
        draws: how many draws.
        seed: of the draws; the same seed and labels give the same draws.

    Raises:
        ImportError: without scikit-learn.
        ValueError: if lengths differ, a test label is unknown, or a label has too few examples.
    """
    hits = few_shot_hits(
        train_vectors,
        train_labels,
        test_vectors,
        test_labels,
        samples_per_label=samples_per_label,
        draws=draws,
        seed=seed,
    )
    scores = hits.mean(1)
    return Score(float(scores.mean()), float(scores.std()), scores.tolist())


def few_shot_hits(
    train_vectors: Vectors,
    train_labels: Sequence[Label],
    test_vectors: Vectors,
    test_labels: Sequence[Label],
    *,
    samples_per_label: int = 8,
    draws: int = 10,
    seed: int = 42,
) -> np.ndarray:
    """Which test texts each draw of ``few_shot_accuracy`` classifies rightly, to compare two models text by text.

    Arguments and errors are those of ``few_shot_accuracy``.

    Returns:
        bool ``(draws, test)``.
    """
    if samples_per_label < 1 or draws < 1:
        raise ValueError(f"samples_per_label and draws should be at least 1, but are {samples_per_label} and {draws}.")
    names, train, train_ids, test, test_ids = _labelled(train_vectors, train_labels, test_vectors, test_labels)
    train, test = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (train, test))
    members = [np.flatnonzero(train_ids == number) for number in range(len(names))]
    fewest = min(range(len(names)), key=lambda number: len(members[number]))
    if (available := len(members[fewest])) < samples_per_label:
        raise ValueError(
            f"A draw takes {samples_per_label} examples a label, but {names[fewest]!r} has {available} in "
            f"train_labels. Lower samples_per_label to {available} or leave the label out."
        )
    hits = np.zeros((draws, len(test)), bool)
    drawn = few_shot_draws(train, train_ids, samples_per_label=samples_per_label, draws=draws, seed=seed)
    for draw, (weight, bias) in enumerate(drawn):
        hits[draw] = (test @ weight.T + bias).argmax(1) == test_ids
    return hits


def few_shot_draws(
    vectors: np.ndarray, ids: np.ndarray, *, samples_per_label: int, draws: int = 10, seed: int = 42
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The regression of each draw of ``few_shot_accuracy``, to use it for something else.

    Args:
        vectors: floating ``(n, dim)`` of unit length.
        ids: int64 ``(n,)``, from 0, each label's at least ``samples_per_label`` times.
        samples_per_label: labelled rows a draw takes of each.
        draws: how many.
        seed: of the drawing.

    Yields:
        Weights ``(labels, dim)`` and biases ``(labels,)``.
    """
    linear = sklearn_module("linear_model")
    members = [np.flatnonzero(ids == number) for number in range(int(ids.max()) + 1)]
    generator = np.random.default_rng(seed)
    for _ in range(draws):
        drawn = np.concatenate([generator.permutation(rows)[:samples_per_label] for rows in members])
        with warnings.catch_warnings():
            # The protocol stops after 100 steps, settled or not.
            warnings.filterwarnings("ignore", message="lbfgs failed to converge", category=UserWarning)
            fitted = linear.LogisticRegression(max_iter=100).fit(vectors[drawn], ids[drawn])
        yield _one_a_label(fitted.coef_, fitted.intercept_)


def linear_probe(
    train_vectors: Vectors,
    train_labels: Sequence[Label],
    test_vectors: Vectors,
    test_labels: Sequence[Label],
    *,
    C: float = 10.0,
) -> float:
    """Test accuracy of logistic regression on all training vectors, centred and of unit mean square length.

    Args:
        train_vectors: floating ``(train, dim)``.
        train_labels: one a row.
        test_vectors: floating ``(test, dim)``.
        test_labels: one a row, each among ``train_labels``.
        C: inverse strength of the regularisation.

    Raises:
        ImportError: without scikit-learn.
        ValueError: if lengths differ or a test label is unknown.
    """
    _, train, train_ids, test, test_ids = _labelled(train_vectors, train_labels, test_vectors, test_labels)
    weight, bias = fit_regression(train, train_ids, C)
    return float(((test @ weight.T + bias).argmax(1) == test_ids).mean())


def agreement(student_ids: Vectors, teacher_ids: Vectors) -> float:
    """The share of labelled tokens at which student and teacher pick the same sense.

    Args:
        student_ids: int ``(...)``, sense ids, as ``SenseModel`` returns them with ``output_senses=True``.
        teacher_ids: int, of the same shape; tokens below 0 are not counted.

    Raises:
        ValueError: if the shapes differ or no token is labelled.

    Example:
        >>> agreement(torch.tensor([7, 3, 9]), torch.tensor([7, 4, -100]))
        0.5
    """
    student, teacher = torch.as_tensor(student_ids).cpu(), torch.as_tensor(teacher_ids).cpu()
    if student.shape != teacher.shape:
        raise ValueError(
            f"Sense ids should be of one shape, but the student's are {tuple(student.shape)} and the teacher's "
            f"{tuple(teacher.shape)}. Were both made with the same max_length?"
        )
    labelled = teacher >= 0
    if not bool(labelled.any()):
        raise ValueError(f"None of the teacher's {teacher.numel()} tokens has a sense (all are below 0).")
    return float((student == teacher)[labelled].double().mean())


def word_sense_scores(
    train_clusters: Sequence[int] | Vectors,
    train_gold: Sequence[Label],
    test_clusters: Sequence[int] | Vectors,
    test_gold: Sequence[Label],
) -> WordSenseScores:
    """How well the clusters of one word's occurrences match its gold senses.

    Each cluster stands for the gold sense that is most frequent in it on train; a cluster that train lacks, for the
    sense most frequent of all. Ties go to the sense that sorts first.

    Args:
        train_clusters: int ``(train,)``.
        train_gold: one sense a row.
        test_clusters: int ``(test,)``.
        test_gold: one sense a row; senses that train lacks are allowed, and count as wrong.

    Raises:
        ImportError: without scikit-learn.
        ValueError: if lengths differ or there is nothing to score.
    """
    metrics = sklearn_module("metrics")
    train, test = (np.asarray(clusters, dtype=np.int64).reshape(-1) for clusters in (train_clusters, test_clusters))
    check_lengths("train_clusters", len(train), "train_gold", len(train_gold))
    check_lengths("test_clusters", len(test), "test_gold", len(test_gold))
    names, gold = np.unique(np.asarray(train_gold), return_inverse=True)
    clusters, member = np.unique(train, return_inverse=True)
    table: np.ndarray = np.zeros((len(clusters), len(names)), np.int64)
    np.add.at(table, (member, gold), 1)
    majority = table.argmax(1)
    at = np.searchsorted(clusters, test).clip(max=len(clusters) - 1)
    mapped = names[np.where(clusters[at] == test, majority[at], table.sum(0).argmax())]
    truth = np.asarray(test_gold)
    return WordSenseScores(
        float((mapped == truth).mean()),
        float(metrics.normalized_mutual_info_score(truth, test)),
        float(metrics.adjusted_rand_score(truth, test)),
    )


def _labelled(
    train_vectors: Vectors, train_labels: Sequence[Label], test_vectors: Vectors, test_labels: Sequence[Label]
) -> tuple[list[Label], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    train, test = as_array(train_vectors), as_array(test_vectors)
    for name, rows in (("train_vectors", train), ("test_vectors", test)):
        if rows.ndim != 2 or rows.shape[1] != train.shape[-1]:
            raise ValueError(f"{name} should be (texts, {train.shape[-1]}), but is {rows.shape}.")
    check_lengths("train_vectors", len(train), "train_labels", len(train_labels))
    check_lengths("test_vectors", len(test), "test_labels", len(test_labels))
    names, train_ids = numbered(train_labels)
    number_of = {name: number for number, name in enumerate(names)}
    if unknown := {label for label in test_labels if label not in number_of}:
        raise ValueError(
            f"test_labels has {len(unknown)} labels that train_labels lacks, such as {sorted(map(repr, unknown))[0]}. "
            "Are the two from the same data set, and of one type?"
        )
    return names, train, train_ids, test, np.array([number_of[label] for label in test_labels])


def fit_regression(vectors: np.ndarray, ids: np.ndarray, C: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``(labels, dim)`` and biases ``(labels,)`` that take raw vectors, centre and scale folded in."""
    linear = sklearn_module("linear_model")
    if not np.isfinite(vectors).all():
        raise ValueError("The vectors hold NaN or infinity; run the model in float32 or bfloat16.")
    if len(np.unique(ids)) < 2:
        raise ValueError(f"A classifier needs at least two labels, but all {len(ids)} examples have the same.")
    # One scale for all dimensions: a hard choice of senses can leave a dimension all but constant, and dividing by its own
    # spread would blow up what is left of it.
    mean = vectors.mean(0)
    scale = float(np.sqrt(np.square(vectors - mean).sum(1).mean())) or 1.0
    fitted = linear.LogisticRegression(max_iter=1000, C=C).fit((vectors - mean) / scale, ids)
    weight, bias = _one_a_label(fitted.coef_ / scale, fitted.intercept_)
    return weight, bias - weight @ mean


def _one_a_label(weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scikit-learn keeps the difference of two labels; halves give softmax the same probability."""
    if len(weight) > 1:
        return weight, bias
    return np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2


def numbered(labels: Sequence[Label]) -> tuple[list[Label], np.ndarray]:
    """The labels sorted, and each row's number among them."""
    labels = labels.tolist() if isinstance(labels, torch.Tensor | np.ndarray) else labels
    kinds = {str if isinstance(label, str) else int if isinstance(label, int) else type(label) for label in labels}
    if kinds not in ({str}, {int}):
        raise ValueError(
            "Labels should be all strings or all integers, but are "
            f"{', '.join(sorted(kind.__name__ for kind in kinds)) or 'none at all'}."
        )
    names: list[Label] = sorted(set(labels))
    number_of = {name: number for number, name in enumerate(names)}
    return names, np.array([number_of[label] for label in labels])


def check_lengths(first: str, num_first: int, second: str, num_second: int) -> None:
    """Raises ``ValueError`` if the two differ or are 0."""
    if num_first != num_second:
        raise ValueError(f"{first} and {second} should be of one length, but are {num_first} and {num_second} long.")
    if num_first == 0:
        raise ValueError(f"{first} and {second} are empty.")


def as_array(vectors: Vectors) -> np.ndarray:
    """Float64, on the CPU."""
    return torch.as_tensor(vectors).detach().double().cpu().numpy()


def sklearn_module(module: str) -> Any:
    """``sklearn.<module>``, or an ``ImportError`` that says how to get it."""
    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError("hf_sense.evaluation needs scikit-learn: pip install hf-sense[eval]") from error
