"""The page ``docs/recipes.md`` from the figures of ``defaults.py``: words stand in ``defaults_words.py``, numbers nowhere."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from compare_page import table

IN_TEACHER = ("Banking77", "emotion", "SST-2", "R8")
STUDENTS = ("Banking77", "emotion")
# What stands in the library, by setting: its row is bold.
STANDING = {
    "metric": "l2", "method": "kmeans", "max_senses": "20", "special_tokens": "replaced", "max_occurrences": "1000",
    "selection": "hard",
}  # fmt: skip


def jobs_of(results: dict[str, Any], recipe: str) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Texts, settings and figures of every job of a recipe."""
    for key, job in results["jobs"].items():
        _, texts, name, settings, _ = key.split(" | ")
        if name == recipe:
            yield texts, json.loads(settings), job


def percent(job: dict[str, Any], row: str, pooling: str) -> float:
    return 100 * statistics.mean(job["rows"][row][pooling]["draws"])


def teacher_table(results: dict[str, Any], recipe: str) -> str:
    """A row for each value: mean and frequency pooling on each data set, and their means."""
    found = {texts: job for texts, _, job in jobs_of(results, recipe)}
    sets = [texts for texts in IN_TEACHER if texts in found]
    rows = []
    for row in dict.fromkeys(name for job in found.values() for name in job["rows"]):
        pairs = [[percent(found[texts], row, pooling) for pooling in ("mean", "frequency")] for texts in sets]
        pairs += [[statistics.mean(column) for column in zip(*pairs)]] if len(sets) > 1 else []
        cells = [" / ".join(f"{value:.2f}" for value in pair) for pair in pairs]
        own = [row, *cells]
        rows.append([f"**{cell}**" for cell in own] if row == STANDING.get(recipe) else own)
    return table([recipe, *sets, *(["mean"] if len(sets) > 1 else [])], rows)


def student_table(results: dict[str, Any], recipe: str) -> str:
    """A row for each value that was tried: hard and soft senses, or its own states, by mean and by frequency pooling."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for texts, settings, job in jobs_of(results, recipe):
        name = ", ".join(f"{key} {value:g}" for key, value in sorted(settings.items()))
        found.setdefault(name, {})[texts] = job
    sets = [texts for texts in STUDENTS if any(texts in jobs for jobs in found.values())]
    first = next(iter(next(iter(found.values())).values()))
    header = [recipe, *(f"{texts}, {row}" for texts in sets for row in first["rows"])]
    rows = []
    for name in sorted(found, key=lambda text: float(text.rsplit(" ", 1)[1]) if "," not in text else _value(text)):
        cells = [name]
        for texts in sets:
            job = found[name].get(texts)
            cells += [
                "" if job is None else " / ".join(f"{percent(job, row, one):.2f}" for one in ("mean", "frequency"))
                for row in first["rows"]
            ]
        rows.append(cells)
    return table(header, rows)


def _value(text: str) -> float:
    """Of the setting that changes: the last that is no learning rate."""
    return float(next(part for part in text.split(", ") if not part.startswith("learning_rate")).rsplit(" ", 1)[1])


def dev_table(compared: dict[str, Any]) -> str:
    """What ``compare.py`` measured on held-out texts of ways without training: mean and frequency pooling."""
    cells: dict[str, dict[str, str]] = {}
    for key, job in compared["jobs"].items():
        stage, texts, recipe, _, _ = key.split(" | ")
        if stage == "dev" and (recipe.endswith("teacher") or recipe == "table of means"):
            for row in job["rows"]:
                pair = " / ".join(f"{percent(job, row, pooling):.2f}" for pooling in ("mean", "frequency"))
                cells.setdefault(row, {})[texts] = pair
    order = sorted(cells, key=lambda row: (row != "teacher", row))
    return table(["", *STUDENTS], [[row, *(cells[row].get(texts, "") for texts in STUDENTS)] for row in order])


def rate_table(compared: dict[str, Any]) -> str:
    """The learning rates that ``compare.py`` tried, and the best few-shot accuracy with each."""
    cells: dict[tuple[str, float], dict[str, str]] = {}
    for key, job in compared["jobs"].items():
        stage, texts, recipe, settings, _ = key.split(" | ")
        rate = json.loads(settings).get("learning_rate")
        if stage == "dev" and rate is not None:
            best = max(percent(job, row, pooling) for row, own in job["rows"].items() for pooling in own)
            cells.setdefault((recipe, rate), {})[texts] = f"{best:.2f}"
    rows = [
        [recipe, f"{rate:g}", *(cells[recipe, rate].get(texts, "") for texts in STUDENTS)]
        for recipe, rate in sorted(cells)
    ]
    return table(["", "learning rate", *STUDENTS], rows)


def write_page(compared: dict[str, Any], results: dict[str, Any], path: Path) -> None:
    """Writes the page, whole or not at all.

    Args:
        compared: the results of ``compare.py``, whose held-out measurements stand here too.
        results: those of ``defaults.py``.
        path: of the page.
    """
    from defaults_words import page

    temporary = path.with_suffix(".tmp")
    # In the files' order, so that the page does not depend on whether the figures come from there.
    compared, results = (json.loads(json.dumps(one, sort_keys=True)) for one in (compared, results))
    temporary.write_text(page(compared, results).rstrip() + "\n", encoding="utf-8")
    temporary.replace(path)
