"""What ``docs/recipes.md`` says around its tables. Figures come from the results."""

from __future__ import annotations

from typing import Any

from defaults_page import student_table, teacher_table

HEAD = """# Recipes

Which settings for which text, and what the library's defaults rest on.

```
OMP_NUM_THREADS=1 python benchmarks/defaults.py --data FOLDER
```

runs what is below and writes this page.
"""


def page(results: dict[str, Any]) -> str:
    """The page's text."""
    names = list(dict.fromkeys(key.split(" | ")[2] for key in results["jobs"]))
    parts = [HEAD]
    for name in names:
        parts.append(
            student_table(results, name)
            if name.startswith(("learning", "max_steps", "temp"))
            else teacher_table(results, name)
        )
    return "\n".join(parts)
