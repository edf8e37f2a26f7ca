"""The fuzzers of ``benchmarks``, for a moment: the same cases each time, and they do find what is wrong."""

from __future__ import annotations

import importlib.util
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"


def run(monkeypatch, *arguments):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.setattr(sys, "argv", ["fuzz.py", *arguments])
    runpy.run_path(str(BENCHMARKS / "fuzz.py"), run_name="__main__")


def test_broken_input_does_nothing_but_say_so(monkeypatch, capsys):
    """A damaged or hostile file crashes, hangs, takes memory, writes elsewhere, or gives an error that does not name it."""
    run(monkeypatch, "--cases", "4000", "--ways", "loader", "json", "offsets", "targets")
    assert capsys.readouterr().out.count("| 0 |\n") == 4


def test_the_command_on_random_arguments(monkeypatch, capsys):
    """The command ends in a traceback."""
    run(monkeypatch, "--cases", "4000", "--ways", "command")
    assert "| command | 40 |" in capsys.readouterr().out


def test_it_would_find_a_fault(monkeypatch, capsys):
    """A fuzzer that finds nothing whatever happens."""
    import hf_sense.storage as storage

    original = storage._read_description

    def careless(folder, called):
        found = original(folder, called)
        return {**found, "metric": found["missing"]} if found["dim"] == 3 else found

    monkeypatch.setattr(storage, "_read_description", careless)
    with pytest.raises(SystemExit, match="Faults in: loader"):
        run(monkeypatch, "--cases", "200", "--ways", "loader")
    assert "KeyError: 'missing'" in capsys.readouterr().err


needs_atheris = pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris is not installed")


def guided(*arguments):
    command = [sys.executable, str(BENCHMARKS / "guided_fuzz.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, errors="replace")


@needs_atheris
def test_guided_cases_do_nothing_but_say_so(tmp_path):
    """The guided fuzzer does not start, watches nothing, or finds a fault."""
    done = guided("--cases", 500, "--work", tmp_path / "cases")
    assert done.returncode == 0, done.stderr[-2000:]
    assert "stat::number_of_executed_units: 5" in done.stderr  # 500 and what it began with
    assert len(list((tmp_path / "cases").iterdir())) > 11  # it kept some that reached new lines


@needs_atheris
def test_guided_cases_that_failed_are_kept(tmp_path, monkeypatch):
    """A fault is not told, or the case is lost that shows it."""
    careless = """
    import hf_sense.storage as storage

    original = storage._read_description

    def careless(folder, called):
        try:
            return original(folder, called)
        except ValueError as error:
            raise KeyError("careless") from error

    storage._read_description = careless
    """
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(careless))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    done = guided("--cases", 5000, "--work", tmp_path / "cases")
    assert done.returncode == 1
    assert "careless" in done.stderr + done.stdout
    assert "1 case failed" in done.stderr
    assert len(list((tmp_path / "cases").glob("failed-*"))) == 1
