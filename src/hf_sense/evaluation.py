"""Measures a sense model: text vectors under MTEB's protocol, agreement with the teacher, word senses, a linear head.

It reads no data set and draws nothing; pictures and tables of a dictionary are in ``hf_sense.report``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from hf_sense.corpus import Text, encode_corpus
from hf_sense.modeling_sense import SensePreTrainedModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_sense.modeling_sense import SenseModelForSequenceClassification

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


def embed(
    model: SensePreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Text],
    *,
    max_length: int | None = None,
    batch_size: int = 32,
    disable_tqdm: bool | None = None,
) -> torch.Tensor:
    """One vector a text, pooled as ``model.config.pooling`` says over hidden states selected as ``selection`` says.

    Args:
        model: a sense model; of one with a classifier, the sense model inside. Runs in evaluation mode.
        tokenizer: the model's.
        texts: strings, or pairs of strings.
        max_length: tokens at which a text is cut; the most that tokenizer and model take if not given.
        batch_size: texts of like length in a batch.
        disable_tqdm: no progress bar.

    Returns:
        float32 ``(texts, sense_dim)`` on the CPU, in the order of ``texts``.

    Raises:
        ValueError: if there are no texts, or none but blank ones.
    """
    inner = model.base_model
    corpus = encode_corpus(texts, tokenizer, max_length or _length_limit(model, tokenizer), disable_tqdm=disable_tqdm)
    vectors = torch.zeros(len(corpus.lengths), model.config.sense_dim)
    pad_id = tokenizer.pad_token_id or 0
    training = inner.training
    inner.eval()
    try:
        # Not inference_mode: the model keeps norms and weights between calls, and a later training step reads them.
        with torch.no_grad(), _bar("Embedding", len(corpus.input_ids), disable_tqdm) as bar:
            for rows in corpus.batches(batch_size):
                tokens = int(corpus.lengths[rows].sum())
                if tokens == 0:
                    continue
                batch = {name: tensor.to(model.device) for name, tensor in corpus.padded(rows, pad_id).items()}
                hidden = inner(**batch).last_hidden_state
                pooled = inner.pool(hidden, batch["input_ids"], batch["attention_mask"])
                vectors[torch.from_numpy(rows)] = pooled.float().cpu()
                bar.update(tokens)
    finally:
        inner.train(training)
    return vectors


def predict(
    model: SenseModelForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Text],
    *,
    max_length: int | None = None,
    batch_size: int = 32,
    disable_tqdm: bool | None = None,
) -> torch.Tensor:
    """The classifier's logits, float32 ``(texts, num_labels)`` on the CPU; arguments and errors as in ``embed``."""
    vectors = embed(model, tokenizer, texts, max_length=max_length, batch_size=batch_size, disable_tqdm=disable_tqdm)
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            return model.classify(vectors.to(model.device, model.dtype)).float().cpu()
    finally:
        model.train(training)


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
    if samples_per_label < 1 or draws < 1:
        raise ValueError(f"samples_per_label and draws should be at least 1, but are {samples_per_label} and {draws}.")
    linear = _sklearn("linear_model")
    names, train, train_ids, test, test_ids = _labelled(train_vectors, train_labels, test_vectors, test_labels)
    train, test = (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12) for rows in (train, test))
    members = [np.flatnonzero(train_ids == number) for number in range(len(names))]
    fewest = min(range(len(names)), key=lambda number: len(members[number]))
    if (available := len(members[fewest])) < samples_per_label:
        raise ValueError(
            f"A draw takes {samples_per_label} examples a label, but {names[fewest]!r} has {available} in "
            f"train_labels. Lower samples_per_label to {available} or leave the label out."
        )
    generator = np.random.default_rng(seed)
    scores = []
    for _ in range(draws):
        drawn = np.concatenate([generator.permutation(rows)[:samples_per_label] for rows in members])
        with warnings.catch_warnings():
            # The protocol stops after 100 steps, settled or not.
            warnings.filterwarnings("ignore", message="lbfgs failed to converge", category=UserWarning)
            regression = linear.LogisticRegression(max_iter=100).fit(train[drawn], train_ids[drawn])
        scores.append(float((regression.predict(test) == test_ids).mean()))
    return Score(float(np.mean(scores)), float(np.std(scores)), scores)


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
    weight, bias = _regression(train, train_ids, C)
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
    metrics = _sklearn("metrics")
    train, test = (np.asarray(clusters, dtype=np.int64).reshape(-1) for clusters in (train_clusters, test_clusters))
    _check_lengths("train_clusters", len(train), "train_gold", len(train_gold))
    _check_lengths("test_clusters", len(test), "test_gold", len(test_gold))
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


def fit_linear_head(
    model: SenseModelForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    labels: Sequence[Label],
    *,
    max_length: int | None = None,
    C: float = 10.0,
    batch_size: int = 32,
    disable_tqdm: bool | None = None,
) -> float:
    """Fits ``model.classifier`` alone: logistic regression on pooled vectors, centred and of unit mean square length.

    Centre and scale are folded into the weights, so the model needs nothing else afterwards. ``config.id2label``,
    ``label2id`` and ``num_labels`` become those of ``labels``, sorted. To train the backbone as well, use ``Trainer``.

    Args:
        model: changed in place.
        tokenizer: the model's.
        texts: the training texts.
        labels: one a text, strings or integers.
        max_length: as in ``embed``.
        C: inverse strength of the regularisation.
        batch_size: as in ``embed``.
        disable_tqdm: no progress bar.

    Returns:
        The accuracy on the training texts, from 0 to 1.

    Raises:
        ImportError: without scikit-learn.
        ValueError: if the model has a hidden layer before its classifier, lengths differ, or there is but one label.
    """
    if model.head_dense is not None:
        raise ValueError(
            "fit_linear_head needs a classifier straight on the pooled vectors, but this model has a hidden layer "
            f"before it (head_activation={model.config.head_activation!r}). Train it with Trainer, or make the model "
            "without copy_head."
        )
    _sklearn("linear_model")  # before the long work
    texts = list(texts)
    _check_lengths("texts", len(texts), "labels", len(labels))
    names, ids = _numbered(labels)
    vectors = embed(model, tokenizer, texts, max_length=max_length, batch_size=batch_size, disable_tqdm=disable_tqdm)
    weight, bias = (torch.from_numpy(part) for part in _regression(_array(vectors), ids, C))
    layer = model.classifier
    if layer.out_features != len(names):
        layer = nn.Linear(layer.in_features, len(names), device=layer.weight.device, dtype=layer.weight.dtype)
        model.classifier = layer
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    model.config.id2label = {number: str(name) for number, name in enumerate(names)}
    model.config.label2id = {str(name): number for number, name in enumerate(names)}
    model.config.num_labels = model.num_labels = len(names)
    model.config.problem_type = "single_label_classification"
    return float(((vectors.double() @ weight.T + bias).argmax(1).numpy() == ids).mean())


def evaluate_classifier(
    model: SenseModelForSequenceClassification,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[Text],
    labels: Sequence[Label],
    *,
    max_length: int | None = None,
    batch_size: int = 32,
    disable_tqdm: bool | None = None,
) -> dict[str, float]:
    """Accuracy, macro F1 and speed of a classifier.

    Args:
        model: a fitted classifier.
        tokenizer: the model's.
        texts: the test texts.
        labels: one a text: names of ``config.label2id``, or their numbers.
        max_length: as in ``embed``.
        batch_size: as in ``embed``.
        disable_tqdm: no progress bar.

    Returns:
        ``accuracy`` and ``macro_f1`` from 0 to 1, and ``texts_per_second``, tokenizing included.

    Raises:
        ImportError: without scikit-learn.
        ValueError: if lengths differ, or a label is not one of the model's.
    """
    metrics = _sklearn("metrics")
    texts = list(texts)
    _check_lengths("texts", len(texts), "labels", len(labels))
    truth = _known_ids(model, labels)
    begin = time.perf_counter()
    logits = predict(model, tokenizer, texts, max_length=max_length, batch_size=batch_size, disable_tqdm=disable_tqdm)
    seconds = time.perf_counter() - begin
    guess = logits.argmax(1).numpy()
    return {
        "accuracy": float((guess == truth).mean()),
        "macro_f1": float(metrics.f1_score(truth, guess, average="macro", zero_division=0)),
        "texts_per_second": len(texts) / seconds,
    }


def _regression(vectors: np.ndarray, ids: np.ndarray, C: float) -> tuple[np.ndarray, np.ndarray]:
    """Weights ``(labels, dim)`` and biases ``(labels,)`` that take raw vectors, centre and scale folded in."""
    linear = _sklearn("linear_model")
    if not np.isfinite(vectors).all():
        raise ValueError("The text vectors hold NaN or infinity; run the model in float32 or bfloat16.")
    if len(np.unique(ids)) < 2:
        raise ValueError(f"A classifier needs at least two labels, but all {len(ids)} texts have the same.")
    # One scale for all dimensions: a hard choice of senses can leave a dimension all but constant, and dividing by its own
    # spread would blow up what is left of it.
    mean = vectors.mean(0)
    scale = float(np.sqrt(np.square(vectors - mean).sum(1).mean())) or 1.0
    fitted = linear.LogisticRegression(max_iter=1000, C=C).fit((vectors - mean) / scale, ids)
    weight, bias = fitted.coef_, fitted.intercept_
    if len(weight) == 1:  # scikit-learn keeps the difference of two labels; halves give softmax the same probability
        weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
    weight = weight / scale
    return weight, bias - weight @ mean


def _labelled(
    train_vectors: Vectors, train_labels: Sequence[Label], test_vectors: Vectors, test_labels: Sequence[Label]
) -> tuple[list[Label], np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    train, test = _array(train_vectors), _array(test_vectors)
    for name, rows in (("train_vectors", train), ("test_vectors", test)):
        if rows.ndim != 2 or rows.shape[1] != train.shape[-1]:
            raise ValueError(f"{name} should be (texts, {train.shape[-1]}), but is {rows.shape}.")
    _check_lengths("train_vectors", len(train), "train_labels", len(train_labels))
    _check_lengths("test_vectors", len(test), "test_labels", len(test_labels))
    names, train_ids = _numbered(train_labels)
    number_of = {name: number for number, name in enumerate(names)}
    if unknown := {label for label in test_labels if label not in number_of}:
        raise ValueError(
            f"test_labels has {len(unknown)} labels that train_labels lacks, such as {sorted(map(repr, unknown))[0]}. "
            "Are the two from the same data set, and of one type?"
        )
    return names, train, train_ids, test, np.array([number_of[label] for label in test_labels])


def _numbered(labels: Sequence[Label]) -> tuple[list[Label], np.ndarray]:
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


def _known_ids(model: SenseModelForSequenceClassification, labels: Sequence[Label]) -> np.ndarray:
    numbers: dict[str, int] = {str(name): int(number) for name, number in model.config.label2id.items()}
    ids = []
    for label in labels:
        number = numbers.get(str(label), label)
        if not isinstance(number, int) or not 0 <= number < model.num_labels:
            nameless = all(name.startswith("LABEL_") for name in numbers)
            remedy = (
                "The model has no label names: set config.label2id and id2label, or call fit_linear_head, which does."
                if nameless
                else "Was the model fitted on another data set?"
            )
            raise ValueError(
                f"{label!r} is not one of the model's {model.num_labels} labels ({', '.join(list(numbers)[:5])}"
                f"{', ...' if len(numbers) > 5 else ''}). {remedy}"
            )
        ids.append(number)
    return np.array(ids)


def _check_lengths(first: str, num_first: int, second: str, num_second: int) -> None:
    if num_first != num_second:
        raise ValueError(f"{first} and {second} should be of one length, but are {num_first} and {num_second} long.")
    if num_first == 0:
        raise ValueError(f"{first} and {second} are empty.")


def _array(vectors: Vectors) -> np.ndarray:
    return torch.as_tensor(vectors).detach().double().cpu().numpy()


def _length_limit(model: SensePreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(min(tokenizer.model_max_length, positions or 512))


def _bar(title: str, tokens: int, disable: bool | None) -> Any:
    return tqdm(desc=title, total=tokens, unit=" tokens", unit_scale=True, disable=disable)


def _sklearn(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"sklearn.{module}")
    except ImportError as error:
        raise ImportError("hf_sense.evaluation needs scikit-learn: pip install hf-sense[eval]") from error
