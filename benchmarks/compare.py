"""Sets senses beside everything that they have to be better than, from one command; writes ``docs/results.md``.

    OMP_NUM_THREADS=1 python benchmarks/compare.py --data FOLDER

The folder holds ``banking77``, ``tweeteval_emotion``, ``sst2`` and ``cola`` as JSON lines; R8 is fetched. Settings, learning
rates and poolings are chosen on a fifth of the train texts of two data sets; only what was chosen is measured on test texts.
Each job is kept as it ends, in the results and in ``--work``, and is not run again. The page's words are in
``compare_page.py``, what is compared in ``compared_methods.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from banking77 import default_teacher
from compare_page import job_key, write_page
from compared_methods import AS, RECIPES, ROW_AS
from compared_pairs import compare_rows
from compared_serving import serve
from compared_texts import FOUR, SETS, TextSet
from compared_ways import EPOCHS, STEPS, Answered, Recipe, Workshop
from measure import machine
from transformers.utils import logging

from hf_sense import load_teacher

HERE = Path(__file__).resolve().parent
TUNED = ("Banking77", "emotion")  # whose train texts choose settings and poolings
# Measured with the dictionary, and the students, of other texts than its own.
FOREIGN = {
    "R8 from the other four": ("R8", ("Banking77", "emotion", "SST-2", "CoLA")),
    "Banking77 from the other four": ("Banking77", ("emotion", "SST-2", "CoLA", "R8")),
    "emotion from Banking77": ("emotion", ("Banking77",)),
}
FOREIGN_RECIPES = ("teacher", "senses in the teacher", "table of means", "context table, 64", "selector, 64")
STAGES = ("dev", "test", "foreign", "serve")


class Results:
    """The jobs so far, in a JSON file that is written as each one ends."""

    def __init__(self, path: Path, work: Path, lengths: dict[str, float | None]) -> None:
        self.path, self.hits = path, work / "hits"
        self.hits.mkdir(parents=True, exist_ok=True)
        self.all: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"jobs": {}}
        if self.all.setdefault("lengths", lengths) != lengths:
            raise ValueError(
                f"{path} holds jobs of other lengths of training: {self.all['lengths']}; now {lengths}. Give other --results."
            )

    def file(self, key: str) -> Path:
        """Where a job's answers lie, text by text: too many for the results."""
        return self.hits / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"

    def has(self, key: str) -> bool:
        return key in self.all["jobs"] and (key.startswith("dev") or self.file(key).is_file())

    def save(self) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.all, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        temporary.replace(self.path)

    def settings_of(self, recipe: Recipe) -> dict[str, Any]:
        """Those of the grid that did best on the development split; the first where none was tried."""
        name = AS.get(recipe.name, recipe.name)
        grid = next(one.grid for one in RECIPES if one.name == name)
        scores = [self.dev_score(name, settings) for settings in grid]
        known = [score for score in scores if score is not None]
        return dict(grid[scores.index(max(known))] if known else grid[0])

    def dev_score(self, name: str, settings: dict[str, Any]) -> float | None:
        """The mean over data sets of the best of a job's rows and poolings."""
        found = [
            max(statistics.mean(score["draws"]) for poolings in job["rows"].values() for score in poolings.values())
            for texts in TUNED
            if (job := self.all["jobs"].get(job_key("dev", texts, name, settings, 0)))
        ]
        return statistics.mean(found) if found else None

    def chosen_on(self, recipe: Recipe) -> list[str]:
        """The data sets whose held-out texts chose."""
        name = AS.get(recipe.name, recipe.name)
        return [t for t in TUNED if job_key("dev", t, name, self.settings_of(recipe), 0) in self.all["jobs"]]

    def pooling_of(self, recipe: Recipe, row: str) -> str:
        """The pooling that did better for this row on the development split."""
        like = next(one for one in RECIPES if one.name == AS.get(recipe.name, recipe.name))
        twin = ROW_AS.get(row) or like.row_names[recipe.row_names.index(row)]
        scores: dict[str, list[float]] = {}
        for texts in TUNED:
            job = self.all["jobs"].get(job_key("dev", texts, like.name, self.settings_of(recipe), 0))
            for pooling, score in (job["rows"][twin] if job else {}).items():
                scores.setdefault(pooling, []).append(statistics.mean(score["draws"]))
        return max(scores, key=lambda name: statistics.mean(scores[name])) if scores else "mean"


class Comparison:
    """The run: which jobs there are, and what each needs."""

    draws = 10

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        options.work.mkdir(parents=True, exist_ok=True)
        lengths = {name: getattr(options, name) for name in ("steps", "epochs", "most")}
        self.results = Results(options.results, options.work, lengths)
        self.teacher = load_teacher(options.teacher or default_teacher())
        self.shops: dict[tuple[str, str], Workshop] = {}

    def workshop(self, stage: str, name: str) -> Workshop:
        """The data set's; the two of the development split are used by turns, of the others one is kept."""
        if (stage, name) not in self.shops:
            if stage != "dev" or len(self.shops) >= len(TUNED):
                self.shops.clear()  # their states go before others come
            texts, others = FOREIGN.get(name, (name, ()))
            own = self.text_set(texts, stage == "dev")
            sources = [self.text_set(other) for other in others]
            work = self.options.work / stage / name.replace(" ", "-")
            shop = Workshop(self.teacher, own, work, sources, self.options.steps, self.options.epochs)
            self.shops[stage, name] = shop
        return self.shops[stage, name]

    def text_set(self, name: str, dev: bool = False) -> TextSet:
        return TextSet(name, self.options.data, self.teacher, self.options.work, dev, self.options.most, self.draws)

    def jobs(self) -> Iterator[tuple[str, str, Recipe, dict[str, Any], int]]:
        """Stage, texts, recipe, settings and seed of each job; what was chosen is looked up when its turn comes."""
        asked = self.options
        for recipe in RECIPES if "dev" in asked.stages else ():
            last = -1.0
            for settings in recipe.grid if recipe.name not in AS else ():
                for texts in TUNED:
                    if texts in asked.datasets:
                        yield "dev", texts, recipe, dict(settings), 0
                score = self.results.dev_score(recipe.name, settings)
                if recipe.trained and score is not None and score < last:
                    break  # a still higher learning rate will not do
                last = score or last
        for seed in range(asked.seeds if "test" in asked.stages else 0):
            for texts in SETS:
                for recipe in RECIPES:
                    fits = texts in (recipe.only or SETS) and texts in asked.datasets
                    if (
                        fits
                        and seed < recipe.at_most
                        and (seed == 0 or recipe.trained)
                        and (texts != "R8" or seed == 0)
                    ):
                        yield "test", texts, recipe, self.results.settings_of(recipe), seed
        for name, (texts, _) in FOREIGN.items() if "foreign" in asked.stages else ():
            for recipe in RECIPES:
                if recipe.name in FOREIGN_RECIPES and texts in asked.datasets:
                    yield "foreign", name, recipe, self.results.settings_of(recipe), 0

    def run(self) -> None:
        """Every job that was asked for and is not there."""
        begin = time.perf_counter()
        for stage, texts, recipe, settings, seed in self.jobs():
            key = job_key(stage, texts, recipe.name, settings, seed)
            wanted = self.options.only is None or recipe.name in self.options.only
            if not wanted or self.results.has(key):
                continue
            started = time.process_time()
            try:
                job = self.measure(key, self.workshop(stage, texts), recipe, settings, seed, stage)
            except ImportError as error:
                print(f"{key} is left out: {error}", flush=True)
                continue
            job["cpu_seconds"] = time.process_time() - started
            self.results.all["jobs"][key] = job
            self.results.save()
            best = {row: max(statistics.mean(s["draws"]) for s in own.values()) for row, own in job["rows"].items()}
            shown = ", ".join(f"{row} {100 * value:.2f}" for row, value in best.items())
            print(f"[{time.perf_counter() - begin:5.0f} s] {key}: {shown}", flush=True)

    def measure(
        self, key: str, shop: Workshop, recipe: Recipe, settings: dict[str, Any], seed: int, stage: str
    ) -> dict[str, Any]:
        """A job's figures; its answers go to the work folder."""
        rows = recipe.rows(shop, seed, **settings)
        spent = getattr(recipe, "spent", None)
        found: dict[str, Any] = {"rows": {}, "training_cpu_seconds": spent[-1] if spent else None}
        answers = {}
        for row, poolings in rows.items():
            for pooling, made in poolings.items():
                # The teacher is measured by both poolings, what is held against it by the one that was chosen.
                if (
                    stage != "dev"
                    and row != "teacher"
                    and len(poolings) > 1
                    and pooling != self.results.pooling_of(recipe, row)
                ):
                    continue
                shots, probe = made if isinstance(made, Answered) else shop.texts.hits(*made, probe=stage == "test")
                own = {"draws": [float(value) for value in shots.mean(1)]}
                answers[f"{row} | {pooling}"] = shots
                if probe is not None:
                    own["probe"] = float(probe.mean())
                    answers[f"{row} | {pooling} | probe"] = probe[None]
                found["rows"].setdefault(row, {})[pooling] = own
        if shop.bare is not None:
            found["tokens_without_senses"] = shop.bare
        if stage != "dev":
            temporary = self.results.file(key).with_suffix(".tmp.npz")
            np.savez_compressed(temporary, **answers)
            temporary.replace(self.results.file(key))
        return found


def main() -> None:
    """Runs what is missing, then writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled texts")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--stages", nargs="+", choices=STAGES, default=list(STAGES))
    parser.add_argument("--datasets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these recipes alone")
    parser.add_argument("--seeds", type=int, default=3, help="how many times what is trained is trained; once on R8")
    parser.add_argument("--steps", type=int, default=STEPS, help="of 32 texts, for students with layers")
    parser.add_argument("--epochs", type=float, default=EPOCHS, help="for students without")
    parser.add_argument("--rounds", type=int, default=9, help="of timing")
    parser.add_argument("--most", type=int, help="so many texts of each part at most, to try the script")
    parser.add_argument(
        "--work", type=Path, help="keeps states, dictionaries and answers; a temporary folder if not given"
    )
    parser.add_argument("--results", type=Path, default=HERE / "comparison.json")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "results.md")
    options = parser.parse_args()
    if unknown := set(options.only or ()) - {recipe.name for recipe in RECIPES}:
        names = ", ".join(recipe.name for recipe in RECIPES)
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are: {names}.")
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        options.work = options.work or Path(folder)
        comparison = Comparison(options)
        comparison.run()
        results = comparison.results
        if "serve" in options.stages:
            results.all["rounds"] = options.rounds
            for texts in FOUR:
                if texts in options.datasets:
                    rounds = options.rounds if texts in TUNED else 0  # of the others, sizes
                    figures = serve(comparison.workshop("test", texts), results, rounds)
                    results.all.setdefault("served", {})[texts] = figures
                    results.save()
        results.all["compared"] = compare_rows(results)
        results.all["chosen"] = {
            recipe.name: {
                "settings": results.settings_of(recipe),
                "poolings": {row: results.pooling_of(recipe, row) for row in recipe.row_names},
                "on": results.chosen_on(recipe),
            }
            for recipe in RECIPES
        }
        results.all["machine"] = machine()
        results.save()
    write_page(results.all, options.page)
    print(f"Wrote {options.page}.")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
