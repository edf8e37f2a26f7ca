"""Runs the tutorials while the site is built: blocks that open with ``python run``, a page's in one namespace.

What a block prints is shown beneath it unless it opens with ``python run quiet``; one that raises fails the build. Outputs are
kept under ``runs/tutorials`` by the hash of all that they come from. It does not test that an output is good: tests do.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import random
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / "runs" / "tutorials"
BLOCK = re.compile(r"^```python run( quiet)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# The names that the pages load from the Hub. Each is a folder of that name where the pages run, so no page needs a network.
MODELS = {"sentence-transformers/all-MiniLM-L6-v2": "all-MiniLM-L6-v2"}
TEXTS = {"train": 600, "test": 200}
_QUIET = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
# On a busy machine threads that spin while they wait take most of the time.
_QUIET["OMP_WAIT_POLICY"] = "passive"
# A code span in a table's row: GitHub wants a bar in it escaped, Markdown in Python shows the backslash.
_CODE_WITH_BAR = re.compile(r"`[^`\n]*\\\|[^`\n]*`")
logger = logging.getLogger("mkdocs.hooks.tutorials")

Blocks = list[tuple[int, str]]
_outputs: dict[str, list[str]] = {}


def on_files(files: Any, **_: Any) -> None:
    """Sees to it that all pages have outputs, if they can."""
    _outputs.clear()
    found = {file.abs_src_path: blocks_of(Path(file.abs_src_path)) for file in files.documentation_pages()}
    pages = {path: blocks for path, blocks in found.items() if blocks}
    if os.environ.get("HF_SENSE_DOCS") == "quick":
        logger.info("%d pages are not executed: HF_SENSE_DOCS is quick.", len(pages))
        return
    try:
        _outputs.update(outputs_of(pages))
    except FileNotFoundError as error:
        logger.info("%d pages are not executed, for want of the model or its texts: %s", len(pages), error)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Puts each block's output beneath it, or says that the page was not executed."""
    outputs = _outputs.get(page.file.abs_src_path)
    if outputs is None and BLOCK.search(markdown):
        markdown = re.sub(r"(?m)^# .*$", r"\g<0>\n\n*Not executed in this build.*", markdown, count=1)
    rest = iter(outputs or ())

    def shown(found: re.Match[str]) -> str:
        output = next(rest, "").rstrip()
        beneath = f"\n\n``` {{ .text .output }}\n{output}\n```" if output and not found[1] else ""
        return f"```python\n{found[2]}```{beneath}"

    lines = BLOCK.sub(shown, markdown).split("\n")
    return "\n".join(
        _CODE_WITH_BAR.sub(lambda code: code[0].replace("\\|", "|"), line) if line.startswith("|") else line
        for line in lines
    )


def blocks_of(path: Path, pattern: re.Pattern[str] = BLOCK) -> Blocks:
    """A page's blocks, each with the number of its first line; the pattern's second group is the code."""
    text = path.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(2)) + 1, found[2]) for found in pattern.finditer(text)]


def outputs_of(pages: dict[str, Blocks]) -> dict[str, list[str]]:
    """The outputs of pages by their paths. One is run if its blocks, or what they run on, changed since it was.

    Raises:
        FileNotFoundError: if ``examples/real_data.py`` has not fetched what they run on.
        mkdocs.exceptions.PluginError: if a block raises; pages that ran before it keep their outputs.
    """
    sources = [Path(__file__), ROOT / "examples" / "real_data.py", *sorted((ROOT / "src").rglob("*.py"))]
    shared = b"".join(source.read_bytes() for source in sources)
    shared += "".join(importlib.metadata.version(package) for package in ("torch", "transformers")).encode()
    kept = {}
    for path, blocks in pages.items():
        digest = hashlib.sha256(shared + json.dumps([code for _, code in blocks]).encode()).hexdigest()[:16]
        kept[path] = CACHE / f"{Path(path).stem}-{digest}.json"
    with tempfile.TemporaryDirectory() as folder:
        missing = [
            (path, pages[path], str(Path(folder, Path(path).stem))) for path in pages if not kept[path].is_file()
        ]
        for path, _, own in missing:
            prepare(Path(own))
            logger.info("To be executed: %s", Path(path).name)
        for path, outputs in run_pages(missing):
            CACHE.mkdir(parents=True, exist_ok=True)
            for old in CACHE.glob(f"{Path(path).stem}-{'?' * 16}.json"):
                old.unlink()
            temporary = kept[path].with_suffix(".part")
            temporary.write_text(json.dumps(outputs), encoding="utf-8")
            temporary.replace(kept[path])
    return {path: json.loads(file.read_text(encoding="utf-8")) for path, file in kept.items()}


def prepare(folder: Path) -> None:
    """Makes a folder with the model and with ``train.jsonl`` and ``test.jsonl``, labelled stories, for a page to run in."""
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from real_data import reuters_r8, teacher_folder
    finally:
        sys.path.pop(0)
    models = teacher_folder(fetch=False).parent
    folder.mkdir()
    for split, number in TEXTS.items():
        rows = list(zip(*reuters_r8(split, fetch=False)))
        random.Random(0).shuffle(rows)
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows[:number]]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for model, kept in MODELS.items():
        (folder / model).parent.mkdir(parents=True, exist_ok=True)
        (folder / model).symlink_to(models / kept, target_is_directory=True)


def run_pages(pages: list[tuple[str, Blocks, str]]) -> Any:
    """Runs pages (path, blocks, folder) in one process of their own, and yields each one's path and outputs."""
    if not pages:
        return
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, __file__], input=json.dumps(pages), env={**os.environ, **_QUIET, "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    yield from map(json.loads, done.stdout.splitlines())
    if done.returncode:
        from mkdocs.exceptions import PluginError

        raise PluginError(f"A tutorial failed.\n{done.stderr.strip()[-4000:]}")


def execute(path: str, blocks: Blocks) -> list[str]:
    """Runs a page's blocks here, in one namespace; what each printed. A traceback's lines are the page's."""
    space: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for line, code in blocks:
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile("\n" * (line - 1) + code, path, "exec"), space)
        outputs.append(printed.getvalue())
    return outputs


if __name__ == "__main__":
    import torch

    for given_path, given_blocks, own_folder in json.load(sys.stdin):
        os.chdir(own_folder)
        torch.manual_seed(0)  # a page does not depend on those that ran before it
        print(json.dumps([given_path, execute(given_path, given_blocks)]), flush=True)
