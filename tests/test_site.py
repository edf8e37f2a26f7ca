"""The docs site: it builds without a warning, names what is public, points to nothing missing, and its code runs.

`make docs` executes the tutorials on a real model; here pages are built without, and the pages that it does not execute run on
tiny models.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import zlib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import hf_sense

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
# Modules whose public functions and classes the reference documents, each reached by its path.
MODULES = [
    "clustering", "decoders", "evaluation", "kmeans", "losses", "markov", "pooling", "ragged", "report", "sampling",
    "token_evaluation",
]  # fmt: skip
# What tiny texts and a tiny vocabulary need of adaptation.
SMALL = 'adapted", max_length=32, mntp_steps=2, simcse_steps=2, mask_token="and", mntp_batch_size=8, '
SMALL += "per_device_train_batch_size=8"

pytest.importorskip("mkdocs", reason="the site needs: pip install hf-sense[docs]")
pytest.importorskip("material", reason="the site needs: pip install hf-sense[docs]")
pytest.importorskip("mkdocstrings", reason="the site needs: pip install hf-sense[docs]")


@pytest.fixture(scope="module")
def hooks():
    specification = importlib.util.spec_from_file_location("docs_hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """What a page of the site holds: its anchors, what it links to, and what a browser loads for it."""

    def __init__(self, path):
        super().__init__()
        self.anchors, self.links, self.loaded = set(), [], []
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[name] for name in ("id", "name") if found.get(name)}
        if tag == "a" and found.get("href"):
            self.links.append(found["href"])
        elif tag == "link" and found.get("href"):
            self.loaded.append(found["href"])
        self.loaded += [found["src"]] if found.get("src") else []


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The built site's folder."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "HF_SENSE_DOCS": "quick", "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site):
    # 404.html is served at any depth, so its links have no base that is known here.
    return {path: Page(path) for path in sorted(site.rglob("*.html")) if path.name != "404.html"}


def test_public_names_have_their_place_in_the_reference(site):
    """A public name is added, and the reference does not have it."""
    header, packed = (site / "objects.inv").read_bytes().split(b"zlib.\n", 1)
    assert header.startswith(b"# Sphinx inventory version 2")
    names = {line.split()[0] for line in zlib.decompress(packed).decode().splitlines()}
    wanted = {f"hf_sense.{name}" for name in hf_sense.__all__}
    for module in MODULES:
        found = importlib.import_module(f"hf_sense.{module}")
        public = getattr(found, "__all__", None) or [
            name
            for name, value in vars(found).items()
            if not name.startswith("_") and callable(value) and getattr(value, "__module__", None) == found.__name__
        ]
        wanted |= {f"hf_sense.{module}.{name}" for name in public}
    assert len(wanted) > 50
    assert not wanted - names


def test_docstrings_reach_the_pages(site):
    """A name stands there without its docstring, its example as a quotation, or a field without its help."""
    text = {
        name: (site / f"reference-{name}.html").read_text(encoding="utf-8") for name in ("dictionary", "distillation")
    }
    assert "ties go to the lowest sense id" in text["dictionary"]
    assert "Weight of the cross-entropy on the teacher" in text["distillation"]
    for page in site.glob("reference-*.html"):
        assert "&gt;&gt;&gt; " not in re.sub(r"(?s)<code>.*?</code>", "", page.read_text(encoding="utf-8")), page.name


def test_links_and_anchors_resolve(pages):
    """A page points to a page or a heading that is not there."""
    checked = 0
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), f"{path.name}: {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.name}: {link}"
            checked += 1
    assert checked > 1000


def test_nothing_is_loaded_from_elsewhere(site, pages):
    """Whoever reads a page tells a third party so, or sees it without its fonts where there is no network."""
    for path, page in pages.items():
        for link in page.loaded:
            assert not urlsplit(link).netloc, f"{path.name}: {link}"
            assert (path.parent / urlsplit(link).path).is_file(), f"{path.name}: {link}"
    for path in site.rglob("*.css"):
        assert not re.search(r"(@import|url\()\s*[\"']?(https?:)?//", path.read_text(encoding="utf-8")), path.name


def test_every_tutorial_is_found_and_says_that_it_was_not_executed(hooks, site):
    """A fence is misspelt and its block is never run, or a page shows code as if it had been."""
    for path in DOCS.glob("*.md"):
        text = path.read_text(encoding="utf-8")
        marked = len(re.findall(r"^ *```+ *python +\S", text, re.MULTILINE))
        assert marked == len(hooks.BLOCK.findall(text)), path.name
        page = (site / path.with_suffix(".html").name).read_text(encoding="utf-8")
        assert ("Not executed in this build" in page) == bool(marked), path.name
        assert "python run" not in page, path.name


def test_a_tutorial_that_fails_stops_the_build_and_names_its_line(hooks, tmp_path):
    """Code of a page breaks, and the site shows it nevertheless; or nobody finds which."""
    from mkdocs.exceptions import PluginError

    good = ["a.md", [(3, "x = 2\nprint(x)\n"), (9, "print(x + 1)\n")], str(tmp_path)]
    bad = ["b.md", [(3, "x = 0\n"), (9, "y = 1\ny / x\n")], str(tmp_path)]
    ran = hooks.run_pages([good, bad])
    assert next(ran) == ["a.md", ["2\n", "3\n"]]
    with pytest.raises(PluginError, match=r'(?s)File "b.md", line 10.*ZeroDivisionError'):
        next(ran)


def test_outputs_are_kept_until_the_page_changes(hooks, tmp_path, monkeypatch):
    """Each build takes minutes, or shows the output of code that stands there no longer."""
    monkeypatch.setattr(hooks, "CACHE", tmp_path / "kept")
    monkeypatch.setattr(hooks, "prepare", lambda folder: None)
    ran = []
    monkeypatch.setattr(
        hooks, "run_pages", lambda pages: [(path, ran.append(path) or [str(len(ran))]) for path, *_ in pages]
    )
    first, second = [(1, "print(1)\n")], [(1, "print(2)\n")]
    made = [hooks.outputs_of({"a.md": blocks})["a.md"] for blocks in (first, first, second, first)]
    assert made == [["1"], ["1"], ["2"], ["3"]]
    assert len(list((tmp_path / "kept").iterdir())) == 1


@pytest.mark.parametrize(
    ("page", "count"), [("howto-distil.md", 3), ("howto-decoder.md", 3), ("howto-tokens.md", 3), ("howto-search.md", 1)]
)
def test_pages_that_are_not_executed_run_on_tiny_models(
    hooks, page, count, tmp_path, monkeypatch, texts, tiny_teacher_folder, base
):
    """A page of instructions names an argument that is gone."""
    folders = {
        "sentence-transformers/all-MiniLM-L6-v2": tiny_teacher_folder,
        "HuggingFaceTB/SmolLM2-135M-Instruct": base,
    }
    for name, folder in folders.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(folder)
    rows = [{"text": text, "label": "water" if "river" in text or "rain" in text else "dry"} for text in texts]
    (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    (tmp_path / "train.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    words = [text.split() for text in texts]
    tagged = [{"tokens": row, "labels": ["thing" if len(word) > 3 else None for word in row]} for row in words]
    for row in tagged:
        row["labels"][0] = "first"
    (tmp_path / "tagged.jsonl").write_text("\n".join(map(json.dumps, tagged)) + "\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    blocks = hooks.blocks_of(DOCS / page, re.compile(r"(?ms)^```python( ?)\n(.*?)^```$"))
    blocks = [(line, code.replace('adapted", max_length=64', SMALL)) for line, code in blocks]
    assert len(blocks) == count
    assert any(output.strip() for output in hooks.execute(page, blocks))
