"""What ``hf-sense build`` says before it starts, and ``hf-sense plan`` alone.

Heavy packages are imported inside the functions.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from hf_sense.cli_input import DATA_HELP, check_model, fail, load, print_table

_PEEKED = 2000
# Builds that take less are begun without asking.
_SECONDS_TO_ASK = 60


def plan(
    teacher: Annotated[str, typer.Option(help="The encoder or decoder: a folder or an id on the Hub.")],
    dataset: Annotated[str, typer.Option(help=DATA_HELP)],
    text_column: Annotated[
        str, typer.Option(help="Column of the texts; two, with a comma between, for pairs.")
    ] = "text",
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    stream: Annotated[bool, typer.Option("--stream", help="Read the data set as it comes.")] = False,
    texts: Annotated[int | None, typer.Option(help="Texts of the corpus, where a stream does not say.")] = None,
    max_senses: Annotated[str, typer.Option(help='A number, "n/10", "sqrt", or "n/10,100".')] = "20",
    max_occurrences: Annotated[int, typer.Option(help="Distinct occurrences of a token that are sampled.")] = 1000,
    max_length: Annotated[int | None, typer.Option(help="Cut texts to so many tokens.")] = None,
    batch_size: Annotated[int, typer.Option(help="Texts the teacher reads at once.")] = 32,
    max_memory: Annotated[str | None, typer.Option(help='What a process may take, "4GB".')] = None,
    processes: Annotated[int, typer.Option(help="Processes that will share the work.")] = 1,
) -> None:
    """Say what a build will take: tokens, time, memory, disk, size."""
    check_model(teacher)
    data, column = load(dataset, split, text_column, stream)
    if isinstance(data, Iterator):
        data = itertools.islice(data, _PEEKED)
    from hf_sense import register
    from hf_sense.plan import plan_build

    register()
    found = plan_build(
        teacher, data, text_column=column, number_of_texts=texts, max_senses=max_senses, max_occurrences=max_occurrences,
        max_length=max_length, batch_size=batch_size, max_memory=max_memory, processes=processes,
    )  # fmt: skip
    print_table(found.table())


def show_plan(teacher: Any, data: Any, work_dir: Path, yes: bool, **options: Any) -> Any:
    """Prints what a build will take, refuses what the disk cannot hold, and asks in a terminal; returns the data.

    The data of a stream that can be read once come back whole.
    """
    from hf_sense.memory import shown_bytes
    from hf_sense.plan import plan_build
    from hf_sense.ranks import processes
    from hf_sense.segments import free_bytes

    first = data
    if isinstance(data, Iterator):
        held = list(itertools.islice(data, _PEEKED))
        first, data = iter(held), itertools.chain(held, data)
    state = processes()
    if state.is_main_process:
        found = plan_build(teacher, first, processes=state.num_processes, **options)
        print_table(found.table(), sys.stderr)
        there = work_dir.absolute()
        while not there.exists():
            there = there.parent
        done = sum(file.stat().st_size for file in work_dir.glob("*")) if work_dir.is_dir() else 0
        if found.disk - done > (free := free_bytes(there)):
            fail(
                f"The build needs about {shown_bytes(found.disk - done)} in {work_dir}, whose disk has {shown_bytes(free)} free. "
                "Make room, give --work-dir on another disk, or lower --max-occurrences."
            )
        asked = (
            sys.stdin.isatty() and sys.stderr.isatty() and state.num_processes == 1 and found.seconds > _SECONDS_TO_ASK
        )
        if asked and not yes and not os.environ.get("CI"):
            typer.confirm("Go on?", default=True, abort=True, err=True)
    return data
