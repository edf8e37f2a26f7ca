"""A tokenizer, an encoder, a decoder and texts, all tiny and made here: no test needs a network."""

from __future__ import annotations

import copy
import os
import random

os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

SUBJECTS = ["the bank", "a river", "my card", "the team", "an apple", "this spring", "the club", "a mole", "the deck"]
VERBS = ["holds", "opens", "lost", "found", "sees", "pays", "leaves", "breaks"]
OBJECTS = ["the money", "its water", "a new card", "the game", "red fruit", "some rain", "the door", "a long road"]


@pytest.fixture(scope="session")
def texts():
    """Sixty different sentences of unlike length, from few words, so that tokens repeat."""
    draw = random.Random(0)
    made = []
    while len(made) < 60:
        parts = [
            f"{draw.choice(SUBJECTS)} {draw.choice(VERBS)} {draw.choice(OBJECTS)}" for _ in range(draw.randint(1, 3))
        ]
        text = " and ".join(parts)
        if text not in made:
            made.append(text)
    return made


@pytest.fixture(scope="session")
def tokenizer():
    """A WordPiece tokenizer in the manner of BERT."""
    words = sorted({word for phrase in SUBJECTS + VERBS + OBJECTS for word in phrase.split()} | {"and"})
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{letter}" for letter in letters)]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    fast = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    fast.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64, model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )  # fmt: skip


@pytest.fixture(scope="session")
def tiny_teacher_folder(tokenizer, tmp_path_factory):
    """A seeded BERT of three layers, saved with its tokenizer."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("teacher")
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def teacher(tiny_teacher_folder):
    """That encoder, loaded."""
    from hf_sense import load_teacher

    return load_teacher(str(tiny_teacher_folder))


@pytest.fixture(scope="session")
def dictionary(teacher, texts):
    """Its senses over the texts, at most four a token."""
    from hf_sense import build_dictionary

    return build_dictionary(teacher, texts, max_senses=4, disable_tqdm=True)


@pytest.fixture(scope="session")
def decoder_tokenizer(tokenizer):
    """The tests' words with a start and an end token and, as many decoders have it, none for padding."""
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, unk_token="[UNK]", bos_token="[CLS]", eos_token="[SEP]",
        model_max_length=64, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    made.chat_template = "{% for m in messages %}[CLS]<user> {{ m['content'] }} [SEP]{% endfor %}"
    return made


@pytest.fixture(scope="session")
def base(decoder_tokenizer, tmp_path_factory):
    """A seeded Llama of three layers on disk."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("decoders") / "base"
    config = LlamaConfig(
        vocab_size=len(decoder_tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    LlamaModel(config).save_pretrained(folder)
    tokenizer = copy.deepcopy(decoder_tokenizer)
    tokenizer.pad_token = None  # a teacher that was loaded with the shared one gave it one
    tokenizer.save_pretrained(folder)
    return folder
