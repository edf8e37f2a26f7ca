"""Paired differences of rows of ``compare.py``, with an interval. It reads answers and measures nothing new.

A difference is a mean over test texts, the ten draws of labelled texts and the seeds; the interval holds 95 % of 2,000 means
over test texts and draws drawn with replacement, both at once, seeds averaged. In a mean over data sets each is drawn apart.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from compare_page import job_key
from compared_methods import RECIPES
from compared_texts import FOUR, SETS

RESAMPLES = 2000
# Each row beside what it has to beat; "teacher" is its better pooling on the test texts.
PAIRS = (
    ("teacher, paper's recipe", "teacher"),
    ("teacher, 20 senses, hard", "teacher"),
    ("teacher, 20 senses, hard", "teacher, paper's recipe"),
    ("teacher, 20 senses, soft", "teacher, 20 senses, hard"),
    ("teacher, means + 2 x 256 codes, int8", "teacher"),
    ("teacher, means + 2 x 256 codes, int8", "teacher, 20 senses, hard"),
    ("teacher, means + 2 x 256 codes, seen twice, int8", "teacher"),
    ("teacher, means + 2 x 256 codes, seen twice, int8", "teacher, means + 2 x 256 codes, int8"),
    ("teacher, 3 MB of senses, hard, int8", "teacher"),
    ("teacher, 3 MB of senses, hard, int8", "teacher, 20 senses, hard"),
    ("teacher, 3 MB of senses, hard, int8", "teacher, means + 2 x 256 codes, seen twice, int8"),
    ("teacher, n/10,100 senses, hard", "teacher, 20 senses, hard"),
    ("teacher, 20 senses, hard", "table of means"),
    ("1 layer, senses, soft", "teacher"),
    ("1 layer, senses, soft", "1 layer, senses, hard"),
    ("1 layer, senses, soft", "1 layer, paper's recipe"),
    ("1 layer, senses, soft", "1 layer, squared error"),
    ("1 layer, senses, soft", "1 layer, cosine"),
    ("1 layer, senses, soft", "1 layer, soft targets"),
    ("1 layer, senses, soft", "1 layer, logits"),
    ("1 layer, senses and squared error", "1 layer, squared error"),
    ("1 layer, squared error", "teacher"),
    ("context table, 64", "teacher"),
    ("context table, 64", "model2vec"),
    ("context table, 64, seen twice, int8", "teacher"),
    ("context table, 64, seen twice, int8", "model2vec"),
    ("context table, 64, seen twice, int8", "context table, 64"),
    ("context table, 128", "teacher"),
    ("context table, 128", "1 layer, squared error"),
    ("context table, 128", "TF-IDF"),
    ("selector, 64", "context table, 64"),
)  # fmt: skip

Hits = dict[str, np.ndarray]  # by data set: (seeds, draws, texts)


def compare_rows(results: Any) -> dict[str, Any]:
    """For each pair, data set and the mean of the four: the difference in points, and where 95 % lie."""
    found: dict[str, Any] = {}
    rows = {name for pair in PAIRS for name in pair}
    for kind in ("draws", "probe"):
        hits = {row: hits_of(results, row, kind) for row in rows}
        for one, other in PAIRS:
            shared = [name for name in SETS if name in hits[one] and name in hits[other]]
            own = {name: interval([(hits[one][name], hits[other][name])]) for name in shared}
            if set(FOUR) <= set(shared):
                own["mean of four"] = interval([(hits[one][name], hits[other][name]) for name in FOUR])
            found.setdefault(f"{one} | {other}", {})[kind] = own
    return found


def hits_of(results: Any, row: str, kind: str) -> Hits:
    """A row's answers on each data set, by the pooling that was chosen for it."""
    recipe = next(one for one in RECIPES if row in one.row_names)
    found: Hits = {}
    for texts in SETS:
        seeds = []
        for seed in range(99):
            key = job_key("test", texts, recipe.name, results.settings_of(recipe), seed)
            if key not in results.all["jobs"] or not results.file(key).is_file():
                break
            poolings = results.all["jobs"][key]["rows"][row]
            pooling = results.pooling_of(recipe, row)
            if row == "teacher":
                pooling = max(poolings, key=lambda name: np.mean(poolings[name][kind]))
            with np.load(results.file(key)) as answers:
                seeds.append(answers[f"{row} | {pooling}" + (" | probe" if kind == "probe" else "")])
        if seeds:
            found[texts] = np.stack(seeds)
    return found


def interval(pairs: list[tuple[np.ndarray, np.ndarray]]) -> dict[str, float]:
    """The mean difference over data sets in points, and its 95 % interval.

    Args:
        pairs: for each data set, what either answered rightly, bool ``(seeds, draws, texts)``; draws and texts are shared.
    """
    middle, resampled = 0.0, np.zeros(RESAMPLES)
    for number, (one, other) in enumerate(pairs):
        difference = 100 * (one.mean(0) - other.mean(0))
        over_draws, over_texts = (_shares(size, number) for size in difference.shape)
        middle += float(difference.mean()) / len(pairs)
        resampled += ((over_texts @ difference.T) * over_draws).sum(1) / len(pairs)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return {"points": middle, "low": float(low), "high": float(high)}


@lru_cache(maxsize=32)
def _shares(size: int, seed: int) -> np.ndarray:
    """How often each of ``size`` is drawn in a resample, over ``size``: ``(RESAMPLES, size)``."""
    generator = np.random.default_rng([seed, size])
    return generator.multinomial(size, np.full(size, 1 / size), RESAMPLES).astype(np.float32) / size
