"""Measures a sense model: text vectors under MTEB's protocol, agreement with the teacher, word senses, a linear head.

The protocols themselves, arrays in and numbers out, stand in ``hf_sense.scores`` and are reached from here too. Pictures and
tables of a dictionary are in ``hf_sense.report``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from hf_sense.corpus import Text, encode_corpus, iterate_texts
from hf_sense.llm2vec import TextForm, last_tokens, text_lengths
from hf_sense.modeling_sense import SensePreTrainedModel
from hf_sense.scores import (
    Label,
    Score,
    WordSenseScores,
    agreement,
    as_array,
    check_lengths,
    few_shot_accuracy,
    fit_regression,
    linear_probe,
    numbered,
    sklearn_module,
    word_sense_scores,
)
from hf_sense.vocabulary import tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_sense.modeling_sense import SenseModelForSequenceClassification

__all__ = [
    "Score",
    "WordSenseScores",
    "agreement",
    "embed",
    "evaluate_classifier",
    "few_shot_accuracy",
    "fit_linear_head",
    "linear_probe",
    "predict",
    "word_sense_scores",
]


def embed(
    model: SensePreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Iterable[Text],
    *,
    max_length: int | None = None,
    batch_size: int = 32,
    quiet: bool = False,
    disable_tqdm: bool | None = None,
) -> torch.Tensor:
    """One vector a text, pooled as ``model.config.pooling`` says over hidden states selected as ``selection`` says.

    An instruction or wrapper with which the model's teacher read its texts is put before these too.

    Args:
        model: a sense model; of one with a classifier, the sense model inside. Runs in evaluation mode.
        tokenizer: the model's.
        texts: strings, or pairs of strings.
        max_length: tokens at which a text is cut; the most that tokenizer and model take if not given.
        batch_size: texts of like length in a batch.
        quiet: take texts that are all blank, and do not warn of those that were cut.
        disable_tqdm: no progress bar.

    Returns:
        float32 ``(texts, sense_dim)`` on the CPU, in the order of ``texts``.

    Raises:
        ValueError: if there are no texts, none but blank ones, or one string instead of a list; if one is neither a string
            nor a pair of strings; or if the tokenizer is not the model's.
    """
    if isinstance(texts, str):
        raise ValueError(
            "texts should be a list of texts, but is one string, whose letters would be read. Pass [text]."
        )
    texts = iterate_texts(texts)
    _check_tokenizer(model, tokenizer)
    inner = model.base_model
    limit = max_length or _length_limit(model, tokenizer)
    form = TextForm.of(model.config.dictionary_metadata.get("teacher", {}))
    counts: np.ndarray | None = None
    if not form.plain:
        pairs = [form.prepared(text, tokenizer) for text in texts]
        texts = [before + text for before, text in pairs]
        if form.skips_instruction:
            counts = np.array(text_lengths([text for _, text in pairs], tokenizer, limit))
    corpus = encode_corpus(texts, tokenizer, limit, quiet=quiet, disable_tqdm=disable_tqdm)
    vectors = torch.zeros(len(corpus.lengths), model.config.sense_dim)
    pad_id = tokenizer.pad_token_id or 0
    # Not inference_mode: the model keeps norms and weights between calls, and a later training step reads them.
    with _evaluating(inner), torch.no_grad(), _bar("Embedding", len(corpus.input_ids), disable_tqdm) as bar:
        for rows in corpus.batches(batch_size):
            tokens = int(corpus.lengths[rows].sum())
            if tokens == 0:
                continue
            batch = {name: tensor.to(model.device) for name, tensor in corpus.padded(rows, pad_id).items()}
            hidden = inner(**batch).last_hidden_state
            mask = batch["attention_mask"]
            mask = mask if counts is None else last_tokens(mask, counts[rows].tolist())
            pooled = inner.pool(hidden, batch["input_ids"], mask)
            vectors[torch.from_numpy(rows)] = pooled.float().cpu()
            bar.update(tokens)
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
    _check_classifier(model)
    vectors = embed(model, tokenizer, texts, max_length=max_length, batch_size=batch_size, disable_tqdm=disable_tqdm)
    with _evaluating(model), torch.no_grad():
        return model.classify(vectors.to(model.device, model.dtype)).float().cpu()


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
    _check_classifier(model)
    if getattr(model, "head_dense", None) is not None:
        raise ValueError(
            "fit_linear_head needs a classifier straight on the pooled vectors, but this model has a hidden layer "
            f"before it (head_activation={model.config.head_activation!r}). Train it with Trainer, or make the model "
            "without copy_head."
        )
    sklearn_module("linear_model")  # before the long work
    texts = list(texts)
    check_lengths("texts", len(texts), "labels", len(labels))
    names, ids = numbered(labels)
    vectors = embed(model, tokenizer, texts, max_length=max_length, batch_size=batch_size, disable_tqdm=disable_tqdm)
    weight, bias = (torch.from_numpy(part) for part in fit_regression(as_array(vectors), ids, C))
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
    _check_classifier(model)
    metrics = sklearn_module("metrics")
    texts = list(texts)
    check_lengths("texts", len(texts), "labels", len(labels))
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


def _check_classifier(model: Any) -> None:
    """Raises ``ValueError`` if the model has no classifier."""
    if not hasattr(model, "classify"):
        raise ValueError(
            f"A model with a classifier is needed, but a {type(model).__name__} came. Make it with "
            "SenseModelForSequenceClassification, or load it with AutoModelForSequenceClassification; embed and "
            "few_shot_accuracy need none."
        )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the mode as it was."""
    # Setting the mode of every module shows beside the time of a short text, and mostly it is right already.
    if not any(module.training for module in model.modules()):
        yield
        return
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _check_tokenizer(model: SensePreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ``ValueError`` if the model's senses belong to another tokenizer's ids."""
    expected = model.config.tokenizer_fingerprint
    if expected is None:
        return
    found = tokenizer_fingerprint(tokenizer)
    if found != expected:
        raise ValueError(
            f"The tokenizer is not the model's: its fingerprint is {found}, the model was made with {expected}. Pass the "
            "teacher's tokenizer, which is saved beside the model."
        )


def _length_limit(model: SensePreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(min(tokenizer.model_max_length, positions or 512))


def _bar(title: str, tokens: int, disable: bool | None) -> Any:
    return tqdm(desc=title, total=tokens, unit=" tokens", unit_scale=True, disable=disable)
