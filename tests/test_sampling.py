"""The sample of occurrences: capped, uniform, and the same whatever the order of the texts."""

import numpy as np
import pytest

from hf_sense.corpus import EncodedCorpus, encode_corpus
from hf_sense.sampling import sample_occurrences


def corpus_of(rows):
    """A corpus of these token ids."""
    offsets = np.array([0, *np.cumsum([len(row) for row in rows])], np.int64)
    return EncodedCorpus(np.concatenate([np.array(row, np.int32) for row in rows]), offsets, None, "", 0)


def places(sample, corpus):
    """What was sampled, by the text's content and not its number."""
    found = set()
    for token, text, position, weight in zip(sample.token_ids, sample.texts, sample.positions, sample.weights):
        content = tuple(corpus.input_ids[corpus.offsets[text] : corpus.offsets[text + 1]].tolist())
        assert content[position] == token
        found.add((int(token), content, int(position), int(weight)))
    assert len(found) == len(sample.token_ids)
    return found


@pytest.fixture
def draw(texts, tokenizer):
    """Samples from texts, with at most so many occurrences a token."""

    def run(chosen=texts, cap=5, **options):
        corpus = encode_corpus(chosen, tokenizer, 64)
        return sample_occurrences(corpus, len(tokenizer), max_occurrences=cap, **options), corpus

    return run


def test_cap_and_totals(draw, tokenizer):
    """A cap that leaks costs memory; one that is too low costs senses. Totals are of the corpus, not of the sample."""
    sample, corpus = draw()
    counts = np.bincount(corpus.input_ids, minlength=len(tokenizer))
    assert sample.totals.tolist() == counts.tolist()
    assert np.bincount(sample.token_ids, minlength=len(tokenizer)).tolist() == np.minimum(counts, 5).tolist()
    assert (np.diff(sample.token_ids) >= 0).all()


def test_order_of_texts_does_not_matter(draw, texts):
    """A corpus shuffled by another release of a data set would give another dictionary."""
    assert places(*draw()) == places(*draw(texts[::-1]))


def test_small_chunks_draw_the_same_sample(draw, monkeypatch):
    """A corpus that is larger than a chunk is sampled chunk by chunk, and must not favour the last."""
    whole, corpus = draw()
    monkeypatch.setattr("hf_sense.sampling._CHUNK", 50)
    parts, _ = draw()
    assert places(whole, corpus) == places(parts, corpus)
    assert whole.totals.tolist() == parts.totals.tolist()


def test_merge_of_two_halves_equals_the_whole(draw, texts):
    """Samples drawn on two machines must join to the sample that one would have drawn."""
    whole, _ = draw()
    first, _ = draw(texts[:23])
    second, _ = draw(texts[23:])
    moved = type(second)(**{**vars(second), "texts": second.texts + 23})
    merged = first.merge(moved, 5)
    for name, values in vars(whole).items():
        assert getattr(merged, name).tolist() == values.tolist(), name


def test_equal_texts_are_one_occurrence_with_a_weight():
    """Copies of one text would fill a token's sample with one vector."""
    corpus = corpus_of([[1, 2], [1, 3], [1, 2], [1, 2]])
    sample = sample_occurrences(corpus, 4, max_occurrences=10)
    assert places(sample, corpus) == {(1, (1, 2), 0, 3), (1, (1, 3), 0, 1), (2, (1, 2), 1, 3), (3, (1, 3), 1, 1)}
    assert sample.totals.tolist() == [0, 4, 3, 1]


def test_segments_make_texts_differ():
    """The pairs (a b, c) and (a, b c) have the same ids and different embeddings."""
    corpus = corpus_of([[1, 2], [1, 2]])
    typed = EncodedCorpus(corpus.input_ids, corpus.offsets, np.array([0, 0, 0, 1], np.uint8), "", 0)
    assert len(sample_occurrences(corpus, 3, max_occurrences=9).token_ids) == 2
    assert len(sample_occurrences(typed, 3, max_occurrences=9).token_ids) == 4


def test_excluded_tokens_have_no_occurrence(draw, tokenizer):
    """special_tokens=False must leave out [CLS] wherever it stands."""
    excluded = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    sample, _ = draw(excluded_ids=excluded)
    assert not set(sample.token_ids.tolist()) & set(excluded)
    assert sample.totals[list(excluded)].tolist() == [0, 0]
    assert len(sample.token_ids)


def test_seeds_draw_different_samples(draw):
    """A seed that is not used makes a study over seeds a study of one run."""
    assert places(*draw(seed=1)) != places(*draw(seed=2))
    assert places(*draw(seed=1)) == places(*draw(seed=1))


def test_sample_is_uniform():
    """A hash that favours low positions or early texts would bias the senses towards the beginnings of texts."""
    corpus = corpus_of([[1, 2 + text] + [1] * 6 for text in range(8)])
    drawn = np.zeros((8, 8))
    for seed in range(700):
        sample = sample_occurrences(corpus, 20, max_occurrences=7, seed=seed)
        mine = sample.token_ids == 1
        assert mine.sum() == 7
        drawn[sample.texts[mine], sample.positions[mine]] += 1
    assert (drawn[:, 1] == 0).all()
    observed = np.delete(drawn, 1, 1)
    expected = 700 * 7 / 56
    chi_square = ((observed - expected) ** 2 / expected).sum()
    # 55 degrees of freedom: mean 55, and 110 is past the 99.999th percentile.
    assert chi_square < 110
    assert chi_square > 15
