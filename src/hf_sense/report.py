"""Looks into a sense dictionary: coverage of a corpus, ambiguous tokens, the contexts behind each sense, pictures.

It judges no model; accuracies are in ``hf_sense.evaluation``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from hf_sense.charts import draw_histogram, figure_class_for_files
from hf_sense.corpus import EncodedCorpus, Text, encode_corpus
from hf_sense.dictionary import SenseDictionary, TokenSenses, token_id_of
from hf_sense.pictures import draw_token
from hf_sense.storage import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_sense.teacher import Teacher

_CONTEXT = 6  # tokens on either side
# Rarer tokens have a sense for nearly every occurrence, and look ambiguous for that alone.
_AMBIGUOUS_FROM = 20
_OCCURRENCES_A_SENSE = 5
_ROWS_AT_ONCE = 2**16


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


def coverage(dictionary: SenseDictionary, corpus_ids: torch.Tensor | np.ndarray) -> float:
    """The share of tokens that have senses.

    Args:
        dictionary: a sense dictionary.
        corpus_ids: int, any shape, token ids; those outside the vocabulary count as not covered.

    Raises:
        ValueError: if there are no tokens.

    Example:
        >>> coverage(SenseDictionary(torch.ones(1, 2), torch.tensor([0, 1, 1])), torch.tensor([0, 0, 0, 1]))
        0.75
    """
    ids = torch.as_tensor(corpus_ids).reshape(-1).long()
    if not len(ids):
        raise ValueError("corpus_ids holds no tokens.")
    has_senses = torch.cat([dictionary.offsets.diff() > 0, torch.tensor([False])])
    known = (ids >= 0) & (ids < dictionary.vocab_size)
    return float(has_senses[torch.where(known, ids, dictionary.vocab_size)].double().mean())


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


def occurrences_of(
    teacher: Teacher,
    texts: EncodedCorpus | Iterable[Text],
    token: int | str,
    *,
    max_texts: int = 500,
    max_length: int | None = None,
    batch_size: int = 32,
) -> Occurrences:
    """The teacher's contextual embeddings of one token.

    Args:
        teacher: what ``load_teacher`` returned.
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
    teacher: Teacher,
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
    return _nearest(dictionary, token_id, senses, found, per_sense)


def _nearest(
    dictionary: SenseDictionary, token_id: int, senses: TokenSenses, found: Occurrences, per_sense: int
) -> list[SenseContexts]:
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


def write_report(
    dictionary: SenseDictionary,
    folder: str | os.PathLike[str],
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    corpus: EncodedCorpus | None = None,
    tokens: Sequence[int | str] = (),
    teacher: Teacher | None = None,
    max_texts: int = 500,
    num_ambiguous: int = 20,
) -> Path:
    """Writes ``report.md`` and its pictures: senses a token, and for chosen tokens their senses in two dimensions.

    Args:
        dictionary: a sense dictionary.
        folder: made if it is missing.
        tokenizer: names the tokens; the teacher's or the dictionary's if not given, ids without any.
        corpus: adds how much of it the dictionary covers, and gives the occurrences in the pictures.
        tokens: ids, or tokens as text, to draw: ``token-<id>.png`` each.
        teacher: draws the occurrences of ``tokens`` in ``corpus``; without it there are only the senses.
        max_texts: texts a drawn token, as in ``occurrences_of``.
        num_ambiguous: rows of the table of the most ambiguous tokens.

    Returns:
        The path of ``report.md``.

    Raises:
        ImportError: without matplotlib.
        ValueError: if a token is not in the vocabulary, or a teacher is given without a corpus.
    """
    figure_class = figure_class_for_files()  # before the long work
    if teacher is not None and corpus is None:
        raise ValueError("The teacher needs texts to find occurrences in: pass corpus, which encode_corpus makes.")
    tokenizer = tokenizer or (teacher.tokenizer if teacher is not None else dictionary.tokenizer)
    chosen = {_token_id(token, tokenizer): token for token in tokens}
    senses = {token_id: dictionary.senses_of(token_id) for token_id in chosen}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    draw_histogram(figure_class, dictionary.offsets, folder / "senses_per_token.png")
    summary: dict[str, Any] = dict(dictionary.summary())
    if corpus is not None:
        summary["corpus_tokens"] = len(corpus.input_ids)
        summary["corpus_tokens_with_senses"] = f"{coverage(dictionary, corpus.input_ids):.2%}"
    parts = ["# Sense dictionary", _rows(["", ""], [[key.replace("_", " "), _number(v)] for key, v in summary.items()])]
    parts += ["## Senses a token", "![Histogram of senses a token](senses_per_token.png)"]
    parts += _ambiguous_part(dictionary, tokenizer, num_ambiguous)
    for token_id, own in senses.items():
        parts.append(f"## {_code(_name(token_id, tokenizer))}")
        if not len(own.sense_ids):
            parts.append("No senses: the token did not occur in the dictionary's corpus.")
            continue
        found = None
        if teacher is not None and corpus is not None:
            found = occurrences_of(teacher, corpus, token_id, max_texts=max_texts)
        picture = f"token-{token_id}.png"
        near = _nearest(dictionary, token_id, own, found, 1) if found else None
        cloud = found.vectors if found is not None else torch.empty(0, dictionary.dim)
        snippets = [sense.contexts[0] if sense.contexts else "" for sense in near or []]
        draw_token(
            figure_class, dictionary, token_id, _name(token_id, tokenizer), own, cloud, snippets, folder / picture
        )
        parts.append(f"![Senses of token {token_id}]({picture})")
        cells = [
            [str(local + 1), str(own.sense_ids[local]), f"{int(own.counts[local]):,}", f"{own.spread[local]:.3g}"]
            + ([_code(near[local].contexts[0]) if near[local].contexts else ""] if near else [])
            for local in range(len(own.sense_ids))
        ]
        parts.append(_rows(["", "sense id", "occurrences", "spread"] + (["nearest context"] if near else []), cells))
    path = folder / "report.md"
    write_text(path, "\n\n".join(parts) + "\n")
    return path


def _ambiguous_part(dictionary: SenseDictionary, tokenizer: PreTrainedTokenizerBase | None, number: int) -> list[str]:
    running = torch.cat([torch.zeros(1, dtype=torch.int64), dictionary.counts.cumsum(0)])
    occurrences = running[dictionary.offsets[1:]] - running[dictionary.offsets[:-1]]
    enough = (_OCCURRENCES_A_SENSE * dictionary.offsets.diff()).clamp_min(_AMBIGUOUS_FROM)
    apart = ambiguity(dictionary) * (occurrences >= enough)
    order = [int(token) for token in apart.argsort(descending=True, stable=True)[:number] if float(apart[token]) > 0]
    if not order:
        return []
    cells = [
        [
            _code(_name(token, tokenizer)),
            str(token),
            f"{int(occurrences[token]):,}",
            str(int(dictionary.offsets[token + 1] - dictionary.offsets[token])),
            f"{float(apart[token]):.4g}",
        ]
        for token in order
    ]
    return [
        "## Most ambiguous tokens",
        f"Of those with at least {_AMBIGUOUS_FROM} occurrences, and {_OCCURRENCES_A_SENSE} a sense. Apart: the mean "
        "squared distance of its senses, by their counts, to their common mean: what one vector a token would lose.",
        _rows(["token", "id", "occurrences", "senses", "apart"], cells),
    ]


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
