"""Sentences cut into words, some of them labelled: a head fitted on their frozen states, and its accuracy.

A word stands for itself by its first piece, as usual with Transformers. Whole texts are classified by ``hf_sense.evaluation``;
to train more than a head, use ``Trainer``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from hf_sense.corpus import EncodedCorpus
from hf_sense.heads import check_can_be_fitted, fit_classifier, known_ids
from hf_sense.llm2vec import TextForm
from hf_sense.running import check_tokenizer, evaluating, length_limit, progress_bar
from hf_sense.scores import Label, check_lengths, numbered, sklearn_module
from hf_sense.token_classification import FoldedSenseModelForTokenClassification, SenseModelForTokenClassification

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["evaluate_token_classifier", "fit_token_head"]

logger = logging.getLogger(__name__)

Words = Sequence[str]
WordLabels = Sequence[Label | None]
# What token classification calls a place that does not count; None says the same.
_IGNORED = -100


def fit_token_head(
    model: SenseModelForTokenClassification,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[Words],
    labels: Iterable[WordLabels],
    *,
    max_length: int | None = None,
    C: float = 10.0,
    batch_size: int = 32,
    disable_tqdm: bool | None = None,
) -> float:
    """Fits ``model.classifier`` alone: logistic regression on the words' states, as ``fit_linear_head`` on texts' vectors.

    ``config.id2label``, ``label2id`` and ``num_labels`` become those of ``labels``, sorted.

    Args:
        model: changed in place.
        tokenizer: the model's.
        sentences: each a list of words.
        labels: one a word, strings or integers; ``None`` or -100 where a word does not count.
        max_length: tokens at which a sentence is cut; the most that tokenizer and model take if not given.
        C: inverse strength of the regularisation.
        batch_size: sentences of like length in a batch.
        disable_tqdm: no progress bar.

    Returns:
        The accuracy on the labelled words, from 0 to 1.

    Raises:
        ImportError: without scikit-learn.
        ValueError: if the model does not classify tokens or has a hidden layer before its classifier, sentences are no lists of
            words, lengths differ, there is but one label, or the model's teacher read an instruction before its texts.
    """
    if not isinstance(model, SenseModelForTokenClassification):
        raise ValueError(
            f"A SenseModelForTokenClassification is needed, but a {type(model).__name__} came. A folded one is fitted before it "
            "is folded; a classifier of texts with hf_sense.evaluation.fit_linear_head."
        )
    check_can_be_fitted(model)
    words, marked = _labelled_words(sentences, labels)
    names, ids = numbered(list(marked.values()))
    states, read = _word_outputs(model, tokenizer, words, list(marked), True, max_length, batch_size, disable_tqdm)
    if not bool(read.any()):
        raise ValueError(f"None of the {len(marked)} labelled words has a token. Raise max_length.")
    return fit_classifier(model, states[read], names, ids[read.numpy()], C)


def evaluate_token_classifier(
    model: SenseModelForTokenClassification | FoldedSenseModelForTokenClassification,
    tokenizer: PreTrainedTokenizerBase,
    sentences: Iterable[Words],
    labels: Iterable[WordLabels],
    *,
    max_length: int | None = None,
    batch_size: int = 32,
    disable_tqdm: bool | None = None,
) -> dict[str, float]:
    """Accuracy, macro F1 and speed of a classifier of tokens, by word.

    A labelled word past ``max_length`` counts as wrong. Scores of whole spans, as for names, are those of ``seqeval``.

    Args:
        model: a fitted classifier of tokens, folded or not.
        tokenizer: the model's.
        sentences: each a list of words.
        labels: one a word: names of ``config.label2id``, or their numbers; ``None`` or -100 where a word does not count.
        max_length: as in ``fit_token_head``.
        batch_size: as in ``fit_token_head``.
        disable_tqdm: no progress bar.

    Returns:
        ``accuracy`` and ``macro_f1`` from 0 to 1, ``labelled_words``, and ``sentences_per_second``, tokenizing included.

    Raises:
        ImportError: without scikit-learn.
        ValueError: as ``fit_token_head``, or if a label is not one of the model's.
    """
    if not isinstance(model, SenseModelForTokenClassification | FoldedSenseModelForTokenClassification):
        raise ValueError(
            f"A model that classifies tokens is needed, but a {type(model).__name__} came. Load it with "
            "AutoModelForTokenClassification; a classifier of texts goes to hf_sense.evaluation.evaluate_classifier."
        )
    metrics = sklearn_module("metrics")
    words, marked = _labelled_words(sentences, labels)
    truth = known_ids(model, list(marked.values()))
    begin = time.perf_counter()
    logits, read = _word_outputs(model, tokenizer, words, list(marked), False, max_length, batch_size, disable_tqdm)
    seconds = time.perf_counter() - begin
    guess = torch.where(read, logits.argmax(1), _IGNORED).numpy()
    return {
        "accuracy": float((guess == truth).mean()),
        "macro_f1": float(metrics.f1_score(truth, guess, labels=np.unique(truth), average="macro", zero_division=0)),
        "labelled_words": len(truth),
        "sentences_per_second": len(words) / seconds,
    }


def _labelled_words(
    sentences: Iterable[Words], labels: Iterable[WordLabels]
) -> tuple[list[list[str]], dict[tuple[int, int], Label]]:
    """The sentences, and the label at each (sentence, word) that has one."""
    if isinstance(sentences, str):
        raise ValueError(f"sentences should be lists of words, but is one string ({sentences[:40]!r}).")
    words, given = list(sentences), list(labels)
    check_lengths("sentences", len(words), "labels", len(given))
    marked: dict[tuple[int, int], Label] = {}
    for number, (sentence, row) in enumerate(zip(words, given)):
        if isinstance(sentence, str) or not all(isinstance(word, str) for word in sentence):
            raise ValueError(
                f"Sentence {number} should be a list of words, but is {sentence!r:.80}. Cut a text with text.split(), or by the "
                "rules by which it was labelled."
            )
        if isinstance(row, str) or len(row) != len(sentence):
            came = f"one string ({row!r:.40})" if isinstance(row, str) else f"{len(row)}"
            raise ValueError(
                f"Sentence {number} has {len(sentence)} words and should have as many labels, but has {came}."
            )
        marked |= {(number, at): label for at, label in enumerate(row) if label is not None and label != _IGNORED}
    if not marked:
        raise ValueError(f"None of the {len(words)} sentences has a labelled word (all labels are None or -100).")
    return [list(sentence) for sentence in words], marked


def _word_outputs(
    model: SenseModelForTokenClassification | FoldedSenseModelForTokenClassification,
    tokenizer: PreTrainedTokenizerBase,
    sentences: list[list[str]],
    marked: list[tuple[int, int]],
    states: bool,
    max_length: int | None,
    batch_size: int,
    disable_tqdm: bool | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """States or logits at the first piece of each marked word, float32 ``(marked, width)``, and which words were read."""
    check_tokenizer(model, tokenizer)
    if not TextForm.of(model.config.dictionary_metadata.get("teacher", {})).plain:
        raise ValueError(
            "The model's teacher read its texts with an instruction or a wrapper around them, which sentences cut into words "
            "cannot have. Tokenize them as the teacher's, and use Trainer."
        )
    if not tokenizer.is_fast:
        raise ValueError(
            f"A {type(tokenizer).__name__} does not say which token is of which word. Give a fast tokenizer."
        )
    encoded = tokenizer(
        sentences, is_split_into_words=True, truncation=True, max_length=max_length or length_limit(model, tokenizer),
        return_attention_mask=False,
    )  # fmt: skip
    lengths = [len(ids) for ids in encoded["input_ids"]]
    flat = np.concatenate([np.asarray(ids, np.int32) for ids in encoded["input_ids"]])
    corpus = EncodedCorpus(flat, np.concatenate([[0], np.cumsum(lengths)]), None, "", 0)
    places = torch.full((len(marked),), -1, dtype=torch.int64)  # in the whole of the tokens
    first: dict[tuple[int, int], int] = {}
    for number in range(len(sentences)):
        for at, word in reversed(list(enumerate(encoded.word_ids(number)))):
            if word is not None:
                first[number, word] = int(corpus.offsets[number]) + at
    for row, key in enumerate(marked):
        places[row] = first.get(key, -1)
    read = places >= 0
    if cut := int((~read).sum()):
        logger.warning(
            "%d of %d labelled words have no token: they are blank, or lie past where sentences are cut.",
            cut,
            len(marked),
        )
    width = model.config.sense_dim if states else model.num_labels
    found = torch.zeros(len(marked), width)
    row_of = torch.full((len(flat),), -1, dtype=torch.int64)
    row_of[places[read]] = read.nonzero().squeeze(-1)
    pad_id = tokenizer.pad_token_id or 0
    with evaluating(model), torch.no_grad(), progress_bar("Reading", len(flat), disable_tqdm) as bar:
        for rows in corpus.batches(batch_size):
            batch = {name: tensor.to(model.device) for name, tensor in corpus.padded(rows, pad_id).items()}
            output = model.base_model(**batch).last_hidden_state if states else model(**batch).logits
            kept = batch["attention_mask"].bool().cpu()
            # A batch's tokens under the mask lie in the order of its sentences.
            tokens = np.concatenate([np.arange(corpus.offsets[row], corpus.offsets[row + 1]) for row in rows])
            to = row_of[torch.from_numpy(tokens)]
            found[to[to >= 0]] = output.float().cpu()[kept][to >= 0]
            bar.update(len(tokens))
    return found, read
