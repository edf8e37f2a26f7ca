"""Feeds broken dictionaries to the loader, guided by which of its lines each of them reached.

    pip install atheris
    python benchmarks/guided_fuzz.py --cases 1000000

What is asked of a case is what ``benchmarks/fuzz.py`` asks: nothing but one error that names the file, no file written, no case
over a few seconds. There cases are drawn at random, here libFuzzer keeps those that reach something new and changes them
further. The first byte chooses the file, the rest becomes its bytes. A case that fails is written beside the others in
``--work`` and the run ends with another number than 0; ``--cases 0`` tries what lies there again.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import subprocess
import sys
import tempfile
from pathlib import Path

# Their lines are what is watched.
WATCHED = (
    "hf_sense.mapped_file",
    "hf_sense.storage",
    "hf_sense.dictionary",
    "hf_sense.residual_codes",
    "hf_sense.quantization",
    "hf_sense.ragged",
)
_SECONDS, _MEGABYTES = 5, 4096


def main() -> None:
    """Makes a folder, and runs the fuzzer in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--work", type=Path, help="where cases are kept that reach something new; a temporary folder if not given"
    )
    parser.add_argument("--worker", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    if importlib.util.find_spec("atheris") is None:
        raise SystemExit("This needs atheris, which runs on Linux and macOS: pip install atheris")
    shared = Path("/dev/shm")
    # libFuzzer ends its process without a word to Python: the folder is removed here.
    with (
        tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as root,
        tempfile.TemporaryDirectory() as spare,
    ):
        options.work = options.work or Path(spare)
        command = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--worker",
            root,
            "--work",
            str(options.work.resolve()),
        ]
        command += ["--cases", str(options.cases), "--seed", str(options.seed)]
        code = subprocess.run(command, cwd=root, check=False).returncode
        if code:
            failed = [path.read_bytes() for path in sorted(options.work.glob("failed-*"))]
            print(*failed[:3], sep="\n")
            raise SystemExit(f"The fuzzer ended with {code}; {len(failed)} case{'s' * (len(failed) != 1)} failed.")


def work(options: argparse.Namespace) -> None:
    """The fuzzer itself, which ends the process."""
    import atheris
    import torch  # before the watched modules: only they are instrumented

    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    with atheris.instrument_imports(include=list(WATCHED)):
        from fuzz import Folders

    folders = Folders(options.worker)
    files = sorted(folders.files)
    options.work.mkdir(parents=True, exist_ok=True)
    for number, path in enumerate(files):
        (options.work / f"sound-{number}").write_bytes(bytes([number]) + folders.files[path])

    def one(case: bytes) -> None:
        path = files[case[0] % len(files)] if case else files[0]
        path.write_bytes(case[1:])
        folders.open(path)

    arguments = [f"-runs={options.cases}", f"-seed={options.seed}", f"-timeout={_SECONDS}", "-max_len=4096"]
    arguments += [f"-artifact_prefix={options.work}/failed-", "-print_final_stats=1", f"-rss_limit_mb={_MEGABYTES}"]
    atheris.Setup([sys.argv[0], str(options.work), *arguments], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
