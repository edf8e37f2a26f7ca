"""What may be a teacher, and that padding on either side does not change what it says."""

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    T5Config,
    T5EncoderModel,
    T5Model,
)

from hf_sense import SenseModelForSequenceClassification
from hf_sense.decoders import blind_cases
from hf_sense.teacher import load_teacher


@pytest.mark.parametrize("side", ["left", "right"])
def test_padded_equals_alone(teacher, texts, side):
    """BERT numbers positions from the first column: with left padding every vector would be another."""
    chosen = [min(texts, key=len), max(texts, key=len), "a mole"]
    tokenizer = teacher.tokenizer
    batch = tokenizer(chosen, padding=True, padding_side=side, return_tensors="pt")
    assert (batch["attention_mask"] == 0).any()
    padded = teacher.hidden_states(**batch)
    for row, text in enumerate(chosen):
        alone = teacher.hidden_states(**tokenizer([text], return_tensors="pt"))[0]
        torch.testing.assert_close(padded[row, batch["attention_mask"][row].bool()], alone, atol=1e-5, rtol=1e-5)


def test_hidden_states_are_the_models_own(teacher, tiny_teacher_folder, texts):
    """Dropout left on, or a layer before the last, would make senses of other vectors than the model's output."""
    batch = teacher.tokenizer(texts[:4], padding=True, return_tensors="pt")
    model = BertModel.from_pretrained(tiny_teacher_folder).eval()
    with torch.no_grad():
        expected = model(**batch).last_hidden_state
    found = teacher.hidden_states(**batch)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected)


def test_segment_numbers_are_used(teacher):
    """Pairs embedded without segment numbers are not what the encoder was trained on."""
    batch = teacher.tokenizer([("the bank", "a river")], return_tensors="pt")
    assert batch["token_type_ids"].max() == 1
    with_types = teacher.hidden_states(**batch)
    without = teacher.hidden_states(batch["input_ids"], batch["attention_mask"])
    assert not torch.allclose(with_types, without)


def test_description_and_limits(teacher):
    """A dictionary says which teacher made it; a limit read from the wrong place cuts texts or overruns positions."""
    assert (teacher.dim, teacher.max_length, teacher.attention) == (16, 64, "bidirectional")
    described = teacher.description()
    assert (described["model_type"], described["dtype"], described["max_length"]) == ("bert", "float32", 64)


def test_loaded_models_and_heads(tiny_teacher_folder, teacher):
    """A classifier's head must be kept for its students, and its backbone must be the teacher."""
    config = BertConfig.from_pretrained(tiny_teacher_folder, num_labels=3)
    classifier = BertForSequenceClassification.from_pretrained(tiny_teacher_folder, config=config)
    loaded = load_teacher(classifier)
    assert loaded.head_model is classifier
    assert loaded.model is classifier.bert
    assert not loaded.model.training
    assert load_teacher(loaded) is loaded
    assert teacher.head_model is None


def test_fingerprint_follows_the_weights(tiny_teacher_folder, teacher):
    """Targets stored for one teacher must not serve another with the same name."""
    same = load_teacher(str(tiny_teacher_folder))
    assert same.fingerprint == teacher.fingerprint
    other = load_teacher(str(tiny_teacher_folder))
    with torch.no_grad():
        other.model.encoder.layer[0].output.dense.bias[0] += 1e-3
    assert other.fingerprint != teacher.fingerprint


@pytest.mark.parametrize("on_disk", [True, False])
def test_encoder_decoders_are_refused(on_disk, tokenizer, tmp_path, monkeypatch):
    """A stack with cross-attention fails deep inside, after its gigabytes were loaded."""
    model = T5Model(T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2))
    if on_disk:
        model.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        # The config is enough to refuse: gigabytes of weights must not be loaded first.
        loading = "hf_sense.teacher.AutoModel.from_pretrained"
        monkeypatch.setattr(loading, lambda *_, **__: pytest.fail("weights loaded"))
    with pytest.raises(ValueError, match="encoder-decoder"):
        load_teacher(str(tmp_path) if on_disk else model, tokenizer)


def test_an_encoder_of_an_encoder_decoder_is_named_as_the_way_out(tokenizer):
    """The message for T5 sends people to T5EncoderModel, which must then work."""
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    encoder = T5EncoderModel(config)
    assert load_teacher(encoder, tokenizer).dim == 16


def test_the_probe_finds_a_causal_model(tokenizer, teacher, tiny_teacher_folder, monkeypatch):
    """Models with code of their own do not say that they are causal, so their outputs must be asked."""
    assert blind_cases(teacher.hidden_states, 40) == []
    blind = BertModel.from_pretrained(tiny_teacher_folder)
    for layer in blind.encoder.layer:
        monkeypatch.setattr(layer.attention, "forward", lambda hidden, *_, **__: (hidden, None))
    with pytest.raises(ValueError, match="does not see both ways"):
        load_teacher(blind, tokenizer)


def test_what_is_no_model_is_refused():
    """A config or a pipeline passed by mistake should hear what is wanted."""
    with pytest.raises(ValueError, match="a BertConfig came"):
        load_teacher(BertConfig())


def test_the_tokenizer_of_another_model_is_refused(tiny_teacher_folder, tmp_path):
    """Weights without their tokenizer get an empty one, and every text becomes unknown tokens."""
    BertModel.from_pretrained(tiny_teacher_folder).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"The tokenizer has 5 tokens and .* embeds"):
        load_teacher(tmp_path)


def test_a_student_is_no_teacher(teacher, dictionary, tmp_path):
    """A dictionary is built from states that are senses already, or students are made of students unnoticed."""
    narrow = BertModel(
        BertConfig(vocab_size=len(teacher.tokenizer), hidden_size=8, num_hidden_layers=1, num_attention_heads=2)
    )
    student = SenseModelForSequenceClassification.from_teacher(teacher, dictionary, backbone=narrow)
    student.save_pretrained(tmp_path / "student")
    student.fold().save_pretrained(tmp_path / "folded")
    teacher.tokenizer.save_pretrained(tmp_path / "student")
    for given in (student, student.model, tmp_path / "student", str(tmp_path / "folded")):
        with pytest.raises(ValueError, match=f"sense model.* it cannot be a teacher.*with: {teacher.name}"):
            load_teacher(given)
    dictionary.save_pretrained(tmp_path / "senses")
    with pytest.raises(ValueError, match="is a sense dictionary, and a model is wanted"):
        load_teacher(tmp_path / "senses")
    with pytest.raises(FileNotFoundError, match="no folder 'a/b/c'"):
        load_teacher("a/b/c")
