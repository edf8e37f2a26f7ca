"""Draws accuracy against texts a second, one labelled point a way. It measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hf_sense.charts import figure_class_for_files

# Ink that can be read on white and on black alike; the page shows through behind it.
INK = "#808080"
_COLOURS = {"senses": "#4477aa", "teacher": "#cc6677", "other": "#aa7733"}
# Where a label may stand beside its point, in points: right, left, above, below, and farther off.
_SIDES = ((9, 0), (-9, 0), (0, 9), (0, -9), (8, 8), (8, -8), (-8, 8), (-8, -8))
_PLACES = [(x * far, y * far) for far in (1, 2, 3.5, 5) for x, y in _SIDES]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """A plot of the rows that ran.

    Args:
        rows: those of ``serving.py``: ``name``, ``accuracy`` from 0 to 1 and ``batch_texts_per_second``.
        path: of the picture, ``.svg`` or ``.png``.
    """
    rows = [row for row in rows if row["failure"] is None]
    scatter(
        [(row["name"], row["batch_texts_per_second"], 100 * row["accuracy"], _kind(row["name"])) for row in rows],
        path,
        "texts a second, by 64, tokenizing included (log scale)",
        "accuracy %, all training texts labelled",
    )


def scatter(rows: list[tuple[str, float, float, str]], path: Path, across: str, up: str) -> None:
    """Labelled points over a logarithmic axis.

    Args:
        rows: name, place across, place up, and the kind that gives the colour: ``senses``, ``teacher`` or ``other``.
        path: of the picture, ``.svg`` or ``.png``.
        across: what the axis across shows.
        up: what the other shows.
    """
    figure = figure_class_for_files()(figsize=(8.5, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    points = [(x, y) for _, x, y, _ in rows]
    colours = [_COLOURS[kind] for *_, kind in rows]
    axes.scatter(*zip(*points), c=colours, s=45, zorder=2)
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(lambda value, _: f"{value:,.0f}" if f"{value:.0e}"[0] in "125" else "")
    axes.margins(0.18, 0.15)
    axes.set_xlabel(across, color=INK)
    axes.set_ylabel(up, color=INK)
    axes.tick_params(which="both", colors=INK)
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    figure.canvas.draw()  # fixes the layout, so that the labels' sizes are known
    renderer = figure.canvas.get_renderer()
    marks = [axes.transData.transform(point) for point in points]
    taken: list[Any] = []
    for (name, *_), point, colour in zip(rows, points, colours):
        label = _label(axes, name, point, colour, _PLACES[0])
        for place in _PLACES:
            label.remove()
            label = _label(axes, name, point, colour, place)
            box = label.get_window_extent(renderer).padded(2)
            covers = any(box.overlaps(other) for other in taken) or any(
                box.x0 - 4 < x < box.x1 + 4 and box.y0 - 4 < y < box.y1 + 4 for x, y in marks
            )
            inside = axes.bbox.x0 < box.x0 and box.x1 < axes.bbox.x1 and axes.bbox.y0 < box.y0 and box.y1 < axes.bbox.y1
            if inside and not covers:
                break
        taken.append(label.get_window_extent(renderer).padded(2))
    figure.savefig(path, transparent=True)


def _kind(name: str) -> str:
    if name == "teacher":
        return "teacher"
    return "senses" if "layer" in name or "senses" in name else "other"


def _label(axes: Any, name: str, point: tuple[float, float], colour: str, place: tuple[float, float]) -> Any:
    x, y = place
    return axes.annotate(
        name, point, place, textcoords="offset points", color=colour, fontsize=9,
        ha="left" if x > 0 else "right" if x < 0 else "center", va="center" if y == 0 else "bottom" if y > 0 else "top",
        arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.5, "linewidth": 0.7} if max(abs(x), abs(y)) > 9 else None,
    )  # fmt: skip
