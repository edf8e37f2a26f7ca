"""The README that is saved with a dictionary or a model. It formats what it is given and measures nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from hf_sense.storage import write_text

_MARK = "library_name: hf_sense"


def write_card(folder: Path, card: str) -> None:
    """Writes ``card`` as the folder's README.md, unless a README stands there that hf_sense did not write."""
    path = folder / "README.md"
    if path.is_file() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    write_text(path, card)


def dictionary_card(name: str, metadata: dict[str, Any], summary: dict[str, Any]) -> str:
    """The card of a sense dictionary.

    Args:
        name: the folder's or repository's name, used in the lines that load it.
        metadata: the JSON of the dictionary: teacher, clustering, sampling, corpus.
        summary: numbers from ``SenseDictionary.summary``.
    """
    loading = f'from hf_sense import SenseDictionary\n\ndictionary = SenseDictionary.from_pretrained("{name}")'
    sections = [
        _front_matter(metadata.get("teacher"), ["sense-dictionary"]),
        f"# {name}\n\nA sense dictionary: for each vocabulary token a few vectors, one for each meaning that the teacher "
        "gives it, found by clustering the token's contextual embeddings over a corpus.",
        f"```python\n{loading}\n```",
        _table("Statistics", summary),
    ]
    sections += [_table(key.capitalize(), metadata.get(key)) for key in ("teacher", "clustering", "sampling", "corpus")]
    sections.append(
        "## Limits\n\nSenses are those of the corpus it was built on: a token that is absent there has none and keeps its "
        "contextual embedding, and text of another kind is replaced less well."
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def model_card(name: str, class_name: str, teacher: dict[str, Any] | None, facts: dict[str, Any]) -> str:
    """The card of a student.

    Args:
        name: the folder's or repository's name.
        class_name: the Auto class that loads it.
        teacher: the teacher as the dictionary describes it, if known.
        facts: numbers about the model, one row each.
    """
    loading = (
        f"import hf_sense  # registers the model type\nfrom transformers import {class_name}\n\n"
        f'model = {class_name}.from_pretrained("{name}")'
    )
    sections = [
        _front_matter(teacher, ["sense-distillation", "feature-extraction"]),
        f"# {name}\n\nA student distilled to choose, for each token, the sense that its teacher would choose.",
        f"```python\n{loading}\n```",
        _table("Model", facts),
        _table("Teacher", teacher),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _front_matter(teacher: dict[str, Any] | None, tags: list[str]) -> str:
    base = (teacher or {}).get("name")
    # A path on somebody's disk is no model that a reader can find.
    base = base if isinstance(base, str) and base.count("/") <= 1 and not base.startswith(("/", ".")) else None
    data = ModelCardData(library_name="hf_sense", tags=["hf_sense", *tags], base_model=base)
    return f"---\n{data.to_yaml()}\n---"


def _table(title: str, rows: dict[str, Any] | None) -> str:
    if not rows:
        return ""
    lines = [f"| {key.replace('_', ' ')} | {_cell(value)} |" for key, value in rows.items() if value is not None]
    return "\n".join([f"## {title}", "", "| | |", "| --- | --- |", *lines])


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|").replace("\n", " ")
