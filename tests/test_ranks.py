"""Builds on several processes: the same bytes for any number of them, with one folder or with one each; and deaths."""

from __future__ import annotations

import os
import signal
import socket
import textwrap
import time

import pytest
from processes import PythonProcess

from hf_sense import build_dictionary

# Small blocks and parts, so that a few texts are shared out; a slow teacher, where something is to happen meanwhile.
SCRIPT = textwrap.dedent(
    """
    import sys, time
    import torch
    torch.set_num_threads(1)
    import hf_sense.assembly, hf_sense.blocks, hf_sense.drawing, hf_sense.drawn
    import hf_sense.embedding, hf_sense.parts, hf_sense.watch
    from hf_sense import build_dictionary, load_teacher
    from hf_sense.teacher import Teacher
    hf_sense.drawn._SECONDS_BETWEEN_SAVES, hf_sense.drawn._SHARE = 0.0, float("inf")
    for module in (hf_sense.blocks, hf_sense.drawing, hf_sense.embedding):
        module.BLOCK = 7
    hf_sense.parts._PART_WORK = 300
    hf_sense.embedding._SECONDS_BETWEEN_SAVES = 0.0
    hf_sense.watch._SECONDS_BETWEEN_BEATS, hf_sense.watch._SECONDS_OF_SILENCE, hf_sense.watch._GRACE = 0.2, 3.0, 1.0
    teacher, texts, output, work, pause, options = sys.argv[1:]
    pause, teacher = float(pause), load_teacher(teacher)
    original = Teacher.hidden_states
    def slow(self, *args, **kwargs):
        print("batch", flush=True)
        time.sleep(pause)
        return original(self, *args, **kwargs)
    Teacher.hidden_states = slow
    given = eval(options)
    if work:
        given["work_dir"] = work
    made = build_dictionary(teacher, open(texts, encoding="utf-8").read().splitlines(), batch_size=3, **given)
    made.save_pretrained(output)
    """
)


def start(folder, teacher, count, name, work, pause=0.0, options="{}"):
    """Starts a build on so many processes, each with its own output and, unless it is shared, its own folder."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = []
    for rank in range(count):
        place = {"one": f"work-{name}", "own": f"work-{name}-{rank}", "pairs": f"work-{name}-{rank // 2}", "": ""}.get(
            work, work
        )
        command = ["build.py", str(teacher), "texts.txt", f"{name}-{rank}", place, str(pause), options]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        if count > 1:
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks.append(PythonProcess(command, environment, folder))
    return ranks


def laid_out(folder, texts):
    (folder / "build.py").write_text(SCRIPT, encoding="utf-8")
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")


@pytest.fixture
def run(tmp_path, tiny_teacher_folder, texts):
    """Starts builds in a folder, and ends what is left of them."""
    laid_out(tmp_path, texts)
    started = []

    def begin(*args, **kwargs):
        ranks = start(tmp_path, tiny_teacher_folder, *args, **kwargs)
        started.extend(ranks)
        return ranks

    yield begin
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def alone(tmp_path_factory, tiny_teacher_folder, texts):
    """The folder of what one process makes."""
    folder = tmp_path_factory.mktemp("alone")
    laid_out(folder, texts)
    finished(start(folder, tiny_teacher_folder, 1, "alone", ""))
    return folder / "alone-0"


def finished(ranks, timeout=120):
    """Waits for all; the errors of those that failed."""
    ends = [process.communicate(timeout=timeout)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0] * len(ranks), "\n".join(end[-1500:] for end in ends)


def files(folder):
    """A dictionary's files; the card beside them names the folder."""
    return {path.name: path.read_bytes() for path in folder.glob("sense_*")}


@pytest.mark.parametrize(("count", "work"), [(2, "own"), (3, ""), (3, "one"), (3, "own")])
def test_any_number_of_ranks_gives_the_same_bytes(run, tmp_path, alone, count, work):
    """The number of processes, or where they keep their work, changes what is built."""
    finished(run(count, "many", work))
    for rank in range(count):
        assert files(tmp_path / f"many-{rank}") == files(alone)
    assert not list(tmp_path.glob("work-*"))


@pytest.mark.parametrize(
    "options", ["{'budget': 150, 'max_occurrences': 8}", "{'max_senses': 1, 'codes': 4, 'min_count': 2}"]
)
def test_budgets_and_codes_on_two_ranks(run, tmp_path, options):
    """Curves or codes are those of one rank's share."""
    ranks = [run(1, "one", "", options=options), run(2, "two", "own", options=options)]
    for started in ranks:
        finished(started)
    assert files(tmp_path / "two-0") == files(tmp_path / "two-1") == files(tmp_path / "one-0")


def test_two_machines_of_two_ranks_each_stopped_and_resumed(run, tmp_path):
    """Ranks of one machine take each other for another build; or a piece that both see counts twice."""
    options = "{'max_senses': 1, 'codes': 4}"
    finished(run(1, "one", "", options=options))
    ranks = run(4, "pairs", "pairs", pause=0.1, options=options)
    begun(ranks[3], 3)
    for process in ranks:
        process.kill()
    for process in ranks:
        process.communicate()
    assert len(list(tmp_path.glob("work-pairs-*/vectors-*"))) > 4
    finished(run(4, "pairs", "pairs", options=options))
    for rank in range(4):
        assert files(tmp_path / f"pairs-{rank}") == files(tmp_path / "one-0")
    assert not list(tmp_path.glob("work-*"))


def begun(process, batches):
    """Returns when a process has begun so many batches."""
    for _ in range(batches):
        assert process.stdout.readline() == "batch\n", process.said()


# Rank 0 holds the store by which they hear of each other: it takes that along, or answers no more.
@pytest.mark.parametrize(("sign", "victim"), [(signal.SIGKILL, 0), (signal.SIGSTOP, 0), (signal.SIGSTOP, 1)])
def test_a_rank_that_dies_or_hangs_stops_the_others_and_three_go_on(run, tmp_path, alone, victim, sign):
    """The others wait for ever; or what was done is lost, or only as many processes can go on."""
    ranks = run(2, "first", str(tmp_path / "work"), pause=0.3)
    begun(ranks[0], 2)
    begun(ranks[1], 2)
    ranks[victim].send_signal(sign)
    begin = time.monotonic()
    said = ranks[1 - victim].communicate(timeout=60)[1]
    assert time.monotonic() - begin < 30
    assert ranks[1 - victim].returncode != 0
    assert f"rank {victim} on " in said
    assert "same command again" in said
    ranks[victim].kill()
    ranks[victim].communicate()
    kept = len(list((tmp_path / "work").glob("vectors-*")))
    assert kept >= 2
    (tmp_path / "work" / "sample-000000.safetensors").unlink()  # as if they had been stopped before it was whole
    assert len(list((tmp_path / "work").glob("drawn-*"))) == 2
    second = run(3, "second", str(tmp_path / "work"))
    finished(second)
    assert files(tmp_path / "second-2") == files(alone)
    assert not (tmp_path / "work").exists()


def test_an_error_of_one_rank_reaches_the_others(run, tmp_path):
    """One rank finds a fault, and the others hang without a word of it."""
    states = "return original(self, *args, **kwargs)"
    poison = SCRIPT.replace(states, f"{states} * (float('nan') if torch.distributed.get_rank() else 1)")
    (tmp_path / "build.py").write_text(poison, encoding="utf-8")
    ranks = run(2, "bad", "one")
    said = [process.communicate(timeout=60)[1] for process in ranks]
    assert all(process.returncode for process in ranks)
    assert "NaN or infinity for text" in said[1]
    assert "rank 1 on" in said[0]
    assert "NaN or infinity for text" in said[0]


def test_ranks_agree_with_the_library(alone, tiny_teacher_folder, texts):
    """What the script makes with small blocks is what the library makes, rounding aside."""
    import torch

    from hf_sense.dictionary import SenseDictionary

    here = build_dictionary(str(tiny_teacher_folder), texts, batch_size=3)
    there = SenseDictionary.from_pretrained(alone)
    assert torch.equal(here.offsets, there.offsets)
    torch.testing.assert_close(here.senses, there.senses, atol=1e-4, rtol=1e-4)
