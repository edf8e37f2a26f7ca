"""A corpus read in blocks, by one process or by several: the same token ids, and the same sample, as read at once."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch

from hf_sense.blocks import ChangedCorpus, read_blocks
from hf_sense.corpus import encode_corpus
from hf_sense.drawing import draw_sample
from hf_sense.drawn import Drawn
from hf_sense.sampling import OccurrenceSampler, sample_occurrences
from hf_sense.segments import Segments
from hf_sense.unfinished import UnfinishedBuild


class One:
    """A rank that only knows of itself."""

    def __init__(self, rank=0, count=1):
        self.rank, self.count, self.main = rank, count, rank == 0

    def gather(self, value):
        return [value] * self.count  # all see the same

    def share(self, value, source):
        return value

    def wait(self):
        pass


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
        work = UnfinishedBuild(None, {}, One())
        samples.append(draw_sample(found, len(tokenizer), work, max_occurrences=4, seed=5))
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


def test_a_sample_half_drawn_is_gone_on_with(texts, tokenizer, small_blocks, tmp_path, monkeypatch):
    """A build that is killed while it draws begins to draw anew, or draws from some texts twice."""
    monkeypatch.setattr("hf_sense.drawn._SECONDS_BETWEEN_SAVES", 0.0)
    monkeypatch.setattr("hf_sense.drawn._SHARE", float("inf"))
    whole = sample_occurrences(encode_corpus(texts, tokenizer, 64), len(tokenizer), max_occurrences=4, seed=5)
    found = read_blocks(iter(texts), tokenizer, 64, Segments(None, "tokens"), One())
    add, added = OccurrenceSampler.add, []

    def failing(self, corpus, first_text=0):
        if len(added) == 5:
            raise KeyboardInterrupt
        added.append(first_text // 7)
        add(self, corpus, first_text)

    monkeypatch.setattr(OccurrenceSampler, "add", failing)
    first = UnfinishedBuild(tmp_path / "work", {}, One())
    with pytest.raises(KeyboardInterrupt):
        draw_sample(found, len(tokenizer), first, max_occurrences=4, seed=5)
    first.close()
    assert len(list((tmp_path / "work").glob("drawn-*"))) == 1
    added.clear()
    added.append(None)
    again = UnfinishedBuild(tmp_path / "work", {}, One())
    sample = draw_sample(found, len(tokenizer), again, max_occurrences=4, seed=5)
    assert added[1:] == [5, 6, 7, 8]
    for name, values in vars(whole).items():
        assert getattr(sample, name).tolist() == values.tolist(), name
    again.remove()
    assert not (tmp_path / "work").exists()


def test_what_was_drawn_is_dealt_to_any_number_of_ranks(tmp_path):
    """Two ranks take the same blocks, or none does; or a save that another replaced counts beside it."""
    work = UnfinishedBuild(tmp_path / "work", {}, One())
    for numbers in ([0, 3], [1, 4, 7], [0], [2, 5]):
        work.drawn.add(numbers, {"x": torch.zeros(1)})
    work.close()
    dealt, covered = [], set()
    for rank in range(2):
        work = UnfinishedBuild(tmp_path / "work", {}, One())
        work.ranks = One(rank, 2)
        drawn = Drawn(work)
        dealt += [piece.numbers.tolist() for piece in drawn._own]
        assert drawn.covered >= {1, 2, 3, 4, 5, 7}
        covered = drawn.covered
        work.close()
    assert sorted(dealt) == [[0, 3], [1, 4, 7], [2, 5]]
    assert covered == {0, 1, 2, 3, 4, 5, 7}
    assert len(list((tmp_path / "work").glob("drawn-*"))) == 3
