"""The command line: what it makes, and what it says of bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from processes import run_python
from safetensors import safe_open

from hf_sense.cli import main


@pytest.fixture(scope="module")
def data(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("data")
    rows = [{"text": text, "label": "water" if "river" in text or "rain" in text else "dry"} for text in texts]
    (folder / "train.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    (folder / "texts.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
    (folder / "empty.txt").touch()
    return folder


@pytest.fixture(scope="module")
def dictionary(data, tiny_teacher_folder):
    folder = data / "dictionary"
    arguments = ["--teacher", str(tiny_teacher_folder), "--dataset", str(data / "train.jsonl"), "--output", str(folder)]
    assert main(["build", *arguments, "--max-senses", "3"]) == 0
    return folder


@pytest.fixture(scope="module")
def student(dictionary, teacher, tmp_path_factory):
    """The folder of a student with its classifier; a folded one lies in it."""
    from hf_sense import SenseDictionary, SenseModelForSequenceClassification

    folder = tmp_path_factory.mktemp("student")
    senses = SenseDictionary.from_pretrained(dictionary)
    model = SenseModelForSequenceClassification.from_teacher(teacher, senses, num_hidden_layers=1)
    model.save_pretrained(folder)
    (folder / "folded").mkdir()
    (folder / "folded" / "config.json").write_text('{"model_type": "folded_sense"}', encoding="utf-8")
    teacher.tokenizer.save_pretrained(folder)
    return folder


def run(arguments, capsys):
    """The exit code and the one line of an error."""
    code = main(arguments)
    return code, capsys.readouterr().err.strip()


def test_labels_that_are_missing_or_too_few_are_found_before_long_work(
    data, dictionary, tiny_teacher_folder, tmp_path, capsys, monkeypatch
):
    """A missing label becomes a class of its own, or an hour of training ends in an error."""
    import hf_sense.trainer

    monkeypatch.setattr(hf_sense.trainer.SenseDistillationTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    rows = [{"text": "the bank", "label": "a"}, {"text": "a mole", "label": None}, {"text": "my card", "label": "a"}]
    for name, kept in (("null", rows), ("one", rows[::2])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, kept)), encoding="utf-8")
    common = ["--teacher", str(tiny_teacher_folder), "--dictionary", str(dictionary), "--output", str(tmp_path / "out")]
    for name, message in (("null", "Row 1 of"), ("one", "needs two labels or more")):
        arguments = ["distill", *common, "--dataset", str(tmp_path / f"{name}.jsonl"), "--label-column", "label"]
        code, line = run(arguments, capsys)
        assert (code, message in line, "\n" in line) == (2, True, False), line
    train = str(data / "train.jsonl")
    arguments = ["evaluate", "--model", str(tmp_path), "--train", train, "--test", train, "--samples-per-label", "59"]
    code, line = run(arguments, capsys)
    assert (code, "Give --samples-per-label" in line) == (2, True), line


def test_going_on_with_another_student_or_a_finished_one_is_refused(
    data, dictionary, tiny_teacher_folder, tmp_path, capsys
):
    """Weights of another student are loaded half, or a finished student is trained a step more and written over."""
    common = ["distill", "--teacher", str(tiny_teacher_folder), "--dictionary", str(dictionary)]
    common += ["--dataset", str(data / "train.jsonl"), "--output", str(tmp_path / "out"), "--use-cpu"]
    common += ["--max-steps", "4", "--save-steps", "2", "--disable-tqdm", "true"]
    assert main([*common, "--num-hidden-layers", "1"]) == 0
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    capsys.readouterr()
    code, line = run([*common, "--num-hidden-layers", "2"], capsys)
    assert (code, "checkpoints of another student: 1 layers" in line) == (2, True), line
    code, line = run([*common, "--num-hidden-layers", "1"], capsys)
    assert (code, "training ended after 4 steps" in line) == (2, True), line
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    # Stopped while the student was saved: the last file is missing, and another is half there.
    (tmp_path / "out" / "README.md").unlink()
    (tmp_path / "out" / "model.safetensors").write_bytes(before[:1000])
    assert main([*common, "--num-hidden-layers", "1"]) == 0
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert "| steps | 4 |" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")


def test_senses_are_chosen_softly_and_learned_on_demand(data, dictionary, tiny_teacher_folder, tmp_path, capsys):
    """--selection or --learned-senses does nothing; or a student goes on from one whose senses were fixed."""
    from hf_sense import SenseDictionary, SenseModel

    common = ["distill", "--teacher", str(tiny_teacher_folder), "--dictionary", str(dictionary), "--use-cpu"]
    common += [
        "--dataset",
        str(data / "train.jsonl"),
        "--num-hidden-layers",
        "1",
        "--max-steps",
        "4",
        "--disable-tqdm",
        "true",
    ]
    common += ["--save-steps", "2", "--learning-rate", "1e-2"]
    senses = SenseDictionary.from_pretrained(dictionary).senses
    for name, more in (("soft", ["--selection", "soft"]), ("learned", ["--selection", "soft", "--learned-senses"])):
        assert main([*common, *more, "--output", str(tmp_path / name)]) == 0
        student = SenseModel.from_pretrained(tmp_path / name)
        assert student.config.selection == "soft"
        assert torch.equal(student.table.senses.detach(), senses) == (name == "soft")
    capsys.readouterr()
    code, line = run([*common, "--selection", "soft", "--output", str(tmp_path / "learned")], capsys)
    assert (code, "1 layers and learned senses of dictionary" in line) == (2, True), line


@pytest.mark.parametrize("labels", [[], ["--label-column", "label"]])
def test_the_same_command_makes_the_same_student(data, dictionary, tiny_teacher_folder, tmp_path, labels):
    """Weights that are drawn differ from run to run; or the files tell whether targets were kept; or a head is of chance."""
    common = ["distill", "--teacher", str(tiny_teacher_folder), "--dictionary", str(dictionary), *labels]
    common += ["--dataset", str(data / "train.jsonl"), "--target-cache-dir", str(tmp_path / "targets"), "--use-cpu"]
    common += ["--max-steps", "2", "--save-strategy", "no", "--disable-tqdm", "true", "--num-hidden-layers", "1"]
    names = ("model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json")
    made = []
    for name in ("one", "two"):
        assert main([*common, "--output", str(tmp_path / name)]) == 0
        made.append([(tmp_path / name / file).read_bytes() for file in names])
        torch.rand(3)
    assert made[0] == made[1]
    with safe_open(tmp_path / "one" / "model.safetensors", framework="pt") as file:
        assert any(key.startswith("classifier.") for key in file.keys()) == bool(labels)  # noqa: SIM118


def test_build_distill_evaluate_inspect(data, dictionary, tiny_teacher_folder, capsys):
    """A command does not take what the one before it made."""
    train, student = str(data / "train.jsonl"), data / "student"
    assert not (data / "dictionary.work").exists()
    common = ["--teacher", str(tiny_teacher_folder), "--dictionary", str(dictionary), "--dataset", train]
    options = [
        "--max-steps",
        "4",
        "--learning-rate",
        "1e-3",
        "--use-cpu",
        "--save-strategy",
        "no",
        "--disable-tqdm",
        "true",
    ]
    assert main(["distill", *common, "--output", str(student), "--num-hidden-layers", "1", *options]) == 0
    figures = data / "figures.json"
    arguments = ["--model", str(student), "--train", train, "--test", train, "--samples-per-label", "4"]
    assert main(["evaluate", *arguments, "--output", str(figures)]) == 0
    assert 0.3 < json.loads(figures.read_text(encoding="utf-8"))["few_shot_accuracy"] <= 1
    capsys.readouterr()
    assert main(["inspect", str(dictionary), "bank", "--corpus", train]) == 0
    printed = capsys.readouterr().out
    assert "'bank' (id" in printed
    assert "[bank]" in printed


def test_convert_makes_what_the_other_commands_take(data, dictionary, tiny_teacher_folder, capsys):
    """A converted dictionary has lost its tokenizer or its metadata, or is not what building it so gives."""
    small, built = data / "small", data / "built"
    assert main(["convert", str(dictionary), str(small), "--dtype", "int8"]) == 0
    arguments = ["--teacher", str(tiny_teacher_folder), "--dataset", str(data / "train.jsonl"), "--output", str(built)]
    assert main(["build", *arguments, "--max-senses", "3", "--dtype", "int8"]) == 0
    tensors = [(folder / "sense_dictionary.safetensors").read_bytes() for folder in (small, built)]
    assert tensors[0] == tensors[1]
    for file in ("sense_dictionary.json", "tokenizer.json"):
        assert json.loads((small / file).read_text()) == json.loads((built / file).read_text())
    capsys.readouterr()
    assert main(["inspect", str(small), "bank", "--corpus", str(data / "train.jsonl")]) == 0
    assert "[bank]" in capsys.readouterr().out


def test_codes_are_built_converted_and_shown(data, tiny_teacher_folder, tmp_path, capsys):
    """The command has no codes, converts senses alone, or shows a token as if there were none."""
    arguments = ["--teacher", str(tiny_teacher_folder), "--dataset", str(data / "train.jsonl"), "--max-senses", "1"]
    assert main(["build", *arguments, "--output", str(tmp_path / "d"), "--codes", "8", "--code-levels", "2"]) == 0
    assert "num_codes" in capsys.readouterr().out.replace(" ", "_")
    assert main(["convert", str(tmp_path / "d"), str(tmp_path / "small"), "--dtype", "int8"]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "small"), "bank"]) == 0
    assert "one of 8 codes that all tokens share, at each of 2 levels" in capsys.readouterr().out
    code, line = run(["build", *arguments, "--output", str(tmp_path / "e"), "--codes", "1"], capsys)
    assert (code, "codes should be a whole number from 2" in line) == (2, True), line


def test_inspect_takes_a_student_as_report_does(data, dictionary, student, capsys):
    """A student's senses are seen in Python alone."""
    shown = []
    for folder in (dictionary, student):
        assert main(["inspect", str(folder), "bank", "--corpus", str(data / "train.jsonl"), "--contexts", "1"]) == 0
        shown.append(capsys.readouterr().out)
    assert "occurrences, 100.0% with senses" in shown[0]
    assert shown[0] == shown[1]


def test_no_word_of_the_help_is_lost(capsys):
    """What stands in square brackets is taken for a colour, and a sentence ends in a hole."""
    for command in (
        "build",
        "convert",
        "distill",
        "adapt",
        "evaluate",
        "inspect",
        "report",
        "explore",
        "export",
        "push",
    ):
        assert main([command, "--help"]) == 0
        text = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert " ." not in text, command
    assert main(["build", "--help"]) == 0
    assert "[CLS]" in capsys.readouterr().out


def test_formats_give_the_same_dictionary(data, dictionary, tiny_teacher_folder):
    """A text file is read otherwise than the same texts in JSON lines."""
    other = data / "from_text"
    arguments = ["--teacher", str(tiny_teacher_folder), "--dataset", str(data / "texts.txt"), "--output", str(other)]
    assert main(["build", *arguments, "--max-senses", "3"]) == 0
    tensors = [(folder / "sense_dictionary.safetensors").read_bytes() for folder in (dictionary, other)]
    assert tensors[0] == tensors[1]


COMMON = ["--teacher", "x", "--dataset", "{data}/train.jsonl", "--output", "o"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "--teacher", "x"], "Missing option"),
        (["build", "--teacher", "x", "--dataset", "/nowhere.jsonl", "--output", "o"], "no file or folder"),
        (["build", *COMMON, "--text-column", "body"], "no column 'body'"),
        (["build", *COMMON, "--metric", "l7"], "'l7'"),
        (["build", *COMMON, "--max-senses", "many"], "many"),
        (["build", "--teacher", "x", "--dataset", "{data}/train.jsonl", "--output", "{data}/train.jsonl"], "is a file"),
        (["build", "--teacher", "{data}/no", "--dataset", "{data}/train.jsonl", "--output", "{data}/o"], "/no"),
        (["build", "--teacher", "x", "--dataset", "{data}/empty.txt", "--output", "o"], "is empty"),
        (["build", *COMMON, "--dtype", "int4"], "'int4'"),
        (["convert", "{data}/dictionary", "{data}/./dictionary", "--dtype", "int8"], "would be lost"),
        (["build", "--teacher", "x", "--dataset", "{data}/train.jsonl", "--output", "{teacher}"], "holds a model"),
        (["build", *COMMON[2:], "--teacher", "{data}/dictionary"], "is a sense dictionary, and a model is wanted"),
        (["build", *COMMON[2:], "--teacher", "{student}"], "it cannot be a teacher"),
        (["convert", "{student}", "{data}/o", "--dtype", "int8"], "Convert the dictionary that it was distilled from"),
        (["inspect", "{folded}", "bank"], "Give the model that it was folded from"),
        (["explore", "{data}/dictionary", "--port", "80000"], "from 1 to 65535"),
        (["explore", "{data}/dictionary", "--host", "nowhere.invalid"], "host nowhere.invalid cannot be used"),
        (["inspect", "{data}/dictionary", "qqqqqq"], "not a token"),
        (["inspect", "{data}", "bank"], "not a sense dictionary"),
        (["distill", *COMMON, "--dictionary", "d", "--stepz", "3"], "--stepz"),
        (["nonsense"], "nonsense"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_code_2(
    data, dictionary, student, tiny_teacher_folder, capsys, arguments, message
):
    """A slip ends in a traceback, in silence, or in a file half-written."""
    before = sorted(str(path) for path in data.rglob("*"))
    capsys.readouterr()
    names = {"data": data, "teacher": tiny_teacher_folder, "student": student, "folded": student / "folded"}
    assert main([argument.format(**names) for argument in arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("hf-sense: ")
    assert message in said
    assert sorted(str(path) for path in data.rglob("*")) == before


def test_help_does_not_wait_for_torch():
    """--help imports torch and takes seconds."""
    script = (
        "import sys; sys.argv = ['hf-sense', '--help']; sys.orig_argv = [sys.executable, '-m', 'hf_sense', '--help']\n"
        "from hf_sense.cli import main; code = main(['build', '--help'])\n"
        "assert code == 0; assert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy imports'"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "hf_sense", "--help"], check=True, capture_output=True, text=True)
    assert "distill" in done.stdout
    print(f"{time.perf_counter() - begin:.2f} s")


def test_push_takes_what_the_folder_holds(dictionary, teacher, tmp_path):
    """The command pushes a dictionary as a model, or a student without its tokenizer or its classifier."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from loopback_hub import LoopbackHub

    from hf_sense import SenseDictionary, SenseModelForSequenceClassification

    (tmp_path / "senses").symlink_to(dictionary)
    student = SenseModelForSequenceClassification.from_teacher(
        teacher, SenseDictionary.from_pretrained(dictionary), num_hidden_layers=1
    )
    student.save_pretrained(tmp_path / "student")
    teacher.tokenizer.save_pretrained(tmp_path / "student")
    with LoopbackHub() as server:
        environment = {**os.environ, **server.environment(tmp_path / "home")}

        def push(folder, repo):
            command = ["-m", "hf_sense", "push", str(tmp_path / folder), repo, "--license", "mit"]
            return run_python(command, environment)

        done = push("senses", "org/senses")
        assert done.returncode == 0, done.stderr
        assert "Pushed to http" in done.stdout
        assert "sense_dictionary.safetensors" in server.files("org/senses")
        assert push("student", "org/student").returncode == 0
        files = server.files("org/student")
        assert {"model.safetensors", "tokenizer.json", "modeling_hf_sense.py"} <= set(files)
        assert b"license: mit" in files["README.md"]
        assert b"AutoModelForSequenceClassification" in files["README.md"]
        refused = push("nowhere", "org/none")
        assert refused.returncode == 2
        assert "There is no folder" in refused.stderr
