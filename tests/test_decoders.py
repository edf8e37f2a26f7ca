"""Decoders as teachers: attention opened and proven, adapters merged, LLM2Vec's conventions, students of decoders."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    LlamaModel,
    MistralConfig,
    MistralModel,
    PreTrainedTokenizerFast,
    StableLmConfig,
    StableLmModel,
)

from hf_sense import (
    SenseDistillationConfig,
    SenseDistillationTrainer,
    SenseModel,
    SenseModelForSequenceClassification,
    build_dictionary,
    load_teacher,
)
from hf_sense.decoders import blind_cases, is_decoder, open_attention
from hf_sense.evaluation import embed
from hf_sense.llm2vec import LLM2VecSettings, last_tokens, read_settings, shortened, text_lengths, wrapped
from hf_sense.pooling import pool

GOLDEN = Path(os.environ.get("HF_SENSE_SHARED") or Path(__file__).parents[2] / "shared") / "golden" / "llm2vec"
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}


def make_adapter(base, folder, seed, **sizes):
    """A LoRA adapter with random weights, saved as PEFT saves it."""
    torch.manual_seed(seed)
    model = AutoModel.from_pretrained(base)
    tuned = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **sizes))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.3)
    tuned.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapters(base):
    """Two adapters, of which the second brings LLM2Vec's settings."""
    first, second = (make_adapter(base, base.parent / name, seed) for seed, name in enumerate(("mntp", "simcse")))
    settings = {"pooling_mode": "weighted_mean", "max_length": 40, "doc_max_length": 6, "skip_instruction": True}
    (second / "llm2vec_config.json").write_text(json.dumps(settings))
    return first, second


def states(teacher, texts):
    """Hidden states of a padded batch, and its mask."""
    batch = teacher.tokenizer(list(texts), padding=True, return_tensors="pt")
    return teacher.hidden_states(batch["input_ids"], batch["attention_mask"]), batch["attention_mask"].bool()


def test_auto_is_causal_unless_something_says_otherwise(base, adapters, caplog, tmp_path):
    """Attention changes in silence, and the dictionary is of another model than the user believes."""
    with caplog.at_level(logging.WARNING, "hf_sense"):
        plain = load_teacher(base)
    assert plain.attention == "causal"
    assert "is a decoder (llama); its attention is causal" in caplog.text
    assert blind_cases(plain.hidden_states, 40) == ["without padding", "with padding"]
    assert load_teacher(base, adapters=[str(adapters[0])]).attention == "causal"
    assert load_teacher(base, adapters=[str(part) for part in adapters]).attention == "bidirectional"
    opened = load_teacher(base, attention="bidirectional")
    assert blind_cases(opened.hidden_states, 40) == []
    opened.model.save_pretrained(tmp_path)
    opened.tokenizer.save_pretrained(tmp_path)
    assert load_teacher(tmp_path).attention == "bidirectional"
    closed = load_teacher(tmp_path, attention="causal")
    torch.testing.assert_close(states(closed, ["the bank"])[0], states(plain, ["the bank"])[0])
    with pytest.raises(ValueError, match="attention should be one of auto, bidirectional, causal, but is 'both'"):
        load_teacher(base, attention="both")


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_open_attention_reaches_every_token(base, backend, dtype):
    """The first state depends on the last token through the probe's ids only, or in one dtype or backend only."""
    teacher = load_teacher(base, attention="bidirectional", attn_implementation=backend, dtype=dtype)
    ids = torch.randint(5, 40, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    before = teacher.hidden_states(ids, mask)
    for row, last in ((0, 19), (1, 14)):
        other = ids.clone()
        other[row, last] = (other[row, last] + 3) % 40
        assert (teacher.hidden_states(other, mask)[row, :last] != before[row, :last]).any(-1).all()
    described = teacher.description()
    assert (described["attention"], described["attn_implementation"]) == ("bidirectional", backend)


def test_a_family_that_stays_blind_is_refused_with_the_remedy(decoder_tokenizer):
    """StableLM ignores the setting under sdpa without padding: its senses would be those of a causal model."""
    torch.manual_seed(0)
    model = StableLmModel(StableLmConfig(vocab_size=len(decoder_tokenizer), **SIZES))
    with pytest.raises(ValueError, match=r'family stablelm, .*sdpa.* without padding.*attn_implementation="eager"'):
        load_teacher(model, decoder_tokenizer, attention="bidirectional")
    assert load_teacher(model, decoder_tokenizer, attention="causal").attention == "causal"
    model.set_attn_implementation("eager")
    assert load_teacher(model, decoder_tokenizer, attention="bidirectional").attention == "bidirectional"


def test_sliding_windows_are_opened(decoder_tokenizer):
    """A window of 4 both ways passes a short probe, and long texts are read in pieces."""
    torch.manual_seed(0)
    config = MistralConfig(vocab_size=len(decoder_tokenizer), sliding_window=4, **{**SIZES, "num_hidden_layers": 1})
    model = MistralModel(config)
    teacher = load_teacher(model, decoder_tokenizer, attention="bidirectional")
    ids = torch.randint(5, 40, (1, 30), generator=torch.Generator().manual_seed(0))
    other = ids.clone()
    other[0, -1] += 1
    mask = torch.ones_like(ids)
    assert not torch.equal(teacher.hidden_states(ids, mask)[0, 0], teacher.hidden_states(other, mask)[0, 0])
    closed = LlamaConfig(**SIZES)
    closed.attention_chunk_size = 8
    with pytest.raises(ValueError, match=r"config.attention_chunk_size is 8, and it cannot be opened"):
        open_attention(closed)


def test_encoders_have_no_causal_form(tiny_teacher_folder):
    """An encoder asked to be causal stays as it is, and nobody learns of it."""
    with pytest.raises(ValueError, match=r"\(bert\) is an encoder and has no causal form"):
        load_teacher(tiny_teacher_folder, attention="causal")


def test_adapters_are_merged_in_order(base, adapters, texts):
    """The second adapter is trained on top of the merged first: in another order, or beside it, it says something else."""
    first, second = (str(part) for part in adapters)
    teacher = load_teacher(base, adapters=[first, second], attention="causal")
    model = AutoModel.from_pretrained(base)
    for part in (first, second):
        model = PeftModel.from_pretrained(model, part).merge_and_unload()
    found, mask = states(teacher, texts[:5])
    batch = teacher.tokenizer(texts[:5], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model.eval()(**batch).last_hidden_state
    torch.testing.assert_close(found[mask], expected[mask], atol=1e-5, rtol=1e-5)
    plain, _ = states(load_teacher(base, adapters=[first], attention="causal"), texts[:5])
    assert not torch.allclose(plain[mask], found[mask], atol=1e-2)
    assert [part["name"] for part in teacher.description()["adapters"]] == [first, second]


def test_an_adapters_folder_stands_for_its_base(base, adapters, texts):
    """LLM2Vec's published repos hold an adapter and a config, not the weights of the base."""
    by_folder = load_teacher(adapters[1])
    by_parts = load_teacher(base, adapters=str(adapters[1]))
    assert by_folder.attention == by_parts.attention == "bidirectional"
    torch.testing.assert_close(states(by_folder, texts[:3])[0], states(by_parts, texts[:3])[0])
    assert (by_folder.pooling, by_folder.max_length) == ("weighted_mean", 40)


def test_an_adapter_trained_with_a_head_fits_too(base, adapters, tmp_path, texts):
    """Its modules are numbered from the head; PEFT alone leaves every one of them out with a warning."""
    weights = load_file(adapters[0] / "adapter_model.safetensors")
    headed = {key.replace("base_model.model.", "base_model.model.model.", 1): value for key, value in weights.items()}
    save_file(headed, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text((adapters[0] / "adapter_config.json").read_text())
    found, expected = (
        states(load_teacher(base, adapters=str(part), attention="causal"), texts[:3])[0]
        for part in (tmp_path, adapters[0])
    )
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("change", ["hidden_size", "num_hidden_layers"])
def test_an_adapter_of_another_base_is_refused(adapters, decoder_tokenizer, tmp_path, change):
    """A part of the adapter finds its place and the rest is dropped."""
    other = LlamaModel(
        LlamaConfig(vocab_size=len(decoder_tokenizer), **{**SIZES, change: {"hidden_size": 32}.get(change, 2)})
    )
    other.save_pretrained(tmp_path)
    decoder_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"does not fit .*: it was trained on"):
        load_teacher(tmp_path, adapters=str(adapters[0]))


def test_what_is_no_adapter_is_refused(base):
    """A model's folder given as an adapter ends in PEFT's own words."""
    with pytest.raises(ValueError, match=r"is no PEFT adapter: it should hold adapter_config.json"):
        load_teacher(base, adapters=str(base))


def test_settings(adapters, tmp_path, base, caplog):
    """Settings that are missing or wrong change how texts are pooled without a word."""
    assert read_settings(str(adapters[1])) == LLM2VecSettings("weighted_mean", 40, 6, True)
    assert read_settings(str(adapters[0])) is None
    with caplog.at_level(logging.WARNING, "hf_sense"):
        load_teacher(base, adapters=str(adapters[0]))
    assert "LLM2Vec's defaults hold" in caplog.text
    for wrong in ({"pooling_mode": "max"}, {"max_length": 0}, {"skip_instruction": "yes"}):
        (tmp_path / "llm2vec_config.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match="should have a pooling_mode out of"):
            read_settings(str(tmp_path))
    (tmp_path / "llm2vec_config.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        read_settings(str(tmp_path))


def test_a_tokenizer_without_a_pad_token_pads_with_its_end(base):
    """A batch of unlike texts cannot be made at all."""
    assert AutoTokenizer.from_pretrained(base).pad_token is None
    assert load_teacher(base).tokenizer.pad_token == "[SEP]"


@pytest.mark.parametrize("pooling", ["mean", "weighted_mean", "last_token"])
@pytest.mark.parametrize("skip", [True, False])
def test_encode_pools_the_text_alone(base, pooling, skip):
    """An instruction before every text makes all vectors alike, unless the text alone is pooled."""
    teacher = load_teacher(base, attention="bidirectional", pooling=pooling, instruction="the game")
    teacher.form = dataclasses.replace(teacher.form, settings=LLM2VecSettings(skip_instruction=skip))
    texts = ["my card", "the bank opens the door and a mole", "rain"]
    vectors = teacher.encode(texts, batch_size=2)
    for row, text in enumerate(texts):
        ids = teacher.tokenizer(f"the game {text}", return_tensors="pt")
        alone = len(teacher.tokenizer(text, add_special_tokens=False)["input_ids"])
        hidden = teacher.hidden_states(ids["input_ids"], ids["attention_mask"])[0]
        # As LLM2Vec counts: as many last tokens as the text has on its own, an end token among them.
        expected = hidden[-alone:] if skip else hidden
        weights = {"mean": torch.ones(len(expected)), "weighted_mean": torch.arange(1.0, len(expected) + 1)}.get(
            pooling
        )
        pooled = expected[-1] if weights is None else (weights[:, None] * expected).sum(0) / weights.sum()
        torch.testing.assert_close(vectors[row], pooled, atol=1e-5, rtol=1e-4)
    teacher.tokenizer.padding_side = "left" if teacher.tokenizer.padding_side == "right" else "right"
    torch.testing.assert_close(teacher.encode(texts, batch_size=3), vectors, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(teacher.encode([["the game", text] for text in texts]), vectors, atol=1e-5, rtol=1e-4)


def test_an_instruction_that_leaves_no_room_is_refused(base):
    """All texts are cut away and every vector is the instruction's."""
    teacher = load_teacher(base, attention="bidirectional", instruction="the bank holds " * 40)
    with pytest.raises(ValueError, match=r"The instruction has 12. tokens and the teacher takes 64: no room"):
        teacher.encode(["my card"])
    with pytest.raises(ValueError, match="no texts"):
        teacher.encode([])


def test_long_texts_are_shortened_by_words(decoder_tokenizer):
    """The text runs past the limit, or loses its instruction instead."""
    settings = LLM2VecSettings(doc_max_length=6)
    text = "the bank  holds the money and my card opens the door"
    short = shortened(text, decoder_tokenizer, settings)
    assert text.replace("  ", " ").startswith(short)
    assert 1 <= len(decoder_tokenizer(short, add_special_tokens=False)["input_ids"]) <= 6
    assert shortened("a  mole", decoder_tokenizer, settings) == "a  mole"


def test_wrappers(decoder_tokenizer):
    """A chat model reads bare text, or the text is pooled without what closes the message."""
    llama = "meta-llama/Meta-Llama-3-8B-Instruct"
    assert wrapped("hi ", "Say:", decoder_tokenizer, llama, "mean", False) == (
        "<|start_header_id|>user<|end_header_id|>\n\nSay: ",
        "hi<|eot_id|>",
    )
    assert wrapped("hi", "", decoder_tokenizer, "org/other", "mean", True) == ("<user> ", "hi [SEP]")
    assert wrapped("hi ", "Say:", decoder_tokenizer, "org/other", "mean", False) == ("Say: ", "hi ")
    assert wrapped("hi", "", decoder_tokenizer, "org/other", "eos_token", False) == ("", "hi[SEP]")
    decoder_tokenizer.pad_token = "[SEP]"
    counts = text_lengths(["my card", "rain"], decoder_tokenizer, 64)
    assert last_tokens(torch.tensor([[1, 1, 1, 1, 1], [0, 0, 0, 1, 1]]), counts).sum(1).tolist() == [2, 1]
    plain = PreTrainedTokenizerFast(tokenizer_object=decoder_tokenizer.backend_tokenizer)
    with pytest.raises(ValueError, match="chat template, and it has none"):
        wrapped("hi", "", plain, "org/other", "mean", True)


def test_instructions_stand_in_the_texts_of_a_build(base, texts):
    """The dictionary is of texts without the instruction with which its teacher is used."""
    teacher = load_teacher(base, attention="bidirectional", instruction="game rain")
    rain = teacher.tokenizer.convert_tokens_to_ids("rain")
    built = build_dictionary(teacher, ["my card", "the bank"], disable_tqdm=True)
    assert built.senses_of(rain).counts.sum() == 2
    assert built.metadata["teacher"]["instruction"] == "game rain"
    model = SenseModel.from_teacher(teacher, built, selection="none")
    vectors = embed(model, teacher.tokenizer, ["my card", "the bank"], disable_tqdm=True)
    torch.testing.assert_close(vectors, teacher.encode(["my card", "the bank"]), atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="a pair of texts came"):
        build_dictionary(teacher, [("my card", "the bank")], disable_tqdm=True)


@pytest.mark.parametrize("attention", ["bidirectional", "causal"])
def test_a_decoders_student_is_trained_saved_and_loaded(base, texts, tmp_path, attention):
    """The student of a decoder loses its attention, its norm or its rotary settings on the way through the disk."""
    from datasets import Dataset

    teacher = load_teacher(base, attention=attention)
    dictionary = build_dictionary(teacher, texts, max_senses=3, disable_tqdm=True)
    whole = SenseModel.from_teacher(teacher, dictionary, selection="none")
    batch = teacher.tokenizer(texts[:4], padding=True, return_tensors="pt")
    mask = batch["attention_mask"].bool()
    torch.testing.assert_close(
        whole(**batch).last_hidden_state[mask],
        teacher.hidden_states(batch["input_ids"], batch["attention_mask"])[mask],
        atol=1e-5,
        rtol=1e-5,
    )
    student = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=2)
    torch.testing.assert_close(student.backbone.norm.weight, teacher.model.norm.weight)
    args = SenseDistillationConfig(
        str(tmp_path / "run"), max_steps=20, learning_rate=5e-3, per_device_train_batch_size=16, report_to=[],
        target_cache_dir=str(tmp_path / "targets"), save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    data = Dataset.from_dict({"text": texts})
    trainer = SenseDistillationTrainer(student, args, teacher=teacher, train_dataset=data, eval_dataset=data)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    student.eval().save_pretrained(tmp_path / "student")
    loaded = AutoModel.from_pretrained(tmp_path / "student")
    assert loaded.config.dictionary_metadata["teacher"]["attention"] == attention
    torch.testing.assert_close(loaded(**batch).last_hidden_state[mask], student(**batch).last_hidden_state[mask])
    blind = blind_cases(lambda ids, mask: loaded(ids, mask, output_contextual=True).last_hidden_state, 40)
    assert bool(blind) == (attention == "causal")


def test_a_teacher_of_another_attention_is_refused(base, texts):
    """Senses of states that see both ways are targets for a teacher that does not."""
    opened, closed = (load_teacher(base, attention=attention) for attention in ("bidirectional", "causal"))
    dictionary = build_dictionary(opened, texts[:5], disable_tqdm=True)
    with pytest.raises(ValueError, match="built with bidirectional attention, and this teacher's is causal"):
        SenseModel.from_teacher(closed, dictionary)


def test_commands_take_a_decoder(base, adapters, texts, tmp_path):
    """The command builds from the bare base, or distils with another teacher than it built with."""
    from hf_sense.cli import main
    from hf_sense.dictionary import SenseDictionary

    (tmp_path / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    common = ["--teacher", str(base), "--dataset", str(tmp_path / "texts.txt")]
    options = ["--adapter", str(adapters[0]), "--attention", "bidirectional", "--instruction", "game"]
    assert main(["build", *common, *options, "--max-senses", "2", "--output", str(tmp_path / "senses")]) == 0
    made = SenseDictionary.from_pretrained(tmp_path / "senses").metadata["teacher"]
    assert (made["attention"], made["instruction"], len(made["adapters"])) == ("bidirectional", "game", 1)
    student = ["--dictionary", str(tmp_path / "senses"), "--output", str(tmp_path / "student"), "--pooling", "mean"]
    training = ["--max-steps", "2", "--use-cpu", "--save-strategy", "no", "--disable-tqdm", "true"]
    assert main(["distill", *common, *student, *training]) == 0
    loaded = AutoModel.from_pretrained(tmp_path / "student")
    assert loaded.config.dictionary_metadata["teacher"] == made
    assert main(["inspect", str(tmp_path / "senses"), "bank", "--corpus", str(tmp_path / "texts.txt")]) == 0


def test_padding_side_changes_nothing_for_a_decoder(base, texts):
    """Decoders are padded on the left, encoders on the right, and the senses must not know."""
    teacher = load_teacher(base, attention="bidirectional")
    dictionary = build_dictionary(teacher, texts, max_senses=3, disable_tqdm=True)
    model = SenseModelForSequenceClassification.from_teacher(
        teacher, dictionary, num_hidden_layers=1, pooling="last_token"
    )
    chosen = [min(texts, key=len), max(texts, key=len)]
    found = []
    for side in ("left", "right"):
        batch = teacher.tokenizer(chosen, padding=True, padding_side=side, return_tensors="pt")
        output = model.model(**batch, output_senses=True)
        mask = batch["attention_mask"].bool()
        found.append((output.sense_ids[mask], model(**batch).logits))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-5, rtol=1e-5)


def test_a_fine_tuned_decoders_classifier_is_copied(base, texts, tmp_path):
    """The paper's recipe for labelled tasks: the teacher's own classifier, frozen, on the student's senses."""
    torch.manual_seed(0)
    config = LlamaConfig.from_pretrained(base, num_labels=3, pad_token_id=0)
    model = LlamaForSequenceClassification.from_pretrained(base, config=config)
    tuned = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"]))
    for name, weight in tuned.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.3)
    before = {name: value.clone() for name, value in tuned.state_dict().items()}
    tokenizer = AutoTokenizer.from_pretrained(base)
    teacher = load_teacher(tuned, tokenizer)
    assert all(torch.equal(value, before[name]) for name, value in tuned.state_dict().items())
    dictionary = build_dictionary(teacher, texts, disable_tqdm=True)
    student = SenseModelForSequenceClassification.from_teacher(teacher, dictionary, copy_head=True, selection="none")
    assert not student.classifier.weight.requires_grad
    tokenizer.pad_token, tuned.config.pad_token_id = "[PAD]", tokenizer.convert_tokens_to_ids("[PAD]")
    batch = tokenizer(texts[:5], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = tuned.eval()(**batch).logits
    torch.testing.assert_close(student(**batch).logits, expected, atol=1e-5, rtol=1e-4)
    student.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(**batch).logits, expected, atol=1e-5, rtol=1e-4)


def test_kinds():
    """A masked-language model counted as a decoder would lose its attention; a decoder counted as an encoder keeps it."""
    assert is_decoder(LlamaConfig())
    assert is_decoder(LlamaForCausalLM(LlamaConfig(vocab_size=40, **SIZES)).config)
    from transformers import BertConfig, T5Config

    assert not is_decoder(BertConfig())
    assert is_decoder(BertConfig(is_decoder=True))
    assert not is_decoder(T5Config())


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the results of the released llm2vec package are not here")
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma", "qwen2"])
@pytest.mark.parametrize("form", ["base", "causal", "mntp", "supervised"])
def test_equal_to_the_released_package(family, form):
    """What LLM2Vec's users get from their checkpoints is not what they get here."""
    if family == "qwen2" and form != "causal":
        teacher = load_teacher(GOLDEN / family / "base", attention="bidirectional")
        assert blind_cases(teacher.hidden_states, 800) == []
        return
    expected = load_file(GOLDEN / family / "expected.safetensors")
    given = json.loads((GOLDEN / family / "texts.json").read_text())
    names = {"mntp": ["mntp"], "supervised": ["mntp", "supervised"]}.get(form, [])
    teacher = load_teacher(
        GOLDEN / family / "base",
        adapters=[str(GOLDEN / family / name) for name in names],
        attention="causal" if form == "causal" else "bidirectional",
    )
    settings = LLM2VecSettings(max_length=given["max_length"], doc_max_length=given["doc_max_length"])
    teacher.form = dataclasses.replace(teacher.form, settings=settings)
    teacher.max_length = given["max_length"]
    teacher.tokenizer.pad_token, teacher.tokenizer.padding_side = teacher.tokenizer.eos_token, "left"
    pairs = [teacher.form.prepared(text, teacher.tokenizer, instruction) for instruction, text in given["pairs"]]
    joined = [before + text for before, text in pairs]
    batch = teacher.tokenizer(
        joined, padding=True, truncation=True, max_length=teacher.max_length, return_tensors="pt"
    ).data  # fmt: skip
    counts = text_lengths([text for _, text in pairs], teacher.tokenizer, teacher.max_length)
    batch["embed_mask"] = last_tokens(batch["attention_mask"], counts)
    for name, tensor in batch.items():
        assert torch.equal(tensor, expected[name]), name
    hidden = teacher.hidden_states(batch["input_ids"], batch["attention_mask"])
    mask = batch["attention_mask"].bool()
    near = {"atol": 1e-5, "rtol": 0.0}
    torch.testing.assert_close(hidden[mask], expected[f"{form}.last_hidden_state"][mask], **near)
    for theirs, ours in (("mean", "mean"), ("weighted_mean", "weighted_mean"), ("eos_token", "last_token")):
        torch.testing.assert_close(pool(hidden, batch["embed_mask"], ours), expected[f"{form}.{theirs}"], **near)
    torch.testing.assert_close(teacher.encode(given["pairs"], batch_size=4), expected[f"{form}.encode"], **near)
