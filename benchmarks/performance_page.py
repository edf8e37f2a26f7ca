"""The page ``docs/performance.md`` from the figures of ``benchmarks/performance.py``: words stand here, numbers do not."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

HEAD = """# Performance

Measured on {cores} cores of an {processor} machine without a GPU, float32 unless said, torch {torch}. Ways that are compared took
turns in one process; a figure is the median of the rounds, with the lowest and the highest. Ratios carry over to other machines
better than times do. `make bench` runs everything below and writes this page. Its jobs may be run apart, with `--only`: they took
{minutes:.0f} minutes in all, and the figures of one job are of one process.

## What was aimed at, and what came out

| | aim | 1 thread | 2 threads |
| --- | --- | --- | --- |
"""

KERNELS = """## Choosing a sense, and the loss

Which kernels run is decided in one place, `hf_sense.fused`, by what was measured here. On a CPU with Numba installed
(`pip install "hf-sense[fast]"`) kernels compiled for the machine go through a batch in the order of its tokens: all
occurrences of a token meet its senses while these are in the cache, so that each row comes from memory once, as it is kept:
float32, bfloat16, float16 or int8. Four occurrences are multiplied by two senses at a time. Where Numba is not, on other
devices, and where senses are trained, PyTorch's sparse products run: they read a row once for each occurrence.

*The loop* is what one would write first: for each token a matrix product, an arg max and a copy; for the loss a cross-entropy.
*Reading once* is a sum over the batch's distinct sense rows laid side by side, which a choice has to read: the limit.

What made it fast: each token's rows are read straight through once, for their norms, before several of them are multiplied at a
time. Products that are the first to touch their rows wait for memory at several places at once. Bringing the next token's rows
ahead of time, huge pages under the table, and norms given instead of computed changed nothing beyond noise.

Where an aim is missed, and why. A choice reads a few rows here and a few there, and multiplies. *Reading once* goes straight
through memory; reading the same rows where they lie, and no more, takes longer (the row of the table above), because the
processor's prefetch starts anew at each token, and what is multiplied comes on top. At width 4,096 the loop is bound by memory
as everything else is, so that it cannot be beaten tenfold: one read of the distinct rows is already a large part of a tenth of
its time, and writing the replaced states into new memory, whose pages the system hands out one by one, takes longer than
choosing them.
"""

TARGETS = """## Targets

A target is stored as its place among its token's senses: one byte, and eight for where a text's list begins. The trainer reads
them with the token ids and decodes a batch in one operation.
"""

FOLDING = """## Folding for inference

`model.fold()` scores in the student's own width and, with a linear head, keeps for each sense what it adds to each class:
[models](reference-models.md). The answers are those of the model before, rounding aside.
"""

SMALL = """## Small dictionaries

float16, bfloat16 and int8 with a scale a row are used as they lie. Accuracy in percent; time over that of float32, of a
replacement alone, with the dictionary outside the model and among its weights.
"""

SERVING = """## Serving

Texts a second with tokenizing, accuracy of a logistic regression on all training texts and of one on 8 labelled texts a class,
megabytes on disk, and memory of a process that opens the model and answers 64 texts. With labels for all texts, static vectors
(model2vec) and TF-IDF are level with the students on these short questions, and far faster; with few labels the students are
ahead. Folding is refused where it would make the model larger, as it is with 77 classes.

![Accuracy against texts a second](images/serving.svg)
"""

CLUSTERING = """## Clustering

k-means of every token's occurrences, 20 senses, beside scikit-learn called for one token after the other with the same settings.
Batches of tokens of like size run one a thread; the senses are the same numbers on two threads as on one. Cost grows as the
occurrences do, and less than as the senses do: products of all pairs of a token's occurrences do not depend on their number.
Building is the teacher, of which the run printed below has the seconds, with those of all else.

![Seconds against occurrences and against senses](images/clustering.svg)
"""

PROFILES = """## What dominates

The backbone's matrix products, in every stage but clustering: choosing senses is a few percent of a forward pass of two layers,
and its loss less of a step. Tokenizing is the largest part of what is not PyTorch. Counts that no machine changes (kernels
launched, bytes of new tensors, Python functions entered) are held by `tests/test_guard.py`, so that a slow way cannot come back
unseen.
"""


def figure(value: Any, percent: bool = False) -> str:
    """A median with its range."""
    if value is None:
        return "-"
    if isinstance(value, (int, float)):
        return f"{value:.3g}"
    factor, unit = (100, " %") if percent else (1, "")
    low, middle, high = (factor * value[name] for name in ("low", "median", "high"))
    return f"{middle:.3g}{unit} ({low:.3g} to {high:.3g})"


def aims(results: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    """The rows of the first table: what, aim, and the figure on one thread and on two."""
    kernels = results["kernels"]["figures"]["threads"]

    def kernel(what: str, *path: str) -> tuple[str, str]:
        found = []
        for threads in ("1", "2"):
            value: Any = kernels[threads][what]
            for name in path:
                value = value[name]
            found.append(figure(value, "over continuous" in path[-1]))
        return found[0], found[1]

    def pair(job: str, *path: str, percent: bool = False) -> tuple[str, str]:
        found = []
        for threads in ("1 thread", "2 threads"):
            value: Any = results[f"{job}, {threads}"]["figures"]
            for name in path:
                value = value[name]
            found.append(figure(value, percent))
        return found[0], found[1]

    choice, loop = "loop over replaced", "loop over the loss"
    clustering = results["clustering"]["figures"]
    faster, inertia = clustering["compared"]["faster"], clustering["compared"]["inertia"]
    small = [results[f"small dictionaries, {name}"]["figures"]["figures"] for name in ("banking77", "emotion")]
    lost = max(
        one["float32"][key] - one["int8"][key]
        for one in small
        for key in one["int8"]
        if "," in key and "time" not in key
    )
    bytes_a_target = results["targets, 1 thread"]["figures"]["bytes_a_target"]
    rows = [
        ("choice and replacement, times the loop's speed", "at least 10", *kernel("choice", "ratios", choice)),
        ("choice over reading the rows once", "at most 2.5", *kernel("choice", "ratios", "chosen over reading once")),
        ("the first, the cache emptied before each", "", *kernel("choice", "ratios", f"{choice}, cache emptied")),
        ("the second, likewise", "", *kernel("choice", "ratios", "chosen over reading once, cache emptied")),
        ("reading the rows where they lie over reading once, likewise", "",
         *kernel("choice", "ratios", "reading in place over reading once, cache emptied")),
        ("bfloat16 over float32", "at most 1.5", *kernel("choice", "ratios", "chosen, bfloat16, over float32")),
        ("the same at width 4,096: times the loop's speed", "at least 10", *kernel("choice, wide", "ratios", choice)),
        ("over reading once", "at most 2.5", *kernel("choice, wide", "ratios", "chosen over reading once")),
        ("bfloat16 over float32", "at most 1.5", *kernel("choice, wide", "ratios", "chosen, bfloat16, over float32")),
        ("memory added, MB", "the batch's rows", *kernel("choice, wide", "added_mb")),
        ("replacement over a student's own forward pass", "at most 4 %",
         *kernel("forward", "ratios", "replacement alone over continuous")),
        ("loss, forward and backward, times the loop's speed", "at least 15", *kernel("loss", "ratios", loop)),
        ("step on senses over one on squared error", "at most 1.10",
         *kernel("training_step", "ratios", "senses over squared error")),
        ("computing targets over the teacher alone", "at most 1.05",
         *pair("targets", "ratios", "targets over the teacher alone")),
        ("bytes a target on disk", "at most 2", figure(bytes_a_target), ""),
        ("reading targets over training on them", "at most 1 %",
         *pair("targets", "ratios", "reading over training", percent=True)),
        ("int8: accuracy lost at most, in points", "at most 0.5", figure(lost), ""),
        ("clustering, times scikit-learn's speed on one thread", "at least 1 and 1.7",
         figure(faster["ours on one thread, times scikit-learn on one"]),
         figure(faster["ours on two, times scikit-learn on one"])),
        ("clustering, two threads times one", "", "", figure(faster["ours on two, times ours on one"])),
        ("clustering: inertia over scikit-learn's", "at most 1.02", figure(inertia["ours, 1"] / inertia["theirs, 1"]), ""),
    ]  # fmt: skip
    return rows


def section(text: str, runs: list[dict[str, Any]], open_blocks: bool) -> str:
    """The words, then each command with what it printed: as text that folds away, or as it is where it holds tables."""
    parts = [text]
    for run in runs:
        parts.append(f"```\n{run['command']}\n```\n")
        if open_blocks:
            parts.append(run["printed"] + "\n")
        else:
            parts.append(
                f"<details><summary>What it printed</summary>\n<pre>\n{html.escape(run['printed'])}\n</pre>\n</details>\n"
            )
    return "\n".join(parts)


def write_page(results: dict[str, Any], path: Path) -> None:
    """Writes the page, whole or not at all.

    Args:
        results: by name of the job: ``command``, ``seconds``, ``printed`` and ``figures``.
        path: of the page.
    """
    machine = results["kernels"]["figures"]["machine"]
    minutes = sum(run["seconds"] for run in results.values()) / 60
    page = HEAD.format(**machine, minutes=minutes)
    page += "".join(f"| {' | '.join(row)} |\n" for row in aims(results)) + "\n"
    for text, names, tables in (
        (KERNELS, ["kernels"], False),
        (TARGETS, ["targets, 1 thread", "targets, 2 threads"], False),
        (FOLDING, ["folding, 1 thread", "folding, 2 threads"], False),
        (SMALL, ["small dictionaries, banking77", "small dictionaries, emotion"], True),
        (SERVING, ["serving"], True),
        (CLUSTERING, ["clustering"], False),
        (PROFILES, ["profiles"], False),
    ):
        page += section(text, [results[name] for name in names], tables) + "\n"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(page.rstrip() + "\n", encoding="utf-8")
    temporary.replace(path)
