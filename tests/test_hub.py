"""Dictionaries and models to the Hub and back, in processes of their own, over a server on loopback."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from processes import run_python

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from loopback_hub import MEMBER_TOKEN, LoopbackHub, Repo

TENSORS, DESCRIPTION = "sense_dictionary.safetensors", "sense_dictionary.json"
# No waiting between the tries of an upload or a download.
PRELUDE = "import json, os, sys, time\ntime.sleep = lambda seconds: None\n"
FAILS = """
def fails(call):
    try:
        call()
    except Exception as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]
"""


@pytest.fixture(params=[False, True], ids=["regular", "lfs"])
def hub(request):
    with LoopbackHub(lfs=request.param) as server:
        yield server


@pytest.fixture
def plain_hub():
    with LoopbackHub() as server:
        yield server


def run(script, server, home, token=MEMBER_TOKEN, **variables):
    """Runs a script that sees the server as the Hub; returns what it printed last, read as JSON."""
    environment = {**os.environ, **server.environment(home, token), **{k: str(v) for k, v in variables.items()}}
    done = run_python(["-c", PRELUDE + FAILS + script], environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def front_matter(card):
    return yaml.safe_load(card.decode().split("---")[1])


@pytest.fixture(scope="module")
def saved(dictionary, tmp_path_factory):
    """A dictionary's folder, its teacher and corpus named as on the Hub."""
    folder = tmp_path_factory.mktemp("saved") / "dictionary"
    before = dict(dictionary.metadata)
    dictionary.metadata["teacher"] = {**before["teacher"], "name": "org/teacher"}
    dictionary.metadata["corpus"] = {**before["corpus"], "name": "org/sentences"}
    dictionary.save_pretrained(folder)
    dictionary.metadata.clear()
    dictionary.metadata.update(before)
    return folder


def test_a_dictionary_goes_and_comes_back(hub, saved, tmp_path):
    """A push loses a file or a byte, leaves files of an older layout, or gives a card without the lines that load it."""
    push = """
from hf_sense import SenseDictionary
d = SenseDictionary.from_pretrained(os.environ["FOLDER"])
first = d.push_to_hub("org/senses", max_shard_size=2000, commit_message="in parts").oid
second = d.push_to_hub("org/senses", license="apache-2.0")
assert d.hub_source == ("org/senses", second.oid), d.hub_source
d.push_to_hub("org/senses", revision="draft")
pr = d.push_to_hub("org/senses", create_pr=True).pr_url
print(json.dumps([first, second.oid, d.fingerprint, pr]))
"""
    first, second, fingerprint, pull_request = run(push, hub, tmp_path / "a", FOLDER=saved)
    parts = hub.files("org/senses", first)
    assert sum(name.endswith(".safetensors") for name in parts) > 2
    assert TENSORS not in parts
    files = hub.files("org/senses")
    assert set(files) == {".gitattributes", TENSORS, DESCRIPTION, "README.md", "senses_per_token.png"}
    assert files[TENSORS] == (saved / TENSORS).read_bytes()
    assert bool(hub.objects) == hub.lfs
    assert set(hub.repos["org/senses"].branches) == {"main", "draft", "refs/pr/1"}
    assert pull_request.endswith("/discussions/1")
    card = front_matter(files["README.md"])
    assert card["library_name"] == "hf_sense"
    assert {"hf_sense", "sense-dictionary"} <= set(card["tags"])
    assert (card["base_model"], card["datasets"], card["license"]) == ("org/teacher", ["org/sentences"], "apache-2.0")
    text = files["README.md"].decode()
    assert 'SenseDictionary.from_pretrained("org/senses")' in text
    assert "](senses_per_token.png)" in text
    pull = """
from hf_sense import SenseDictionary
now = SenseDictionary.from_pretrained("org/senses", cache_dir=os.environ.get("CACHE"))
old = SenseDictionary.from_pretrained("org/senses", revision=os.environ["FIRST"], cache_dir=os.environ.get("CACHE"))
print(json.dumps([now.fingerprint, old.fingerprint, now.hub_source, old.hub_source]))
"""
    names = {"FIRST": first, "CACHE": tmp_path / "cache"}
    got = run(pull, hub, tmp_path / "b", **names)
    assert got == [fingerprint, fingerprint, ["org/senses", second], ["org/senses", first]]
    assert (tmp_path / "cache").is_dir()
    hub.repos.clear()
    assert run(pull, hub, tmp_path / "b", **names, HF_HUB_OFFLINE=1) == got


def test_a_readme_written_by_hand_stays(plain_hub, saved, tmp_path):
    """Pushing again wipes out what somebody wrote about the dictionary."""
    repo = Repo()
    repo.commit("main", {"README.md": b"# Mine\n"})
    plain_hub.repos["org/senses"] = repo
    script = """
from hf_sense import SenseDictionary
SenseDictionary.from_pretrained(os.environ["FOLDER"]).push_to_hub("org/senses", private=True)
print("null")
"""
    run(script, plain_hub, tmp_path, FOLDER=saved)
    assert plain_hub.files("org/senses")["README.md"] == b"# Mine\n"
    assert TENSORS in plain_hub.files("org/senses")


def test_a_broken_upload_leaves_the_old_revision(hub, saved, tmp_path):
    """A connection that dies in an upload leaves new tensors beside an old description."""
    script = """
from hf_sense import SenseDictionary
d = SenseDictionary.from_pretrained(os.environ["FOLDER"])
print(json.dumps(fails(lambda: d.push_to_hub("org/senses"))))
"""
    assert run(script, hub, tmp_path, FOLDER=saved)[0] == "nothing"
    before = hub.files("org/senses")
    hub.cut_upload = True
    kind, message = run(script.replace("d.push", "d.merge(d).push"), hub, tmp_path, FOLDER=saved)
    assert kind == "ConnectionError"
    assert "Push again" in message
    assert hub.files("org/senses") == before
    hub.cut_upload = False
    assert run(script.replace("d.push", "d.merge(d).push"), hub, tmp_path, FOLDER=saved)[0] == "nothing"
    assert hub.files("org/senses") != before


def test_a_broken_download_is_no_dictionary(plain_hub, saved, tmp_path):
    """Half a download is opened as if it were whole, or bars the way to a second try."""
    repo = Repo()
    repo.commit("main", {name: (saved / name).read_bytes() for name in (TENSORS, DESCRIPTION)})
    plain_hub.repos["org/senses"] = repo
    plain_hub.cut_download = 100
    script = """
from hf_sense import SenseDictionary
got = fails(lambda: SenseDictionary.from_pretrained("org/senses"))
os.environ["HF_HUB_OFFLINE"] = "1"
print(json.dumps([got, fails(lambda: SenseDictionary.from_pretrained("org/senses", local_files_only=True))]))
"""
    (kind, message), (offline, offline_message) = run(script, plain_hub, tmp_path)
    assert kind == "ConnectionError"
    assert "again" in message
    assert offline == "FileNotFoundError"
    assert "Load it once with a connection" in offline_message or "not complete" in offline_message
    plain_hub.cut_download = None
    assert run(script, plain_hub, tmp_path) == [["nothing", ""], ["nothing", ""]]


def test_what_cannot_be_loaded_says_why(plain_hub, saved, tmp_path):
    """A user is left with a status code where a word would have helped."""
    kinds = {"gated": Repo(gated=True), "private": Repo(private=True), "texts": Repo(kind="datasets"), "bert": Repo()}
    kinds["student"] = Repo()
    for name, repo in kinds.items():
        files = {file: (saved / file).read_bytes() for file in (TENSORS, DESCRIPTION)}
        if name in ("bert", "student"):
            files = {"config.json": json.dumps({"model_type": "sense" if name == "student" else name}).encode()}
        repo.commit("main", files)
        plain_hub.repos[f"org/{name}"] = repo
    script = """
from hf_sense import SenseDictionary
names = ["org/gated", "org/private", "org/texts", "org/bert", "org/student", "org/missing", "not/a/name", "missing-folder"]
got = {name: fails(lambda: SenseDictionary.from_pretrained(name)) for name in names}
got["revision"] = fails(lambda: SenseDictionary.from_pretrained("org/bert", revision="v9"))
got["write"] = fails(lambda: SenseDictionary.from_pretrained(os.environ["FOLDER"]).push_to_hub("org/new"))
got["name"] = fails(lambda: SenseDictionary.from_pretrained(os.environ["FOLDER"]).push_to_hub("a/b/c"))
print(json.dumps(got))
"""
    got = run(script, plain_hub, tmp_path, token=None, FOLDER=saved)
    expected = {
        "org/gated": ("PermissionError", f"open {plain_hub.endpoint}/org/gated, accept its conditions"),
        "org/private": ("FileNotFoundError", "if it is private, log in"),
        "org/texts": ("FileNotFoundError", "is a data set on the Hub"),
        "org/bert": ("FileNotFoundError", "model of type 'bert'"),
        "org/student": ("FileNotFoundError", "AutoModel.from_pretrained('org/student').to_dictionary()"),
        "org/missing": ("FileNotFoundError", "Check its name"),
        "not/a/name": ("FileNotFoundError", "no folder 'not/a/name'"),
        "missing-folder": ("FileNotFoundError", "no folder and no repository 'missing-folder'"),
        "revision": ("FileNotFoundError", "no branch, tag or commit 'v9'"),
        "write": ("PermissionError", "write access"),
        "name": ("ValueError", "'org/name'"),
    }
    for name, (kind, words) in expected.items():
        assert got[name][0] == kind, (name, got[name])
        assert words in got[name][1], (name, got[name])
        assert "snapshots" not in got[name][1], (name, got[name])
    with_token = run(script, plain_hub, tmp_path / "member", FOLDER=saved)
    assert [with_token[f"org/{name}"][0] for name in ("gated", "private")] == ["nothing", "nothing"]


MAKE = """
import torch
from hf_sense import SenseDictionary, SenseModel, SenseModelForSequenceClassification, load_teacher
teacher = load_teacher(os.environ["TEACHER"])
senses = SenseDictionary.from_pretrained(os.environ["FOLDER"])
ids = torch.tensor([[2, 9, 11, 12, 3]])
def figures(model):
    with torch.no_grad():
        output = model.eval()(input_ids=ids, output_senses=True)
    return [output.last_hidden_state.double().sum().item(), output.sense_ids.tolist()]
"""


def test_models_go_and_come_back(plain_hub, saved, tiny_teacher_folder, tmp_path, monkeypatch):
    """A model comes back from the Hub without its dictionary, with another, or other than it went."""
    push = (
        MAKE
        + """
got = {}
inside = SenseModel.from_teacher(teacher, senses, num_hidden_layers=2)
inside.push_to_hub("org/inside", tokenizer=teacher.tokenizer, license="mit", metrics={"agreement": 0.5})
beside = SenseModel.from_teacher(teacher, senses, num_hidden_layers=2, dictionary_path="senses")
beside.push_to_hub("org/beside", private=True)
senses.push_to_hub("org/senses")
apart = SenseModel.from_teacher(teacher, senses, num_hidden_layers=2, dictionary_path="org/senses")
assert apart.config.sense_dictionary_revision == senses.hub_source.commit
apart.config.sense_dictionary_revision = None
senses.hub_source = None
apart.save_pretrained("apart", push_to_hub=True, repo_id="org/apart")
senses.merge(senses).push_to_hub("org/senses")  # later than what the model names
local = SenseModel.from_teacher(teacher, senses, num_hidden_layers=2, dictionary_path=os.environ["FOLDER"])
got["taken"] = fails(lambda: senses.push_to_hub("org/inside"))
got["path"] = fails(lambda: local.push_to_hub("org/local"))
got.update({name: figures(model) for name, model in (("inside", inside), ("beside", beside), ("apart", apart))})
print(json.dumps(got))
"""
    )
    names = {"FOLDER": saved, "TEACHER": tiny_teacher_folder}
    monkeypatch.chdir(tmp_path)
    sent = run(push, plain_hub, tmp_path / "a", **names)
    assert sent.pop("taken")[0] == "ValueError"  # a dictionary would take the model's card's place
    assert sent["path"][0] == "ValueError"
    assert "push_to_hub('org/name')" in sent.pop("path")[1]
    assert "org/local" not in plain_hub.repos
    assert {"senses/" + TENSORS, "senses/" + DESCRIPTION} <= set(plain_hub.files("org/beside"))
    assert not any(TENSORS in name for name in plain_hub.files("org/apart"))
    config = json.loads(plain_hub.files("org/apart")["config.json"])
    assert config["sense_dictionary_revision"] in plain_hub.repos["org/senses"].commits
    assert config["sense_dictionary_revision"] != plain_hub.repos["org/senses"].branches["main"]
    card = front_matter(plain_hub.files("org/inside")["README.md"])
    assert card["model-index"][0]["results"][0]["metrics"][0] == {"type": "agreement", "value": 0.5}
    assert card["base_model"] == "org/teacher"
    assert "senses_per_token.png" in plain_hub.files("org/inside")
    pull = (
        MAKE
        + """
from transformers import AutoModel, AutoTokenizer, pipeline
got = {name: figures(AutoModel.from_pretrained(f"org/{name}")) for name in ("inside", "beside", "apart")}
features = pipeline("feature-extraction", "org/inside")("the bank opens")
model, tokenizer = AutoModel.from_pretrained("org/inside"), AutoTokenizer.from_pretrained("org/inside")
with torch.no_grad():
    assert features == model(**tokenizer("the bank opens", return_tensors="pt")).last_hidden_state.tolist()
print(json.dumps(got))
"""
    )
    assert run(pull, plain_hub, tmp_path / "b", **names) == sent
    plain_hub.repos.clear()
    assert run(pull, plain_hub, tmp_path / "b", **names, HF_HUB_OFFLINE=1) == sent


def test_models_load_without_the_import(plain_hub, saved, tiny_teacher_folder, tmp_path, monkeypatch):
    """trust_remote_code runs other code than the installed package's, or a save after it copies the package's files."""
    push = (
        MAKE
        + """
model = SenseModelForSequenceClassification.from_teacher(teacher, senses, num_hidden_layers=2)
model.push_to_hub("org/student", tokenizer=teacher.tokenizer)
print(json.dumps(figures(model.model)))
"""
    )
    names = {"FOLDER": saved, "TEACHER": tiny_teacher_folder}
    sent = run(push, plain_hub, tmp_path / "a", **names)
    pull = """
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, pipeline
assert "hf_sense" not in sys.modules
untrusting = fails(lambda: AutoModel.from_pretrained("org/student", trust_remote_code=False))
model = AutoModel.from_pretrained("org/student", trust_remote_code=True)
assert type(model).__module__ == "hf_sense.modeling_sense", type(model)
with torch.no_grad():
    output = model(input_ids=torch.tensor([[2, 9, 11, 12, 3]]), output_senses=True)
first = [output.last_hidden_state.double().sum().item(), output.sense_ids.tolist()]
label = pipeline("text-classification", "org/student", trust_remote_code=True)("the bank opens")[0]["label"]
model.save_pretrained("again")
again = AutoModelForSequenceClassification.from_pretrained("again")
config = json.load(open("again/config.json"))
print(json.dumps([untrusting, first, label, sorted(os.listdir("again")), config["auto_map"]]))
"""
    monkeypatch.chdir(tmp_path)
    untrusting, got, label, files, auto_map = run(pull, plain_hub, tmp_path / "b", **names)
    assert "trust_remote_code" in untrusting[1]
    assert got == sent
    assert label.startswith("LABEL_")
    assert files == ["config.json", "model.safetensors", "modeling_hf_sense.py"]
    assert auto_map["AutoModel"] == "modeling_hf_sense.SenseModel"
    absent = """
class Absent:
    def find_spec(self, name, *rest):
        if name == "hf_sense":
            raise ModuleNotFoundError("No module named 'hf_sense'", name="hf_sense")
sys.meta_path.insert(0, Absent())
from transformers import AutoModel
print(json.dumps(fails(lambda: AutoModel.from_pretrained("org/student", trust_remote_code=True))))
"""
    kind, message = run(absent, plain_hub, tmp_path / "c", **names)
    assert kind in ("ImportError", "ModuleNotFoundError")
    assert "pip install hf" in message


@pytest.mark.parametrize(
    ("task", "module", "label"),
    [("Sequence", "hf_sense.folded", "label"), ("Token", "hf_sense.token_classification", "entity")],
)
def test_a_folded_model_is_pushed_and_loaded(plain_hub, saved, tiny_teacher_folder, tmp_path, task, module, label):
    """A folded model has no card, is loaded only where the package is imported, or as another kind."""
    push = (
        MAKE
        + """
import hf_sense
from transformers import BertConfig, BertModel
config = {**teacher.model.config.to_dict(), "hidden_size": 8, "num_hidden_layers": 1}
kind = getattr(hf_sense, f"SenseModelFor{os.environ['TASK']}Classification")
model = kind.from_teacher(teacher, senses, backbone=BertModel(BertConfig(**config)))
folded = model.fold()
folded.push_to_hub("org/folded", tokenizer=teacher.tokenizer)
with torch.no_grad():
    print(json.dumps(folded(input_ids=torch.tensor([[2, 9, 11, 12, 3]])).logits.tolist()))
"""
    )
    names = {"FOLDER": saved, "TEACHER": tiny_teacher_folder, "TASK": task}
    sent = run(push, plain_hub, tmp_path / "a", **names)
    card = plain_hub.files("org/folded")["README.md"].decode()
    assert f"AutoModelFor{task}Classification" in card
    hub_task = {"Sequence": "text-classification", "Token": "token-classification"}[task]
    assert hub_task in front_matter(card.encode())["tags"]
    pull = """
import torch, transformers
from transformers import pipeline
assert "hf_sense" not in sys.modules
kind = getattr(transformers, f"AutoModelFor{os.environ['TASK']}Classification")
model = kind.from_pretrained("org/folded", trust_remote_code=True)
answer = pipeline(os.environ["HUB_TASK"], "org/folded", trust_remote_code=True)("the bank opens")[0]
with torch.no_grad():
    logits = model(input_ids=torch.tensor([[2, 9, 11, 12, 3]])).logits.tolist()
print(json.dumps([type(model).__module__, answer[os.environ["LABEL"]], logits]))
"""
    found, answer, got = run(pull, plain_hub, tmp_path / "b", **names, HUB_TASK=hub_task, LABEL=label)
    assert found == module
    assert answer.startswith("LABEL_")
    assert got == sent


def test_a_trainer_pushes_its_student(plain_hub, saved, tiny_teacher_folder, tmp_path, monkeypatch):
    """trainer.push_to_hub() leaves out the tokenizer, the card or the dictionary beside the weights."""
    script = (
        MAKE
        + """
from datasets import Dataset
from hf_sense import SenseDistillationConfig, SenseDistillationTrainer
student = SenseModel.from_teacher(teacher, senses, num_hidden_layers=1, dictionary_path="senses")
data = Dataset.from_dict({"text": ["the bank opens the door", "a river leaves its water"] * 4})
args = SenseDistillationConfig(
    "student", max_steps=2, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=2, save_strategy="steps",
    save_steps=1, push_to_hub=True, hub_strategy="every_save", hub_always_push=True, target_cache_dir="cache",
    hub_model_id="org/trained", report_to=[], use_cpu=True, disable_tqdm=True,
)
trainer = SenseDistillationTrainer(student, args, teacher=teacher, train_dataset=data, eval_dataset=data)
trainer.train()
trainer.push_to_hub(license="mit", dataset="org/sentences")
print(json.dumps(figures(student)))
"""
    )
    names = {"FOLDER": saved, "TEACHER": tiny_teacher_folder}
    monkeypatch.chdir(tmp_path)
    sent = run(script, plain_hub, tmp_path / "a", **names)
    # Commits are made while it trains too, and each is a whole model.
    commits = list(plain_hub.repos["org/trained"].commits.values())
    trained = [files for files in commits if "model.safetensors" in files]
    assert len(trained) > 1
    for files in trained:
        assert {"config.json", "modeling_hf_sense.py", f"senses/{TENSORS}"} <= set(files)
    files = plain_hub.files("org/trained")
    assert {"model.safetensors", "tokenizer.json", "modeling_hf_sense.py", f"senses/{TENSORS}"} <= set(files)
    card = front_matter(files["README.md"])
    assert (card["license"], card["datasets"]) == ("mit", ["org/sentences"])
    assert card["model-index"][0]["results"][0]["metrics"][0]["type"] == "agreement"
    assert 'from_pretrained("org/trained")' in files["README.md"].decode()
    pull = MAKE + "print(json.dumps(figures(SenseModel.from_pretrained('org/trained'))))"
    assert run(pull, plain_hub, tmp_path / "b", **names) == sent
