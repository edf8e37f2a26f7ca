"""Exported graphs, in PyTorch and in onnxruntime, against the models they were made of."""

from __future__ import annotations

import itertools
import sys

import pytest
import torch
from transformers import BertConfig, BertModel

from hf_sense import (
    SenseConfig,
    SenseDictionary,
    SenseModel,
    SenseModelForSequenceClassification,
    build_dictionary,
    load_teacher,
)
from hf_sense.cli import main
from hf_sense.export import ExportableModel, PaddedSenses, export_onnx, export_program
from hf_sense.padding import RightAligned


def batches(tokenizer, texts):
    """Several shapes, of one text and of one token too, with padding on either side."""
    for side, chosen in (
        ("right", texts[:5]),
        ("left", texts[5:8]),
        ("right", texts[:1]),
        ("left", ["bank", "a mole"]),
    ):
        yield dict(tokenizer(chosen, padding=True, return_tensors="pt", padding_side=side))
    yield {name: tensor[:, :1] for name, tensor in tokenizer(texts[:1], return_tensors="pt").items()}


def check(run, model, tokenizer, texts):
    """``run`` answers as the model does, on batches of many shapes."""
    inner, names = model.base_model, ExportableModel(model).output_names
    for batch in batches(tokenizer, texts):
        batch = {name: batch[name] for name in ExportableModel(model).input_names}
        found = dict(zip(names, run(batch)))
        kept = batch["attention_mask"].bool()
        with torch.no_grad():
            output = inner(**batch, output_senses=True)
            if "logits" in names:
                torch.testing.assert_close(found["logits"], model(**batch).logits, atol=1e-4, rtol=1e-4)
            else:
                vectors = inner.pool(output.last_hidden_state, batch["input_ids"], batch["attention_mask"])
                torch.testing.assert_close(found["text_vector"], vectors, atol=1e-4, rtol=1e-4)
                torch.testing.assert_close(
                    found["last_hidden_state"][kept], output.last_hidden_state[kept], atol=1e-4, rtol=1e-4
                )
        assert ("sense_ids" in names) == (model.config.selection != "none")
        if "sense_ids" in names:
            assert torch.equal(found["sense_ids"], output.sense_ids)


def onnx_runner(path, names):
    """Runs a file with onnxruntime: tensors in, tensors out."""
    onnxruntime = pytest.importorskip("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert [(one.name, one.shape) for one in session.get_inputs()] == [(name, ["batch", "sequence"]) for name in names]
    return lambda batch: map(torch.from_numpy, session.run(None, {name: batch[name].numpy() for name in names}))


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
@pytest.mark.parametrize("selection", ["hard", "soft"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_padded_choice_equals_the_ragged_one(selection, metric, dtype):
    """The exported graph picks among other senses than the model, at a token with many, one or none."""
    torch.manual_seed(0)
    lengths = torch.tensor([3, 0, 1, 17, 0, 8, 9, 0])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    dictionary = SenseDictionary(3 * torch.randn(int(offsets[-1]), 6), offsets, metric=metric)
    config = BertConfig(vocab_size=8, hidden_size=6, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = SenseModel(
        SenseConfig(
            config, num_senses=len(dictionary.senses), metric=metric, selection=selection, selection_temperature=2.0
        )
    )
    model.table.fill(dictionary, dtype, outside=False)
    ids, hidden = torch.randint(0, 8, (5, 11)), torch.randn(5, 11, 6, dtype=dtype)
    mask = (torch.arange(11) < torch.tensor([11, 4, 1, 8, 0])[:, None]).long()
    states, choice = model.table.replace(hidden, ids, mask, model.config, output_senses=True)
    found, found_ids = PaddedSenses(model.table)(hidden, ids, mask, selection, 2.0)
    assert torch.equal(found_ids, choice.sense_ids)
    torch.testing.assert_close(found, states, atol=1e-5, rtol=1e-5)


def test_padding_always_moved_is_padding_moved_where_it_must_be():
    """A graph that does not look whether there is padding on the left moves what stands right already."""
    ids = torch.arange(12).view(3, 4) + 1
    for mask in ([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 0]], [[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]]):
        mask = torch.tensor(mask)
        looking, always = RightAligned(mask), RightAligned(mask, always=True)
        assert torch.equal(looking.move(ids), always.move(ids))
        assert torch.equal(always.restore(always.move(ids)), ids)


@pytest.mark.parametrize("selection", ["straight_through", "soft", "none"])
def test_a_program_of_torch_export_takes_any_shape(teacher, dictionary, texts, tmp_path, selection):
    """A graph holds for the shapes that it was traced with alone, or its file does not come back."""
    model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1, selection=selection, pooling="frequency")
    model.train()
    program = export_program(model)
    assert model.training
    model.eval()
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    check(lambda batch: loaded(**batch), model, teacher.tokenizer, texts)


@pytest.mark.parametrize(
    ("kind", "selection", "pooling", "metric"),
    [
        (SenseModelForSequenceClassification, "soft", "frequency", "cosine"),
        (SenseModel, "hard", "frequency", "dot"),
        (SenseModel, "none", "mean", "l2"),
    ],
)
def test_onnx_file_answers_as_the_model_does(teacher, dictionary, texts, tmp_path, kind, selection, pooling, metric):
    """What is served by another runtime are other senses or other classes, or batches of another shape fail."""
    model = kind.from_teacher(
        teacher, dictionary, num_hidden_layers=1, selection=selection, pooling=pooling, metric=metric
    )
    path = export_onnx(model, tmp_path / "new" / "model.onnx")
    assert [file.name for file in path.parent.iterdir()] == ["model.onnx"]
    check(onnx_runner(path, ["input_ids", "attention_mask", "token_type_ids"]), model, teacher.tokenizer, texts)


def test_the_command_exports_a_saved_student(teacher, dictionary, texts, tmp_path, capsys):
    """The command writes the model without its classifier, or in the dtype in which it was saved."""
    model = SenseModelForSequenceClassification.from_teacher(teacher, dictionary, num_hidden_layers=1, num_labels=3)
    model.to(torch.bfloat16).save_pretrained(tmp_path / "student")
    loaded = SenseModelForSequenceClassification.from_pretrained(tmp_path / "student", dtype=torch.float32)
    assert main(["export", str(tmp_path / "student"), str(tmp_path / "model.onnx"), "--max-length", "32"]) == 0
    names = ["input_ids", "attention_mask", "token_type_ids"]
    check(onnx_runner(tmp_path / "model.onnx", names), loaded, teacher.tokenizer, texts)
    teacher.model.save_pretrained(tmp_path / "teacher")
    capsys.readouterr()
    assert main(["export", str(tmp_path / "teacher"), str(tmp_path / "no.onnx")]) == 2
    assert "is a bert model, not a sense model" in capsys.readouterr().err


def test_onnx_file_of_a_decoder(base, decoder_tokenizer, texts, tmp_path):
    """A decoder's mask is lost in the graph, and tokens see padding, or more or less than they saw."""
    for attention in ("causal", "bidirectional"):
        decoder = load_teacher(str(base), attention=attention)
        senses = build_dictionary(decoder, texts, max_senses=3, disable_tqdm=True)
        model = SenseModelForSequenceClassification.from_teacher(decoder, senses, num_hidden_layers=2, num_labels=3)
        program = export_program(model).module()
        check(lambda batch, program=program: program(**batch), model, decoder.tokenizer, texts)
    path = export_onnx(model, tmp_path / "decoder.onnx")
    check(onnx_runner(path, ["input_ids", "attention_mask"]), model, decoder.tokenizer, texts)


def test_weights_past_the_limit_lie_beside_the_graph(teacher, dictionary, texts, tmp_path, monkeypatch):
    """A large model's graph names a file of weights that is not there, or that stood only in the temporary folder."""
    import hf_sense.export

    monkeypatch.setattr(hf_sense.export, "_INLINE_BYTES", 1000)
    config = BertConfig(**{**teacher.model.config.to_dict(), "hidden_size": 8, "num_hidden_layers": 1})
    model = SenseModel.from_teacher(teacher, dictionary, backbone=BertModel(config))
    path = export_onnx(model, tmp_path / "model.onnx")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    check(onnx_runner(path, ["input_ids", "attention_mask", "token_type_ids"]), model, teacher.tokenizer, texts)


def test_a_dictionary_outside_is_taken_into_the_program(teacher, dictionary, texts, tmp_path):
    """A graph points to a dictionary that its runtime does not know."""
    dictionary.save_pretrained(tmp_path / "senses")
    opened = SenseDictionary.from_pretrained(tmp_path / "senses")
    outside = SenseModel.from_teacher(teacher, opened, num_hidden_layers=1, dictionary_path=str(tmp_path / "senses"))
    program = export_program(outside).module()
    check(lambda batch: program(**batch), outside, teacher.tokenizer, texts)


def test_a_table_without_senses_is_exported(teacher, dictionary, texts):
    """A model of an empty dictionary, where every token keeps its state, cannot be exported."""
    empty = SenseDictionary(
        torch.zeros(0, dictionary.dim),
        torch.zeros_like(dictionary.offsets),
        tokenizer_fingerprint=dictionary.tokenizer_fingerprint,
    )
    model = SenseModel.from_teacher(teacher, empty, num_hidden_layers=1)
    program = export_program(model).module()
    check(lambda batch: program(**batch), model, teacher.tokenizer, texts)


def test_what_cannot_be_exported_is_refused(teacher, dictionary, tmp_path, monkeypatch):
    """A model is exported that no runtime runs, or an error comes from deep inside the exporter."""
    model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1)
    for call in (lambda: export_program(teacher.model), lambda: export_onnx(teacher.model, tmp_path / "x.onnx")):
        with pytest.raises(ValueError, match="Expected a sense model, but got a BertModel"):
            call()
    for length in (1, 65):
        with pytest.raises(ValueError, match=f"max_length should be from 2 to the 64 .* but is {length}"):
            export_program(model, max_length=length)
    with pytest.raises(ValueError, match="should be a file"):
        export_onnx(model, tmp_path)
    with pytest.raises(ValueError, match=r"in torch.bfloat16, for which"):
        export_onnx(SenseModel.from_teacher(teacher, dictionary).to(torch.bfloat16), tmp_path / "x.onnx")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(ImportError, match=r"pip install hf-sense\[onnx\]"):
        export_onnx(model, tmp_path / "x.onnx")
    assert not list(itertools.chain(tmp_path.glob("*.onnx"), tmp_path.glob(".*")))


def test_int8_senses_are_exported_as_what_they_stand_for(teacher, dictionary, texts):
    """A graph computes with an int8 table's bare integers."""
    student = SenseModel.from_teacher(teacher, dictionary.to(torch.int8), num_hidden_layers=1)
    assert student.sense_table.senses.dtype == torch.int8
    exportable = ExportableModel(student).eval()

    def run(batch):
        with torch.no_grad():
            return exportable(*(batch[name] for name in exportable.input_names))

    check(run, student, teacher.tokenizer, texts)
