"""Writes a dictionary's files so that a reader finds the old ones or the new ones, whole; ``hf_sense.storage`` reads them."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hf_sense.files import staged
from hf_sense.folders import JSON_NAME
from hf_sense.mapped_file import OF_JSON
from hf_sense.storage import INDEX_NAME, SAVING_NAME, TENSORS_NAME, checksum_of, sha256_of


def write_dictionary(
    folder: Path,
    senses: list[torch.Tensor],
    small: dict[str, torch.Tensor],
    metadata: dict[str, Any],
    max_shard_size: int,
) -> None:
    """Writes tensors, then the JSON that names their checksums, each by rename; then removes files of an older layout.

    Args:
        folder: made if it is missing.
        senses: row blocks of the table, each ``(rows, dim)``.
        small: ``offsets``, ``counts``, ``spread``, the ``scales`` of int8 senses, ``codes`` and the ``code_scales`` of int8 ones.
        metadata: what the JSON holds beside what is read off the tensors.
        max_shard_size: bytes of senses a file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    row_bytes = max(1, senses[0].shape[1] * senses[0].element_size())
    rows_a_file = max(1, max_shard_size // row_bytes)
    parts = [part for block in senses for part in block.split(rows_a_file)] if len(senses[0]) else senses
    small = {name: tensor.contiguous() for name, tensor in small.items()}
    if len(parts) == 1:
        files = {TENSORS_NAME: {"senses": parts[0].contiguous(), **small}}
    else:
        files = {}
        for number, part in enumerate(parts):
            name = f"sense_dictionary-{number + 1:05d}-of-{len(parts):05d}.safetensors"
            files[name] = {f"senses.{number}": part.contiguous(), **(small if number == 0 else {})}
    checksums = {"senses": sha256_of(senses)} | {name: sha256_of([tensor]) for name, tensor in small.items()}
    version = 3 if "codes" in small else 2 if "scales" in small else 1
    description = {"format_version": version, **metadata, "sha256": checksums}
    about = {OF_JSON: checksum_of(checksums)}  # one entry: safetensors writes several in any order
    (folder / SAVING_NAME).touch()
    try:
        # All are written before the first gets its name; the description comes last.
        with staged() as waiting:
            for name, tensors in files.items():
                waiting.add(folder / name, partial(_write, tensors, about))
            if len(parts) > 1:
                weight_map = {key: name for name, tensors in files.items() for key in tensors}
                total = sum(tensor.nbytes for tensors in files.values() for tensor in tensors.values())
                index = {"metadata": {"total_size": total}, "weight_map": weight_map}
                waiting.add_text(folder / INDEX_NAME, json.dumps(index, indent=2) + "\n")
            waiting.add_text(folder / JSON_NAME, json.dumps(description, indent=2, ensure_ascii=False) + "\n")
        stale = set(folder.glob("sense_dictionary-*-of-*.safetensors")) | {folder / TENSORS_NAME, folder / INDEX_NAME}
        kept = {folder / name for name in files} | ({folder / INDEX_NAME} if len(parts) > 1 else set())
        for path in stale - kept:
            path.unlink(missing_ok=True)
    finally:
        (folder / SAVING_NAME).unlink(missing_ok=True)


def _write(tensors: dict[str, torch.Tensor], about: dict[str, str], path: Path) -> None:
    save_file(tensors, path, metadata=about)
