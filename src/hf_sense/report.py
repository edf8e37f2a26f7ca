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

from hf_sense.corpus import EncodedCorpus, Text, encode_corpus
from hf_sense.dictionary import SenseDictionary, TokenSenses, token_id_of
from hf_sense.storage import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_sense.teacher import Teacher

_CONTEXT = 6  # tokens on either side
# Rarer tokens have a sense for nearly every occurrence, and look ambiguous for that alone.
_AMBIGUOUS_FROM = 20
_OCCURRENCES_A_SENSE = 5
_ROWS_AT_ONCE = 2**16
_MARK_POINTS = 17  # least distance of two numbers in a picture, in points
_SNIPPETS = 12  # senses that a picture's margin has room to describe


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
    figure_class = _figure_class()  # before the long work
    if teacher is not None and corpus is None:
        raise ValueError("The teacher needs texts to find occurrences in: pass corpus, which encode_corpus makes.")
    tokenizer = tokenizer or (teacher.tokenizer if teacher is not None else dictionary.tokenizer)
    chosen = {_token_id(token, tokenizer): token for token in tokens}
    senses = {token_id: dictionary.senses_of(token_id) for token_id in chosen}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)

    _draw_histogram(figure_class, dictionary, folder / "senses_per_token.png")
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
        _draw_token(figure_class, dictionary, token_id, _name(token_id, tokenizer), own, found, near, folder / picture)
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


def _draw_histogram(figure_class: Any, dictionary: SenseDictionary, path: Path) -> None:
    lengths = dictionary.offsets.diff()
    lengths = lengths[lengths > 0].numpy()
    figure = figure_class(figsize=(7, 4), dpi=120, layout="constrained")
    axes = figure.subplots()
    most = int(lengths.max(initial=1))
    step = max(1, -(-most // 50))
    bars, edges = np.histogram(lengths, np.arange(1, most + step + 1, step))
    axes.bar(edges[:-1] + (step - 1) / 2, bars, width=0.9 * step, color="#4477aa")
    log = bars.max(initial=0) > 50 * max(1, np.median(bars[bars > 0]) if bars.any() else 1)
    if log:
        axes.set_yscale("log")
    else:
        axes.yaxis.get_major_locator().set_params(integer=True)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("senses of a token")
    axes.set_ylabel("tokens (log scale)" if log else "tokens")
    axes.set_title(f"{dictionary.num_senses:,} senses of {len(lengths):,} tokens", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def _draw_token(
    figure_class: Any,
    dictionary: SenseDictionary,
    token_id: int,
    name: str,
    senses: TokenSenses,
    found: Occurrences | None,
    near: list[SenseContexts] | None,
    path: Path,
) -> None:
    from matplotlib import colormaps

    vectors = senses.vectors.float()
    cloud = found.vectors if found is not None and len(found.vectors) else vectors[:0]
    project, shares = _plane(cloud if len(cloud) > 2 else vectors)
    points, dots = project(vectors).numpy(), project(cloud).numpy()
    # The strong shades first: tab20 alternates a strong and a pale one.
    colors = [colormaps["tab20"](number * 2 % 20 + number // 10 % 2) for number in range(len(points))]
    inks = ["black" if 0.3 * red + 0.59 * green + 0.11 * blue > 0.6 else "white" for red, green, blue, _ in colors]
    figure = figure_class(figsize=(11, 6), dpi=120, layout="constrained")
    axes, margin = figure.subplots(1, 2, width_ratios=[1.5, 1])
    if len(dots):
        picked = dictionary.lookup(torch.full((len(cloud),), token_id), cloud).numpy() - senses.sense_ids.start
        axes.scatter(*dots.T, s=14, c=[colors[local] for local in picked], alpha=0.35, linewidths=0, zorder=1)
    share: np.ndarray = senses.counts.numpy() / max(1, int(senses.counts.max()))
    # The largest first, so that the small ones stay in sight.
    axes.scatter(*points.T, s=180 + 450 * share, c=colors, edgecolors="black", linewidths=0.8, zorder=2)
    axes.margins(0.08)
    axes.set_xlabel(f"first principal component ({shares[0]:.0%} of the variance)")
    axes.set_ylabel(f"second principal component ({shares[1]:.0%})")
    plural = "sense" if len(points) == 1 else "senses"
    title = f"{name}: {len(points)} {plural}" + (f", {len(dots):,} occurrences" if len(dots) else "")
    axes.set_title(title, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    margin.set_axis_off()
    shown = min(len(points), _SNIPPETS)
    for local in range(shown):
        height = 1 - (local + 0.5) / _SNIPPETS
        margin.text(0, height, str(local + 1), **_badge(colors[local], inks[local]), transform=margin.transAxes)
        snippet = near[local].contexts[0] if near and near[local].contexts else ""
        label = f"{int(senses.counts[local]):,} occurrences" + (f"\n{_shortened(snippet)}" if snippet else "")
        margin.text(0.06, height, label, fontsize=8, va="center", transform=margin.transAxes, parse_math=False)
    figure.draw_without_rendering()  # the layout settles the axes, which the numbers' places depend on
    axes.set_autoscale_on(False)
    places = _apart(axes.transData.transform(points), _MARK_POINTS * figure.dpi / 72)
    moved = np.linalg.norm(places - axes.transData.transform(points), axis=1) > 3
    for local, (place, point) in enumerate(zip(axes.transData.inverted().transform(places), points)):
        badge = _badge(colors[local], inks[local])
        if moved[local]:
            axes.plot(*zip(place, point), color="black", linewidth=0.8, zorder=3)
            badge["bbox"] |= {"edgecolor": "black", "linewidth": 0.5}
        else:
            del badge["bbox"]  # the mark is there already
        axes.text(*place, str(local + 1), **badge, zorder=4)
    if len(points) > shown:
        margin.set_title(f"the {shown} most frequent senses of {len(points)}", fontsize=9, loc="left")
    figure.savefig(path)


def _plane(vectors: torch.Tensor) -> tuple[Any, list[float]]:
    """A map ``(n, dim)`` to ``(n, 2)`` on the two main directions of ``vectors``, and the variance each explains."""
    mean = vectors.mean(0)
    _, values, directions = torch.linalg.svd(vectors - mean, full_matrices=False)
    directions = torch.nn.functional.pad(directions[:2], (0, 0, 0, max(0, 2 - len(directions))))
    # A direction's sign is arbitrary: the largest coordinate points up, so that equal data give equal pictures.
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    energy = values.square() / values.square().sum().clamp_min(1e-30)
    shares = [*energy[:2].tolist(), 0.0, 0.0][:2]
    return lambda rows: (rows - mean) @ directions.T, shares


def _badge(color: Any, ink: str) -> dict[str, Any]:
    """How a sense's number is written, in the plot and beside it."""
    box = {"boxstyle": "circle,pad=0.2", "facecolor": color, "edgecolor": "none"}
    return {"color": ink, "fontsize": 8, "fontweight": "bold", "ha": "center", "va": "center", "bbox": box}


def _apart(places: np.ndarray, least: float) -> np.ndarray:
    """Moves ``(n, 2)`` places until all are at least ``least`` from each other, or 200 rounds are over."""
    angle = np.arange(len(places)) * 2.4  # parts places that coincide, each its own way
    places = places + 1e-3 * np.stack([np.cos(angle), np.sin(angle)], 1)
    for _ in range(200):
        between = places[:, None] - places
        distance = np.maximum(np.linalg.norm(between, axis=-1), 1e-9)
        short = np.maximum(least - distance, 0)
        np.fill_diagonal(short, 0)
        if not short.any():
            break
        places = places + 0.5 * (between / distance[..., None] * short[..., None]).sum(1).clip(-least, least)
    return places


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


def _shortened(text: str, width: int = 52) -> str:
    """At most ``width`` characters around the bracketed token."""
    if len(text) <= width:
        return text
    begin = min(max(0, (text.find("[") + text.find("]") - width) // 2), len(text) - width)
    cut = text[begin : begin + width]
    return ("…" if begin else "") + cut + ("…" if begin + width < len(text) else "")


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


def _figure_class() -> Any:
    """Figures that draw to files with Agg, whatever backend the session has chosen."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("The report's pictures need matplotlib: pip install hf-sense[plot]") from error

    def make(**options: Any) -> Figure:
        figure = Figure(**options)
        FigureCanvasAgg(figure)
        return figure

    return make
