"""One safetensors file from whoever made it: checked by its header, its tensors mapped, read only where they are looked at.

A file that another process replaces meanwhile is not mixed with the new one: what was checked is what is mapped.
"""

from __future__ import annotations

import json
import mmap
import os
from pathlib import Path
from typing import BinaryIO

import torch
from safetensors import SafetensorError, safe_open

FLOAT_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
DTYPES = {**FLOAT_DTYPES, "I8": torch.int8, "I64": torch.int64}
# In the header of a file: which description it belongs to.
OF_JSON = "description_sha256"


def opened(path: Path) -> BinaryIO:
    """The open file.

    Raises:
        ValueError: if it cannot be opened.
    """
    try:
        return open(path, "rb")
    except OSError as error:
        raise _unsound(path, error) from error


def _unsound(path: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{path} is not a sound safetensors file ({error}). It may be cut short, damaged, or of another kind, as a pickle is; "
        "nothing of it was run. Fetch or save the dictionary again."
    )


def checked_header(file: BinaryIO, path: Path) -> tuple[dict[str, tuple[str, list[int], int]], str | None]:
    """The dtype, shape and first byte of each tensor of the open ``file``, and the save that it is of, if it says.

    The safetensors library has found it sound before: it opens the path itself, so that the path must still be this file.

    Raises:
        ValueError: if it is no sound safetensors file.
    """
    try:
        with safe_open(path, framework="pt"):
            pass
        if not os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
            raise OSError("another save replaced it meanwhile")
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    except (SafetensorError, ValueError, OSError, RuntimeError) as error:
        raise _unsound(path, error) from error
    about = header.pop("__metadata__", None) or {}
    return {
        name: (entry["dtype"], entry["shape"], 8 + length + entry["data_offsets"][0]) for name, entry in header.items()
    }, about.get(OF_JSON)


def mapped(file: BinaryIO, dtype: str, shape: list[int], begin: int) -> tuple[torch.Tensor, mmap.mmap | None]:
    """The tensor that begins at a byte of the open file, and its mapping if it has elements; ``dtype`` is one of ``DTYPES``."""
    torch_dtype = DTYPES[dtype]
    count = 1
    for size in shape:
        count *= size
    if count == 0:
        return torch.empty(shape, dtype=torch_dtype), None
    mapping = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    if hasattr(mmap, "MADV_RANDOM"):
        # Rows are touched here and there: without this the kernel reads megabytes around each.
        mapping.madvise(mmap.MADV_RANDOM)
    return torch.frombuffer(mapping, dtype=torch_dtype, count=count, offset=begin).view(shape), mapping
