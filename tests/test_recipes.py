"""Named settings of a build, and students without a transformer from the command line."""

from __future__ import annotations

import json

import pytest
from transformers import AutoModelForSequenceClassification

from hf_sense import SenseDictionary, build_dictionary
from hf_sense.cli import RecipeName, main
from hf_sense.recipes import RECIPES


@pytest.fixture(scope="module")
def data(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("data") / "train.jsonl"
    rows = [{"text": text, "label": "water" if "river" in text or "rain" in text else "dry"} for text in texts]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return path


def test_recipes_are_those_of_the_command(teacher, texts):
    """The command offers a recipe that the library lacks, or the defaults are another's."""
    assert [name.value for name in RecipeName] == list(RECIPES)
    plain = build_dictionary(teacher, texts)
    assert plain.metric == "l2"
    assert plain.metadata["clustering"]["method"] == "kmeans"
    assert plain.metadata["clustering"]["max_senses"] == 20
    with pytest.raises(ValueError, match="Did you mean 'paper'"):
        build_dictionary(teacher, texts, recipe="papers")


@pytest.mark.parametrize(
    ("options", "metric", "method", "most"),
    [
        (["--recipe", "paper"], "dot", "paper", 20),
        (["--recipe", "paper", "--max-senses", "7"], "dot", "paper", 7),
        (["--recipe", "paper", "--metric", "l2"], "l2", "paper", 20),
        (["--recipe", "words"], "cosine", "spherical_kmeans", 20),
    ],
)
def test_recipe_from_the_command_line(data, tiny_teacher_folder, tmp_path, options, metric, method, most):
    """A recipe is not what it is called, or an option beside it is dropped."""
    common = ["build", "--teacher", str(tiny_teacher_folder), "--dataset", str(data), "--output"]
    assert main([*common, str(tmp_path / "named"), *options]) == 0
    named = SenseDictionary.from_pretrained(tmp_path / "named")
    clustering = named.metadata["clustering"]
    assert (named.metric, clustering["method"], clustering["max_senses"]) == (metric, method, most)
    spelt = ["--metric", metric, "--method", method, "--max-senses", str(most)]
    assert main([*common, str(tmp_path / "spelt"), *spelt]) == 0
    assert SenseDictionary.from_pretrained(tmp_path / "spelt").fingerprint == named.fingerprint


@pytest.mark.parametrize("kind", ["context", "selector"])
def test_students_without_a_transformer(data, teacher, dictionary, tiny_teacher_folder, tmp_path, capsys, kind):
    """The command trains another student than was asked for, or its card tells of layers that it has not."""
    dictionary.save_pretrained(tmp_path / "senses")
    common = ["distill", "--teacher", str(tiny_teacher_folder), "--dictionary", str(tmp_path / "senses"), "--use-cpu"]
    common += ["--dataset", str(data), "--output", str(tmp_path / "out"), "--max-steps", "4", "--save-steps", "2"]
    common += ["--disable-tqdm", "true", "--label-column", "label", "--backbone", kind]
    assert main([*common, "--hidden-size", "8", "--window", "5"]) == 0
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    backbone = model.config.backbone_config
    assert (backbone.model_type, backbone.hidden_size, backbone.window) == ("sense_context_network", 8, 5)
    assert model.config.selection == {"context": "none", "selector": "soft"}[kind]
    assert sorted(model.config.label2id) == ["dry", "water"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| width | 8 |" in card
    assert "| window | 5 |" in card
    assert "layers" not in card
    (tmp_path / "out" / "config.json").unlink()
    capsys.readouterr()
    assert main([*common, "--hidden-size", "4"]) == 2
    assert "of width 8 and window 5" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backbone", "context", "--num-hidden-layers", "1"], "not both"),
        (["--hidden-size", "8"], "--backbone selector or context"),
        (["--backbone", "tree"], "'tree'"),
    ],
)
def test_options_that_do_not_go_together(data, tmp_path, capsys, options, message):
    """An option is dropped in silence, or the error comes after the teacher was loaded."""
    common = [
        "distill",
        "--teacher",
        "x",
        "--dictionary",
        "y",
        "--dataset",
        str(data),
        "--output",
        str(tmp_path / "out"),
    ]
    assert main([*common, *options]) == 2
    assert message in capsys.readouterr().err
