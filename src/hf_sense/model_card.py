"""The README that goes with a dictionary or a model. It formats what it is given and measures nothing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any, NamedTuple, TypeGuard

from huggingface_hub import EvalResult, ModelCardData

from hf_sense.files import write_text

_MARK = "library_name: hf_sense"
# What the Hub calls what a model's Auto class is for.
_TASKS = {"SequenceClassification": "text-classification", "TokenClassification": "token-classification"}


class Provenance(NamedTuple):
    """What a card says beyond what the files hold; all of it may be unknown.

    Attributes:
        license: its SPDX name, in the manner of the Hub, such as ``"apache-2.0"``.
        datasets: ids on the Hub of the texts.
        language: ISO 639 codes.
        metrics: figures by name, such as ``{"agreement": 0.53}``, fractions of one.
        measured_on: the texts that gave the metrics.
    """

    license: str | None = None
    datasets: Sequence[str] = ()
    language: Sequence[str] = ()
    metrics: dict[str, float] | None = None
    measured_on: str = "texts that are not named here"


def write_card(folder: Path, card: str) -> None:
    """Writes ``card`` as the folder's README.md, unless a README stands there that hf_sense did not write."""
    path = folder / "README.md"
    if path.is_file() and _MARK not in path.read_text(encoding="utf-8", errors="replace"):
        return
    write_text(path, card)


def dictionary_card(
    name: str,
    metadata: dict[str, Any],
    summary: dict[str, Any],
    provenance: Provenance = Provenance(),  # noqa: B008 (a tuple)
    picture: str | None = None,
) -> str:
    """The card of a sense dictionary.

    Args:
        name: the folder's or repository's name, used in the lines that load it.
        metadata: the JSON of the dictionary: teacher, clustering, sampling, corpus.
        summary: numbers from ``SenseDictionary.summary``.
        provenance: what is known beside these.
        picture: the file, beside the card, that shows how many senses tokens have.
    """
    loading = f'from hf_sense import SenseDictionary\n\ndictionary = SenseDictionary.from_pretrained("{name}")'
    corpus = (metadata.get("corpus") or {}).get("name")
    if not provenance.datasets and _on_the_hub(corpus, namespaced=True):
        provenance = provenance._replace(datasets=[corpus])
    sections = [
        _front_matter(name, metadata.get("teacher"), ["sense-dictionary"], provenance),
        f"# {name}\n\nA sense dictionary: for each vocabulary token a few vectors, one for each meaning that the teacher "
        "gives it, found by clustering the token's contextual embeddings over a corpus.",
        f"```python\n{loading}\n```",
        _table("Statistics", summary),
        f"![How many tokens have how many senses]({picture})" if picture else "",
    ]
    kept = metadata | {"teacher": _presentable(metadata.get("teacher")), "corpus": _presentable(metadata.get("corpus"))}
    sections += [_table(key.capitalize(), kept.get(key)) for key in ("teacher", "clustering", "sampling", "corpus")]
    sections.append(
        "## Limits\n\nSenses are those of the corpus it was built on: a token that is absent there has none and keeps its "
        "contextual embedding, and text of another kind is replaced less well. It belongs to its teacher's tokenizer."
    )
    return "\n\n".join(section for section in sections if section) + "\n"


def model_card(
    name: str,
    class_name: str,
    teacher: dict[str, Any] | None,
    facts: dict[str, Any],
    provenance: Provenance = Provenance(),  # noqa: B008
    picture: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """The card of a student.

    Args:
        name: the folder's or repository's name.
        class_name: the Auto class that loads it.
        teacher: the teacher as the dictionary describes it, if known.
        facts: numbers about the model, one row each.
        provenance: what is known beside these.
        picture: the file, beside the card, that shows how many senses tokens have.
        tags: beside the card's own.
    """
    loading = (
        f"import hf_sense  # registers the model type\nfrom transformers import {class_name}\n\n"
        f'model = {class_name}.from_pretrained("{name}")'
    )
    task = _TASKS.get(class_name.removeprefix("AutoModelFor"), "feature-extraction")
    tags = [*tags, "sense-distillation", task]
    sections = [
        _front_matter(name, teacher, tags, provenance),
        f"# {name}\n\nA student distilled to choose, for each token, the sense that its teacher would choose.",
        f"```python\n{loading}\n```",
        "Where hf_sense is installed but not imported, `trust_remote_code=True` does the same.",
        _table("Model", facts),
        f"![How many tokens have how many senses]({picture})" if picture else "",
        _table("Teacher", _presentable(teacher)),
        "## Limits\n\nIt knows the text that it and its dictionary were made from; on text of another kind it is weaker. It "
        "gives vectors and classes, and generates no text.",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def body_facts(config: Any) -> dict[str, Any]:
    """What a student's card says of its backbone: its layers, or width and window of a network that has none."""
    if config.model_type == "sense_context_network":
        return {"backbone": "context network, no transformer", "width": config.hidden_size, "window": config.window}
    return {"layers": config.num_hidden_layers}


def _front_matter(name: str, teacher: dict[str, Any] | None, tags: list[str], provenance: Provenance) -> str:
    base = (teacher or {}).get("name")
    results = [
        EvalResult(
            task_type="feature-extraction",
            dataset_type=provenance.datasets[0] if provenance.datasets else "text",
            dataset_name=provenance.measured_on,
            metric_type=metric,
            metric_value=round(float(value), 6),
        )
        for metric, value in (provenance.metrics or {}).items()
    ]
    data = ModelCardData(
        library_name="hf_sense",
        tags=["hf_sense", *tags],
        base_model=base if _on_the_hub(base) else None,
        license=provenance.license,
        language=list(provenance.language) or None,
        datasets=list(provenance.datasets) or None,
        metrics=[result.metric_type for result in results] or None,
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _on_the_hub(name: Any, namespaced: bool = False) -> TypeGuard[str]:
    """A path on somebody's disk is nothing that a reader can find."""
    if not isinstance(name, str) or name.startswith(("/", ".", "~")) or "\\" in name:
        return False
    return name.count("/") == 1 if namespaced else name.count("/") <= 1


def _presentable(facts: dict[str, Any] | None) -> dict[str, Any] | None:
    """The facts, with the last part of a path in the place of the path."""
    name = (facts or {}).get("name")
    if facts is None or not isinstance(name, str) or _on_the_hub(name):
        return facts
    return facts | {"name": PureWindowsPath(name).name}  # parts at either kind of slash


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
