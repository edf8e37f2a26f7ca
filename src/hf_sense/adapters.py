"""PEFT adapters of a decoder: where they lie, what they say of attention and settings, and how they go into the weights.

It reads and writes them; training them is ``hf_sense.adaptation``'s work.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_sense.files import write_text
from hf_sense.llm2vec import SETTINGS_FILE, LLM2VecSettings, find_file, read_json, read_settings

logger = logging.getLogger(__name__)

ADAPTER_FILE = "adapter_config.json"


def adapter_source(text: str) -> dict[str, str | None]:
    """Name and revision of ``"folder"``, ``"id"`` or ``"id@revision"``; an id without one is pinned to its commit of now."""
    name, _, given = (text, "", "") if os.path.isdir(text) else text.partition("@")
    return {"name": name, "revision": given or commit_of(name)}


def commit_of(name: str, file: str = ADAPTER_FILE, revision: str | None = None) -> str | None:
    """The commit that a Hub id stands for, by where its file lies in the cache; ``None`` for folders."""
    path = None if os.path.isdir(name) else find_file(name, file, revision)
    return path.parent.name if path is not None and path.parent.parent.name == "snapshots" else None


def says_bidirectional(source: dict[str, str | None]) -> bool:
    """Whether what lies beside an adapter asks for attention both ways: settings, configuration, or a class's name."""
    name, revision = str(source["name"]), source["revision"]
    if find_file(name, SETTINGS_FILE, revision) is not None:
        return True
    config = read_json(name, "config.json", revision) or {}
    automatic = (read_json(name, ADAPTER_FILE, revision) or {}).get("auto_mapping") or {}
    text = " ".join([str(automatic.get("base_model_class")), *map(str, (config.get("auto_map") or {}).values())])
    return config.get("is_causal") is False or "BiModel" in text or "EncoderModel" in text


def settings_of(name: str, revision: str | None, adapters: Sequence[dict[str, str | None]]) -> LLM2VecSettings | None:
    """Those of the last adapter that brings some, else the base's."""
    for source in [*reversed(adapters), {"name": name, "revision": revision}]:
        if (found := read_settings(str(source["name"]), source["revision"])) is not None:
            return found
    if adapters:
        logger.warning("No adapter brings an llm2vec_config.json; LLM2Vec's defaults hold: %s.", LLM2VecSettings())
    return None


def base_of(adapter_config: dict[str, Any], name: str) -> str:
    """The base that an adapter names; a relative name may stand for a folder beside the adapter's."""
    base = str(adapter_config.get("base_model_name_or_path") or "")
    if not base:
        raise ValueError(
            f"{name} holds an adapter that does not name its base. Give the base, and this in adapters=[...]."
        )
    beside = Path(name).parent / base
    return str(beside) if not os.path.isdir(base) and beside.is_dir() else base


def merge_adapter(model: PreTrainedModel, source: dict[str, str | None], base: str) -> PreTrainedModel:
    """The model with an adapter in its weights; all of the adapter's tensors must find their place."""
    from peft import PeftModel
    from safetensors import safe_open

    name, revision = str(source["name"]), source["revision"]
    adapter_config = read_json(name, ADAPTER_FILE, revision)
    path = find_file(name, "adapter_model.safetensors", revision)
    if adapter_config is None or path is None:
        raise ValueError(
            f"{name} is no PEFT adapter: it should hold {ADAPTER_FILE} and adapter_model.safetensors. Give the folder or Hub "
            "id of the adapter itself."
        )
    named = adapter_config.get("base_model_name_or_path")
    misfit = ValueError(f"The adapter {name} does not fit {base}: it was trained on {named}. Give it with that base.")
    with safe_open(path, framework="pt") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 (no mapping)
    # One trained with a language-model head numbers its modules from there.
    headed = all(key.startswith("base_model.model.model.") for key in shapes) and not hasattr(model, "model")
    mapping = {r"^model\.": ""} if headed else None
    try:
        wrapped_model = PeftModel.from_pretrained(model, name, revision=revision, key_mapping=mapping)
    except (RuntimeError, ValueError) as error:
        raise misfit from error
    found = {key.replace(".default.", "."): tuple(value.shape) for key, value in wrapped_model.state_dict().items()}
    for key, shape in shapes.items():
        own = key.replace("base_model.model.model.", "base_model.model.", 1) if headed else key
        if found.get(own) != shape:
            raise misfit
    merged = wrapped_model.merge_and_unload()
    merged._hf_peft_config_loaded = False
    return merged


def save_adapter(
    folder: Path, model: Any, config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase, pooling: str
) -> None:
    """Writes an adapter in the layout of LLM2Vec's published ones, under its name once it is whole.

    Args:
        folder: its place; what an interrupted save left beside it is removed.
        model: the base with the adapter, as PEFT wraps it.
        config: the base's, with the attention that the adapter was trained for.
        tokenizer: the base's.
        pooling: how a text's vector is to be made.
    """
    for stale in folder.parent.glob(f".{folder.name}.*"):
        shutil.rmtree(stale)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    temporary.chmod(0o755)
    model.save_pretrained(temporary)
    config.architectures = [type(model.get_base_model()).__name__]
    config.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    mode = "eos_token" if pooling == "last_token" else pooling
    settings = {"pooling_mode": mode, "max_length": 512, "doc_max_length": 400, "skip_instruction": True}
    write_text(temporary / SETTINGS_FILE, json.dumps(settings, indent=2) + "\n")
    os.replace(temporary, folder)
