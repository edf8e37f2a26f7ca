"""Texts in, token ids out: one flat array, cut into batches of like length.

It takes strings, pairs of strings and columns of ``datasets``, and refuses what is none of these before long work starts.
It runs no model.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

Text = str | tuple[str, str]
_TEXTS_A_CALL = 1000


def iterate_texts(data: Any, text_column: str | Sequence[str] = "text") -> Iterator[Text]:
    """The texts of ``data``, one by one.

    Args:
        data: an iterable of strings or of pairs of strings, or one split of a ``datasets`` data set, in memory or streamed.
        text_column: the column of a data set that holds the text; two names for text pairs.

    Raises:
        ValueError: if ``data`` is a ``DatasetDict``, lacks the column, or holds something that is no text;
            if a column is named and it is a list of texts.
    """
    columns = [text_column] if isinstance(text_column, str) else list(text_column)
    if not 1 <= len(columns) <= 2:
        raise ValueError(f"text_column should be one name, or two for text pairs, but is {text_column!r}.")
    if isinstance(data, str):
        raise ValueError(f"Expected texts or a data set, but got one string ({data[:40]!r}). Pass a list: [text].")
    if isinstance(data, dict):
        raise ValueError(
            f"Expected texts or one split of a data set, but got a {type(data).__name__} with {sorted(map(str, data))}. "
            "Choose a split, as in data['train']."
        )
    names = getattr(data, "column_names", None)
    if isinstance(names, list) and (missing := [name for name in columns if name not in names]):
        raise ValueError(
            f"The data set has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, names))}. Name the "
            "column of the texts with text_column."
        )
    if not isinstance(data, Iterable):
        raise ValueError(f"Expected texts or a data set, but got a {type(data).__name__}.")
    if columns != ["text"] and isinstance(data, list | tuple) and data and not isinstance(data[0], dict):
        raise ValueError(
            f"text_column={text_column!r} names a column, but a {type(data).__name__} of {type(data[0]).__name__} came, which "
            "has none. Leave text_column out, or pass one split of a data set."
        )
    return _texts(data, columns)


def _texts(data: Iterable[Any], columns: list[str]) -> Iterator[Text]:
    if isinstance(getattr(data, "column_names", None), list):
        data = data.select_columns(columns)  # type: ignore[attr-defined]
    for number, row in enumerate(data):
        if isinstance(row, dict):
            if missing := [name for name in columns if name not in row]:
                raise ValueError(f"Row {number} has no {missing[0]!r}; it has {', '.join(map(repr, row))}.")
            row = tuple(row[name] for name in columns)
            row = row[0] if len(row) == 1 else row
        elif isinstance(row, list):
            row = tuple(row)
        if not (
            isinstance(row, str) or (isinstance(row, tuple) and len(row) == 2 and all(isinstance(t, str) for t in row))
        ):
            raise ValueError(f"Text {number} should be a string or a pair of strings, but is {row!r:.80}.")
        yield row


@dataclass(frozen=True)
class EncodedCorpus:
    """Tokenized texts, laid end to end.

    Attributes:
        input_ids: int32 ``(tokens,)``.
        offsets: int64 ``(texts + 1,)``; text ``i`` is ``input_ids[offsets[i]:offsets[i + 1]]``.
        token_type_ids: uint8 ``(tokens,)`` for text pairs of tokenizers that number segments, else ``None``.
        sha256: of the texts, in order.
        num_cut: how many texts were longer than the maximum and were cut.
    """

    input_ids: np.ndarray
    offsets: np.ndarray
    token_type_ids: np.ndarray | None
    sha256: str
    num_cut: int

    @property
    def lengths(self) -> np.ndarray:
        """Tokens of each text, int64 ``(texts,)``."""
        return np.diff(self.offsets)

    def batches(self, batch_size: int, texts: np.ndarray | None = None) -> list[np.ndarray]:
        """Cuts text numbers into batches of like length, longest first, so that little is padded.

        Args:
            batch_size: texts a batch.
            texts: the text numbers to cut; all if not given.
        """
        texts = np.arange(len(self.offsets) - 1) if texts is None else texts
        order = texts[np.argsort(-self.lengths[texts], kind="stable")]
        return [order[begin : begin + batch_size] for begin in range(0, len(order), batch_size)]

    def padded(self, texts: np.ndarray, pad_id: int) -> dict[str, torch.Tensor]:
        """One batch, padded on the right: int64 ``input_ids``, ``attention_mask`` and, if any, ``token_type_ids``."""
        lengths = self.lengths[texts]
        columns = np.arange(lengths.max(initial=0))
        mask = columns < lengths[:, None]
        where = np.where(mask, self.offsets[texts][:, None] + columns, 0)
        batch = {
            "input_ids": torch.from_numpy(np.where(mask, self.input_ids[where], pad_id).astype(np.int64)),
            "attention_mask": torch.from_numpy(mask.astype(np.int64)),
        }
        if self.token_type_ids is not None:
            batch["token_type_ids"] = torch.from_numpy(np.where(mask, self.token_type_ids[where], 0).astype(np.int64))
        return batch


def encode_corpus(
    texts: Iterable[Text],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    *,
    quiet: bool = False,
    disable_tqdm: bool | None = None,
) -> EncodedCorpus:
    """Tokenizes texts, with the special tokens that the model expects, cut to ``max_length`` tokens.

    Args:
        texts: from ``iterate_texts``.
        tokenizer: any tokenizer of Transformers.
        max_length: tokens a text has at most.
        quiet: take texts that are all blank, and do not warn of those that were cut.
        disable_tqdm: ``True`` hides the progress bar.

    Raises:
        ValueError: if there are no texts, or none but blank ones.
    """
    pieces: list[np.ndarray] = []
    types: list[np.ndarray] = []
    lengths: list[int] = []
    digest = hashlib.sha256()
    num_cut, blank = 0, True
    texts = iter(texts)
    bar = tqdm(desc="Tokenizing", unit=" tokens", unit_scale=True, disable=disable_tqdm)
    with bar:
        while chunk := [clean(text) for text in itertools.islice(texts, _TEXTS_A_CALL)]:
            for text in chunk:
                digest.update(repr(text).encode() + b"\n")
            blank = blank and not any(_joined(text).strip() for text in chunk)
            encoded = _tokenize(chunk, tokenizer, max_length)
            ids = encoded["input_ids"]
            lengths += [len(row) for row in ids]
            pieces.append(np.fromiter(itertools.chain.from_iterable(ids), np.int32))
            if "token_type_ids" in encoded and isinstance(chunk[0], tuple):
                types.append(np.fromiter(itertools.chain.from_iterable(encoded["token_type_ids"]), np.uint8))
            num_cut += _count_cut(encoded, ids, max_length)
            bar.update(len(pieces[-1]))
    if not lengths or (blank and not quiet):
        raise ValueError(
            f"Expected texts, but got {'none' if not lengths else f'{len(lengths)} that are all blank'}. Check the file, "
            "the split and the column."
        )
    if num_cut and not quiet:
        logger.warning("%d of %d texts are longer than %d tokens and were cut.", num_cut, len(lengths), max_length)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return EncodedCorpus(
        np.concatenate(pieces), offsets, np.concatenate(types) if types else None, digest.hexdigest(), num_cut
    )


def _tokenize(chunk: list[Text], tokenizer: PreTrainedTokenizerBase, max_length: int) -> Any:
    pairs = [isinstance(text, tuple) for text in chunk]
    if any(pairs) and not all(pairs):
        raise ValueError("Texts should be all single or all pairs, but both came.")
    first = [text[0] if isinstance(text, tuple) else text for text in chunk]
    second = [text[1] for text in chunk if isinstance(text, tuple)] or None
    # A fast tokenizer keeps how it was asked last, and is saved so: a student's files would tell whether its targets were kept.
    backend = getattr(tokenizer, "backend_tokenizer", None)
    before = getattr(backend, "truncation", None)
    try:
        return tokenizer(first, second, truncation=True, max_length=max_length, return_attention_mask=False)
    finally:
        if backend is not None:
            backend.no_truncation() if before is None else backend.enable_truncation(**before)


def clean(text: Text) -> Text:
    """The text with lone surrogates, which no tokenizer takes, replaced by the replacement character."""
    if isinstance(text, tuple):
        return str(clean(text[0])), str(clean(text[1]))
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _joined(text: Text) -> str:
    return text if isinstance(text, str) else "".join(text)


def _count_cut(encoded: Any, ids: list[list[int]], max_length: int) -> int:
    encodings = getattr(encoded, "encodings", None)
    if encodings:
        return sum(bool(encoding.overflowing) for encoding in encodings)
    return sum(len(row) >= max_length for row in ids)
