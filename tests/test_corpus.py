"""Texts in, token ids out: what is refused, what is cut, and that a padded batch is the tokenizer's own."""

import logging

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, IterableDataset

from hf_sense.corpus import encode_corpus, iterate_texts

PAIRS = [("the bank", "a river"), ("my card", "the team lost the game"), ("a mole", "")]


def same(a, b):
    """Whether two corpora hold the same tokens under the same checksum."""
    return a.sha256 == b.sha256 and np.array_equal(a.input_ids, b.input_ids) and np.array_equal(a.offsets, b.offsets)


def test_every_source_gives_the_same_corpus(texts, tokenizer):
    """A data set, a stream and a list of the same texts must build the same dictionary."""

    def rows():
        for text in texts:
            yield {"text": text, "label": 0}

    sources = [
        texts,
        (text for text in texts),
        Dataset.from_dict({"text": texts, "label": [0] * len(texts)}),
        IterableDataset.from_generator(rows),
        [{"text": text} for text in texts],
    ]
    corpora = [encode_corpus(iterate_texts(source), tokenizer, 64) for source in sources]
    assert len(corpora[0].lengths) == len(texts)
    assert all(same(corpora[0], corpus) for corpus in corpora[1:])


def test_tokens_are_those_of_the_tokenizer(texts, tokenizer, monkeypatch):
    """A seam between two calls of the tokenizer must not shift the offsets."""
    monkeypatch.setattr("hf_sense.corpus._TEXTS_A_CALL", 7)
    corpus = encode_corpus(texts, tokenizer, 64)
    assert len(corpus.offsets) == len(texts) + 1
    for number, text in enumerate(texts):
        row = corpus.input_ids[corpus.offsets[number] : corpus.offsets[number + 1]]
        assert row.tolist() == tokenizer(text)["input_ids"]


@pytest.mark.parametrize("given", [["the bank", "a river holds its water", "my card"], PAIRS], ids=["single", "pairs"])
def test_padded_equals_the_tokenizers_padding(given, tokenizer):
    """A teacher fed other masks, pads or segment numbers than its tokenizer gives embeds another text."""
    corpus = encode_corpus(given, tokenizer, 64)
    chosen = np.array([1, 2, 0])
    ours = corpus.padded(chosen, tokenizer.pad_token_id)
    # As a batch: a single call takes an empty second text for none.
    theirs = tokenizer.pad(tokenizer([given[i] for i in chosen]), return_tensors="pt")
    assert ("token_type_ids" in ours) == isinstance(given[0], tuple)
    for name, tensor in ours.items():
        assert tensor.dtype == theirs[name].dtype
        assert tensor.tolist() == theirs[name].tolist()


def test_pairs_from_two_columns_and_from_lists(tokenizer):
    """Pairs lost on the way would be encoded as single texts, without the second half."""
    columns = Dataset.from_dict({"a": [a for a, _ in PAIRS], "b": [b for _, b in PAIRS], "label": [0, 1, 0]})
    corpora = [
        encode_corpus(iterate_texts(source, names), tokenizer, 64)
        for source, names in ((PAIRS, "text"), ([list(pair) for pair in PAIRS], "text"), (columns, ("a", "b")))
    ]
    assert all(same(corpora[0], corpus) for corpus in corpora)
    assert set(corpora[0].token_type_ids.tolist()) == {0, 1}


def test_batches_hold_each_text_once_longest_first(texts, tokenizer):
    """A text left out of every batch would leave zeros for its vectors."""
    corpus = encode_corpus(texts, tokenizer, 64)
    batches = corpus.batches(7)
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(len(texts)))
    assert max(map(len, batches)) == 7
    assert (np.diff(corpus.lengths[order]) <= 0).all()
    some = corpus.batches(2, np.array([4, 9, 1]))
    assert sorted(np.concatenate(some).tolist()) == [1, 4, 9]


def test_a_dataset_dict_is_refused():
    """Iterating it gives the names of its splits, which would become the corpus."""
    both = DatasetDict({"train": Dataset.from_dict({"text": ["a"]}), "test": Dataset.from_dict({"text": ["b"]})})
    with pytest.raises(ValueError, match=r"DatasetDict with \['test', 'train'\].*data\['train'\]"):
        iterate_texts(both)


def test_a_missing_column_names_those_that_are_there():
    """The usual slip: the texts stand in another column than 'text'."""
    with pytest.raises(ValueError, match=r"no column 'text'; it has 'sentence', 'label'.*text_column"):
        iterate_texts(Dataset.from_dict({"sentence": ["a"], "label": [0]}))
    with pytest.raises(ValueError, match="Row 0 has no 'text'; it has 'sentence'"):
        list(iterate_texts([{"sentence": "a"}]))


def test_one_string_is_refused():
    """A string is an iterable of its letters."""
    with pytest.raises(ValueError, match=r"one string \('the bank'\).*\[text\]"):
        iterate_texts("the bank")


@pytest.mark.parametrize("wrong", [None, 3, ("a", "b", "c"), ("a", None), b"bytes"])
def test_what_is_no_text_is_refused_by_number(wrong):
    """None from an empty cell of a table fails inside the tokenizer, which does not say where it stood."""
    with pytest.raises(ValueError, match="Text 1 should be a string or a pair of strings"):
        list(iterate_texts(["fine", wrong]))


def test_wrong_arguments_are_refused():
    """A number for a corpus, or three columns, should fail before a model is loaded."""
    with pytest.raises(ValueError, match="got a int"):
        iterate_texts(3)
    with pytest.raises(ValueError, match="one name, or two"):
        iterate_texts(["a"], ["x", "y", "z"])


@pytest.mark.parametrize(
    ("given", "words"), [([], "got none"), (["", " \n"], "2 that are all blank"), ([("", "")], "1 that")]
)
def test_blank_texts_are_refused(given, words, tokenizer):
    """A dictionary of [CLS] and [SEP] alone looks like a success."""
    with pytest.raises(ValueError, match=words):
        encode_corpus(given, tokenizer, 64)


def test_some_blank_texts_are_taken(tokenizer):
    """One blank line in a file must not stop a build, and quiet takes a batch of blanks in evaluation."""
    assert encode_corpus(["", "the bank"], tokenizer, 64).lengths.tolist() == [2, 4]
    assert encode_corpus([""], tokenizer, 64, quiet=True).lengths.tolist() == [2]


def test_singles_among_pairs_are_refused(tokenizer):
    """zip would pair texts with the wrong partners."""
    with pytest.raises(ValueError, match="all single or all pairs"):
        encode_corpus(["a", ("b", "c")], tokenizer, 64)


def test_long_texts_are_cut_with_one_warning(tokenizer, caplog):
    """A text past the position table ends in an index error; a warning a text would hide everything else."""
    long = "the bank holds " * 6700
    assert len(long) > 100_000
    with caplog.at_level(logging.WARNING):
        corpus = encode_corpus([long, "my card", long], tokenizer, 64)
    assert corpus.lengths.tolist() == [64, 4, 64]
    assert corpus.num_cut == 2
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["2 of 3 texts are longer than 64 tokens and were cut."]


def test_text_of_exactly_the_length_is_not_cut(tokenizer, caplog):
    """A warning about texts that fit teaches people to ignore warnings."""
    with caplog.at_level(logging.WARNING):
        assert encode_corpus(["the bank"], tokenizer, 4).num_cut == 0
    assert not caplog.records


def test_lone_surrogates_are_replaced(tokenizer):
    """Half of an emoji from cut JSON raises in the tokenizer and in the checksum, hours into a corpus."""
    half = encode_corpus(["the \ud83d bank"], tokenizer, 64)
    replaced = encode_corpus(["the � bank"], tokenizer, 64)
    assert same(half, replaced)
    pair = encode_corpus([("the \udc00", "bank")], tokenizer, 64)
    assert same(pair, encode_corpus([("the �", "bank")], tokenizer, 64))
