"""Feeds broken and hostile input to everything that reads some: does it do anything but work, or say in one error what is wrong?

    python benchmarks/fuzz.py --cases 1000000

Dictionaries of every format have bytes turned over, cut off, moved and repeated; their JSON gets hostile values; offsets and
target columns are random; the command gets random arguments. For each case: no exception but ``ValueError`` and its like, which
names the file; no file that was not there; no case over a few seconds; memory that stays where it was. The same ``--seed`` gives
the same cases.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import machine, save
from tqdm.auto import tqdm

from hf_sense.collator import SenseDataCollator
from hf_sense.dictionary import SenseDictionary
from hf_sense.residual_codes import ResidualCodes

HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2**31, 2**62, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e308, float("inf"), float("nan"), "", "x",
    "..", "../../x", "/etc/passwd", "\x00", "\ud800", "a" * 10_000, [], {}, [[]], {"a": {}}, [None] * 100, "F32", "l2", "dot",
)  # fmt: skip
SHARES = {"loader": 45, "json": 25, "offsets": 15, "targets": 14, "command": 1}
# The most seconds of a case, and megabytes that memory may grow by in a whole run.
_SECONDS, _MEGABYTES = 5.0, 200.0


class Found(Exception):
    """What should not have happened."""


class Folders:
    """Sound dictionaries of every format, each in a folder, and what their files hold."""

    def __init__(self, root: Path) -> None:
        torch.manual_seed(0)
        offsets = torch.tensor([0, 2, 2, 5, 6])
        senses = torch.randn(6, 3)
        plain = SenseDictionary(senses, offsets, tokenizer_fingerprint="f")
        coded = SenseDictionary(senses, offsets, codes=ResidualCodes(torch.randn(2, 4, 3)))
        kinds = {"float32": plain, "int8": plain.to(torch.int8), "codes": coded, "codes8": coded.to(torch.int8)}
        self.root, self.files = root, {}
        for name, dictionary in kinds.items():
            dictionary.save_pretrained(root / name)
        plain.save_pretrained(root / "parts", max_shard_size=24)
        for path in root.rglob("sense_dictionary*"):
            self.files[path] = path.read_bytes()
        self.names = {path: {file.name for file in path.iterdir()} for path in {file.parent for file in self.files}}

    def open(self, path: Path) -> None:
        """Loads the folder of a file that was changed, uses what came, and puts the file back."""
        try:
            made = SenseDictionary.from_pretrained(path.parent)
            made.lookup(torch.arange(made.vocab_size), torch.zeros(made.vocab_size, made.dim))
            made.summary()
        except (ValueError, FileNotFoundError) as error:
            if str(path.parent) not in str(error):
                raise Found(f"does not name the file: {error}") from error
        finally:
            path.write_bytes(self.files[path])
        if {file.name for file in path.parent.iterdir()} != self.names[path.parent]:
            raise Found("wrote or removed a file")


def mutated(content: bytes, draw: random.Random) -> bytes:
    """Some bytes changed, in one way or several."""
    made = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 5))):
        size = len(made)
        at = draw.randrange(size) if size else 0
        way = draw.randrange(7)
        if way == 0 and size:
            made[at] ^= 1 << draw.randrange(8)
        elif way == 1 and size:
            made[at] = draw.choice((0, 1, 0x22, 0x2C, 0x7B, 0x7F, 0x80, 0xFF))
        elif way == 2:
            del made[at:]
        elif way == 3:
            made[at:at] = draw.randbytes(draw.choice((1, 8, 100)))
        elif way == 4:
            made[at : at + 8] = draw.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1)).to_bytes(8, "little")
        elif way == 5:
            other = draw.randrange(size) if size else 0
            made[at:at] = made[other : other + draw.choice((1, 8, 64))]
        else:
            del made[at : at + draw.choice((1, 8, 64))]
    return bytes(made)


def loader(folders: Folders, draw: random.Random) -> None:
    """A dictionary of which one file is damaged."""
    path = draw.choice(list(folders.files))
    path.write_bytes(mutated(folders.files[path], draw))
    folders.open(path)


def hostile(value: Any, draw: random.Random) -> Any:
    """A JSON value in which one place holds something else."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        key = draw.choice(list(value))
        way = draw.randrange(4)
        if way == 0:
            return {k: v for k, v in value.items() if k != key}
        if way == 1:
            return {**value, draw.choice(("x", key + " ", "", "__class__")): draw.choice(HOSTILE)}
        return {**value, key: hostile(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.8:
        at = draw.randrange(len(value))
        return [*value[:at], hostile(value[at], draw), *value[at + 1 :]]
    return draw.choice(HOSTILE)


def description(folders: Folders, draw: random.Random) -> None:
    """A dictionary whose JSON, or the header of whose tensors, says something hostile."""
    path = draw.choice(list(folders.files))
    content = folders.files[path]
    if path.suffix == ".json":
        text = json.dumps(hostile(json.loads(content), draw))
        if draw.random() < 0.02:
            text = "[" * draw.choice((10, 1000, 100_000))
        path.write_bytes(text.encode())
    else:
        length = int.from_bytes(content[:8], "little")
        header = json.dumps(hostile(json.loads(content[8 : 8 + length]), draw)).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    folders.open(path)


def offsets(folders: Folders, draw: random.Random) -> None:
    """A table with random offsets, and what is looked up in it."""
    number = draw.randrange(6)
    values = [draw.choice((0, 0, 1, 2, 3, number, -1, 2**40)) for _ in range(draw.randrange(6))]
    if draw.random() < 0.6:
        values = [0, *sorted(min(max(0, value), number) for value in values), number]
    kind = draw.choice((torch.int64, torch.int64, torch.int64, torch.int32, torch.float32))
    with contextlib.suppress(ValueError):
        made = SenseDictionary(torch.zeros(number, 2), torch.tensor(values, dtype=torch.float64).to(kind))
        shape = (draw.randrange(3), draw.randrange(4))
        ids = torch.tensor([draw.choice((0, 1, 2, len(values), -1, 2**40)) for _ in range(shape[0] * shape[1])])
        found = made.lookup(ids.long().view(shape), torch.randn(*shape, draw.choice((2, 2, 3))))
        if bool(((found < 0) & (found != -100)).any()) or bool((found >= max(1, number)).any()):
            raise Found(f"chose {found.tolist()} of {number} senses")


class Padder:
    """As much of a tokenizer as the collator asks for."""

    padding_side, pad_token_id, pad_token_type_id = "right", 0, 0


def targets(folders: Folders, draw: random.Random) -> None:
    """Rows of a data set whose columns do not fit to each other or to the dictionary."""
    table = torch.tensor([0, 2, 2, 5, 6])
    rows = []
    for _ in range(draw.randrange(4)):
        length = draw.randrange(5)
        row: dict[str, Any] = {"input_ids": [draw.choice((0, 1, 2, 3, 3, 4, -1, 2**40)) for _ in range(length)]}
        if draw.random() < 0.7:
            row["attention_mask"] = [1] * (length + draw.choice((0, 0, 0, 1, -1)))
        name = draw.choice(("sense_indices", "sense_labels"))
        row[name] = [
            draw.choice((-1, 0, 1, 2, 127, -100, 2**31)) for _ in range(max(0, length + draw.choice((0, 0, 0, 1, -1))))
        ]
        rows.append(row)
    with contextlib.suppress(ValueError):
        batch = SenseDataCollator(Padder(), offsets=draw.choice((table, table, None)))(rows)  # type: ignore[arg-type]
        labels = batch.get("sense_labels")
        if labels is not None and labels.shape != batch["input_ids"].shape:
            raise Found(f"labels {tuple(labels.shape)} beside ids {tuple(batch['input_ids'].shape)}")


WORDS = (
    "build", "plan", "convert", "distill", "adapt", "evaluate", "inspect", "report", "explore", "export", "push", "--teacher",
    "--dataset", "--output", "--max-senses", "--budget", "--dtype", "--metric", "--dictionary", "--help", "--version", "--",
    "-", "", "..", "../x", "/nowhere", "\x00", "\ud800", "a/b/c", "int8", "9" * 400, "-1", "nan", "--max-memory", "4XB", "{here}",
    "{here}/float32", "{here}/float32/sense_dictionary.json", "--split", "--port", "--model", "--train", "--test", "bank",
)  # fmt: skip


def command(folders: Folders, draw: random.Random) -> None:
    """The command with random arguments; it ends with a number and says what is wrong in a line."""
    from hf_sense.cli import main

    before = {path: path.stat().st_mtime_ns for path in folders.root.rglob("*")}
    arguments = [draw.choice(WORDS).replace("{here}", str(folders.root)) for _ in range(draw.randrange(8))]
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        code = main(arguments)
    if code not in (0, 1, 2):
        raise Found(f"{arguments} ended with {code}: {said.getvalue()[-300:]}")
    if {path: path.stat().st_mtime_ns for path in folders.root.rglob("*")} != before:
        raise Found(f"{arguments} changed a file")


WAYS: dict[str, Callable[[Folders, random.Random], None]] = {
    "loader": loader, "json": description, "offsets": offsets, "targets": targets, "command": command,
}  # fmt: skip


def peak() -> float:
    """Megabytes that this process took at the most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def run(name: str, cases: int, seed: int, folders: Folders) -> dict[str, Any]:
    """So many cases of one kind."""
    found: list[str] = []
    slowest, begin, before = (0.0, 0), time.perf_counter(), 0.0
    warm = min(cases, 500)
    for number in tqdm(range(cases), desc=name, unit=" cases"):
        if number == warm:
            before = peak()  # what is loaded at the first use is loaded
        draw = random.Random(f"{seed} {name} {number}")
        at, state = time.perf_counter(), draw.getstate()
        try:
            WAYS[name](folders, draw)
            if time.perf_counter() - at > _SECONDS and number < warm:
                # What is loaded and compiled at the first use is no fault of the case: it is tried again.
                draw.setstate(state)
                at = time.perf_counter()
                WAYS[name](folders, draw)
        except Exception:
            if len(found) < 20:
                found.append(f"case {number}: {traceback.format_exc()[-700:]}")
            else:
                break
        slowest = max(slowest, (time.perf_counter() - at, number))
    return {
        "cases": number + 1 if cases else 0, "found": found, "slowest_seconds": slowest[0], "slowest_case": slowest[1],
        "grown_mb": max(0.0, peak() - before) if cases > warm else 0.0, "seconds": time.perf_counter() - begin,
    }  # fmt: skip


def main() -> None:
    """Runs all and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=list(WAYS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    os.environ["HF_HUB_OFFLINE"] = "1"
    rows = {}
    shared = Path("/dev/shm")
    root = Path(tempfile.mkdtemp(dir=shared if shared.is_dir() else None))
    here = Path.cwd()
    try:
        folders = Folders(root)
        os.chdir(root)  # what is written by a relative name is seen
        print("| what | cases | seconds | slowest case, s | memory grew by, MB | faults |")
        print("| --- | --- | --- | --- | --- | --- |")
        for name in options.ways:
            row = rows[name] = run(name, options.cases * SHARES[name] // sum(SHARES.values()), options.seed, folders)
            cells = [name, f"{row['cases']:,}", f"{row['seconds']:.0f}", f"{row['slowest_seconds']:.2f}"]
            print(f"| {' | '.join(cells)} | {row['grown_mb']:.0f} | {len(row['found'])} |", flush=True)
    finally:
        os.chdir(here)
        shutil.rmtree(root)
    save(options.output, {"machine": machine(), "seed": options.seed, "rows": rows})
    for name, row in rows.items():
        print(*row["found"], sep="\n", file=sys.stderr)
        if row["slowest_seconds"] > _SECONDS:
            print(f"{name}: case {row['slowest_case']} took {row['slowest_seconds']:.1f} s", file=sys.stderr)
    bad = [
        n
        for n, row in rows.items()
        if row["found"] or row["slowest_seconds"] > _SECONDS or row["grown_mb"] > _MEGABYTES
    ]
    if bad:
        raise SystemExit(f"Faults in: {', '.join(bad)}.")


if __name__ == "__main__":
    main()
