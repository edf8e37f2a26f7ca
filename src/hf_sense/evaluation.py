"""Measures a sense model: text vectors under MTEB's protocol, agreement with the teacher, word senses, a linear head.

The protocols themselves, arrays in and numbers out, stand in ``hf_sense.scores`` and are reached from here too. Pictures and
tables of a dictionary are in ``hf_sense.report``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hf_sense.corpus import Text, encode_corpus, iterate_texts
from hf_sense.heads import check_can_be_fitted, fit_classifier, known_ids
from hf_sense.llm2vec import TextForm, last_tokens, text_lengths
from hf_sense.modeling_sense import SensePreTrainedModel
from hf_sense.running import check_tokenizer, evaluating, length_limit, progress_bar
from hf_sense.scores import (
    Label,
    Score,
    WordSenseScores,
    agreement,
    check_lengths,
    few_shot_accuracy,
    linear_probe,
    numbered,
    sklearn_module,
    word_sense_scores,
)
from hf_sense.token_classification import FoldedSenseModelForTokenClassification, SenseModelForTokenClassification

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
    check_tokenizer(model, tokenizer)
    inner = model.base_model
    limit = max_length or length_limit(model, tokenizer)
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
    with evaluating(inner), torch.no_grad(), progress_bar("Embedding", len(corpus.input_ids), disable_tqdm) as bar:
        for rows in corpus.batches(batch_size):
            tokens = int(corpus.lengths[rows].sum())
            if tokens == 0:
                continue
            batch = {name: tensor.to(model.device) for name, tensor in corpus.padded(rows, pad_id).items()}
            mask = None if counts is None else last_tokens(batch["attention_mask"], counts[rows].tolist())
            pooled = inner.text_vectors(**batch, pooled=mask)
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
    with evaluating(model), torch.no_grad():
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
    check_can_be_fitted(model)
    texts = list(texts)
    check_lengths("texts", len(texts), "labels", len(labels))
    names, ids = numbered(labels)
    vectors = embed(model, tokenizer, texts, max_length=max_length, batch_size=batch_size, disable_tqdm=disable_tqdm)
    return fit_classifier(model, vectors, names, ids, C)


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
    truth = known_ids(model, labels)
    begin = time.perf_counter()
    logits = predict(model, tokenizer, texts, max_length=max_length, batch_size=batch_size, disable_tqdm=disable_tqdm)
    seconds = time.perf_counter() - begin
    guess = logits.argmax(1).numpy()
    return {
        "accuracy": float((guess == truth).mean()),
        "macro_f1": float(metrics.f1_score(truth, guess, average="macro", zero_division=0)),
        "texts_per_second": len(texts) / seconds,
    }


def _check_classifier(model: Any) -> None:
    """Raises ``ValueError`` if the model has no classifier."""
    if not hasattr(model, "classify"):
        raise ValueError(
            f"A model with a classifier is needed, but a {type(model).__name__} came. Make it with "
            "SenseModelForSequenceClassification, or load it with AutoModelForSequenceClassification; embed and "
            "few_shot_accuracy need none."
        )
    if isinstance(model, SenseModelForTokenClassification | FoldedSenseModelForTokenClassification):
        raise ValueError(
            f"A {type(model).__name__} classifies tokens, not texts: hf_sense.token_evaluation fits and evaluates it."
        )
