"""Dictionaries and models on their way to the Hub, and a model's dictionary when it lies outside the weights.

How files travel is in ``hf_sense.hub``; loading and saving the weights themselves is Transformers'.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import CommitInfo
from transformers import PreTrainedTokenizerBase

from hf_sense import hub
from hf_sense.charts import draw_histogram, figure_class_for_files
from hf_sense.configuration_sense import STUB_FILE, SenseConfig
from hf_sense.dictionary import SenseDictionary
from hf_sense.folders import JSON_NAME
from hf_sense.model_card import Provenance, body_facts, dictionary_card, model_card, write_card

if TYPE_CHECKING:
    from hf_sense.modeling_sense import SensePreTrainedModel

# What save_pretrained(push_to_hub=True) hands on.
HUB_ARGUMENTS = ("repo_id", "commit_message", "commit_description", "private", "token", "revision", "create_pr")
_PICTURE = "senses_per_token.png"


def open_dictionary(config: SenseConfig, model_path: Any, load_arguments: dict[str, Any]) -> SenseDictionary:
    """The dictionary that a loaded model's configuration names.

    Args:
        config: the model's.
        model_path: the folder or id that the model was loaded from.
        load_arguments: those of ``from_pretrained``, of which the Hub's are used.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is not the one that the model was made with.
    """
    options = {
        name: load_arguments[name] for name in ("cache_dir", "token", "local_files_only") if name in load_arguments
    }
    where, subfolder = str(config.sense_dictionary), str(load_arguments.get("subfolder") or "")
    local = Path(str(model_path)) / subfolder / where
    if local.is_dir():
        dictionary = SenseDictionary.from_pretrained(local)
    elif config.dictionary_is_beside and not Path(str(model_path)).is_dir():
        commit = getattr(config, "_commit_hash", None) or load_arguments.get("revision")
        folder = f"{subfolder}/{where}".strip("/")
        dictionary = SenseDictionary.from_pretrained(str(model_path), subfolder=folder, revision=commit, **options)
    else:
        dictionary = SenseDictionary.from_pretrained(where, revision=config.sense_dictionary_revision, **options)
    if dictionary.fingerprint != config.dictionary_fingerprint:
        raise ValueError(
            f"The model was made with the dictionary {config.dictionary_fingerprint}, but {where} is "
            f"{dictionary.fingerprint}. Point config.sense_dictionary to the one it was made with, and "
            "config.sense_dictionary_revision to its commit."
        )
    return dictionary


def save_dictionary_beside(model: SensePreTrainedModel, folder: Path) -> None:
    """Saves the dictionary into the model's folder, if that is where the configuration says it lies."""
    dictionary = model.sense_table.outside
    if dictionary is None or not model.config.dictionary_is_beside:
        return
    target = folder / model.config.sense_dictionary
    if (target / JSON_NAME).is_file():
        try:
            there = SenseDictionary.from_pretrained(target, verify=False).fingerprint
        except (OSError, ValueError):
            there = None
        if there == dictionary.fingerprint:
            return
    dictionary.save_pretrained(target)


def copy_companions(source: Path, target: Path, config: SenseConfig) -> None:
    """Copies what a saved sense model has beside its weights and its configuration: the stub, and a dictionary."""
    names = [STUB_FILE, *([str(config.sense_dictionary)] if config.dictionary_is_beside else [])]
    for path in (source / name for name in names):
        if path.is_dir():
            shutil.copytree(path, target / path.name, dirs_exist_ok=True)
        elif path.is_file():
            shutil.copy(path, target / path.name)


def pin_dictionary(model: SensePreTrainedModel, token: str | bool | None = None) -> None:
    """Before a push: sees that others can find the dictionary, and names the commit it is at.

    Raises:
        ValueError: if it is a path on this machine.
        FileNotFoundError: if the Hub has no such repository.
    """
    config = model.config
    where = config.sense_dictionary
    if not where or config.dictionary_is_beside:
        return
    if Path(where).exists() or not hub.is_repo_id(where):
        raise ValueError(
            f"The model's dictionary is {where!r}, a path that others do not have. Push it first, "
            "model.to_dictionary().push_to_hub('org/name'), and set model.config.sense_dictionary = 'org/name'; or set it to a "
            "single name, such as 'senses', to have it pushed with the model."
        )
    source = getattr(model.sense_table.outside, "hub_source", None)
    if source is not None and source.repo_id == where:
        config.sense_dictionary_revision = source.commit
    elif config.sense_dictionary_revision is None:
        config.sense_dictionary_revision = hub.commit_of(where, token=token)


def push_dictionary(
    dictionary: SenseDictionary, repo_id: str, about: Provenance, max_shard_size: int, **options: Any
) -> CommitInfo:
    """Pushes a dictionary, its card and a picture in one commit. Users call it as ``dictionary.push_to_hub``.

    Args:
        dictionary: a sense dictionary.
        repo_id: ``"org/name"``; made if it is missing.
        about: what the card says beyond the dictionary.
        max_shard_size: bytes of senses a file.
        **options: of ``hf_sense.hub.push``.

    Raises:
        ValueError: if ``repo_id`` is no repository's name, or the repository holds a model.
    """
    _check_name(repo_id)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dictionary.save_pretrained(folder, max_shard_size)
        picture = _picture(dictionary.offsets, folder)
        write_card(folder, dictionary_card(repo_id, dictionary.metadata, dictionary.summary(), about, picture))
        return hub.push(
            folder, repo_id, what="a sense dictionary", replaces=["sense_dictionary*"], refuses="config.json", **options
        )


def push_model(
    model: SensePreTrainedModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str = "50GB",
    tags: Sequence[str] = (),
    tokenizer: PreTrainedTokenizerBase | None = None,
    sentence_transformers: bool | dict[str, Any] = False,
    license: str | None = None,
    datasets: Sequence[str] = (),
    metrics: dict[str, float] | None = None,
) -> CommitInfo:
    """Pushes a sense model to the Hub in one commit. Users call it as ``model.push_to_hub``.

    Args:
        model: a ``SenseModel``, one with a classifier, or what ``fold`` makes of one.
        repo_id: ``"org/name"``; made if it is missing.
        commit_message: ``"Upload sense model"`` if not given.
        commit_description: the rest of the commit's message.
        private: whether a repository that is made is private.
        token: with write access; the one of ``hf auth login`` if not given.
        revision: branch; made from main if it is missing.
        create_pr: open a pull request instead.
        max_shard_size: of a weights file.
        tags: for the card, beside its own.
        tokenizer: pushed with it, so that ``pipeline`` finds it; a tokenizer already there stays.
        sentence_transformers: also push what ``SentenceTransformer(repo_id)`` needs; options of
            ``save_for_sentence_transformers``, or ``True``. It needs ``tokenizer``.
        license: for the card, such as ``"apache-2.0"``.
        datasets: for the card, ids on the Hub of the texts.
        metrics: for the card, figures by name, fractions of one.

    Returns:
        What huggingface_hub returns; ``oid`` is the commit.

    Raises:
        ValueError: if ``repo_id`` is no repository's name, the dictionary is a path on this machine, or a tokenizer is missing.
        FileNotFoundError: if the repository, or the dictionary's, is not there for this token.
        PermissionError: if the token may not write.
        ConnectionError: if the upload broke; the repository is as it was.
    """
    _check_name(repo_id)
    if sentence_transformers is not False and tokenizer is None:
        raise ValueError("sentence_transformers needs the tokenizer too: pass tokenizer=.")
    pin_dictionary(model, token)
    config = model.config
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if sentence_transformers is not False and tokenizer is not None:
            options = {} if sentence_transformers is True else sentence_transformers
            model.save_for_sentence_transformers(folder, tokenizer, max_shard_size=max_shard_size, **options)
        else:
            model.save_pretrained(folder, max_shard_size=max_shard_size)
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        picture = _picture(model.sense_table.offsets.cpu(), folder)
        facts = {
            **body_facts(config.get_text_config()),
            "parameters": model.num_parameters(),
            "senses": config.num_senses,
            "codes": f"{config.code_levels} x {config.num_codes}" if config.code_levels else None,
            "dictionary": config.sense_dictionary,
            "metric": config.metric,
            "selection": config.selection,
            "pooling": config.pooling,
        }
        about = Provenance(license=license, datasets=datasets, metrics=metrics)
        teacher = config.dictionary_metadata.get("teacher")
        tags = [*tags, *(["sentence-transformers"] if sentence_transformers is not False else [])]
        card = model_card(repo_id, auto_class_of(model), teacher, facts, about, picture, tags)
        write_card(folder, card)
        stale = ["model*.safetensors*", "modules.json", "[0-9]_*/*"]
        if config.dictionary_is_beside:
            stale.append(f"{config.sense_dictionary}/sense_dictionary*")
        return hub.push(
            folder, repo_id, what="a sense model", private=private, token=token, revision=revision,
            commit_message=commit_message, commit_description=commit_description, create_pr=create_pr, replaces=stale,
        )  # fmt: skip


def auto_class_of(model: SensePreTrainedModel) -> str:
    """The Auto class that loads it."""
    names = {kind.__name__ for kind in type(model).__mro__}
    return next(auto for auto, name in model.config.auto_classes.items() if name in names)


def _check_name(repo_id: str) -> None:
    if not hub.is_repo_id(repo_id):
        raise ValueError(f"repo_id should be 'name' or 'org/name', but is {repo_id!r}.")


def _picture(offsets: torch.Tensor, folder: Path) -> str | None:
    """Draws the card's picture, if matplotlib is there."""
    try:
        draw_histogram(figure_class_for_files(), offsets, folder / _PICTURE)
    except ImportError:
        return None
    return _PICTURE
