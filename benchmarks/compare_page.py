"""The page ``docs/results.md`` from the figures of ``compare.py``: words stand here, numbers do not."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

FOUR = ("Banking77", "emotion", "SST-2", "CoLA")
SETS = (*FOUR, "R8")
TEACHER = "teacher"

GROUPS = {
    "The teacher runs": (
        "teacher, paper's recipe", "teacher, 20 senses, hard", "teacher, 20 senses, soft", "teacher, n/10,100 senses, hard",
        "teacher, 5 senses, hard", "teacher, 2 senses, hard", "teacher, 3 MB of senses, hard, int8",
        "teacher, means + 1 x 1024 codes, int8", "teacher, means + 2 x 256 codes, int8",
        "teacher, means + 2 x 256 codes, seen twice, int8",
    ),
    "One layer of it": (
        "1 layer, paper's recipe", "1 layer, senses, hard", "1 layer, senses, soft", "1 layer, soft targets",
        "1 layer, squared error", "1 layer, squared error, its senses", "1 layer, cosine", "1 layer, logits",
        "1 layer, senses and squared error", "1 layer, senses and squared error, soft",
    ),
    "No transformer": (
        "context table, 32", "context table, 32, int8", "context table, 64", "context table, 64, int8",
        "context table, 64, seen twice", "context table, 64, seen twice, int8", "context table, 128",
        "context table, 128, int8", "selector, 64",
        "selector, codes, 64", "table of means", "model2vec", "TF-IDF",
    ),
}  # fmt: skip


def job_key(stage: str, texts: str, recipe: str, settings: dict[str, Any], seed: int) -> str:
    """The name of a job in the results."""
    return f"{stage} | {texts} | {recipe} | {json.dumps(settings, sort_keys=True)} | {seed}"


class Figures:
    """What the results say of each row."""

    def __init__(self, results: dict[str, Any]) -> None:
        self.results = results
        self.recipe_of = {row: name for name, one in results["chosen"].items() for row in one["poolings"]}

    def scores(
        self, row: str, texts: str, kind: str = "draws", pooling: str | None = None, stage: str = "test"
    ) -> list[float]:
        """In percent, one a seed; of the draws' mean or of the probe. Empty where the row was not measured."""
        recipe = self.recipe_of[row]
        chosen = self.results["chosen"][recipe]
        found = []
        for seed in range(99):
            job = self.results["jobs"].get(job_key(stage, texts, recipe, chosen["settings"], seed))
            if job is None:
                break
            own = job["rows"][row].get(pooling or chosen["poolings"][row], {})
            if kind in own:
                value = own[kind]
                found.append(100 * (statistics.mean(value) if kind == "draws" else value))
        return found

    def spread(self, row: str, texts: str, pooling: str) -> float:
        """The standard deviation over the draws, mean over seeds, in points."""
        recipe = self.recipe_of[row]
        settings = self.results["chosen"][recipe]["settings"]
        jobs = (self.results["jobs"].get(job_key("test", texts, recipe, settings, seed)) for seed in range(9))
        return statistics.mean(100 * statistics.pstdev(job["rows"][row][pooling]["draws"]) for job in jobs if job)

    def score(
        self, row: str, texts: str, kind: str = "draws", pooling: str | None = None, stage: str = "test"
    ) -> float | None:
        """The mean over seeds; the teacher's is that of its better pooling, unless one is named."""
        if row == TEACHER and pooling is None and stage == "test":
            both = [self.score(row, texts, kind, name) for name in ("mean", "frequency")]
            return max((one for one in both if one is not None), default=None)
        found = self.scores(row, texts, kind, pooling, stage)
        return statistics.mean(found) if found else None

    def of_four(self, row: str, kind: str = "draws", pooling: str | None = None) -> float | None:
        """The mean of the four data sets."""
        found = [self.score(row, texts, kind, pooling) for texts in FOUR]
        return None if None in found else statistics.mean(found)  # type: ignore[type-var]

    def kept(self, row: str, kind: str = "draws") -> float | None:
        """Percent of the teacher's mean of four."""
        own, whole = self.of_four(row, kind), self.of_four(TEACHER, kind)
        return None if own is None or whole is None else 100 * own / whole

    def measured(self, row: str) -> str:
        """With how many seeds, over data sets; empty if not at all."""
        numbers = sorted({number for texts in SETS if (number := len(self.scores(row, texts)))})
        return " to ".join(map(str, dict.fromkeys([*numbers[:1], *numbers[-1:]])))

    def known(self, row: str) -> bool:
        """Whether a recipe makes it."""
        return row in self.recipe_of

    def served(self, row: str, name: str, texts: str = "Banking77") -> Any:
        """A figure of serving, or ``None``."""
        return self.results.get("served", {}).get(texts, {}).get(row, {}).get(name)

    def size_of_four(self, row: str, name: str) -> float | None:
        """The mean of four data sets' MB."""
        found = [self.served(row, name, texts) for texts in FOUR]
        return None if None in found else statistics.mean(found)


def shown(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def accuracy_table(figures: Figures, kind: str) -> str:
    """All rows that were measured, by group; the best of each group in each column is bold."""
    sets = [texts for texts in SETS if figures.score(TEACHER, texts, kind) is not None]
    columns: list[tuple[str, Any]] = [(texts, lambda row, t=texts: figures.score(row, t, kind)) for texts in sets]
    columns += [
        ("mean of four", lambda row: figures.of_four(row, kind)),
        ("% of teacher", lambda row: figures.kept(row, kind)),
    ]
    rows = []
    for pooling in ("mean", "frequency"):
        own = [figures.score(TEACHER, texts, kind, pooling) for texts in sets]
        four, whole = figures.of_four(TEACHER, kind, pooling), figures.of_four(TEACHER, kind)
        share = None if four is None or whole is None else 100 * four / whole
        rows.append([f"teacher, {pooling} pooling", *map(shown, own), shown(four), shown(share, 1), ""])
    for title, group in GROUPS.items():
        names = [name for name in group if figures.known(name) and figures.measured(name)]
        rows += [[f"*{title}*", *[""] * (len(columns) + 1)]] if names else []
        best = [max((v for name in names if (v := value(name)) is not None), default=None) for _, value in columns]
        for name in names:
            cells = []
            for (column, value), top in zip(columns, best):
                own = value(name)
                text = shown(own, 1 if column == "% of teacher" else 2)
                cells.append(f"**{text}**" if own is not None and own == top else text)
            rows.append([name, *cells, figures.measured(name)])
    return table(["", *(name for name, _ in columns), "seeds"], rows)


def pair_table(results: dict[str, Any], kind: str) -> str:
    """Differences; bold where the interval leaves out zero, for better and for worse alike."""
    rows = []
    for pair, kinds in results["compared"].items():
        one, other = pair.split(" | ")
        if not kinds[kind]:
            continue
        cells = []
        for texts in (*SETS, "mean of four"):
            own = kinds[kind].get(texts)
            if own is None:
                cells.append("")
                continue
            text = f"{own['points']:+.2f} ({own['low']:+.2f} to {own['high']:+.2f})"
            cells.append(f"**{text}**" if own["low"] > 0 or own["high"] < 0 else text)
        rows.append([one, other, *cells])
    return table(["", "less", *SETS, "mean of four"], rows)


def serving_table(figures: Figures) -> str:
    rows = []
    served = figures.results.get("served", {})
    names = list(dict.fromkeys(row for one in served.values() for row in one))
    order = [TEACHER, *(name for group in GROUPS.values() for name in group)]
    for row in [name for name in order if name in names]:
        cells = [row]
        for texts in ("Banking77", "emotion"):
            for name in ("MB as saved", "MB float16", "dictionary, MB float16"):
                value = figures.served(row, name, texts)
                cells.append("" if value is None else f"{value:.1f}")
            times = figures.served(row, "times", texts)
            cells.append("" if times is None else f"{times['median']:.3g} ({times['low']:.3g} to {times['high']:.3g})")
        rows.append(cells)
    header = [""]
    for texts in ("Banking77", "emotion"):
        header += [f"{texts}: MB", "MB float16", "of it, senses", "times the teacher's speed"]
    return table(header, rows)


def foreign_table(figures: Figures) -> str:
    """Each case: own and foreign texts, and the gap to the teacher."""
    cases = list(dict.fromkeys(key.split(" | ")[1] for key in figures.results["jobs"] if key.startswith("foreign")))
    rows = []
    for case in cases:
        texts = case.split(" from ")[0]
        whole = max(
            (one for name in ("mean", "frequency") if (one := figures.score(TEACHER, texts, pooling=name)) is not None),
            default=None,
        )
        bare = next(
            job["tokens_without_senses"]
            for key, job in figures.results["jobs"].items()
            if key.startswith(f"foreign | {case} |")
        )
        rows.append([f"*{case}*: {100 * bare:.1f} % of tokens unknown", "", shown(whole), "", ""])
        for row in figures.recipe_of:
            foreign = figures.score(row, case, stage="foreign")
            if foreign is not None and row != TEACHER:
                own = figures.score(row, texts)
                gaps = [None if one is None or whole is None else whole - one for one in (own, foreign)]
                rows.append([row, shown(own), shown(foreign), *map(shown, gaps)])
    return table(["", "own texts", "others'", "gap, own", "gap, others'"], rows)


def chosen_table(figures: Figures) -> str:
    """Settings and poolings."""
    rows = []
    for recipe, one in figures.results["chosen"].items():
        settings = ", ".join(f"{name} {value}" for name, value in one["settings"].items()) or "-"
        if not any(figures.measured(row) for row in one["poolings"]):
            continue
        rows.append([recipe, settings, ", ".join(sorted(set(one["poolings"].values()))), ", ".join(one["on"]) or "-"])
    return table(["", "settings", "pooling", "held-out texts of"], rows)


def pooling_table(figures: Figures) -> str:
    """Every row by both poolings, few-shot, with the spread over the ten draws and that over seeds."""
    rows = []
    for row in [TEACHER, *(name for names in GROUPS.values() for name in names)]:
        for pooling in ("mean", "frequency"):
            cells = []
            for texts in SETS:
                seeds = figures.scores(row, texts, pooling=pooling) if figures.known(row) else []
                if not seeds:
                    cells.append("")
                    continue
                draws = figures.spread(row, texts, pooling)
                over = f", seeds {statistics.pstdev(seeds):.2f}" if len(seeds) > 1 else ""
                cells.append(f"{statistics.mean(seeds):.2f} (draws {draws:.2f}{over})")
            if any(cells):
                rows.append([f"{row}, {pooling}", *cells])
    return "Both poolings; in brackets the standard deviation over draws, and over seeds.\n\n" + table(
        ["", *SETS], rows
    )


def write_page(results: dict[str, Any], path: Path) -> None:
    """Writes the page and its pictures, each whole or not at all."""
    from compare_words import page

    # In the file's order, so that the page does not depend on whether the figures come from there.
    figures = Figures(json.loads(json.dumps(results, sort_keys=True)))
    draw(figures, path.parent / "images")
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page(figures).rstrip() + "\n", encoding="utf-8")
    temporary.replace(path)


def draw(figures: Figures, images: Path) -> None:
    """Accuracy against speed and against megabytes, where both are known."""
    from speed_plot import scatter

    images.mkdir(parents=True, exist_ok=True)
    for name, across, value in (
        (
            "speed",
            "times the teacher's texts a second (log scale)",
            lambda row: (figures.served(row, "times") or {}).get("median"),
        ),
        ("size", "MB to keep, float16 (log scale)", lambda row: figures.served(row, "MB float16")),
    ):
        rows = []
        for row in [TEACHER, *(one for names in GROUPS.values() for one in names)]:
            x, y = value(row), figures.of_four(row) if figures.known(row) else None
            if x is not None and y is not None:
                kind = TEACHER if row == TEACHER else "senses" if "senses" in row or "selector" in row else "other"
                rows.append((row, x, y, kind))
        if rows:
            scatter(rows, images / f"comparison-{name}.svg", across, "few-shot accuracy %, mean of four data sets")
