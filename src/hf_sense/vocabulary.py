"""Which vocabulary a tokenizer has, and which of its tokens is meant by a text. It knows no senses."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


_fingerprints: WeakKeyDictionary[Any, tuple[int, str]] = WeakKeyDictionary()


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """The sha256, in hexadecimal, over the vocabulary sorted by id, special and added tokens included.

    Two tokenizers with one fingerprint give every id the same token, so senses found with one serve the other. It takes tens
    of milliseconds to find, and is remembered as long as the tokenizer lives and has as many tokens.
    """
    known = _fingerprints.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        vocabulary = sorted((index, token) for token, index in tokenizer.get_vocab().items())
        text = json.dumps(vocabulary, ensure_ascii=True, separators=(",", ":"))
        known = _fingerprints[tokenizer] = len(tokenizer), hashlib.sha256(text.encode()).hexdigest()
    return known[1]


def token_id_of(token: str, tokenizer: PreTrainedTokenizerBase) -> int:
    """The id of ``token``, or of the one piece that the tokenizer makes of it.

    Raises:
        ValueError: if it is not one token of the vocabulary; the message names the pieces it falls into.
    """
    vocabulary = tokenizer.get_vocab()
    if token in vocabulary:
        return int(vocabulary[token])
    pieces = tokenizer.tokenize(token)
    if len(pieces) == 1 and pieces[0] in vocabulary and pieces[0] != tokenizer.unk_token:
        return int(vocabulary[pieces[0]])
    raise ValueError(
        f"{token!r} is not a token of the vocabulary; the tokenizer makes {pieces} of it. Ask for one of these."
    )
