"""The house: who imports whom, what an import costs, and that the docs name what is public."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import hf_sense

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "hf_sense"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def imports_of(path):
    """Modules of the house that a file imports, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hf_sense."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom) and node.module == "hf_sense":
            found |= {alias.name for alias in node.names if (SOURCE / f"{alias.name}.py").is_file()}
    return found


def test_imports_are_those_of_the_table():
    """A lower module comes to know a higher one, and the table in docs/architecture.md tells a tale."""
    table = {}
    for line in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").splitlines():
        if match := re.match(r"\| `(\w+)\.py` \|.*\| (.*) \|$", line):
            table[match[1]] = {name.strip() for name in match[2].split(",")} - {"none"}
    modules = {path.stem for path in SOURCE.glob("*.py") if not path.stem.startswith("__")}
    assert set(table) == modules
    for module in modules - {"cli"}:
        assert imports_of(SOURCE / f"{module}.py") == table[module], module


def test_import_brings_in_nothing_heavy_and_registers():
    """Importing the package costs seconds of packages that are not used, or AutoConfig does not know the model type."""
    script = (
        "import sys, hf_sense\n"
        "loaded = {'sklearn', 'matplotlib', 'datasets', 'peft'} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
        "from transformers import AutoConfig\n"
        "assert type(AutoConfig.for_model('sense')).__name__ == 'SenseConfig'"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names_exist_and_stand_in_the_docs():
    """A public name is gone, or nobody can read of it."""
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in hf_sense.__all__:
        assert getattr(hf_sense, name).__doc__, name
        assert name in text, name


def test_links_resolve():
    """A page of the docs points to nothing."""
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
            assert link.startswith("http") or (page.parent / link).exists(), f"{page.name}: {link}"
