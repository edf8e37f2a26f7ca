"""One setting after the other, all else as the defaults are: what the library's defaults rest on. Writes ``docs/recipes.md``.

    OMP_NUM_THREADS=1 python benchmarks/defaults.py --data FOLDER

Everything is measured on a fifth of the train texts that dictionary and student have not seen, so that nothing here is chosen
by test texts. The page's words are in ``defaults_page.py``; jobs are kept as in ``compare.py``, whose work folder serves too.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from compare import Comparison
from compared_students import SENSES, SQUARED_ERROR, Student
from compared_ways import EPOCHS, HARD, OURS, SOFT, STEPS, InTeacher, Recipe
from defaults_page import write_page
from measure import machine
from transformers.utils import logging

HERE = Path(__file__).resolve().parent
IN_TEACHER = ("Banking77", "emotion", "SST-2", "R8")
STUDENTS = ("Banking77", "emotion")
DEFAULT = "default"


def _dictionaries(**settings: dict[str, Any]) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    return {name: (OURS | options, HARD) for name, options in settings.items()}


def in_teacher() -> tuple[InTeacher, ...]:
    """A recipe for each setting of the dictionary and of the choice; its rows are the values that are tried."""
    kinds = {
        "metric": {name: (OURS, HARD | {"metric": name}) for name in ("l2", "cosine", "dot")},
        "method": _dictionaries(
            kmeans={},
            spherical_kmeans={"method": "spherical_kmeans", "metric": "cosine"},
            markov={"method": "markov", "max_senses": 1000},
            paper={"method": "paper"},
        ),
        "max_senses": _dictionaries(**{str(k): {"max_senses": k} for k in (1, 5, 20, 50, "n/10,100")}),
        "special_tokens": _dictionaries(replaced={}, **{"as they are": {"special_tokens": False}}),
        "max_occurrences": _dictionaries(**{str(n): {"max_occurrences": n} for n in (100, 1000)}),
        "selection": {"hard": (OURS, HARD)}
        | {f"soft, temperature x {x:g}": (OURS, SOFT | {"temperature_times": x}) for x in (0.5, 1, 2)},
    }  # fmt: skip
    return (
        InTeacher("the teacher's own states", senses={"continuous": None}),
        *(InTeacher(name, senses=rows) for name, rows in kinds.items()),
    )


def students() -> tuple[Student, ...]:
    """A recipe for each setting of a distillation; its grid holds the values that are tried."""
    usual = {"learning_rate": 1e-3}
    tried: dict[str, list[dict[str, Any]]] = {
        "learning_rate": [{"learning_rate": rate} for rate in (5e-5, 2.5e-4, 5e-4, 1e-3, 2e-3)],
        "max_steps": [usual | {"max_steps": steps} for steps in (150, 300, 1200)],
        "temperature": [usual | {"temperature_times": times} for times in (0.25, 0.5, 2, 4)],
    }
    own: dict[str, Any] = {"shape": {"num_hidden_layers": 1}}
    rates = tuple({"learning_rate": rate} for rate in (5e-5, 5e-4, 1e-3, 2e-3, 4e-3))
    return (
        *(
            Student(name, grid=tuple(grid), losses=SENSES, selections={"hard": "hard", "soft": "soft"}, **own)
            for name, grid in tried.items()
        ),
        Student(
            "learning_rate, squared error", grid=rates, losses=SQUARED_ERROR, selections={"continuous": "none"}, **own
        ),
    )


class Defaults(Comparison):
    """The same jobs, of other recipes, on the development split alone."""

    draws = 5  # the same for all that is compared

    def jobs(self) -> Iterator[tuple[str, str, Recipe, dict[str, Any], int]]:
        for names, recipes in ((IN_TEACHER, in_teacher()), (STUDENTS, students())):
            for texts in names:
                for recipe in recipes if texts in self.options.datasets else ():
                    for settings in recipe.grid:
                        yield "dev", texts, recipe, dict(settings), 0


def main() -> None:
    """Runs what is missing, then writes the page."""
    names = [recipe.name for recipe in (*in_teacher(), *students())]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled texts")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--datasets", nargs="+", choices=IN_TEACHER, default=list(IN_TEACHER))
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help="these settings alone")
    parser.add_argument("--steps", type=int, default=STEPS, help="of 32 texts, where they are not what is tried")
    parser.add_argument("--most", type=int, help="so many texts of each part at most, to try the script")
    parser.add_argument("--work", type=Path, help="keeps states and dictionaries; a temporary folder if not given")
    parser.add_argument("--results", type=Path, default=HERE / "defaults.json")
    parser.add_argument("--compared", type=Path, default=HERE / "comparison.json", help="results of compare.py")
    parser.add_argument("--page", type=Path, default=HERE.parent / "docs" / "recipes.md")
    options = parser.parse_args()
    options.epochs = EPOCHS
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        options.work = options.work or Path(folder)
        run = Defaults(options)
        run.run()
    run.results.all["machine"] = machine()
    run.results.save()
    compared = json.loads(options.compared.read_text(encoding="utf-8"))
    write_page(compared, run.results.all, options.page)
    print(f"Wrote {options.page}.")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
