"""Corpus, sample, teacher and builder: the same dictionary however the work is cut, and no work on bad input."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict

from hf_sense import build_dictionary
from hf_sense.corpus import encode_corpus, iterate_texts
from hf_sense.padding import RightAligned
from hf_sense.pooling import POOLINGS, pool
from hf_sense.sampling import sample_occurrences
from hf_sense.teacher import Teacher


def places(sample, corpus):
    """A sample as a set of (token, the text's ids, position, weight), whatever the order of the texts."""
    return {
        (
            int(token),
            corpus.input_ids[corpus.offsets[text] : corpus.offsets[text + 1]].tobytes(),
            int(position),
            int(weight),
        )
        for token, text, position, weight in zip(sample.token_ids, sample.texts, sample.positions, sample.weights)
    }


def test_sample_does_not_depend_on_order_or_on_where_it_is_drawn(tokenizer, texts):
    """Shuffled texts, or two halves merged, give another sample; or copies of a text crowd out the others."""
    texts = texts + texts[:7] * 3
    size, options = len(tokenizer), {"max_occurrences": 5, "seed": 3}
    corpora = [encode_corpus(t, tokenizer, 64, disable_tqdm=True) for t in (texts, texts[::-1], texts[:30], texts[30:])]
    whole, backwards, first, second = (sample_occurrences(c, size, **options) for c in corpora)
    assert places(whole, corpora[0]) == places(backwards, corpora[1])
    second = sample_occurrences(corpora[3], size, **options)
    shifted = type(second)(**{**vars(second), "texts": second.texts + 30})
    assert places(first.merge(shifted, 5), corpora[0]) == places(whole, corpora[0])
    assert np.bincount(whole.token_ids).max() == 5
    assert np.array_equal(whole.totals, np.bincount(corpora[0].input_ids, minlength=size))
    everything = sample_occurrences(corpora[0], size, max_occurrences=10**6)
    assert everything.weights.sum() == len(corpora[0].input_ids)
    assert everything.weights.max() == 4
    other = sample_occurrences(corpora[0], size, max_occurrences=5, seed=4)
    assert places(other, corpora[0]) != places(whole, corpora[0])


def test_sample_is_uniform(tokenizer):
    """Early texts, or early positions, are drawn more often."""
    texts = [f"bank {chr(97 + a)} {chr(97 + b)}" for a in range(20) for b in range(20)]
    corpus = encode_corpus(texts, tokenizer, 64, disable_tqdm=True)
    drawn = np.zeros(len(texts))
    bank = tokenizer.get_vocab()["bank"]
    for seed in range(60):
        sample = sample_occurrences(corpus, len(tokenizer), max_occurrences=100, seed=seed)
        drawn[sample.texts[sample.token_ids == bank]] += 1
    assert drawn.sum() == 60 * 100
    assert abs(drawn[:200].sum() - 3000) < 200
    assert drawn.max() < 32  # 15 expected, standard deviation 3.4


def test_same_inputs_give_the_same_bytes(teacher, texts, tmp_path):
    """A build depends on chance."""
    files = []
    for name in ("a", "b"):
        build_dictionary(teacher, texts, max_senses=4).save_pretrained(tmp_path / name)
        files.append((tmp_path / name / "sense_dictionary.safetensors").read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize("stop_after", [0, 3, 11])
def test_stopped_and_resumed_gives_the_same_bytes(teacher, texts, tmp_path, monkeypatch, stop_after):
    """What was done before an interrupt is lost, done twice or done otherwise."""
    whole = build_dictionary(teacher, texts, max_senses=4, batch_size=4)
    calls = 0
    original = Teacher.hidden_states

    def stopping(self, *args, **kwargs):
        nonlocal calls
        calls += 1
        if calls > stop_after:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Teacher, "hidden_states", stopping)
    options = {"max_senses": 4, "batch_size": 4, "work_dir": tmp_path / "work"}
    with pytest.raises(KeyboardInterrupt):
        build_dictionary(teacher, texts, **options)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="another build"):
        build_dictionary(teacher, texts, **{**options, "max_senses": 5})
    counted = []
    monkeypatch.setattr(Teacher, "hidden_states", lambda *a, **k: counted.append(1) or original(*a, **k))
    resumed = build_dictionary(teacher, texts, **options)
    assert len(counted) == 15 - stop_after
    assert resumed.fingerprint == whole.fingerprint
    assert not (tmp_path / "work").exists()


def test_stopped_in_clustering(teacher, texts, tmp_path, monkeypatch):
    """Parts that were clustered before an interrupt are clustered again, or put together wrongly."""
    import hf_sense.assembly as assembly

    whole = build_dictionary(teacher, texts, max_senses=4)
    monkeypatch.setattr("hf_sense.parts._PART_WORK", 200)
    original, calls = assembly.cluster, []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(assembly, "cluster", stopping)
    with pytest.raises(KeyboardInterrupt):
        build_dictionary(teacher, texts, max_senses=4, work_dir=tmp_path / "work")
    assert len(list((tmp_path / "work").glob("part-*"))) == 2
    resumed = build_dictionary(teacher, texts, max_senses=4, work_dir=tmp_path / "work")
    torch.testing.assert_close(resumed.senses, whole.senses, atol=1e-5, rtol=1e-4)
    assert torch.equal(resumed.counts, whole.counts)


def test_batch_size_and_order_change_senses_by_rounding_alone(teacher, texts):
    """The sample or the clusters depend on how texts were batched."""
    reference = build_dictionary(teacher, texts, max_senses=4)
    for other in (
        build_dictionary(teacher, texts, max_senses=4, batch_size=1),
        build_dictionary(teacher, texts, max_senses=4, batch_size=64),
        build_dictionary(teacher, texts[::-1], max_senses=4),
    ):
        same = [
            len(a.sense_ids) == len(b.sense_ids) and torch.allclose(a.vectors, b.vectors, atol=1e-4)
            for a, b in ((reference.senses_of(t), other.senses_of(t)) for t in range(reference.vocab_size))
        ]
        assert sum(same) >= 0.99 * len(same)


def test_counts_are_the_corpus_occurrences(teacher, texts):
    """Sampling or copies make frequent tokens look rarer than they are."""
    texts = texts + texts[:5]
    dictionary = build_dictionary(teacher, texts, max_senses=3, max_occurrences=4)
    ids = teacher.tokenizer(texts)["input_ids"]
    expected = np.bincount(np.concatenate(ids), minlength=dictionary.vocab_size)
    found = [int(dictionary.senses_of(t).counts.sum()) for t in range(dictionary.vocab_size)]
    assert found == expected.tolist()


def test_senses_of_a_token_under_min_occurrences_are_its_vectors(teacher, texts):
    """A rare token is averaged although it should keep its own vectors."""
    dictionary = build_dictionary(teacher, texts[:3], max_senses=1, min_occurrences=10**6, batch_size=1)
    one = teacher.tokenizer(texts[0], return_tensors="pt")
    states = teacher.hidden_states(**one)
    torch.testing.assert_close(dictionary.replace(one["input_ids"], states), states, atol=1e-5, rtol=1e-4)


def test_pairs_and_special_tokens(teacher, texts):
    """Text pairs lose their segments, or special tokens get senses against the user's will."""
    pairs = Dataset.from_dict({"a": texts[:20], "b": texts[20:40]})
    dictionary = build_dictionary(teacher, pairs, text_column=("a", "b"), max_senses=500, special_tokens=False)
    one = teacher.tokenizer(texts[0], texts[20], return_tensors="pt")
    states = teacher.hidden_states(**one)
    replaced = dictionary.replace(one["input_ids"], states)
    torch.testing.assert_close(replaced, states, atol=1e-5, rtol=1e-4)
    assert len(dictionary.senses_of("[SEP]").sense_ids) == 0
    assert one["token_type_ids"].any()


def test_nan_of_the_teacher_names_the_text(teacher, texts, monkeypatch):
    """NaN is averaged into senses, and nobody knows where it came from."""
    original = Teacher.hidden_states

    def broken(self, input_ids, **kwargs):
        states = original(self, input_ids, **kwargs).clone()
        states[(input_ids == self.tokenizer.get_vocab()["river"]).any(-1)] = float("nan")
        return states

    monkeypatch.setattr(Teacher, "hidden_states", broken)
    with pytest.raises(ValueError, match=r"NaN or infinity for text \d+ \(.*river"):
        build_dictionary(teacher, texts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "l7"}, "metric must be one of"),
        ({"method": "magic"}, "magic"),
        ({"max_senses": "many"}, "many"),
        ({"max_senses": 0}, "whole number from 1"),
        ({"max_length": 2}, "max_length should be"),
        ({"max_length": 10**4}, "max_length should be"),
        ({"batch_size": 0}, "batch_size"),
        ({"texts": ["", "  "]}, "all blank"),
        ({"texts": []}, "got none"),
        ({"texts": "one text"}, "one string"),
        ({"texts": ["a", None]}, "Text 1 should be a string"),
        ({"texts": DatasetDict(train=Dataset.from_dict({"text": ["a"]}))}, r"data\['train'\]"),
        ({"texts": Dataset.from_dict({"body": ["a"]})}, "no column 'text'; it has 'body'"),
        ({"texts": 7}, "got a int"),
        ({"max_sense": 3}, "no option 'max_sense'; did you mean 'max_senses'"),
        ({"restart": 3}, "did you mean 'restarts'"),
        ({"weights": 3}, "no option 'weights'"),
        ({"tolerance": "a"}, "tolerance should be a number"),
        ({"restarts": 1.5}, "restarts should be a whole number"),
        ({"seed": "a"}, "seed should be a whole number, but is 'a'"),
        ({"batch_size": "8"}, "batch_size should be a whole number"),
        ({"text_column": "body"}, "text_column='body' names a column, but a list of str came"),
    ],
)
def test_bad_input_is_refused_before_the_teacher_runs(
    tiny_teacher_folder, teacher, texts, monkeypatch, options, message
):
    """A slip is found out after an hour's work."""
    monkeypatch.setattr(Teacher, "hidden_states", lambda *a, **k: pytest.fail("the teacher ran"))
    with pytest.raises(ValueError, match=message):
        build_dictionary(teacher, **{"texts": texts, **options})


def test_long_text_is_cut_with_one_warning(teacher, caplog):
    """A text of 100,000 characters fails, or fills the log."""
    texts = ["bank " * 20_000, "river " * 20_000, "bank"]
    with caplog.at_level(logging.WARNING):
        corpus = encode_corpus(iterate_texts(texts), teacher.tokenizer, 64)
    assert [record.getMessage() for record in caplog.records] == [
        "2 of 3 texts are longer than 64 tokens and were cut."
    ]
    assert corpus.lengths.tolist() == [64, 64, 3]


def test_odd_texts_and_streams(teacher):
    """A lone surrogate or a streamed data set stops the build."""
    odd = ["bank \ud800 river", "", "\u202ebank", "🏦 bank", "a\x00b"]
    assert build_dictionary(teacher, odd, max_senses=2).num_senses > 0
    stream = Dataset.from_dict({"text": ["the bank", "a river"]}).to_iterable_dataset()
    listed = build_dictionary(teacher, ["the bank", "a river"])
    assert build_dictionary(teacher, stream).fingerprint == listed.fingerprint


def test_padded_batches_are_the_tokenizers(tokenizer, texts):
    """Token ids are put at the wrong place of a batch."""
    corpus = encode_corpus(texts, tokenizer, 64)
    for rows in corpus.batches(7):
        expected = tokenizer([texts[row] for row in rows], padding=True, return_tensors="pt")
        found = corpus.padded(rows, tokenizer.pad_token_id)
        assert torch.equal(found["input_ids"], expected["input_ids"])
        assert torch.equal(found["attention_mask"], expected["attention_mask"])


def test_teacher_gives_the_same_states_padded_and_alone(teacher, texts):
    """Padding, or its side, changes a hidden state."""
    for side in ("left", "right"):
        batch = teacher.tokenizer(texts[:6], padding=True, return_tensors="pt", padding_side=side)
        states = teacher.hidden_states(**batch)
        for row, text in enumerate(texts[:6]):
            alone = teacher.hidden_states(**teacher.tokenizer(text, return_tensors="pt"))[0]
            torch.testing.assert_close(states[row][batch["attention_mask"][row].bool()], alone, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_pooling_equals_a_plain_loop(pooling):
    """A pooling takes another token, or counts padding, on either side."""
    torch.manual_seed(0)
    hidden, weights = torch.randn(3, 5, 4), torch.rand(3, 5)
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 1, 1], [0, 0, 0, 0, 1]])
    hidden[mask == 0] = float("nan")
    found = pool(hidden, mask, pooling, weights)
    for row in range(3):
        own, share = hidden[row][mask[row] == 1], weights[row][mask[row] == 1]
        expected = {
            "mean": own.mean(0),
            "weighted_mean": sum((i + 1) * v for i, v in enumerate(own)) / sum(range(1, len(own) + 1)),
            "frequency": (share[:, None] * own).sum(0) / share.sum(),
            "cls": own[0],
            "last_token": own[-1],
            "first_content_token": own[min(1, len(own) - 1)],
        }[pooling]
        torch.testing.assert_close(found[row], expected)


def test_right_aligned_is_undone():
    """Padding that was moved does not come back to its place."""
    mask = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]])
    tensor = torch.arange(16).view(4, 4)
    aligned = RightAligned(mask)
    assert aligned.move(mask).tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 0]]
    assert torch.equal(aligned.restore(aligned.move(tensor)), tensor)


@pytest.mark.parametrize(
    "texts",
    [
        ["the bank"] * 100_000,
        ["river " * 170_000, "bank"],
        ["", "bank", " ", "\n", "\t"],
        ["qqqq zzzz", "xxxx"],
        ["\x00\x01\x1b[31m bank", "a\u0000b", "\ufeffbank"],
        ["שלום bank", "\u202eknab", "بنك the bank", "銀行 bank река"],
        ["🏦🏦🏦", "👩\u200d👩\u200d👧 bank", "e\u0301" * 50],
        ["bank \udcff", "\ud83c", "\udfe6\ud83c"],
        [("the bank", ""), ("", "a river"), ("\ud800", "x" * 1000)],
    ],
    ids=["identical", "long", "blank", "unknown", "control", "scripts", "emoji", "surrogates", "pairs"],
)
def test_texts_as_they_come(teacher, texts, tmp_path):
    """A text that nobody thought of crashes the build, makes it hang, or is counted wrongly."""
    made = build_dictionary(teacher, texts, max_senses=3, work_dir=tmp_path / "work")
    assert made.metadata["corpus"]["texts"] == len(texts)
    assert int(made.counts.sum()) == made.metadata["corpus"]["tokens"] > 0
    assert torch.isfinite(made.senses).all()
