"""Draws accuracy and squared error against megabytes, a line for each way to choose the number of senses.

It measures nothing.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from speed_plot import INK

from hf_sense.charts import figure_class_for_files

_LINES = {
    "fixed": ("#cc6677", "o", "the same number a token"),
    "rule": ("#aa7733", "s", "by count"),
    "budget": ("#4477aa", "D", "a budget, shared out"),
}
_ROWS = {
    "frequency": "accuracy %, frequency pooling",
    "mean": "accuracy %, mean pooling",
    "error, test": "squared error on test",
}


def draw(figures: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """A column for each data set, a row for each measure.

    Args:
        figures: rows of ``budgets.py`` for each data set.
        path: of the picture, ``.svg`` or ``.png``.
    """
    figure = figure_class_for_files()(figsize=(4.4 * len(figures), 9), dpi=120, layout="constrained")
    panels = figure.subplots(len(_ROWS), len(figures), squeeze=False)
    for column, (name, rows) in enumerate(figures.items()):
        for number, (key, title) in enumerate(_ROWS.items()):
            axes = panels[number][column]
            teacher = next(row for row in rows if row["kind"] == "teacher")
            if key in teacher:
                axes.axhline(teacher[key], color=INK, linewidth=0.8, linestyle="--")
                axes.annotate("the teacher's states", (1, teacher[key]), (-2, 3), xycoords=("axes fraction", "data"),
                              textcoords="offset points", ha="right", fontsize=8, color=INK)  # fmt: skip
            for kind, (colour, marker, label) in _LINES.items():
                points = sorted((row["MB"], row[key]) for row in rows if row["kind"] == kind)
                axes.plot(*zip(*points), color=colour, marker=marker, markersize=4, linewidth=1.3, label=label)
            _finish(axes, title if column == 0 else "", name if number == 0 else "", number == len(_ROWS) - 1)
    panels[-1][0].legend(frameon=False, fontsize=9, labelcolor=INK)
    figure.savefig(path, transparent=True)


def _finish(axes: Any, title: str, name: str, last: bool) -> None:
    axes.set_xscale("log")
    for axis in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        axis(lambda value, _: f"{value:g}" if f"{value:.0e}"[0] in "1235" else "")
    axes.set_xlabel("MB as int8 (log scale)" if last else "", color=INK)
    axes.set_ylabel(title, color=INK)
    axes.set_title(name, color=INK, fontsize=11, loc="left")
    axes.tick_params(which="both", colors=INK, labelsize=8)
    axes.grid(color=INK, alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
