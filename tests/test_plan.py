"""What a build will take, said before it starts."""

from __future__ import annotations

import itertools

import pytest

from hf_sense import build_dictionary
from hf_sense.cli import main
from hf_sense.plan import plan_build, shown_seconds


def test_a_corpus_that_is_read_whole_is_counted(teacher, texts, tmp_path):
    """The estimate of a small corpus is off though all of it was looked at."""
    made = build_dictionary(teacher, texts, max_senses=3, max_occurrences=7)
    made.save_pretrained(tmp_path)
    plan = plan_build(teacher, texts, max_senses=3, max_occurrences=7)
    assert (plan.texts, plan.known, plan.tokens) == (60, True, made.metadata["corpus"]["tokens"])
    assert plan.senses >= made.num_senses
    assert plan.dictionary >= (tmp_path / "sense_dictionary.safetensors").stat().st_size - 1500
    assert plan.tokens_per_second > 0
    assert plan.seconds > 0


def test_a_part_stands_for_the_whole(teacher, texts):
    """The estimate of a long corpus from its first texts misses by more than a rounding."""
    many = [f"{a} and {b}" for a, b in itertools.product(texts, texts)]
    plan = plan_build(teacher, many, max_occurrences=50)
    made = build_dictionary(teacher, many, max_senses=1, max_occurrences=50)
    tokens = made.metadata["corpus"]["tokens"]
    assert plan.tokens == pytest.approx(tokens, rel=0.05)
    assert plan.places == pytest.approx(50 * made.num_senses, rel=0.1)
    assert plan.read_tokens <= plan.tokens


def test_a_stream_says_that_it_is_one(teacher, texts):
    """The first texts of a stream pass for all of it."""
    endless = (f"{a} and {b}" for a, b in itertools.cycle(itertools.product(texts, texts)))
    plan = plan_build(teacher, endless)
    assert not plan.known
    assert "or more" in plan.table()["texts"]
    assert plan_build(teacher, iter(texts)).known
    assert plan_build(teacher, iter(texts), number_of_texts=600).tokens == 10 * plan_build(teacher, texts).tokens


def test_a_limit_and_more_processes(teacher, texts):
    """The plan does not know what the build is given."""
    one, two = (plan_build(teacher, texts, processes=n) for n in (1, 2))
    assert two.memory <= one.memory
    assert plan_build(teacher, texts, max_memory=10**6).memory == 10**6


@pytest.mark.parametrize(("seconds", "words"), [(0.4, "0 seconds"), (90, "1.5 minutes"), (5e5, "5.8 days")])
def test_times_in_words(seconds, words):
    """Somebody is told 0.0 hours."""
    assert shown_seconds(seconds) == words


@pytest.fixture
def files(tmp_path, tiny_teacher_folder, texts):
    """The arguments of a command, and a file of texts."""
    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    return ["--teacher", str(tiny_teacher_folder), "--dataset", str(tmp_path / "texts.txt")]


def test_the_command_says_it_and_builds_nothing(files, tmp_path, capsys):
    """hf-sense plan prints no figures, or leaves something behind."""
    assert main(["plan", *files, "--max-memory", "4GB", "--processes", "2"]) == 0
    said = capsys.readouterr().out
    for words in ("tokens that the teacher reads", "memory", "disk", "dictionary", "time"):
        assert words in said
    assert [path.name for path in tmp_path.iterdir()] == ["texts.txt"]


def test_a_build_refuses_a_disk_that_is_too_small(files, tmp_path, capsys, monkeypatch):
    """The disk is full in the middle of it."""
    monkeypatch.setattr("hf_sense.segments.free_bytes", lambda folder: 10)
    assert main(["build", *files, "--output", str(tmp_path / "out")]) == 2
    assert "whose disk has 10 bytes free" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_streams_and_standard_input(files, tmp_path, texts, monkeypatch):
    """A stream loses the texts that the plan looked at."""
    import io

    outputs = []
    for name, dataset in (("a", None), ("b", ["--stream"]), ("c", ["--dataset", "-"])):
        monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(texts) + "\n"))
        given = [*files, *(dataset or []), "--output", str(tmp_path / name), "--max-senses", "3"]
        assert main(["build", *given]) == 0
        outputs.append((tmp_path / name / "sense_dictionary.safetensors").read_bytes())
    assert outputs[0] == outputs[1] == outputs[2]


def test_samples_by_the_command(files, tmp_path, texts):
    """A dictionary cannot be grown from the command line."""
    (tmp_path / "more.txt").write_text("\n".join(f"a river {text}" for text in texts), encoding="utf-8")
    kept = str(tmp_path / "samples")
    assert main(["build", *files, "--output", str(tmp_path / "a"), "--keep-samples", kept]) == 0
    more = [*files[:2], "--dataset", str(tmp_path / "more.txt"), "--output", str(tmp_path / "b"), "--update", kept]
    assert main(["build", *more]) == 0
    from hf_sense.dictionary import SenseDictionary

    assert SenseDictionary.from_pretrained(tmp_path / "b").metadata["corpus"]["texts"] == 120
