"""Looks into a sense dictionary: ambiguous tokens, and a report with pictures, as Markdown and HTML.

It judges no model; accuracies are in ``hf_sense.evaluation``, what a corpus is to a dictionary in ``hf_sense.coverage``.
Contexts of senses are in ``hf_sense.contexts``, and reached from here too.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import torch

from hf_sense.charts import draw_histogram, figure_class_for_files
from hf_sense.contexts import Occurrences, SenseContexts, contexts_of, nearest_contexts, occurrences_of
from hf_sense.corpus import EncodedCorpus
from hf_sense.coverage import coverage, token_coverage
from hf_sense.dictionary import SenseDictionary
from hf_sense.files import write_text
from hf_sense.legend import (
    CONTEXTS,
    FIGURES,
    NO_CORPUS,
    NO_READER,
    NO_SENSES,
    SENSES,
    ambiguous_words,
    corpus_words,
    plane_words,
)
from hf_sense.pictures import draw_token
from hf_sense.plane import TokenPlane, plane_of
from hf_sense.reading import Reader
from hf_sense.report_page import report_page
from hf_sense.teacher import Teacher
from hf_sense.vocabulary import token_id_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

__all__ = [
    "Occurrences",
    "SenseContexts",
    "ambiguity",
    "most_ambiguous",
    "nearest_contexts",
    "occurrences_of",
    "write_report",
]

# Rarer tokens have a sense for nearly every occurrence, and look ambiguous for that alone.
_AMBIGUOUS_FROM = 20
_OCCURRENCES_A_SENSE = 5
_ROWS_AT_ONCE = 2**16
_LETTERS = 3  # shorter tokens are mostly beginnings of words, or abbreviations


def ambiguity(dictionary: SenseDictionary) -> torch.Tensor:
    """How far a token's senses lie apart: the mean squared distance of its senses, by counts, to their common mean.

    It is the error that one vector a token would add to the senses' own.

    Returns:
        float32 ``(vocab_size,)``; 0 for tokens with at most one sense.
    """
    result = torch.zeros(dictionary.vocab_size)
    for begin, end in _token_ranges(dictionary.offsets, _ROWS_AT_ONCE):
        first, last = int(dictionary.offsets[begin]), int(dictionary.offsets[end])
        lengths = dictionary.offsets[begin : end + 1].diff()
        owner = torch.repeat_interleave(lengths)
        senses = dictionary.rows(torch.arange(first, last)).float()
        weight = dictionary.counts[first:last].float()
        total = torch.zeros(end - begin).index_add_(0, owner, weight).clamp_min(1)
        mean = torch.zeros(end - begin, dictionary.dim).index_add_(0, owner, senses * weight[:, None])
        away = (senses - (mean / total[:, None])[owner]).square().sum(1) * weight
        result[begin:end] = torch.zeros(end - begin).index_add_(0, owner, away) / total
    return result * (dictionary.offsets.diff() > 1)


def write_report(
    dictionary: SenseDictionary,
    folder: str | os.PathLike[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    corpus: EncodedCorpus | None = None,
    tokens: Sequence[int | str] = (),
    teacher: Teacher | Reader | None = None,
    student: Reader | None = None,
    texts: Sequence[str] = (),
    max_texts: int = 500,
    num_ambiguous: int = 20,
) -> Path:
    """Writes ``report.md`` with its pictures, and ``report.html``: senses a token, and chosen tokens' senses on planes.

    Args:
        dictionary: a sense dictionary.
        folder: made if it is missing.
        tokenizer: names the tokens; the teacher's or the dictionary's if not given, ids without any.
        corpus: adds how much of it the dictionary covers, and gives the occurrences in the pictures.
        tokens: ids, or tokens as text, to draw: ``token-<id>.png`` each.
        teacher: draws the occurrences of ``tokens`` in ``corpus``; without it there are only the senses. A sense model's
            ``Reader`` can stand in its place.
        student: reads ``texts`` too; where it differs from the teacher is marked.
        texts: are coloured in ``report.html`` by the senses that the teacher chooses.
        max_texts: texts a drawn token, as in ``occurrences_of``.
        num_ambiguous: rows of the table of the most ambiguous tokens.

    Returns:
        The path of ``report.md``.

    Raises:
        ImportError: without matplotlib.
        ValueError: if a token is not in the vocabulary, a teacher is given without a corpus, or texts without a teacher.
    """
    figure_class = figure_class_for_files()  # before the long work
    if texts and teacher is None:
        raise ValueError("Texts are coloured by a teacher's choices: pass teacher.")
    if teacher is not None and corpus is None and not texts:
        raise ValueError("The teacher needs texts to find occurrences in: pass corpus, which encode_corpus makes.")
    tokenizer = tokenizer or (teacher.tokenizer if teacher is not None else dictionary.tokenizer)
    chosen = {_token_id(token, tokenizer): token for token in tokens}
    senses = {token_id: dictionary.senses_of(token_id) for token_id in chosen}
    readers = [] if teacher is None or not texts else [_reader(teacher, dictionary), *([student] if student else [])]
    planes: dict[int, tuple[str, TokenPlane | None]] = {}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    draw_histogram(figure_class, dictionary.offsets, folder / "senses_per_token.png")
    summary: dict[str, Any] = dict(dictionary.summary())
    if corpus is not None:
        summary["corpus_texts"] = len(corpus.lengths)
        if corpus.num_cut:
            summary[f"corpus_texts_cut_at_{int(corpus.lengths.max())}_tokens"] = corpus.num_cut
        summary["corpus_tokens"] = len(corpus.input_ids)
        covered = token_coverage(dictionary, corpus.input_ids)
        summary["corpus_tokens_with_senses"] = f"{covered.with_senses:.2%}"
        if teacher is not None:
            covered = coverage(dictionary, teacher, corpus, max_texts=max_texts)
            summary["corpus_distance_to_senses_over_its_own_texts'"] = covered.distance
        if warning := covered.warning():
            logger.warning("%s", warning)
            summary["warning"] = warning
    parts = ["# Sense dictionary", _rows(["", ""], [[key.replace("_", " "), _number(v)] for key, v in summary.items()])]
    parts.append(FIGURES)
    parts += ["## Senses a token", "![Histogram of senses a token](senses_per_token.png)"]
    ambiguous = _ambiguous_rows(dictionary, tokenizer, num_ambiguous)
    about_ambiguous = ambiguous_words(_AMBIGUOUS_FROM, _OCCURRENCES_A_SENSE)
    if ambiguous:
        marked = [[_code(row[0]), *row[1:]] for row in ambiguous[1:]]
        parts += ["## Most ambiguous tokens", about_ambiguous, _rows(list(ambiguous[0]), marked)]
    about_contexts, occurrences = NO_CORPUS if corpus is None else NO_READER, False
    if teacher is not None and corpus is not None:
        longest = int(corpus.lengths.max(initial=0))
        occurrences = True
        about_contexts = f"{CONTEXTS} {corpus_words(len(corpus.lengths), corpus.num_cut, longest, max_texts)}"
    if senses:
        parts += ["## Tokens", SENSES, plane_words(corpus=occurrences), about_contexts]
    for token_id, own in senses.items():
        parts.append(f"### {_code(_name(token_id, tokenizer))}")
        if not len(own.sense_ids):
            planes[token_id] = _name(token_id, tokenizer), None
            parts.append(NO_SENSES)
            continue
        found = None
        if teacher is not None and corpus is not None:
            found = occurrences_of(teacher, corpus, token_id, max_texts=max_texts)
        picture = f"token-{token_id}.png"
        near = contexts_of(dictionary, token_id, own, found, 1) if found else None
        cloud = found.vectors if found is not None else torch.empty(0, dictionary.dim)
        snippets = [sense.contexts[0] if sense.contexts else "" for sense in near or []]
        draw_token(
            figure_class, dictionary, token_id, _name(token_id, tokenizer), own, cloud, snippets, folder / picture
        )
        planes[token_id] = _name(token_id, tokenizer), plane_of(dictionary, token_id, found)
        parts.append(f"![Senses of token {token_id}]({picture})")
        cells = [
            [str(local + 1), str(own.sense_ids[local]), f"{int(own.counts[local]):,}", f"{own.spread[local]:.3g}"]
            + ([_code(near[local].contexts[0]) if near[local].contexts else ""] if near else [])
            for local in range(len(own.sense_ids))
        ]
        parts.append(_rows(["sense", "id", "occurrences", "spread"] + (["nearest context"] if near else []), cells))
    figures = [(key.replace("_", " "), _number(value)) for key, value in summary.items()]
    page = report_page(_title(dictionary), figures, ambiguous, about_ambiguous, planes, about_contexts, readers, texts)
    write_text(folder / "report.html", page)
    path = folder / "report.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def most_ambiguous(
    dictionary: SenseDictionary, number: int, tokenizer: PreTrainedTokenizerBase | None = None
) -> list[int]:
    """The ids of the tokens whose senses lie farthest apart by ``ambiguity``, of those that occur often enough to tell.

    Args:
        dictionary: a sense dictionary.
        number: at most so many.
        tokenizer: with it special tokens are left out, and pieces of words, numbers, marks and words of one or two Latin
            letters come after all whole words.
    """
    occurrences = _occurrences(dictionary)
    enough = (_OCCURRENCES_A_SENSE * dictionary.offsets.diff()).clamp_min(_AMBIGUOUS_FROM)
    apart = ambiguity(dictionary) * (occurrences >= enough)
    order = [int(token) for token in apart.argsort(descending=True, stable=True)[: int((apart > 0).sum())]]
    if tokenizer is not None:
        special = set(tokenizer.all_special_ids)
        order = [token for token in order if token not in special]
        whole = _whole_words(order, tokenizer)
        order.sort(key=lambda token: token not in whole)
    return order[:number]


def _whole_words(token_ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Those that the tokenizer makes of a word of letters after another word."""
    words = [tokenizer.decode([token]).strip() for token in token_ids]
    made = tokenizer([f"and {word}" for word in words], add_special_tokens=False)["input_ids"] if words else []
    before = len(tokenizer("and", add_special_tokens=False)["input_ids"])
    return {
        token
        for token, word, ids in zip(token_ids, words, made)
        if ids[before:] == [token] and word.isalpha() and (len(word) >= _LETTERS or not word.isascii())
    }


def _title(dictionary: SenseDictionary) -> str:
    name = (dictionary.metadata.get("teacher") or {}).get("name")
    return f"Senses of {PurePath(name).name}" if name else "Sense dictionary"


def _reader(teacher: Teacher | Reader, dictionary: SenseDictionary) -> Reader:
    return teacher if isinstance(teacher, Reader) else Reader.of_teacher(teacher, dictionary)


def _occurrences(dictionary: SenseDictionary) -> torch.Tensor:
    """How often each token occurred, int64 ``(vocab_size,)``."""
    running = torch.cat([torch.zeros(1, dtype=torch.int64), dictionary.counts.cumsum(0)])
    return running[dictionary.offsets[1:]] - running[dictionary.offsets[:-1]]


def _ambiguous_rows(
    dictionary: SenseDictionary, tokenizer: PreTrainedTokenizerBase | None, number: int
) -> list[tuple[str, ...]]:
    """A table of the most ambiguous tokens, its header first; empty if there are none."""
    order = most_ambiguous(dictionary, number, tokenizer)
    if not order:
        return []
    occurrences, apart = _occurrences(dictionary), ambiguity(dictionary)
    rows = [
        (
            _name(token, tokenizer),
            str(token),
            f"{int(occurrences[token]):,}",
            str(int(dictionary.offsets[token + 1] - dictionary.offsets[token])),
            f"{float(apart[token]):.4g}",
        )
        for token in order
    ]
    return [("token", "id", "occurrences", "senses", "apart"), *rows]


def _token_ranges(offsets: torch.Tensor, rows: int) -> Iterator[tuple[int, int]]:
    """Cuts the vocabulary into ranges of tokens with at most ``rows`` senses, or one token."""
    begin, last = 0, len(offsets) - 1
    while begin < last:
        end = int(torch.searchsorted(offsets, int(offsets[begin]) + rows, right=True)) - 1
        end = min(max(end, begin + 1), begin + rows)
        yield begin, min(end, last)
        begin = end


def _token_id(token: int | str, tokenizer: PreTrainedTokenizerBase | None) -> int:
    if isinstance(token, int):
        return token
    if tokenizer is None:
        raise ValueError(f"To find the token {token!r}, pass the teacher's tokenizer, or give the token's id.")
    return token_id_of(token, tokenizer)


def _name(token_id: int, tokenizer: PreTrainedTokenizerBase | None) -> str:
    return str(tokenizer.convert_ids_to_tokens(token_id)) if tokenizer is not None else f"token {token_id}"


def _number(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if isinstance(value, float) else str(value)


def _code(text: str) -> str:
    """``text`` as code in a cell of a Markdown table."""
    fence = "``" if "`" in text else "`"
    inner = text.replace("|", "\\|").replace("\n", " ")
    return f"{fence} {inner} {fence}" if fence == "``" else f"`{inner}`"


def _rows(header: list[str], cells: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
