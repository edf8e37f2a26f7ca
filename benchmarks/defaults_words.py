"""What ``docs/recipes.md`` says around its tables. Figures come from the results."""

from __future__ import annotations

from typing import Any

from defaults_page import dev_table, rate_table, student_table, teacher_table

HEAD = """# Recipes

Which settings for which text, and what the library's defaults rest on. Everything here was measured on a fifth of the train texts
that dictionaries and students had not seen; what was then chosen is measured on test texts in [Results](results.md).
Teacher: all-MiniLM-L6-v2, texts cut at 64 tokens; few-shot accuracy in percent, the mean over draws of labelled texts.

| you want | take |
| --- | --- |
| the teacher's vectors, made of senses that can be looked at | the defaults; for short texts `pooling="frequency"` |
| a smaller dictionary | `--max-senses n/10,100`, or [codes](howto-codes.md), or a [budget](howto-settings.md#a-budget) |
| what the paper does | `--recipe paper`; for the student `pooling="mean"`, `selection="hard"` |
| clusters that are words' meanings | `--recipe words` ([why](measurements.md#do-senses-match-meanings-coarsewsd-20-ten-words)) |
| as small as keeps the accuracy | `--max-senses 1 --codes 256 --code-levels 2 --min-count 2 --dtype int8` |
| a small, fast student for texts like its own | `build --min-count 2`, `distill --backbone context --learning-rate 5e-3` |
| a student made of senses | `hf-sense distill --num-hidden-layers 1 --learning-rate 4e-3 --selection soft` |

A recipe names metric and method together; `--metric`, `--method` or the keywords of `build_dictionary` beside it go before it.

```
hf-sense build --recipe paper --teacher sentence-transformers/all-MiniLM-L6-v2 --dataset train.jsonl --output DIR
```
"""

SENSES = """## Senses in the teacher, and pooling

```
OMP_NUM_THREADS=1 python benchmarks/compare.py --data FOLDER --stages dev
```

Mean pooling / frequency pooling.

"""

SENSES_SAY = """
- **Metric and method.** The paper's (`dot`, counts by Markov clustering) is far behind `l2` and k-means on both sets, with either
  pooling: `l2` and `kmeans` stay the defaults.
- **Pooling.** Frequency pooling lifts twenty senses a token on both sets of short texts. It takes from tables of few senses, from
  `n/10,100` and from the teacher's own states on Banking77, and loses on the long stories of
  [another page](howto-settings.md). So the library's default stays `mean`; on short texts try `frequency`, and measure.
- **Selection.** Soft and hard are within a few tenths: `hard` stays, as the one whose answer is a sense.
- **Number.** Two or five senses a token are too few on Banking77. One per ten occurrences, at most 100 (`n/10,100`), is ahead of
  20 by mean pooling on three held-out sets (the tables below), level by frequency pooling, and behind by that on the test texts
  of three sets of five. It is the better number where vectors are averaged, and smaller; none is best for both poolings, and 20,
  which frequency pooling needs, stays the default.
- **Special tokens.** Left as they are they gain a point and a half on Banking77 by mean pooling, and nothing elsewhere.
"""

RATES = """## Learning rates

```
OMP_NUM_THREADS=1 python benchmarks/compare.py --data FOLDER --stages dev
```

The best of a student's rows and poolings. The field's default, 5e-5, is that of Transformers and of fine-tuning whole models; all
students here were trained at twenty times that and more.

"""

RATES_SAY = """
Between the lowest and the highest of these little changes; take 1e-3 for layers of the teacher and 5e-3 for students without. A
wide decoder wants less: its student was trained at 5e-4 ([Measurements](measurements.md)). No one rate fits all, so that the
field's default was left alone: give one.
"""

FACTORS = """## One setting after the other

```
OMP_NUM_THREADS=1 python benchmarks/defaults.py --data FOLDER
```

All else as the defaults are; one clustering each, so that a few tenths say nothing.
Mean pooling / frequency pooling. Bold: what stands in the library.

"""


def page(compared: dict[str, Any], results: dict[str, Any]) -> str:
    """The page's text."""
    parts = [HEAD, SENSES + dev_table(compared), SENSES_SAY, RATES + rate_table(compared), RATES_SAY]
    names = list(dict.fromkeys(key.split(" | ")[2] for key in results["jobs"]))
    parts += [FACTORS] if names else []
    for name in names:
        of_students = name.startswith(("learning_rate", "max_steps", "temperature"))
        parts.append(student_table(results, name) if of_students else teacher_table(results, name))
    return "\n".join(parts)
