"""The fuzzer of ``benchmarks/fuzz.py``, for a moment: the same cases each time, and it does find what is wrong."""

from __future__ import annotations

import runpy
import sys
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
