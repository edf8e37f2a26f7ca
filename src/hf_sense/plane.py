"""One token's senses on a plane, with its occurrences in a corpus and the contexts nearest to each sense.

It finds what ``hf_sense.page`` draws. Occurrences come from running texts through a model, so what was found is kept.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from hf_sense.contexts import Encoder, Occurrences, SenseContexts, contexts_of, occurrences_of
from hf_sense.corpus import EncodedCorpus
from hf_sense.dictionary import SenseDictionary
from hf_sense.legend import NO_CORPUS, corpus_words
from hf_sense.pictures import main_plane

_MOST_DOTS = 300


@dataclass(frozen=True)
class TokenPlane:
    """Where a token's senses and some of its occurrences lie on the plane of their two main directions.

    Attributes:
        token_id: the token.
        first: its first sense's row in the dictionary; the others follow it.
        senses: float32 ``(senses, 2)``.
        counts: occurrences behind each sense when the dictionary was built.
        spread: their mean squared distance to the sense.
        variance: the share of the variance that each direction explains.
        dots: float32 ``(occurrences, 2)``.
        picked: the sense that each occurrence picks, from 0 among the token's own.
        texts: the words around each occurrence.
        contexts: for each sense the occurrences nearest to it; empty without a corpus.
        project: takes ``(n, dim)`` to ``(n, 2)`` on this plane.
    """

    token_id: int
    first: int
    senses: np.ndarray
    counts: list[int]
    spread: list[float]
    variance: list[float]
    dots: np.ndarray
    picked: list[int]
    texts: list[str]
    contexts: list[SenseContexts]
    project: Callable[[torch.Tensor], torch.Tensor]


def plane_of(
    dictionary: SenseDictionary, token_id: int, found: Occurrences | None = None, per_sense: int = 3
) -> TokenPlane:
    """A token's plane.

    Args:
        dictionary: it should have senses for the token.
        token_id: the token.
        found: its occurrences, from ``occurrences_of``; at most 300, evenly spaced, become dots.
        per_sense: contexts a sense.

    Raises:
        ValueError: if there is no such token, or it has no senses.
    """
    senses = dictionary.senses_of(token_id)
    if not len(senses.sense_ids):
        raise ValueError(f"Token {token_id} has no senses to draw.")
    vectors = senses.vectors.float()
    cloud = torch.empty(0, dictionary.dim) if found is None else found.vectors
    project, variance = main_plane(cloud if len(cloud) > 2 else vectors)
    contexts = contexts_of(dictionary, token_id, senses, found, per_sense) if found is not None else []
    kept = np.linspace(0, len(cloud) - 1, min(len(cloud), _MOST_DOTS)).round().astype(np.int64)
    cloud = cloud[torch.from_numpy(kept)]
    picked = dictionary.lookup(torch.full((len(cloud),), token_id), cloud) - senses.sense_ids.start
    return TokenPlane(
        token_id, senses.sense_ids.start, project(vectors).numpy(), senses.counts.tolist(), senses.spread.tolist(), variance,
        project(cloud).numpy(), picked.tolist(), [found.contexts[row] for row in kept] if found is not None else [], contexts,
        project,
    )  # fmt: skip


class Planes:
    """The planes of a dictionary's tokens, found when they are asked for; the last ones are kept.

    Args:
        dictionary: the senses.
        encoder: gives the occurrences' vectors; a ``Teacher`` or a ``Reader``.
        corpus: from ``encode_corpus``; without one there are the senses alone.
        max_texts: texts that are run for a token.
        per_sense: contexts a sense.
        kept: planes that are kept.
    """

    def __init__(
        self,
        dictionary: SenseDictionary,
        encoder: Encoder,
        corpus: EncodedCorpus | None = None,
        *,
        max_texts: int = 64,
        per_sense: int = 3,
        kept: int = 256,
    ) -> None:
        self.about = NO_CORPUS
        if corpus is not None:
            longest = int(corpus.lengths.max(initial=0))
            self.about = corpus_words(len(corpus.lengths), corpus.num_cut, longest, max_texts)
        self.has_corpus = corpus is not None
        self._dictionary, self._encoder, self._corpus = dictionary, encoder, corpus
        self._max_texts, self._per_sense, self._kept = max_texts, per_sense, kept
        self._found: OrderedDict[int, TokenPlane] = OrderedDict()
        self._lock = threading.Lock()
        self._work = threading.Lock()

    def known(self, token_id: int) -> TokenPlane | None:
        """The token's plane if it is at hand: without a corpus always, else if it was found before."""
        if self._corpus is None:
            return plane_of(self._dictionary, token_id)
        with self._lock:
            if token_id in self._found:
                self._found.move_to_end(token_id)
            return self._found.get(token_id)

    def find(self, token_id: int) -> TokenPlane:
        """The token's plane; texts that hold it go through the model if it is not at hand. One search runs at a time."""
        with self._work:
            plane = self.known(token_id)
            if plane is not None or self._corpus is None:
                return plane or plane_of(self._dictionary, token_id)
            found = occurrences_of(self._encoder, self._corpus, token_id, max_texts=self._max_texts, batch_size=16)
            plane = plane_of(self._dictionary, token_id, found, self._per_sense)
            with self._lock:
                self._found[token_id] = plane
                while len(self._found) > self._kept:
                    self._found.popitem(last=False)
            return plane
