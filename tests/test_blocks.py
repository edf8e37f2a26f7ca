"""A corpus read in blocks, by one process or by several: the same token ids, and the same sample, as read at once."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from hf_sense.blocks import ChangedCorpus, read_blocks
from hf_sense.corpus import encode_corpus
from hf_sense.drawing import draw_sample
from hf_sense.sampling import sample_occurrences
from hf_sense.segments import Segments


class One:
    """A rank that only knows of itself."""

    def __init__(self, rank=0, count=1):
        self.rank, self.count, self.main = rank, count, rank == 0

    def gather(self, value):
        return [value]


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of seven texts."""
    for module in ("blocks", "drawing", "embedding"):
        monkeypatch.setattr(f"hf_sense.{module}.BLOCK", 7)


def test_blocks_are_the_corpus_cut_by_position(texts, tokenizer, small_blocks, tmp_path):
    """A block holds other texts, in memory or in files, or what the whole is called depends on how it was cut."""
    whole = encode_corpus(texts, tokenizer, 64)
    for segments in (Segments(None, "tokens"), Segments(tmp_path, "tokens")):
        found = read_blocks(iter(texts), tokenizer, 64, segments, One())
        assert (found.texts, found.tokens, found.sha256) == (len(texts), len(whole.input_ids), whole.sha256)
        assert found.own == list(range(9))
        parts = [found.block(number) for number in found.own]
        assert [len(part.lengths) for part in parts] == [7] * 8 + [4]
        assert np.array_equal(np.concatenate([part.input_ids for part in parts]), whole.input_ids)
        assert np.array_equal(np.concatenate([part.lengths for part in parts]), whole.lengths)
        assert parts[1].sha256 == hashlib.sha256("".join(f"{t!r}\n" for t in texts[7:14]).encode()).hexdigest()


def test_ranks_share_blocks_and_their_samples_merge(texts, tokenizer, small_blocks):
    """A text is read by no rank, or by two; or the sample depends on who drew it."""
    texts = texts + texts[:9]
    whole = sample_occurrences(encode_corpus(texts, tokenizer, 64), len(tokenizer), max_occurrences=4, seed=5)
    samples, seen = [], []
    for rank in range(3):
        found = read_blocks(iter(texts), tokenizer, 64, Segments(None, "tokens"), One(rank, 3))
        seen += found.own
        samples.append(draw_sample(found, len(tokenizer), One(), max_occurrences=4, seed=5))
    assert sorted(seen) == list(range(10))
    merged = samples[0].merge(samples[1], 4).merge(samples[2], 4)
    for name, values in vars(whole).items():
        assert getattr(merged, name).tolist() == values.tolist(), name


def test_what_is_held_is_not_tokenized_again(texts, tokenizer, small_blocks, tmp_path, monkeypatch):
    """A resumed build does all the work again, or takes another corpus for its own."""
    calls = []

    def counting(*args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return encode_corpus(*args, **kwargs)

    monkeypatch.setattr("hf_sense.blocks.encode_corpus", counting)
    with pytest.raises(KeyboardInterrupt):
        read_blocks(iter(texts), tokenizer, 64, Segments(tmp_path, "tokens"), One())
    found = read_blocks(iter(texts), tokenizer, 64, Segments(tmp_path, "tokens"), One())
    assert len(calls) == 4 + 6
    assert found.tokens == len(encode_corpus(texts, tokenizer, 64).input_ids)
    changed = [*texts[:10], "the bank opens", *texts[11:]]
    with pytest.raises(ChangedCorpus, match="7 texts from number 7 have"):
        read_blocks(iter(changed), tokenizer, 64, Segments(tmp_path, "tokens"), One())
    with pytest.raises(ChangedCorpus, match="at least 57 texts, and there are 49"):
        read_blocks(iter(texts[:49]), tokenizer, 64, Segments(tmp_path, "tokens"), One())


def test_texts_are_not_held(tokenizer, small_blocks):
    """A stream is read into memory before anything is done with it."""
    alive = [0, 0]

    class Text(str):
        def __new__(cls, value):
            alive[0] += 1
            alive[1] = max(alive)
            return super().__new__(cls, value)

        def __del__(self):
            alive[0] -= 1

    read_blocks((Text(f"the bank {n}") for n in range(500)), tokenizer, 64, Segments(None, "tokens"), One())
    assert alive[1] <= 2 * 7 + 2


def test_pairs_and_single_texts_do_not_mix_across_blocks(tokenizer, small_blocks):
    """Segments are lost for a part of the corpus."""
    with pytest.raises(ValueError, match="both came"):
        read_blocks(iter(["a"] * 7 + [("a", "b")] * 7), tokenizer, 64, Segments(None, "tokens"), One())
    pairs = [("the bank", "a river"), ("my card", "the team")] * 5
    found = read_blocks(iter(pairs), tokenizer, 64, Segments(None, "tokens"), One())
    assert found.block(1).token_type_ids.tolist() == encode_corpus(pairs[7:], tokenizer, 64).token_type_ids.tolist()
