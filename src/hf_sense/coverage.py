"""How well a dictionary covers some texts: which tokens have senses, and how far contexts lie from the senses chosen for them.

It runs a model that is given and judges no accuracy; docs/domains.md tells what its figures cost there.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from hf_sense.contexts import Encoder
from hf_sense.corpus import EncodedCorpus, Text, encode_corpus
from hf_sense.dictionary import SenseDictionary
from hf_sense.llm2vec import TextForm
from hf_sense.spread import ENOUGH_OCCURRENCES, expected_distances, measures_units, squared_distances
from hf_sense.teacher import Teacher

# Where a dictionary is called bad: docs/domains.md has the table that they were read off.
MOST_WITHOUT_SENSES = 0.10
MOST_DISTANCE = 1.3
# So many distances tell; after them tokens are counted only.
_MOST_MEASURED = 2**17


class _Reads(Encoder, Protocol):
    """An encoder that knows how its texts are put: a ``Teacher``, or a ``Reader``."""

    form: TextForm


@dataclass(frozen=True)
class Coverage:
    """What a dictionary is to some texts.

    Attributes:
        tokens: occurrences that were looked at.
        with_senses: the share of them whose token has senses, from 0 to 1; senses that no occurrence stands behind
            (``hf_sense.unseen``) do not count.
        types_with_senses: the share of the distinct tokens that have senses.
        distance: mean squared distance of occurrences to the sense chosen for them, over what is to be expected of further
            occurrences in texts like the dictionary's own; 1 is as good as in those. NaN if it could not be measured.
        measured: at how many of them ``distance`` was measured: those whose sense stands for five occurrences or more, the
            first 131,072 or some more.
    """

    tokens: int
    with_senses: float
    types_with_senses: float
    distance: float
    measured: int

    def words(self) -> str:
        """The figures in a line."""
        far = f", {self.distance:.2f} times as far from their senses as in its own texts" if self.measured else ""
        return f"{self.tokens:,} occurrences, {self.with_senses:.1%} with senses{far}"

    def complaints(self) -> list[str]:
        """What is bad about it, in words with the figures; empty if nothing is."""
        found = []
        if self.with_senses < 1 - MOST_WITHOUT_SENSES:
            found.append(
                f"{1 - self.with_senses:.1%} of the tokens have no senses (over {MOST_WITHOUT_SENSES:.0%} is much)"
            )
        if self.distance > MOST_DISTANCE:
            found.append(
                f"where they have some, contexts lie {self.distance:.2f} times as far from them as in texts like its own "
                f"(mean squared distance; over {MOST_DISTANCE} is much)"
            )
        return found

    def warning(self) -> str | None:
        """One sentence with what is bad and what to do; ``None`` if nothing is."""
        found = self.complaints()
        if not found:
            return None
        return (
            f"The dictionary covers these texts badly: {', and '.join(found)}. Its texts are of another kind: build one from "
            "texts like these, or add some of them to its own."
        )


class CoverageMeter:
    """Counts, batch by batch, what a ``Coverage`` is made of.

    Args:
        dictionary: whose senses were chosen.
    """

    def __init__(self, dictionary: SenseDictionary) -> None:
        self._dictionary = dictionary
        self._units = measures_units(dictionary.metadata)
        self._expecting = expected_distances(dictionary.spread, dictionary.counts).double()
        self._seen = torch.zeros(dictionary.vocab_size, dtype=torch.bool)
        self._tokens = self._found = self._measured = 0
        self._squares = self._expected = 0.0

    def add(self, input_ids: torch.Tensor, hidden: torch.Tensor, sense_ids: torch.Tensor) -> None:
        """Takes a batch's tokens, without padding.

        Args:
            input_ids: int64 ``(n,)``.
            hidden: floating ``(n, dim)``, what the senses were chosen by.
            sense_ids: int64 ``(n,)``, global; below 0 where a token has none.
        """
        dictionary = self._dictionary
        self._seen[input_ids.cpu()] = True
        self._tokens += len(input_ids)
        sense_ids = sense_ids.cpu()
        found = sense_ids >= 0
        chosen = sense_ids[found]
        counts = dictionary.counts[chosen]
        self._found += int((counts > 0).sum())
        if self._measured >= _MOST_MEASURED:
            return
        # A dictionary that was not built may have no spread: then nothing is expected.
        enough = (counts >= ENOUGH_OCCURRENCES) & self._expecting[chosen].isfinite()
        chosen = chosen[enough]
        away = squared_distances(hidden.cpu()[found][enough], dictionary.rows(chosen), self._units)
        self._measured += len(chosen)
        self._squares += float(away.double().sum())
        self._expected += float(self._expecting[chosen].sum())

    def look_up(self, input_ids: torch.Tensor, hidden: torch.Tensor) -> None:
        """As ``add``, with the senses that the dictionary's metric chooses."""
        self.add(input_ids, hidden, self._dictionary.lookup(input_ids, hidden))

    def warning(self) -> str | None:
        """That of the result; ``None`` if there is none, or nothing was counted."""
        return self.result().warning() if self._tokens else None

    def result(self) -> Coverage:
        """What was counted so far.

        Raises:
            ValueError: if there were no tokens.
        """
        if not self._tokens:
            raise ValueError("There are no tokens to cover. Check the texts.")
        types = _known(self._dictionary)[self._seen]
        return Coverage(
            self._tokens,
            self._found / self._tokens,
            float(types.double().mean()),
            self._squares / self._expected if self._expected > 0 else float("nan"),
            self._measured,
        )


def coverage(
    dictionary: SenseDictionary,
    teacher: _Reads,
    texts: EncodedCorpus | Iterable[Text],
    *,
    max_texts: int = 500,
    max_length: int | None = None,
    batch_size: int = 32,
) -> Coverage:
    """How well a dictionary covers texts. Where no model is at hand, ``token_coverage`` counts tokens alone.

    Args:
        dictionary: built with ``teacher``.
        teacher: what ``load_teacher`` returned, or a ``Reader`` of ``hf_sense.reading``.
        texts: texts, or what ``encode_corpus`` made of them.
        max_texts: so many are read, evenly spaced.
        max_length: tokens at which a text is cut; if not given, where the dictionary's own texts were.
        batch_size: texts the teacher reads at once.

    Raises:
        ValueError: if the dictionary cannot be this teacher's, or there are no texts.
    """
    from hf_sense.targets import check_teacher  # which measures coverage too

    if isinstance(teacher, Teacher):
        check_teacher(teacher, dictionary)
    if not isinstance(texts, EncodedCorpus):
        limit = max_length or (dictionary.metadata.get("sampling") or {}).get("max_length") or teacher.max_length
        texts = encode_corpus(
            teacher.form.joined(texts, teacher.tokenizer), teacher.tokenizer, min(limit, teacher.max_length)
        )
    rows = np.arange(len(texts.lengths))
    if len(rows) > max_texts:
        rows = rows[np.linspace(0, len(rows) - 1, max_texts).round().astype(np.int64)]
    meter = CoverageMeter(dictionary)
    for batch in texts.batches(batch_size, rows):
        inputs = texts.padded(batch, teacher.tokenizer.pad_token_id or 0)
        kept = inputs["attention_mask"].bool()
        meter.look_up(inputs["input_ids"][kept], teacher.hidden_states(**inputs).cpu()[kept])
    return meter.result()


def token_coverage(dictionary: SenseDictionary, token_ids: torch.Tensor | np.ndarray) -> Coverage:
    """How many tokens have senses, where no model is at hand to say how far they are off: ``distance`` is NaN.

    Args:
        dictionary: a sense dictionary.
        token_ids: int, any shape; those outside the vocabulary count as not covered.

    Raises:
        ValueError: if there are no tokens.

    Example:
        >>> dictionary = SenseDictionary(torch.ones(1, 2), torch.tensor([0, 1, 1]))
        >>> token_coverage(dictionary, torch.tensor([0, 0, 0, 1])).with_senses
        0.75
    """
    ids = torch.as_tensor(token_ids).reshape(-1).long()
    if not len(ids):
        raise ValueError("token_ids holds no tokens.")
    has_senses = torch.cat([_known(dictionary), torch.tensor([False])])

    def covered(some: torch.Tensor) -> float:
        known = (some >= 0) & (some < dictionary.vocab_size)
        return float(has_senses[torch.where(known, some, dictionary.vocab_size)].double().mean())

    return Coverage(len(ids), covered(ids), covered(ids.unique()), float("nan"), 0)


def _known(dictionary: SenseDictionary) -> torch.Tensor:
    """Which tokens have a sense that occurrences stand behind, bool ``(vocab_size,)``."""
    running = torch.nn.functional.pad(dictionary.counts.clamp_max(1).cumsum(0), (1, 0))
    return running[dictionary.offsets[1:]] > running[dictionary.offsets[:-1]]
