"""A made-up corpus of any length that is streamed, and a small teacher with its tokenizer: to try builds at sizes, without data.

Words follow Zipf's law; the texts are the same for the same seed, whatever their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

WORDS = 4000
WIDTH = 64
_TEXTS_AT_ONCE = 4096
_MEAN_WORDS = 22


def make_teacher(folder: Path, width: int = WIDTH, layers: int = 1, words: int = WORDS) -> Path:
    """Saves a seeded BERT with a tokenizer of whole words; returns the folder."""
    if (folder / "config.json").is_file():
        return folder
    vocabulary = {piece: n for n, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *map(_word, range(words))])}
    fast = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    fast.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=fast, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        model_max_length=128, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=width, num_hidden_layers=layers, num_attention_heads=2,
        intermediate_size=2 * width, max_position_embeddings=128, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def texts_of(tokens: float, seed: int = 0, words: int = WORDS) -> Iterator[str]:
    """Texts of 4 to 40 words, until they hold so many tokens."""
    names = np.array(list(map(_word, range(words))), dtype=object)
    shares = np.cumsum(1 / (np.arange(words) + 2.7))
    shares /= shares[-1]
    made, part = 0, 0
    while made < tokens:
        draw = np.random.default_rng([seed, part])
        lengths = draw.integers(4, 2 * _MEAN_WORDS - 3, _TEXTS_AT_ONCE)
        chosen = names[np.searchsorted(shares, draw.random(int(lengths.sum())))]
        for own in np.split(chosen, lengths.cumsum()[:-1]):
            yield " ".join(own)
            made += len(own) + 2
            if made >= tokens:
                return
        part += 1


def _word(number: int) -> str:
    letters = ""
    for _ in range(3):
        number, at = divmod(number, 20)
        letters += "bcdfghjklmnpqrstvwxz"[at] + "aeiou"[at % 5]
    return letters
