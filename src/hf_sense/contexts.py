"""Where a token stands in texts: its contextual embeddings there, and the occurrences nearest to each of its senses.

Texts are run through a model that is given; nothing is drawn or written here.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch

from hf_sense.corpus import EncodedCorpus, Text, encode_corpus
from hf_sense.dictionary import SenseDictionary, TokenSenses
from hf_sense.vocabulary import token_id_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CONTEXT = 6  # tokens on either side


class Encoder(Protocol):
    """What gives contextual embeddings: a ``Teacher``, or a ``Reader`` of ``hf_sense.reading``."""

    tokenizer: PreTrainedTokenizerBase
    dim: int
    max_length: int

    def hidden_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``(batch, sequence, dim)``."""
        ...


class Occurrences(NamedTuple):
    """Where one token stands in some texts.

    Attributes:
        vectors: float32 ``(n, dim)``, the teacher's contextual embeddings.
        contexts: for each, the words around it, the token in brackets.
    """

    vectors: torch.Tensor
    contexts: list[str]


class SenseContexts(NamedTuple):
    """A sense and the occurrences nearest to it.

    Attributes:
        sense_id: its row in the dictionary.
        occurrences: how many stood behind it when it was built.
        contexts: nearest first; fewer than asked for, or none, if the texts hold no more.
        distances: Euclidean, one a context.
    """

    sense_id: int
    occurrences: int
    contexts: list[str]
    distances: list[float]


def occurrences_of(
    teacher: Encoder,
    texts: EncodedCorpus | Iterable[Text],
    token: int | str,
    *,
    max_texts: int = 500,
    max_length: int | None = None,
    batch_size: int = 32,
) -> Occurrences:
    """The teacher's contextual embeddings of one token.

    Args:
        teacher: what ``load_teacher`` returned, or another that gives contextual embeddings.
        texts: texts, or what ``encode_corpus`` made of them, which spares tokenizing them for each token anew.
        token: an id, or a token as text.
        max_texts: of the texts that hold the token, run so many, evenly spaced.
        max_length: tokens at which a text is cut; the teacher's limit if not given.
        batch_size: texts of like length in a batch.

    Raises:
        ValueError: if ``token`` is not a token of the vocabulary, or there are no texts.
    """
    tokenizer = teacher.tokenizer
    token_id = token_id_of(token, tokenizer) if isinstance(token, str) else token
    corpus = _encoded(texts, tokenizer, max_length or teacher.max_length)
    places = np.flatnonzero(corpus.input_ids == token_id)
    holders = np.unique(np.searchsorted(corpus.offsets, places, side="right") - 1)
    if len(holders) > max_texts:
        holders = holders[np.linspace(0, len(holders) - 1, max_texts).round().astype(np.int64)]
    vectors, contexts = [torch.empty(0, teacher.dim)], []
    for rows in corpus.batches(batch_size, holders):
        batch = corpus.padded(rows, tokenizer.pad_token_id or 0)
        hidden = teacher.hidden_states(**batch)
        found = (batch["input_ids"] == token_id) & batch["attention_mask"].bool()
        vectors.append(hidden[found.to(hidden.device)].float().cpu())
        for row, position in found.nonzero().tolist():
            length = int(corpus.lengths[rows[row]])
            contexts.append(_context(batch["input_ids"][row, :length].tolist(), position, tokenizer))
    return Occurrences(torch.cat(vectors), contexts)


def nearest_contexts(
    dictionary: SenseDictionary,
    token: int | str,
    teacher: Encoder,
    texts: EncodedCorpus | Iterable[Text],
    *,
    per_sense: int = 3,
    max_texts: int = 500,
    max_length: int | None = None,
) -> list[SenseContexts]:
    """For each sense of a token the occurrences nearest to it, among those that pick it by ``dictionary.metric``.

    Args:
        dictionary: built with ``teacher``.
        token: an id, or a token as text.
        teacher: what ``load_teacher`` returned.
        texts: texts, or what ``encode_corpus`` made of them.
        per_sense: contexts a sense; the same words in the same order are listed once.
        max_texts: as in ``occurrences_of``.
        max_length: as in ``occurrences_of``.

    Raises:
        ValueError: if ``token`` is not a token of the vocabulary, or there are no texts.
    """
    token_id = token_id_of(token, teacher.tokenizer) if isinstance(token, str) else token
    senses = dictionary.senses_of(token_id)
    found = occurrences_of(teacher, texts, token_id, max_texts=max_texts, max_length=max_length)
    return contexts_of(dictionary, token_id, senses, found, per_sense)


def contexts_of(
    dictionary: SenseDictionary, token_id: int, senses: TokenSenses, found: Occurrences, per_sense: int
) -> list[SenseContexts]:
    """As ``nearest_contexts``, among the occurrences ``found``."""
    picked = dictionary.lookup(torch.full((len(found.vectors),), token_id), found.vectors)
    result = []
    for local, sense_id in enumerate(senses.sense_ids):
        rows = (picked == sense_id).nonzero().squeeze(-1)
        distance = (found.vectors[rows] - senses.vectors[local].float()).norm(dim=-1)
        order = distance.argsort(stable=True).tolist()
        best: dict[str, float] = {}
        for place in order:
            best.setdefault(found.contexts[int(rows[place])], float(distance[place]))
            if len(best) == per_sense:
                break
        result.append(SenseContexts(sense_id, int(senses.counts[local]), list(best), list(best.values())))
    return result


def _context(ids: list[int], position: int, tokenizer: PreTrainedTokenizerBase) -> str:
    left = ids[max(0, position - _CONTEXT) : position]
    right = ids[position + 1 : position + 1 + _CONTEXT]
    before, after = (tokenizer.decode(part, skip_special_tokens=True) for part in (left, right))
    text = f"{before} [{tokenizer.decode([ids[position]]).strip()}] {after}"
    return " ".join(text.split())


def _encoded(
    texts: EncodedCorpus | Iterable[Text], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> EncodedCorpus:
    return texts if isinstance(texts, EncodedCorpus) else encode_corpus(texts, tokenizer, max_length)
