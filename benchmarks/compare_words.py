"""What ``docs/results.md`` says around its tables: protocol, aims, what the figures say. Numbers come from the results."""

from __future__ import annotations

from collections.abc import Iterable

from compare_page import (
    GROUPS,
    TEACHER,
    Figures,
    accuracy_table,
    chosen_table,
    foreign_table,
    pair_table,
    pooling_table,
    serving_table,
    shown,
    table,
)

HEAD = """# Results

Everything that senses have to be better than, on five data sets, losses included.

```
OMP_NUM_THREADS=1 python benchmarks/compare.py --data FOLDER
```

runs it all, keeps each job as it ends, and writes this page; `--only`, `--datasets`, `--seeds` and `--stages` run parts again.

**Texts.** Banking77 (77 intents), TweetEval's emotion (4), SST-2 (2), CoLA (2; its test labels are not public, so its validation
texts are the test) and Reuters R8 (8), cut at 64 tokens. *Mean of four* is that of the first four. Teacher:
all-MiniLM-L6-v2. Dictionaries and students see the train texts without labels; no text of a test part is seen before it is
classified. Students of layers: {steps} steps of 32 texts, embeddings frozen; those without: {epochs:g} epochs.

**Accuracy.** Few-shot: MTEB's protocol, logistic regression on 8 labelled texts a class (Banking77) or 16 (the others), the
same ten draws for all, mean over draws and seeds. *All labels*: one regression on all train texts. Dictionaries are built once.

**What was chosen, and how.** A fifth of the train texts of Banking77 and of emotion was held out and chose learning rate,
settings and pooling, the same for all data sets: few-shot accuracy there decides;
smaller dictionaries take the pooling of twenty senses. Learning rates were doubled as long as that helped,
baselines' as ours. No choice saw a test text. The last section has what was chosen, and on which held-out texts.

*Teacher*, where it is compared with, is the better of its two poolings on the test texts, which favours it.
"""

AIMS = """## What was aimed at, and what came out

"""

SAYS = """## What the figures say

- **Senses in the teacher's place.** Twenty a token cost about a point of few-shot accuracy where classes are many, and
  nothing on emotion. One mean a token with codes that all tokens share is as good on Banking77, better on the mean of four,
  and there level with the teacher; leaving out the tokens that the texts hold but once makes it a quarter smaller on
  Banking77 and no worse than chance allows. The paper's recipe, `dot` with mean pooling, is far behind. Soft or hard makes no
  difference that chance could not.
- **One layer.** With few labels the student that learns senses, read softly, is level with those that learn the squared error
  or the cosine on the mean of four: ahead on emotion, behind on SST-2, and on R8 ahead again. Soft is a little better than hard.
  Soft targets, or the squared error beside the senses, add nothing. The paper's recipe is two and a half points behind. With all
  train texts labelled senses **lose** to both by about a point.
- **Logits** of a classifier of few labels are as good a target as senses on the mean of four. With all train texts labelled
  they **win** by far, and pass the teacher on emotion and SST-2: layers learn the task then, which no frozen vector does. That
  student is a classifier and no vector: a new task, or a new draw of labels, is a new training.
- **Without a transformer** the context table wins its group with few labels, far ahead of model2vec and of counted words, and
  is level with its teacher, and with the students of one layer, on the mean of four. Without the tokens that are seen once,
  and as int8, it is best and smallest. Choosing among senses, the selector's way, does not beat it, but with codes and all
  labels.
- **Ten points on model2vec** are not to be had by a copy of this teacher, which is itself eight and a half ahead of it. Centring
  or whitening the vectors was tried on held-out texts, and helps neither.
- **Nobody** tells CoLA's classes from few labels: all rows are at chance there, the teacher too, so that no difference on the
  mean of four can be large.
- **Out of domain** senses in the teacher keep most: on R8 two points behind its own, on emotion, of whose tokens Banking77
  lacks a third, six. Students without a transformer fall to the table of means or below it: what they learned of contexts does
  not carry over. [Other domains](domains.md) says why, and what wins it back.
- **Where we lose**: with all train texts labelled logits are ahead of every vector, model2vec is level on Banking77 and CoLA at a
  fraction of the work, and senses in the teacher stay behind the teacher.

{missing}
"""

ACCURACY = """## Accuracy, few labels

Bold: the best of its group. Rows of one group cost about the same to run.

"""

PROBE = """## Accuracy, all labels

"""

PAIRS = """## Differences, with what chance allows

Points of few-shot accuracy, first less second, on the same texts and draws. In brackets the 95 % interval of 2,000 resamples over
test texts and draws at once, seeds averaged. Bold where it leaves out 0: there the first wins, or **loses**.

"""

PAIRS_PROBE = """The same with all labels; resampled over test texts.

"""

SERVING = """## Megabytes and speed

What has to be kept: all weights, as saved (float32 unless said) and in float16. *Of it, senses*: the dictionary alone in float16,
or int8 where it says so. Layers whose own states are used keep no senses.

![Accuracy against megabytes](images/comparison-size.svg)

"""

SPEED = """Speed: 256 texts by 64, from text to vector, tokenizing included, one thread, over the teacher's in the same round;
the median of {rounds}, with the lowest and the highest. Nothing else ran.

![Accuracy against speed](images/comparison-speed.svg)

"""

FOREIGN = """## Out of domain

Dictionary, students and the frequencies of pooling from other data sets' train texts; labels and test texts are the set's own.
*Own*: the same with its own train texts. *Gap*: how far behind the teacher.

"""

CHOSEN = """## What was chosen

"""


def aims(figures: Figures) -> str:
    """Each aim, what is nearest to it, and its figures."""
    rows: list[list[str]] = []

    def best(names: Iterable[str]) -> str | None:
        known = [name for name in names if figures.known(name) and figures.of_four(name) is not None]
        return max(known, key=lambda name: figures.of_four(name) or 0.0, default=None)

    def add(aim: str, wanted: str, row: str | None, figure: str) -> None:
        rows.append([aim, wanted, row or "none measured", figure])

    def kept(row: str | None) -> str:
        return "" if row is None else f"{shown(figures.kept(row), 1)} %"

    in_place = [name for name in GROUPS["The teacher runs"] if figures.known(name)]
    size = {name: figures.size_of_four(name, "dictionary, MB float16") for name in in_place}
    small = best(name for name in in_place if (size[name] or 99) <= 3)
    add("teacher replaced, senses of at most 3 MB: share of the teacher", "99 %", small, kept(small))
    row = best(in_place)
    if row:
        add("the same, of any size", "", row, f"{kept(row)}, {shown(size[row], 1)} MB")
    layer = [name for name in GROUPS["One layer of it"] if figures.known(name)]
    senses = best(name for name in layer if "senses" in name or "targets" in name)
    add("student of one layer: share of the teacher", "98.5 %", senses, kept(senses))
    for rival in ("1 layer, squared error", "1 layer, cosine"):
        if senses and figures.known(rival) and figures.of_four(rival) is not None:
            difference = (figures.of_four(senses) or 0) - (figures.of_four(rival) or 0)
            add(
                f"the same, less {rival.removeprefix('1 layer, ')}, in points",
                "0 or more",
                senses,
                f"{difference:+.2f}",
            )
    bare = best(name for name in GROUPS["No transformer"] if name.startswith(("context", "selector", "codes")))
    if bare:
        rival = figures.of_four("model2vec") if figures.known("model2vec") else None
        difference = None if rival is None else (figures.of_four(bare) or 0) - rival
        add(
            "student without a transformer, less model2vec, in points",
            "10",
            bare,
            "" if difference is None else f"{difference:+.2f}",
        )
        add("the same: share of the teacher", "97 %", bare, kept(bare))
        times = [figures.served(bare, "times", texts) for texts in ("Banking77", "emotion")]
        speeds = [f"{one['median']:.3g}" for one in times if one]
        add("the same: times the teacher's speed, Banking77 and emotion", "50", bare, ", ".join(speeds))
        add("the same: MB, float16, mean of four", "4", bare, shown(figures.size_of_four(bare, "MB float16"), 1))
    return AIMS + table(["", "aim", "nearest to it", "figure"], rows)


def missing(figures: Figures) -> str:
    """What the command would still run, in words; nothing if that is all."""
    rows = [
        recipe for recipe, one in figures.results["chosen"].items() if not any(map(figures.measured, one["poolings"]))
    ]
    stages = [
        name
        for name, there in (
            ("R8", figures.score(TEACHER, "R8") is not None),
            ("out of domain", any(key.startswith("foreign") for key in figures.results["jobs"])),
            ("megabytes", bool(figures.results.get("served"))),
            ("speed", figures.served(TEACHER, "times") is not None),
        )
        if not there
    ]
    names = [*stages, *rows]
    return f"Not measured yet, by the command above: {', '.join(names)}." if names else ""


def page(figures: Figures) -> str:
    """The page's text."""
    parts = [HEAD.format(**figures.results["lengths"]), aims(figures), SAYS.format(missing=missing(figures))]
    parts += [ACCURACY + accuracy_table(figures, "draws")]
    parts += [PROBE + accuracy_table(figures, "probe")]
    parts += [PAIRS + pair_table(figures.results, "draws"), PAIRS_PROBE + pair_table(figures.results, "probe")]
    if figures.results.get("served"):
        timed = figures.served(TEACHER, "times") is not None
        speed = SPEED.format(rounds=figures.results["rounds"]) if timed else ""
        parts += [SERVING + speed + serving_table(figures)]
    if any(key.startswith("foreign") for key in figures.results["jobs"]):
        parts += [FOREIGN + foreign_table(figures)]
    parts += [CHOSEN + chosen_table(figures), pooling_table(figures)]
    return "\n".join(parts)
