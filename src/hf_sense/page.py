"""A reading as HTML: tokens as buttons, a panel of one token's senses, its plane, and the whole page as one file.

What comes from texts, tokens and names is escaped. The page asks for nothing from elsewhere; serving it is
``hf_sense.explore``'s work.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import PurePath
from typing import Any

import numpy as np

from hf_sense.legend import NO_SENSES, cut_words, marks_for, sense_words, times
from hf_sense.plane import TokenPlane
from hf_sense.plane_picture import plane_html
from hf_sense.reading import Reader, Reading, SenseView, TokenReading, agreement_of

# Fill and edge of a sense by its number. Light fills stand under dark ink and the other way round.
LIGHT = {
    "ink": "#16181d", "page": "#ffffff", "muted": "#565c66", "line": "#c9cdd4", "link": "#1f5fae",
    "fills": ("#cfe1fa", "#ffdfb5", "#cdeec7", "#fad0d5", "#e0d2f6", "#c9f0f1", "#f3eda6", "#f6d2ee", "#e2d8c8", "#d8dde4"),
    "edges": ("#1f5fae", "#9a5200", "#23702a", "#b0243b", "#6a3fb0", "#0b6e77", "#6f6400", "#a02c86", "#6b5638", "#4a5663"),
}  # fmt: skip
DARK = {
    "ink": "#f4f5f7", "page": "#15171c", "muted": "#a9b0bb", "line": "#3d434d", "link": "#8ab8f0",
    "fills": ("#17406f", "#6b3d00", "#1c5424", "#7a1f2e", "#4a2d80", "#0d4f56", "#504900", "#70205e", "#4e412b", "#3b4652"),
    "edges": ("#8ab8f0", "#f0b060", "#86cf86", "#f2919f", "#bfa0f0", "#6fd0d8", "#d8cc5a", "#ea8fd4", "#c4b08e", "#aab6c4"),
}  # fmt: skip
_SENSES = 8  # in a list before it is folded
_UNREAD = 400  # characters that are shown of a text that was not read


def style(dark: str) -> str:
    """The page's rules.

    Args:
        dark: what stands before the rules of the dark page: a selector, or an ``@media`` query.
    """

    def colours(palette: dict[str, Any]) -> str:
        names = "".join(f"--hs-{name}:{palette[name]};" for name in ("ink", "page", "muted", "line", "link"))
        return names + "".join(
            f"--hs-fill-{n}:{fill};--hs-edge-{n}:{edge};"
            for n, (fill, edge) in enumerate(zip(palette["fills"], palette["edges"]))
        )

    picked = "".join(
        f".hs-c{n}{{--hs-fill:var(--hs-fill-{n});--hs-edge:var(--hs-edge-{n})}}" for n in range(len(LIGHT["fills"]))
    )
    root = f":root{{color-scheme:light;{colours(LIGHT)}}}"
    night = f"color-scheme:dark;{colours(DARK)}"
    night = f"{dark}{{:root{{{night}}}}}" if dark.startswith("@") else f"{dark}{{{night}}}"
    return root + night + picked + files("hf_sense").joinpath("page.css").read_text(encoding="utf-8")


def script() -> str:
    """What makes tokens and marks answer to mouse and keyboard."""
    return files("hf_sense").joinpath("page.js").read_text(encoding="utf-8")


def text_html(
    reading: Reading, side: str, title: str = "", other: tuple[str, Reading] | None = None, chosen: int | None = None
) -> str:
    """A text, each token a button in the colour of its sense, with the sense's number.

    Args:
        reading: of the text.
        side: a word that tells this reading's buttons from those of another on the page.
        title: a heading, if any.
        other: another model's name and its reading of the same text; tokens at which it differs are marked.
        chosen: the position of the token whose panel is shown.
    """
    head = f"<h3>{escape(title)}</h3>" if title else ""
    if not reading.tokens:
        return f'<div class="hs-side">{head}<p class="hs-note">No text to read.</p></div>'
    parts = []
    for position, token in enumerate(reading.tokens):
        twin = other[1].tokens[position] if other else None
        label, mark = describe(token), ""
        if other and twin is not None and twin.sense_id != token.sense_id:
            label += f"; differs: {other[0]} chooses {sense_words(twin.local, twin.num_senses, twin.sense_id)}"
            mark = f'<span class="hs-differs">≠{twin.local + 1}</span>'
        number = f"<sub>{token.local + 1}</sub>" if token.local >= 0 else ""
        parts.append(
            f'{escape(token.gap)}<button type="button" class="hs-token {_classes(token)}" '
            f'data-key="{escape(side)}-{position}-{token.token_id}" aria-pressed="{str(position == chosen).lower()}" '
            f'aria-label="{escape(label)}" title="{escape(label)}">{escape(token.text)}{number}{mark}</button>'
        )
    cut, tail = "", escape(reading.tail)
    if reading.left_out:
        cut = f'<p class="hs-cut" role="status">{escape(cut_words(len(reading.tokens), reading.left_out))}</p>'
        more = "…" if len(reading.tail) > _UNREAD else ""
        tail = f'<span class="hs-unread">{escape(reading.tail[:_UNREAD])}{more}</span>'
    return f'<div class="hs-side">{head}{cut}<div class="hs-text">{"".join(parts)}{tail}</div></div>'


def sides_html(readings: Sequence[tuple[str, Reading]], prefix: str = "s", chosen: str = "") -> str:
    """One reading, or a teacher's and a student's side by side with the share of tokens at which they agree.

    Args:
        readings: names and readings of one text, at most two.
        prefix: begins the keys of the buttons: ``<prefix><0 or 1>-<position>-<token id>``.
        chosen: the key of the button that is pressed.
    """
    pressed = [int(chosen.split("-")[1]) if chosen.startswith(f"{prefix}{n}-") else None for n in (0, 1)]
    if len(readings) == 1:
        return f'<div class="hs">{text_html(readings[0][1], prefix + "0", chosen=pressed[0])}</div>'
    (first, one), (second, two) = readings
    same, labelled = agreement_of(one, two)
    said = ""
    if labelled:
        said = (
            f'<p class="hs-agreement"><strong>Same sense at {same} of {labelled} tokens ({same / labelled:.0%}).</strong> '
            "Where they differ, ≠ stands before the sense that the other chooses.</p>"
        )
    left = text_html(one, prefix + "0", first, (second, two), pressed[0])
    right = text_html(two, prefix + "1", second, (first, one), pressed[1])
    return f'<div class="hs">{said}<div class="hs-sides">{left}{right}</div></div>'


def panel_html(
    token: TokenReading,
    views: Sequence[SenseView],
    plane: TokenPlane | None,
    here: Sequence[tuple[str, np.ndarray]] = (),
    *,
    key: str = "",
    note: str = "",
    said: Sequence[str] = (),
) -> str:
    """What is known of one token of a text: its senses, how near they are, the contexts behind them, its plane.

    Args:
        token: the token.
        views: its senses, the chosen one first.
        plane: its plane; ``None`` while it is looked for, or where there is none.
        here: names of models and where their vectors lie on the plane.
        key: of the button that shows this panel, on a page that holds all of its panels.
        note: stands at the end.
        said: sentences after the first.
    """
    attributes = f' id="hs-panel-{escape(key)}" data-of="{escape(key)}" hidden' if key else ""
    first = describe(token, False)
    head = f"<h3>“{escape(token.text)}”</h3><p>{escape('. '.join([first[:1].upper() + first[1:], *said]))}.</p>"
    contexts = {number: sense.contexts for number, sense in enumerate(plane.contexts)} if plane else {}
    items = []
    for view in views:
        away = "chosen" if view.local == token.local else f"distance {view.distance:.3g}"
        sense_id = token.sense_id - token.local + view.local
        facts = f"id {sense_id} · {view.share:.0%} of the choice · {times(view.count)} · {away}"
        items.append(_sense_item(view.local, facts, contexts, view.share))
    drawn = plane_html(plane, token.text, here) if plane is not None else ""
    listed = _listed(items, "farther") if items else ""
    tail = f'<p class="hs-note" role="status">{escape(note)}</p>' if note else ""
    return (
        f'<section class="hs hs-panel"{attributes} aria-label="{escape(f"Senses of {token.text}")}">{head}'
        f'<div class="hs-columns">{drawn}{listed}</div>{tail}</section>'
    )


def token_html(plane: TokenPlane, name: str) -> str:
    """A token by itself: its plane, and its senses with the contexts nearest to each, the most frequent first."""
    contexts = {number: sense.contexts for number, sense in enumerate(plane.contexts)}
    total = max(1, sum(plane.counts))
    order = sorted(range(len(plane.counts)), key=lambda local: -plane.counts[local])
    items = []
    for local in order:
        share = plane.counts[local] / total
        facts = (
            f"id {plane.first + local} · {times(plane.counts[local])}, {share:.0%} · spread {plane.spread[local]:.3g}"
        )
        items.append(_sense_item(local, facts, contexts, share))
    return (
        f'<section class="hs hs-panel" aria-label="{escape(f"Senses of {name}")}"><h3>“{escape(name)}”</h3>'
        f'<div class="hs-columns">{plane_html(plane, name)}{_listed(items, "rarer")}</div>'
        "</section>"
    )


def document(title: str, body: str) -> str:
    """A whole page in one file: it asks for nothing from elsewhere, and its policy forbids it to."""
    policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{style('@media (prefers-color-scheme: dark)')}html{{background:var(--hs-page)}}</style></head>"
        f'<body class="hs hs-document"><main><h1>{escape(title)}</h1>{body}</main><script>{script()}</script></body></html>\n'
    )


def heading(readers: Sequence[Reader], contexts: str = "") -> str:
    """The page's title, what the dictionary holds, and what contexts come from.

    Args:
        readers: one model, or a teacher and a student.
        contexts: a sentence, as ``Planes.about``.
    """
    figures = readers[0].dictionary.summary()
    names = " and ".join(PurePath(reader.name).name for reader in readers)
    return (
        f'<div class="hs"><h1>Senses of {escape(names)}</h1><p class="hs-note">{figures["num_senses"]:,} senses of '
        f"{figures['tokens_with_senses']:,} tokens, from {figures['occurrences']:,} occurrences. {escape(contexts)}</p></div>"
    )


def legend_html(*, texts: bool, two: bool, corpus: bool, shown: bool = False) -> str:
    """What the marks mean, each beside a sample of it.

    Args:
        texts: whether the page has texts.
        two: whether two models read them.
        corpus: whether occurrences are drawn.
        shown: unfolded at first.
    """
    rows = "".join(
        f"<div><dt>{mark.sample}</dt><dd><b>{escape(mark.name)}</b>: {escape(mark.meaning)}</dd></div>"
        for mark in marks_for(texts=texts, two=two, corpus=corpus)
    )
    return (
        f'<details class="hs hs-legend"{" open" if shown else ""}><summary>What the marks mean</summary><dl>{rows}</dl>'
        "</details>"
    )


def summary_html(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values as a table."""
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td class="hs-number">{escape(value)}</td></tr>'
        for name, value in rows
    )
    return f'<div class="hs hs-scroll"><table>{cells}</table></div>'


def describe(token: TokenReading, named: bool = True) -> str:
    """A token in words: which sense, of how many, how surely, and how many occurrences stand behind it."""
    name = f"{token.text}: " if named else ""
    if token.local < 0:
        return f"{name}{NO_SENSES[0].lower()}{NO_SENSES[1:].rstrip('.')}"
    return (
        f"{name}{sense_words(token.local, token.num_senses, token.sense_id)}, {token.share:.0%} of the choice, "
        f"{token.count:,} of {times(token.occurrences)}"
    )


def _classes(token: TokenReading) -> str:
    kind = f"hs-c{token.local % 10}" if token.local >= 0 else "hs-none"
    unsure = " hs-unsure" if token.local >= 0 and token.share < 0.5 else ""
    return kind + unsure + (" hs-special" if token.special else "")


def _listed(items: Sequence[str], rest: str) -> str:
    """The first items as a list, the others folded away under how many they are."""
    first, others = items[:_SENSES], items[_SENSES:]
    more = ""
    if others:
        more = (
            f"<details><summary>{len(others)} more, {rest}</summary>"
            f'<ol class="hs-senses">{"".join(others)}</ol></details>'
        )
    return f'<div><ol class="hs-senses">{"".join(first)}</ol>{more}</div>'


def _sense_item(local: int, facts: str, contexts: dict[int, list[str]], share: float) -> str:
    listed = "".join(f"<li>{escape(text)}</li>" for text in contexts.get(local, []))
    return (
        f'<li class="hs-c{local % 10}"><span class="hs-chip">{local + 1}</span><div><span class="hs-facts">{escape(facts)}'
        f'</span><span class="hs-bar"><i style="width:{share:.1%}"></i></span>'
        f"{f'<ul class=hs-contexts>{listed}</ul>' if listed else ''}</div></li>"
    )
