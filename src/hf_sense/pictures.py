"""The picture of one token's senses on a plane. It draws what it is given to files; `hf_sense.report` finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_sense.dictionary import SenseDictionary, TokenSenses

_MARK_POINTS = 17  # least distance of two numbers in a picture, in points
_SNIPPETS = 12  # senses that a picture's margin has room to describe


def draw_token(
    figure_class: Any,
    dictionary: SenseDictionary,
    token_id: int,
    name: str,
    senses: TokenSenses,
    cloud: torch.Tensor,
    contexts: list[str],
    path: Path,
) -> None:
    """A token's senses in two dimensions, as a PNG.

    Args:
        figure_class: from ``figure_class_for_files``.
        dictionary: the dictionary.
        token_id: the token.
        name: what the title calls it.
        senses: its senses.
        cloud: float32 ``(n, dim)``, occurrences to draw behind them; may be empty.
        contexts: one a sense, for the margin; may be empty.
        path: of the picture.
    """
    from matplotlib import colormaps

    vectors = senses.vectors.float()
    project, shares = main_plane(cloud if len(cloud) > 2 else vectors)
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
    title = f"{name}: {len(points)} {plural}" + (f"; {len(dots):,} occurrences drawn" if len(dots) else "")
    axes.set_title(title, loc="left", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    margin.set_axis_off()
    shown = min(len(points), _SNIPPETS)
    for local in range(shown):
        height = 1 - (local + 0.5) / _SNIPPETS
        margin.text(0, height, str(local + 1), **_badge(colors[local], inks[local]), transform=margin.transAxes)
        snippet = contexts[local] if contexts else ""
        label = f"{int(senses.counts[local]):,} occurrences" + (f"\n{_shortened(snippet)}" if snippet else "")
        margin.text(0.06, height, label, fontsize=8, va="center", transform=margin.transAxes, parse_math=False)
    figure.draw_without_rendering()  # the layout settles the axes, which the numbers' places depend on
    axes.set_autoscale_on(False)
    places = apart(axes.transData.transform(points), _MARK_POINTS * figure.dpi / 72)
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


def main_plane(vectors: torch.Tensor) -> tuple[Any, list[float]]:
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


def apart(places: np.ndarray, least: float) -> np.ndarray:
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


def _shortened(text: str, width: int = 52) -> str:
    """At most ``width`` characters around the bracketed token."""
    if len(text) <= width:
        return text
    begin = min(max(0, (text.find("[") + text.find("]") - width) // 2), len(text) - width)
    cut = text[begin : begin + width]
    return ("…" if begin else "") + cut + ("…" if begin + width < len(text) else "")
