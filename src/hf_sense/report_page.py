"""The report of a dictionary as one HTML file: its figures, chosen tokens' planes, and texts coloured by senses.

It holds the same fragments as the served page (``hf_sense.explore``) and needs no server; ``hf_sense.report`` writes it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from hf_sense.answers import SIDES, token_panel
from hf_sense.legend import FIGURES, NO_SENSES, NOT_DRAWN, TEXTS
from hf_sense.page import document, legend_html, sides_html, summary_html, token_html
from hf_sense.plane import TokenPlane
from hf_sense.reading import Reader


def report_page(
    title: str,
    figures: Sequence[tuple[str, str]],
    ambiguous: Sequence[tuple[str, ...]],
    about_ambiguous: str,
    planes: Mapping[int, tuple[str, TokenPlane | None]],
    about_contexts: str,
    readers: Sequence[Reader] = (),
    texts: Sequence[str] = (),
) -> str:
    """The page.

    Args:
        title: of the page.
        figures: names and values.
        ambiguous: rows of the table of ambiguous tokens, its header first; may be empty.
        about_ambiguous: what that table holds.
        planes: by token id: name and plane of each token that is drawn; ``None`` for one without senses.
        about_contexts: what their contexts come from, or that there are none.
        readers: one model, or a teacher and a student, that read ``texts``; may be empty.
        texts: are coloured, if there are readers.
    """
    drawn = [plane for _, plane in planes.values() if plane is not None]
    contexts = any(plane.contexts for plane in drawn)
    legend = legend_html(texts=bool(readers and texts), two=len(readers) > 1, corpus=contexts, shown=True)
    parts = [summary_html(figures), _said(FIGURES), legend if drawn or readers else ""]
    if readers and texts:
        parts.append(f"<h2>Texts</h2>{_said(TEXTS)}")
        parts += [_text_part(readers, text, number, planes) for number, text in enumerate(texts)]
    if planes:
        parts.append(f"<h2>Tokens</h2>{_said(about_contexts)}")
        for name, plane in planes.values():
            nothing = f'<section class="hs-panel"><h3>“{escape(name)}”</h3>{_said(NO_SENSES)}</section>'
            parts.append(nothing if plane is None else token_html(plane, name))
    if ambiguous:
        header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in ambiguous[0])
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in ambiguous[1:])
        parts.append(f"<h2>Most ambiguous tokens</h2>{_said(about_ambiguous)}")
        parts.append(f'<div class="hs-scroll"><table><tr>{header}</tr>{rows}</table></div>')
    return document(title, "".join(parts))


def _said(words: str) -> str:
    return f"<p>{escape(words)}</p>"


def _text_part(
    readers: Sequence[Reader], text: str, number: int, planes: Mapping[int, tuple[str, TokenPlane | None]]
) -> str:
    """One text and the panels of all of its tokens, hidden until they are chosen."""
    readings = [reader.read(text) for reader in readers]
    prefix = f"t{number}s"
    shown = [sides_html(list(zip(SIDES, readings)), prefix)]
    for side, reading in enumerate(readings):
        for position, token in enumerate(reading.tokens):
            plane = planes[token.token_id][1] if token.token_id in planes else None
            key = f"{prefix}{side}-{position}-{token.token_id}"
            note = NOT_DRAWN if planes and token.local >= 0 and plane is None else ""
            shown.append(token_panel(readers, readings, side, position, plane, key=key, note=note))
    return "".join(shown)
