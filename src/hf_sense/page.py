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

from hf_sense.pictures import apart
from hf_sense.plane import TokenPlane
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
_WIDTH, _HEIGHT, _MARGIN = 480, 360, 34
_BADGE = 21.0  # least distance of two numbers
_SENSES = 8  # in a list before it is folded
_HINT = "Point at a mark, or move to one with Tab and the arrow keys, to read its context."


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
            label += f"; differs: {other[0]} chooses sense {twin.local + 1}"
            mark = f'<span class="hs-differs">≠{twin.local + 1}</span>'
        number = f"<sub>{token.local + 1}</sub>" if token.local >= 0 else ""
        parts.append(
            f'{escape(token.gap)}<button type="button" class="hs-token {_classes(token)}" '
            f'data-key="{escape(side)}-{position}-{token.token_id}" aria-pressed="{str(position == chosen).lower()}" '
            f'aria-label="{escape(label)}" title="{escape(label)}">{escape(token.text)}{number}{mark}</button>'
        )
    cut = '<p class="hs-note">The text is longer than the model takes; it was cut here.</p>' if reading.cut else ""
    return f'<div class="hs-side">{head}<div class="hs-text">{"".join(parts)}{escape(reading.tail)}</div>{cut}</div>'


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
        facts = f"{view.share:.0%} of the choice · {_times(view.count)} · {away}"
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
    items = [
        _sense_item(n, f"{_times(plane.counts[n])} · {plane.counts[n] / total:.0%}", contexts, plane.counts[n] / total)
        for n in order
    ]
    return (
        f'<section class="hs hs-panel" aria-label="{escape(f"Senses of {name}")}"><h3>“{escape(name)}”</h3>'
        f'<div class="hs-columns">{plane_html(plane, name)}{_listed(items, "rarer")}</div>'
        "</section>"
    )


def plane_html(plane: TokenPlane, name: str, here: Sequence[tuple[str, np.ndarray]] = ()) -> str:
    """A token's senses and occurrences on a plane; each says its context under the pointer or with the focus.

    Args:
        plane: from ``hf_sense.plane``.
        name: the token.
        here: names of models and where their vectors of the token lie, ``(2,)`` each.
    """
    points = [plane.senses, plane.dots, *(place[None] for _, place in here)]
    to_picture = _scale(np.concatenate([part.reshape(-1, 2) for part in points]))
    centres, dots = to_picture(plane.senses), to_picture(plane.dots)
    places = [to_picture(place)[0] for _, place in here]
    # Numbers keep away from each other and from the crosses.
    numbers = apart(np.stack([*centres, *places]), _BADGE)[: len(centres)]
    numbers = numbers.clip((12, 12), (_WIDTH - 12, _HEIGHT - 12))
    drawn = [
        f'<circle class="hs-dot hs-c{local % 10}" cx="{x:.1f}" cy="{y:.1f}" r="4" '
        f'data-tip="{escape(f"Sense {local + 1}: {text}")}"/>'
        for (x, y), local, text in zip(dots, plane.picked, plane.texts)
    ]
    most, marks = max(1, *plane.counts), []
    for local in sorted(range(len(centres)), key=lambda local: -plane.counts[local]):
        (x, y), (at, down) = centres[local], numbers[local]
        near = plane.contexts[local].contexts[:1] if plane.contexts else []
        tip = ". ".join([f"Sense {local + 1}: {_times(plane.counts[local])}", *(f"Nearest: {text}" for text in near)])
        size = 9 + 5 * (plane.counts[local] / most) ** 0.5
        drawn.append(
            f'<g class="hs-base hs-c{local % 10}"><circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"/>'
            f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{at:.1f}" y2="{down:.1f}"/></g>'
        )
        moved = abs(x - at) + abs(y - down) > 4
        badge = f'<circle cx="{at:.1f}" cy="{down:.1f}" r="{9 if moved else size:.1f}"/>'
        marks.append(
            f'<g class="hs-mark hs-c{local % 10}" role="img" tabindex="{0 if local == 0 else -1}" '
            f'aria-label="{escape(tip)}" data-tip="{escape(tip)}">'
            f'{badge}<text x="{at:.1f}" y="{down:.1f}">{local + 1}</text></g>'
        )
    drawn += marks
    boxes = [(x, y, 9.0, 1) for x, y in numbers] + [(x, y, 9.0, 3) for x, y in places]
    for (label, _), (x, y) in zip(here, places):
        cross = f"M{x - 7:.1f} {y - 7:.1f}l14 14m0 -14l-14 14"
        at, down = _label_place(x, y, 4.0 * len(label), boxes)
        boxes.append((at, down, 4.0 * len(label), 3))
        drawn.append(
            f'<g class="hs-here"><path d="{cross}"/><path d="{cross}"/>'
            f'<text x="{at:.1f}" y="{down:.1f}">{escape(label)}</text></g>'
        )
    first, second = plane.variance
    axes = (
        f'<text class="hs-axis" x="{_WIDTH - 8}" y="{_HEIGHT - 8}" text-anchor="end">first direction, {first:.0%} of the '
        f'variance →</text><text class="hs-axis" x="8" y="18">↑ second, {second:.0%}</text>'
    )
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="group" '
        f'aria-label="{escape(f"Senses of {name} on a plane")}">{axes}{"".join(drawn)}</svg>'
        f'<p class="hs-tip" aria-live="polite">{_HINT}</p></figure>'
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


def heading(readers: Sequence[Reader]) -> str:
    """The page's title and what the dictionary holds.

    Args:
        readers: one model, or a teacher and a student.
    """
    figures = readers[0].dictionary.summary()
    names = " and ".join(PurePath(reader.name).name for reader in readers)
    return (
        f'<div class="hs"><h1>Senses of {escape(names)}</h1><p class="hs-note">{figures["num_senses"]:,} senses of '
        f"{figures['tokens_with_senses']:,} tokens, from {figures['occurrences']:,} occurrences.</p></div>"
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
        return f"{name}no senses; the token did not occur in the dictionary's corpus"
    return (
        f"{name}sense {token.local + 1} of {token.num_senses}, {token.share:.0%} of the choice, "
        f"{token.count:,} of {_times(token.occurrences)}"
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


def _times(count: int) -> str:
    return f"{count:,} occurrence{'' if count == 1 else 's'}"


def _label_place(
    x: float, y: float, half: float, boxes: Sequence[tuple[float, float, float, int]]
) -> tuple[float, float]:
    """The middle of a label ``2 * half`` wide near ``(x, y)``, where it covers least of boxes: middle, half width, weight."""

    def cost(place: tuple[float, float]) -> int:
        at, down = place
        covered = sum(
            weight for left, top, width, weight in boxes if abs(at - left) < half + width and abs(down - top) < 16
        )
        return covered + 100 * (not (half < at < _WIDTH - half and 10 < down < _HEIGHT - 10))

    sides = [(right, down) for down in (0, -1, 1) for right in (1, -1)] + [(0, -1), (0, 1)]
    return min(((x + right * (12 + half), y + down * 18) for right, down in sides), key=cost)


def _scale(points: np.ndarray) -> Any:
    """Takes ``(n, 2)`` to places in the picture, with one scale for both directions."""
    low, high = points.min(0), points.max(0)
    room = np.array([_WIDTH, _HEIGHT]) - 2 * _MARGIN
    factor = float((room / np.maximum(high - low, 1e-9)).min()) if (high - low).max() > 1e-9 else 0.0
    middle, centre = (low + high) / 2, np.array([_WIDTH, _HEIGHT]) / 2
    return lambda rows: centre + (rows.reshape(-1, 2) - middle) * factor * np.array([1, -1])
