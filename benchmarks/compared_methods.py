"""What ``compare.py`` sets side by side: the recipes, with the settings that are tried for each. They are made elsewhere."""

from __future__ import annotations

from typing import Any

from compared_logits import LogitStudent
from compared_students import BOTH, COSINE, SENSES, SOFT_TARGETS, SQUARED_ERROR, ContextTable, Student
from compared_ways import (
    BUDGET,
    CODES,
    FEWER,
    HARD,
    OURS,
    PAPER,
    SOFT,
    TWICE,
    InTeacher,
    Model2Vec,
    Recipe,
    TableOfMeans,
    TfIdf,
)


def _one_layer() -> tuple[Student, ...]:
    rates = tuple({"learning_rate": rate} for rate in (1e-3, 2e-3, 4e-3))  # as long as the next is better
    own: dict[str, Any] = {"grid": rates, "shape": {"num_hidden_layers": 1}}
    once = own | {"at_most": 1}
    return (
        Student("1 layer, senses", losses=SENSES,
                selections={"1 layer, senses, hard": "hard", "1 layer, senses, soft": "soft"}, **own),
        Student("1 layer, senses and squared error", losses=BOTH,
                selections={"1 layer, senses and squared error": "none",
                            "1 layer, senses and squared error, soft": "soft"}, **once),
        Student("1 layer, squared error", losses=SQUARED_ERROR,
                selections={"1 layer, squared error": "none", "1 layer, squared error, its senses": "soft"}, **own),
        Student("1 layer, cosine", losses=COSINE, selections={"1 layer, cosine": "none"}, **own),
        Student("1 layer, soft targets", losses=SOFT_TARGETS, selections={"1 layer, soft targets": "soft"}, **once),
        Student("1 layer, paper's recipe", losses=SENSES, senses=PAPER,
                selections={"1 layer, paper's recipe": "hard"}, **once),
    )  # fmt: skip


def _small(kind: type[Student], name: str, size: int, named: str | None = None, **more: Any) -> Student:
    return kind(
        named or f"{name}, {size}", shape={"backbone": name.split()[0], "hidden_size": size},
        grid=tuple({"learning_rate": rate} for rate in (2.5e-3, 5e-3, 1e-2)), **more,
    )  # fmt: skip


RECIPES: tuple[Recipe, ...] = (
    InTeacher("teacher", senses={"teacher": None}),
    InTeacher(
        "senses in the teacher",
        senses={
            "teacher, 20 senses, hard": (OURS, HARD),
            "teacher, 20 senses, soft": (OURS, SOFT),
        },
    ),
    InTeacher("paper's recipe in the teacher", senses={"teacher, paper's recipe": (PAPER, HARD)}),
    InTeacher(
        "fewer senses in the teacher",
        senses={f"teacher, {k} senses, hard": ({"max_senses": k, "metric": "l2"}, HARD) for k in FEWER},
    ),
    InTeacher("3 MB of senses in the teacher", senses={"teacher, 3 MB of senses, hard, int8": (BUDGET, HARD)}),
    InTeacher(
        "codes in the teacher",
        senses={f"teacher, {name}, int8": (options, HARD) for name, options in CODES.items()},
    ),
    InTeacher(
        "codes in the teacher, seen twice",
        senses={f"teacher, {name}, int8": (options, HARD) for name, options in TWICE.items()},
    ),
    TableOfMeans("table of means"),
    Model2Vec(
        "model2vec",
        grid=tuple({"pca_dims": d, "sif_coefficient": a} for d in (256, 384) for a in (1e-4, 1e-3)),
    ),
    TfIdf("TF-IDF", grid=({"sublinear_tf": True}, {"sublinear_tf": True, "ngram_range": (1, 2), "max_features": 4000})),
    *(_small(ContextTable, "context table", size) for size in (32, 64, 128)),
    _small(ContextTable, "context table", 64, named="context table, 64, seen twice", senses=OURS | {"min_count": 2}),
    _small(Student, "selector", 64, selections={"selector, 64": "soft"}),
    _small(Student, "selector", 64, named="selector, codes, 64", senses=CODES["means + 2 x 256 codes"],
           selections={"selector, codes, 64": "soft"}),
    *_one_layer(),
    LogitStudent(
        "1 layer, logits",
        grid=tuple({"learning_rate": rate} for rate in (1e-3, 2e-3, 4e-3)),
        only=("Banking77", "emotion", "SST-2", "CoLA"),
        at_most=1,
    ),
)  # fmt: skip
# Whose settings a recipe takes that is not tuned itself.
AS = {
    "codes in the teacher": "senses in the teacher",
    "codes in the teacher, seen twice": "senses in the teacher",
    "fewer senses in the teacher": "senses in the teacher",
    "context table, 32": "context table, 64",
    "context table, 64, seen twice": "context table, 64",
    "context table, 128": "context table, 64",
}
# Whose pooling a row takes.
ROW_AS = dict.fromkeys(
    [f"teacher, {k} senses, hard" for k in FEWER] + [f"teacher, {name}, int8" for name in (*CODES, *TWICE)],
    "teacher, 20 senses, hard",
)
