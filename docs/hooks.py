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
_QUIET = {"TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}
# A code span in a table's row: GitHub wants a bar in it escaped, Markdown in Python shows the backslash.
_CODE_WITH_BAR = re.compile(r"`[^`\n]*\\\|[^`\n]*`")
logger = logging.getLogger("mkdocs.hooks.tutorials")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Puts each block's output beneath it, or says why the page was not executed."""
    lines = [
        _CODE_WITH_BAR.sub(lambda code: code[0].replace("\\|", "|"), line) if line.startswith("|") else line
        for line in markdown.split("\n")
    ]
    markdown = "\n".join(lines)
    blocks = [(markdown.count("\n", 0, found.start(2)) + 1, found[2]) for found in BLOCK.finditer(markdown)]
    if not blocks:
        return markdown
    name = page.file.src_uri
    outputs = None
    if os.environ.get("HF_SENSE_DOCS") == "quick":
        reason = "it was asked to be quick"
    else:
        try:
            outputs = _outputs(name, page.file.abs_src_path, blocks)
        except FileNotFoundError as error:
            reason = f"the model or its texts are missing ({error})"
    if outputs is None:
        logger.info("%s is not executed: %s.", name, reason)
        markdown = re.sub(r"(?m)^# .*$", r"\g<0>\n\n*Not executed in this build.*", markdown, count=1)
    texts = iter(outputs or [""] * len(blocks))
    return BLOCK.sub(lambda found: f"```python\n{found[2]}```" + _shown(next(texts), found[1]), markdown)


def _shown(output: str, quiet: str | None) -> str:
    return f"\n\n``` {{ .text .output }}\n{output.rstrip()}\n```" if output.strip() and not quiet else ""


def _outputs(name: str, path: str, blocks: list[tuple[int, str]]) -> list[str]:
    """The blocks' outputs, from the cache if neither they nor what they run on changed."""
    digest = hashlib.sha256(json.dumps([code for _, code in blocks]).encode())
    for source in (Path(__file__), ROOT / "examples" / "real_data.py", *sorted((ROOT / "src").rglob("*.py"))):
        digest.update(source.read_bytes())
    for package in ("torch", "transformers"):
        digest.update(importlib.metadata.version(package).encode())
    kept = CACHE / f"{Path(name).stem}-{digest.hexdigest()[:16]}.json"
    if not kept.is_file():
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder))
            logger.info("Executing %s.", name)
            found = run_blocks(path, blocks, folder)
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"{Path(name).stem}-{'?' * 16}.json"):
            old.unlink()
        temporary = kept.with_suffix(".part")
        temporary.write_text(json.dumps(found), encoding="utf-8")
        temporary.replace(kept)
    return json.loads(kept.read_text(encoding="utf-8"))


def prepare(folder: Path) -> None:
    """Puts the model and ``train.jsonl`` and ``test.jsonl``, labelled stories, where the pages look for them.

    Raises:
        FileNotFoundError: if ``examples/real_data.py`` has not fetched them.
    """
    sys.path.insert(0, str(ROOT / "examples"))
    try:
        from real_data import cache_folder, reuters_r8, teacher_folder
    finally:
        sys.path.pop(0)
    teacher_folder(fetch=False)
    for split, number in TEXTS.items():
        rows = list(zip(*reuters_r8(split, fetch=False)))
        random.Random(0).shuffle(rows)
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows[:number]]
        (folder / f"{split}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for model, kept in MODELS.items():
        (folder / model).parent.mkdir(parents=True, exist_ok=True)
        (folder / model).symlink_to(cache_folder() / kept, target_is_directory=True)


def run_blocks(path: str, blocks: list[tuple[int, str]], folder: str | os.PathLike[str]) -> list[str]:
    """Runs blocks of a page, each with its first line's number, in a process of its own in ``folder``.

    Returns:
        What each printed.

    Raises:
        mkdocs.exceptions.PluginError: if one raises, with the traceback, whose lines are the page's.
    """
    from mkdocs.exceptions import PluginError

    environment = {
        **os.environ,
        **_QUIET,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
    }
    given = json.dumps({"path": str(path), "blocks": blocks})
    done = subprocess.run(
        [sys.executable, __file__],
        input=given,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise PluginError(f"A tutorial failed.\n{done.stderr.strip()[-4000:]}")
    return json.loads(done.stdout)


def execute(path: str, blocks: list[tuple[int, str]]) -> list[str]:
    """Runs the blocks here, in one namespace; what each printed."""
    space: dict[str, Any] = {"__name__": "__main__"}
    outputs = []
    for line, code in blocks:
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * (line - 1) + code, path, "exec"), space)
        outputs.append(printed.getvalue())
    return outputs


def main() -> None:
    """The process that runs a page: its path and blocks on standard input, their outputs on standard output."""
    json.dump(execute(**json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
