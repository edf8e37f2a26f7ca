"""Charts of a whole dictionary, drawn to files. Pictures of one token are in ``hf_sense.pictures``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch


def draw_histogram(figure_class: Any, offsets: torch.Tensor, path: Path) -> None:
    """How many tokens have how many senses, as a PNG.

    Args:
        figure_class: from ``figure_class_for_files``.
        offsets: int64 ``(vocab_size + 1,)``, a dictionary's.
        path: of the picture.
    """
    lengths = offsets.diff()
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
    axes.set_title(f"{int(offsets[-1]):,} senses of {len(lengths):,} tokens", loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def figure_class_for_files() -> Any:
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
