"""The README's code runs as it stands; here on a tiny teacher that lies at the real one's name."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("number", range(len(BLOCKS)))
def test_the_code_runs(number, tiny_teacher_folder, texts, tmp_path):
    """The first thing that a reader tries breaks."""
    name = re.search(r'load_teacher\("(.*?)"\)', BLOCKS[number])[1]
    shutil.copytree(tiny_teacher_folder, tmp_path / name)
    rows = [json.dumps({"text": text, "label": "dry" if "bank" in text else "wet"}) for text in texts]
    (tmp_path / "train.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        [sys.executable, "-c", BLOCKS[number]],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_the_first_block_is_short():
    """What shall be seen at a glance has grown."""
    assert len([line for line in BLOCKS[0].splitlines() if line.strip()]) == 8
