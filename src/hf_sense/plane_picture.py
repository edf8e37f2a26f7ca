"""A token's plane as a picture in HTML: senses, occurrences, and where the token of a text lies.

It draws what ``hf_sense.plane`` found; the PNG of a report is drawn in ``hf_sense.pictures``.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from hf_sense.legend import HINT, HINT_ALONE, sense_words, times
from hf_sense.pictures import apart
from hf_sense.plane import TokenPlane

_WIDTH, _HEIGHT, _MARGIN = 480, 360, 34
_BADGE = 21.0  # least distance of two numbers


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
    # Each sense by both of its numbers, as elsewhere on the page.
    named = [f"S{sense_words(local, len(centres), plane.first + local)[1:]}" for local in range(len(centres))]
    drawn = [
        f'<circle class="hs-dot hs-c{local % 10}" cx="{x:.1f}" cy="{y:.1f}" r="4" '
        f'data-tip="{escape(f"{named[local]}: {text}")}"/>'
        for (x, y), local, text in zip(dots, plane.picked, plane.texts)
    ]
    most, marks = max(1, *plane.counts), []
    for local in sorted(range(len(centres)), key=lambda local: -plane.counts[local]):
        (x, y), (at, down) = centres[local], numbers[local]
        near = plane.contexts[local].contexts[:1] if plane.contexts else []
        tip = ". ".join([f"{named[local]}: {times(plane.counts[local])}", *(f"Nearest: {text}" for text in near)])
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
    hint = HINT if plane.contexts else HINT_ALONE
    return (
        f'<figure><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="group" '
        f'aria-label="{escape(f"Senses of {name} on a plane")}">{axes}{"".join(drawn)}</svg>'
        f'<p class="hs-tip" aria-live="polite">{hint}</p></figure>'
    )


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
