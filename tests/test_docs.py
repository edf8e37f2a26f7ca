"""What the pages say holds on another machine, and the errors they cure exist. Names and links are in test_house.py."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), ROOT / "CITATION.cff", *sorted((ROOT / "docs").glob("*.md"))]
# A path of one machine: a slash that begins a word, and a folder that only some machine has.
MACHINE_PATH = re.compile(r"(?<![\w.~$}/-])/(root|work|home|tmp|Users|mnt|data)(/|\b)")


def messages():
    """All strings of the source, with X where a value is put in."""
    for path in (ROOT / "src" / "hf_sense").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "X" for part in node.values)


def test_no_page_holds_a_machine_path():
    """A page names a folder that the reader does not have."""
    assert MACHINE_PATH.search("see /" + "root/x")
    assert MACHINE_PATH.search("(`/work`)")
    assert not MACHINE_PATH.search("runs/work and docs/data")
    for page in PAGES:
        for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), 1):
            assert not MACHINE_PATH.search(line), f"{page.name}:{number}: {line}"


def test_every_error_in_the_docs_is_raised_somewhere():
    """A message was reworded, and who looks it up in docs/errors.md finds nothing."""
    text = "\n".join(messages())
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "docs" / "errors.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) > 10
    for quoted in re.findall(r"`([^`]+)`", " ".join(rows)):
        wanted = re.sub(r"\bN\b|torch\.float16", "X", quoted.replace("...", "")).strip()
        assert wanted in text, quoted
