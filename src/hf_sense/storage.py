"""The files of a sense dictionary: checked before any memory is taken, memory-mapped; ``hf_sense.saving`` writes them.

It knows the layout on disk (docs/file-format.md) and nothing of what the numbers are for.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import mmap
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from hf_sense.folders import JSON_NAME, what_it_is
from hf_sense.mapped_file import FLOAT_DTYPES, checked_header, mapped, opened
from hf_sense.quantization import LARGEST, scales_are_sound
from hf_sense.residual_codes import ResidualCodes

logger = logging.getLogger(__name__)

# The newest version that is read. Floating senses are written as version 1, int8 ones as version 2, which older releases
# read too; version 3 has codes.
FORMAT_VERSION = 3
TENSORS_NAME = "sense_dictionary.safetensors"
INDEX_NAME = "sense_dictionary.safetensors.index.json"

# Up to this size a load reads every sense and compares the checksum; past it, only when asked to.
VERIFY_BYTES = 256 * 2**20
_JSON_BYTES = 64 * 2**20
# There while a dictionary is being saved; how long a reader waits for that, and how old it is if the writer died, in seconds.
SAVING_NAME = ".sense_dictionary.saving"
_PATIENCE, _FRESH = 20.0, 60.0

_SENSE_DTYPES = {**FLOAT_DTYPES, "I8": torch.int8}
SENSE_DTYPES = tuple(_SENSE_DTYPES.values())
_REQUIRED: dict[str, Any] = {
    "format_version": int,
    "dim": int,
    "vocab_size": int,
    "num_senses": int,
    "metric": str,
    "tokenizer_fingerprint": (str, type(None)),
    "sha256": dict,
}
# Of version 3.
_REQUIRED_OF_CODES = {"code_levels": int, "num_codes": int}
_OPTIONAL = {"teacher", "clustering", "sampling", "corpus", "library_version"}


def own_keys(version: int) -> set[str]:
    """The keys of the JSON that say what the files hold, not how the dictionary came to be."""
    return {*_REQUIRED, *(_REQUIRED_OF_CODES if version >= 3 else ()), "library_version"}


def sha256_of(blocks: Iterable[torch.Tensor]) -> str:
    """The sha256, in hexadecimal, of the bytes of the row blocks of one tensor, as if they were joined."""
    digest = hashlib.sha256()
    for block in blocks:
        flat = block.detach().cpu().contiguous().view(-1)
        step = 64 * 2**20
        for begin in range(0, len(flat), step):
            digest.update(flat[begin : begin + step].view(torch.uint8).numpy().data)
    return digest.hexdigest()


def checksum_of(checksums: dict[str, Any]) -> str:
    """Names a save: it stands in the header of each of its files, which the description is compared with."""
    return hashlib.sha256(json.dumps(checksums, sort_keys=True).encode()).hexdigest()


def read_dictionary(
    folder: Path, verify: bool | None = None, called: str | None = None
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]:
    """Maps a dictionary's tensors and reads its JSON, having checked both.

    Args:
        folder: where they lie.
        verify: read every sense and compare checksums; ``None`` does so up to 256 MiB.
        called: the folder's name in errors; its path if not given.

    Returns:
        The row blocks of ``senses``, the small tensors by name, and the JSON.

    Raises:
        FileNotFoundError: if the folder or one of its files is missing.
        ValueError: if a file is damaged, hostile or of a newer format; it names the file and the fault.
    """
    give_up = time.monotonic() + _PATIENCE
    while True:
        before = _signature(folder)
        try:
            return _read(folder, verify, called)
        except (ValueError, FileNotFoundError):
            # Another process may be saving there: then wait for it, and read what it wrote. The marker is looked at first:
            # a save that ended before that has changed the files, one that ends after it is still told by the marker.
            saving = _is_being_saved(folder) or before != _signature(folder)
            if not saving or time.monotonic() > give_up:
                raise
            time.sleep(0.02)


def _signature(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for path in sorted(folder.glob("sense_dictionary*")):
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            found.append((path.name, about.st_ino, about.st_mtime_ns))
    return found


def _is_being_saved(folder: Path) -> bool:
    try:
        return time.time() - (folder / SAVING_NAME).stat().st_mtime < _FRESH
    except OSError:
        return False


def _read(
    folder: Path, verify: bool | None, called: str | None
) -> tuple[list[torch.Tensor], dict[str, torch.Tensor], dict[str, Any]]:
    metadata = _read_description(folder, called or str(folder))
    num_senses, dim, vocab_size = (metadata[key] for key in ("num_senses", "dim", "vocab_size"))
    files = _tensor_files(folder)
    sense_dtypes = FLOAT_DTYPES if metadata["format_version"] < 2 else _SENSE_DTYPES
    expected: dict[str, tuple[list[int], tuple[str, ...]]] = {
        "offsets": ([vocab_size + 1], ("I64",)),
        "counts": ([num_senses], ("I64",)),
        "spread": ([num_senses], ("F32",)),
        "scales": ([num_senses], ("F32",)),
    }
    if metadata["format_version"] >= 3:
        shape = [metadata["code_levels"], metadata["num_codes"]]
        expected |= {"codes": ([*shape, dim], tuple(_SENSE_DTYPES)), "code_scales": (shape, ("F32",))}
    of_json = checksum_of(metadata["sha256"])
    blocks, small, mappings = _mapped_tensors(files, expected, dim, sense_dtypes, of_json)
    needed = [name for name in expected if name not in ("scales", "code_scales")]
    missing = [name for name in needed if name not in small] + ([] if blocks else ["senses"])
    if missing:
        raise ValueError(f"{folder} lacks the tensors {', '.join(missing)}; the dictionary is not complete.")
    senses = [blocks[number] for number in sorted(blocks)]
    if sorted(blocks) != list(range(len(blocks))) or sum(map(len, senses)) != num_senses:
        raise ValueError(
            f"{folder}: the row blocks of senses hold {sum(map(len, senses))} rows, but {JSON_NAME} says {num_senses}."
        )
    if len({block.dtype for block in senses}) > 1:
        raise ValueError(f"{folder}: the row blocks of senses differ in dtype.")
    if (senses[0].dtype == torch.int8) != ("scales" in small):
        raise ValueError(
            f"{folder}: int8 senses need the tensor scales and others take none, but senses is {senses[0].dtype} and scales "
            f"{'given' if 'scales' in small else 'missing'}."
        )
    size = sum(block.nbytes for block in senses)
    _check_small(folder, metadata["sha256"], small, num_senses)
    if verify or (verify is None and size <= VERIFY_BYTES):
        _check_senses(folder, metadata["sha256"], senses, [mappings[number] for number in sorted(blocks)])
    return senses, small, metadata


def _mapped_tensors(
    files: list[Path],
    expected: dict[str, tuple[list[int], tuple[str, ...]]],
    dim: int,
    sense_dtypes: dict[str, torch.dtype],
    description: str,
) -> tuple[dict[int, torch.Tensor], dict[str, torch.Tensor], dict[int, mmap.mmap | None]]:
    """The row blocks of senses by number, the small tensors by name, and the blocks' mappings; their shapes are checked."""
    blocks: dict[int, torch.Tensor] = {}
    mappings: dict[int, mmap.mmap | None] = {}
    small: dict[str, torch.Tensor] = {}
    for path in files:
        with opened(path) as file:
            header, of_json = checked_header(file, path)
            if of_json is not None and of_json != description:
                raise ValueError(
                    f"{path} and {JSON_NAME} beside it come from two different saves, and one of them did not end. Save or fetch "
                    "the dictionary again."
                )
            for name, (dtype, shape, begin) in header.items():
                number = _block_number(name)
                if number is not None:
                    fits = len(shape) == 2 and shape[1] == dim and dtype in sense_dtypes
                    wanted = f"(rows, {dim}) of {', '.join(sense_dtypes)}"
                elif name in expected:
                    fits = shape == expected[name][0] and dtype in expected[name][1]
                    wanted = f"{tuple(expected[name][0])} of {', '.join(expected[name][1])}"
                else:
                    raise ValueError(
                        f"{path} holds a tensor named {name!r} that does not belong in a sense dictionary."
                    )
                if not fits:
                    raise ValueError(f"{path}: {name} should be {wanted}, but is {tuple(shape)} of {dtype}.")
                if name in small or number in blocks:
                    raise ValueError(f"{path}: {name} is stored twice.")
                tensor, mapping = mapped(file, dtype, shape, begin)
                if number is not None:
                    blocks[number], mappings[number] = tensor, mapping
                else:
                    small[name] = tensor
    return blocks, small, mappings


def _read_description(folder: Path, called: str) -> dict[str, Any]:
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {called!r}. Give the folder that save_pretrained wrote, or an id on the Hub, which is 'name' "
            "or 'org/name'."
        )
    path = folder / JSON_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"{called} is not a sense dictionary: it has no {JSON_NAME}.{what_it_is(folder, called)}"
        )
    if path.stat().st_size > _JSON_BYTES:
        raise ValueError(f"{path} is larger than {_JSON_BYTES} bytes; a dictionary's description is a few kilobytes.")
    try:
        metadata = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({error}). Save the dictionary again.") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"{path} should hold one JSON object, but holds a {type(metadata).__name__}.")
    version = metadata.get("format_version")
    if type(version) is int and version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format version {version}, and this hf_sense reads up to {FORMAT_VERSION}. It was written by "
            f"hf_sense {metadata.get('library_version', 'of a later release')}: pip install --upgrade hf-sense."
        )
    required = _REQUIRED | (_REQUIRED_OF_CODES if version == 3 else {})
    for key, kind in required.items():
        value = metadata.get(key)
        if key not in metadata or not isinstance(value, kind) or isinstance(value, bool):
            raise ValueError(f"{path}: {key!r} should be a {kind}, but is {repr(value)[:80]}.")
        if isinstance(value, int) and not 0 <= value < 2**62:
            raise ValueError(f"{path}: {key!r} is {value}, out of range.")
    unknown = sorted(set(metadata) - set(required) - _OPTIONAL)
    if unknown:
        logger.warning("%s has keys that this version does not know; they are kept: %s.", path, ", ".join(unknown))
    return metadata


def _tensor_files(folder: Path) -> list[Path]:
    single, index_path = folder / TENSORS_NAME, folder / INDEX_NAME
    if single.is_file():
        return [single]
    if not index_path.is_file():
        raise FileNotFoundError(
            f"{folder} has neither {TENSORS_NAME} nor {INDEX_NAME}; the dictionary is not complete."
        )
    try:
        names = sorted(set(json.loads(index_path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index_path} is not an index of safetensors files ({error!r}).") from error
    for name in names:
        # Longer names make the system raise an error of its own.
        if not isinstance(name, str) or Path(name).name != name or len(name.encode("utf-8", "replace")) > 255:
            raise ValueError(f"{index_path} names {repr(name)[:80]}, which is not a file of this folder.")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{index_path} names {name}, which is missing; the dictionary is not complete.")
    return [folder / name for name in names]


def _block_number(name: str) -> int | None:
    if name == "senses":
        return 0
    stem, _, number = name.partition(".")
    return int(number) if stem == "senses" and number.isascii() and number.isdigit() and len(number) < 10 else None


def _check_small(folder: Path, checksums: dict[str, Any], tensors: dict[str, torch.Tensor], num_senses: int) -> None:
    offsets, counts, spread = (tensors[name] for name in ("offsets", "counts", "spread"))
    if int(offsets[0]) != 0 or int(offsets[-1]) != num_senses or bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(
            f"{folder}: offsets should rise from 0 to {num_senses} without a step back, but run from {int(offsets[0])} to "
            f"{int(offsets[-1])}{' with steps back' if bool((offsets[1:] < offsets[:-1]).any()) else ''}."
        )
    if bool((counts < 0).any()):
        raise ValueError(f"{folder}: counts has negative entries.")
    if not bool((torch.isfinite(spread) & (spread >= 0)).all()):
        raise ValueError(f"{folder}: spread has entries that are negative or not finite.")
    if "scales" in tensors and not scales_are_sound(tensors["scales"]):
        raise ValueError(
            f"{folder}: scales has entries that are negative or not finite, or too large for a finite sense."
        )
    if "codes" in tensors:
        try:
            ResidualCodes(tensors["codes"], tensors.get("code_scales"))
        except ValueError as error:
            raise ValueError(f"{folder}: {error} Fetch the dictionary again.") from error
    for name, tensor in tensors.items():
        _compare(folder, name, sha256_of([tensor]), checksums)


def _check_senses(
    folder: Path, checksums: dict[str, Any], blocks: list[torch.Tensor], mappings: list[mmap.mmap | None]
) -> None:
    """Reads every sense once, a few megabytes at a time, and gives the memory back at once."""
    digest = hashlib.sha256()
    for block, mapping in zip(blocks, mappings):
        for rows in block.split(max(1, 2**20 // max(1, block.shape[1]))):
            if not bool(torch.isfinite(rows).all()):
                raise ValueError(f"{folder}: senses holds NaN or infinite values. Build the dictionary again.")
            if rows.dtype == torch.int8 and bool((rows < -LARGEST).any()):
                raise ValueError(
                    f"{folder}: int8 senses should be from -{LARGEST} to {LARGEST}, but hold {int(rows.min())}."
                )
            digest.update(rows.view(-1).view(torch.uint8).numpy().data)
            if mapping is not None and hasattr(mmap, "MADV_DONTNEED"):
                mapping.madvise(mmap.MADV_DONTNEED)  # nothing has been written to it yet
    _compare(folder, "senses", digest.hexdigest(), checksums)


def _compare(folder: Path, name: str, found: str, checksums: dict[str, Any]) -> None:
    if found != checksums.get(name):
        raise ValueError(
            f"{folder}: the bytes of {name} are not those that were saved (sha256 {found[:12]}, expected "
            f"{str(checksums.get(name))[:12]}). The file is damaged or comes from another save: fetch it again."
        )
