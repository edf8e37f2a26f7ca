"""Reads a corpus once, in blocks of 1,024 texts that ranks share out, and keeps their token ids: in memory or in a folder.

Blocks are cut by the place of a text in the corpus, so that they are the same for any number of ranks. No text is kept, and no
more than a block is held.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_sense.corpus import EncodedCorpus, Text, clean, encode_corpus
from hf_sense.ranks import Ranks
from hf_sense.segments import Piece, Segments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

BLOCK = 1024
# What an interrupt loses at most, and what waits in memory.
_SECONDS_BETWEEN_SAVES = 20.0
_TOKENS_A_PIECE = 2**21


@dataclass(frozen=True)
class Blocks:
    """A corpus that was read.

    Attributes:
        texts: how many.
        tokens: how many.
        sha256: of the texts, in order, as ``encode_corpus`` gives it.
        own: the numbers of this rank's blocks; block ``b`` holds the texts from ``b * BLOCK``.
    """

    texts: int
    tokens: int
    sha256: str
    own: list[int]
    _kept: _Kept

    def block(self, number: int) -> EncodedCorpus:
        """One of this rank's blocks; its first text has the number 0 there."""
        return self._kept.block(number)

    def tokens_of(self, number: int) -> int:
        """How many tokens one of this rank's blocks holds."""
        return self._kept.sums[number][0]


class ChangedCorpus(ValueError):
    """The texts are not those that were read before."""


class _Kept:
    """Which piece holds which block."""

    def __init__(self, segments: Segments) -> None:
        self.segments = segments
        self.where: dict[int, tuple[Piece, int]] = {}
        self.sums: dict[int, tuple[int, int]] = {}  # tokens, and texts that were cut
        self._opened: tuple[str, dict[str, torch.Tensor], np.ndarray, np.ndarray] | None = None
        for piece in segments.pieces:
            self.note(piece)

    def note(self, piece: Piece) -> None:
        tensors, ends, tokens = self.open(piece)
        sizes = np.diff(tokens[np.concatenate([[0], ends])]).tolist()
        for at, number in enumerate(piece.numbers.tolist()):
            self.where.setdefault(number, (piece, at))
            self.sums.setdefault(number, (sizes[at], int(tensors["cut"][at])))

    def open(self, piece: Piece) -> tuple[dict[str, torch.Tensor], np.ndarray, np.ndarray]:
        if self._opened is None or self._opened[0] != piece.name:
            tensors = piece.open()
            ends = tensors["texts"].cumsum(0).numpy()
            tokens = np.concatenate([[0], tensors["lengths"].long().cumsum(0).numpy()])
            self._opened = (piece.name, tensors, ends, tokens)
        return self._opened[1:]

    def block(self, number: int) -> EncodedCorpus:
        piece, at = self.where[number]
        tensors, ends, tokens = self.open(piece)
        first, last = int(ends[at] - tensors["texts"][at]), int(ends[at])
        rows = slice(int(tokens[first]), int(tokens[last]))
        types = tensors["token_type_ids"][rows].numpy().copy() if "token_type_ids" in tensors else None
        return EncodedCorpus(
            tensors["input_ids"][rows].numpy().copy(),
            tokens[first : last + 1] - tokens[first],
            types,
            bytes(tensors["sha256"][at].tolist()).hex(),
            int(tensors["cut"][at]),
        )


def read_blocks(
    texts: Iterable[Text],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    segments: Segments,
    ranks: Ranks,
    *,
    disable_tqdm: bool | None = None,
) -> Blocks:
    """Tokenizes this rank's share of the texts. What ``segments`` holds already is compared with the texts, not made again.

    Every rank reads all texts, and tokenizes its own.

    Args:
        texts: from ``iterate_texts``, all single or all pairs.
        tokenizer: any tokenizer of Transformers.
        max_length: tokens a text has at most.
        segments: where token ids are kept.
        ranks: who shares the work.
        disable_tqdm: ``True`` hides the progress bar.

    Raises:
        ValueError: if there are no texts, or none but blank ones.
        ChangedCorpus: if what is held was made of other texts.
    """
    kept = _Kept(segments)
    digest = hashlib.sha256()
    writer = _Writer(kept)
    number, count, blank, paired = 0, 0, True, None
    quiet = disable_tqdm or (None if ranks.main else True)
    bar = tqdm(desc="Tokenizing", unit=" tokens", unit_scale=True, disable=quiet)
    try:
        with bar:
            for number, chunk in enumerate(_chunks(texts)):
                lines = [repr(text).encode() + b"\n" for text in chunk]
                whole = b"".join(lines)
                digest.update(whole)
                kinds = {isinstance(text, tuple) for text in chunk} | ({paired} if paired is not None else set())
                if len(kinds) > 1:
                    raise ValueError("Texts should be all single or all pairs, but both came.")
                paired = kinds.pop()
                blank = blank and not any("".join(text).strip() for text in chunk)
                if number in kept.where:
                    _compare(kept, number, len(chunk), hashlib.sha256(whole).digest())
                elif number % ranks.count == ranks.rank:
                    block = encode_corpus(chunk, tokenizer, max_length, quiet=True, disable_tqdm=True)
                    writer.add(number, block)
                    bar.update(len(block.input_ids))
                count += len(chunk)
    finally:
        writer.flush()
    blocks = number + 1 if count else 0
    if count == 0 or blank:
        raise ValueError(
            f"Expected texts, but got {f'{count} that are all blank' if count else 'none'}. Check the file, the split and the "
            "column."
        )
    if (last := max(kept.where, default=-1)) >= blocks:
        raise ChangedCorpus(f"it held at least {last * BLOCK + 1:,} texts, and there are {count:,}")
    own = list(range(ranks.rank, blocks, ranks.count))
    mine = [kept.sums[number] for number in own] or [(0, 0)]
    tokens, cut = (sum(found) for found in zip(*ranks.gather([sum(c) for c in zip(*mine)]), strict=True))
    if cut and ranks.main:
        logger.warning("%d of %d texts are longer than %d tokens and were cut.", cut, count, max_length)
    return Blocks(count, tokens, digest.hexdigest(), own, kept)


def _chunks(texts: Iterable[Text]) -> Iterator[list[Text]]:
    rows = iter(texts)
    while chunk := [clean(text) for text in itertools.islice(rows, BLOCK)]:
        yield chunk


def _compare(kept: _Kept, number: int, texts: int, sha256: bytes) -> None:
    piece, at = kept.where[number]
    tensors = kept.open(piece)[0]
    if int(tensors["texts"][at]) != texts or bytes(tensors["sha256"][at].tolist()) != sha256:
        before = bytes(tensors["sha256"][at].tolist()).hex()[:12]
        raise ChangedCorpus(
            f"the {texts:,} texts from number {number * BLOCK:,} have the sha256 {sha256.hex()[:12]}, and had {before}"
        )


class _Writer:
    """Blocks that were tokenized, on their way to a piece."""

    def __init__(self, kept: _Kept) -> None:
        self.kept = kept
        self._clear()

    def _clear(self) -> None:
        self.waiting: list[tuple[int, EncodedCorpus]] = []
        self.tokens, self.since = 0, time.monotonic()

    def add(self, number: int, block: EncodedCorpus) -> None:
        self.waiting.append((number, block))
        self.tokens += len(block.input_ids)
        if self.tokens > _TOKENS_A_PIECE or time.monotonic() - self.since > _SECONDS_BETWEEN_SAVES:
            self.flush()

    def flush(self) -> None:
        if not self.waiting:
            return
        blocks = [block for _, block in self.waiting]
        columns = {
            "input_ids": np.concatenate([block.input_ids for block in blocks]),
            "lengths": np.concatenate([block.lengths for block in blocks]).astype(np.int32),
            "texts": np.array([len(block.offsets) - 1 for block in blocks], np.int64),
            "cut": np.array([block.num_cut for block in blocks], np.int64),
            "sha256": np.array([list(bytes.fromhex(block.sha256)) for block in blocks], np.uint8),
        }
        types = [block.token_type_ids for block in blocks if block.token_type_ids is not None]
        if types:
            columns["token_type_ids"] = np.concatenate(types)
        tensors = {name: torch.from_numpy(values) for name, values in columns.items()}
        self.kept.segments.add([number for number, _ in self.waiting], tensors)
        self.kept.note(self.kept.segments.pieces[-1])
        self._clear()
