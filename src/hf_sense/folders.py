"""What a folder holds, told by its names and its config.json: a dictionary, a sense model, a classifier, another model.

It opens no weights: dictionaries are read by ``hf_sense.storage``, models by Transformers.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from hf_sense.hub import is_repo_id

JSON_NAME = "sense_dictionary.json"
MODEL_TYPES = ("sense", "folded_sense")


def saved_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The folder's config.json; empty if it has none, or one that is no JSON object."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return config if isinstance(config, dict) else {}


def is_dictionary(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder is a dictionary's, and no model's beside it."""
    return (Path(folder) / JSON_NAME).is_file() and not (Path(folder) / "config.json").is_file()


def is_sense_model(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder is a sense model's, folded ones too."""
    return saved_config(folder).get("model_type") in MODEL_TYPES


def check_model_name(name: str | os.PathLike[str]) -> None:
    """Sees that ``name`` may be a model.

    Raises:
        FileNotFoundError: if it is neither a folder nor could be an id on the Hub.
        ValueError: if it is the folder of a dictionary.
    """
    text = os.fspath(name)
    if not Path(text).exists() and not is_repo_id(text):
        raise FileNotFoundError(
            f"There is no folder {text!r}, and it is no id on the Hub, which would be 'name' or 'org/name'. Check the path."
        )
    if is_dictionary(text):
        raise ValueError(
            f"{text} is a sense dictionary, and a model is wanted here. Give a model's folder; "
            "SenseDictionary.from_pretrained opens the dictionary."
        )


def check_keeps_classifier(folder: str | os.PathLike[str], model_class: str) -> None:
    """Raises ``ValueError`` if a model without a classifier would take the place of one with it."""
    config = saved_config(folder)
    architecture = str((config.get("architectures") or [""])[0])
    if config.get("model_type") in MODEL_TYPES and architecture.endswith("Classification"):
        raise ValueError(
            f"{os.fspath(folder)} holds a {architecture}, whose classifier a {model_class} saved there would take away. "
            "Give another folder, or save the model with its classifier, as "
            f"AutoModel{architecture[architecture.rindex('For') :]}.from_pretrained loads it."
        )


def what_it_is(folder: Path, called: str) -> str:
    """A sentence for who took the folder for a dictionary's, if it is a model's; ``called`` as the user called it."""
    config = saved_config(folder)
    kind = config.get("model_type")
    if not config:
        return ""
    if kind not in MODEL_TYPES:
        return f" It is a model of type {kind!r}; build_dictionary builds a dictionary with such a teacher."
    where = config.get("sense_dictionary")
    if where:
        return f" It is a sense model, and its dictionary is {where!r}: open that."
    if kind == "folded_sense":
        return " It is a folded sense model, which has no dictionary: open that of the model it was folded from."
    return (
        " It is a sense model that holds its senses among its weights: "
        f"AutoModel.from_pretrained({called!r}).to_dictionary()."
    )
