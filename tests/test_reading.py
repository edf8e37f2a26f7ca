"""What a text's tokens mean to a model: senses, shares, distances, and the planes behind them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from hf_sense import SenseDictionary, SenseModel, SenseModelForSequenceClassification, build_dictionary, load_teacher
from hf_sense.answers import Answers
from hf_sense.contexts import occurrences_of
from hf_sense.corpus import encode_corpus
from hf_sense.llm2vec import TextForm
from hf_sense.plane import Planes, plane_of
from hf_sense.reading import Reader, agreement_of

TEXT = "The bank holds  its water,\nand my card lost"


@pytest.fixture(scope="module")
def reader(teacher, dictionary):
    return Reader.of_teacher(teacher, dictionary)


@pytest.fixture(scope="module")
def corpus(teacher, texts):
    return encode_corpus(texts, teacher.tokenizer, 32, disable_tqdm=True)


@pytest.fixture(scope="module")
def student(teacher, dictionary):
    return SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1)


def test_a_reading_is_what_the_dictionary_picks(reader, teacher, dictionary):
    """The page would show another sense than the one that replaces the token in a model."""
    found = reader.read(TEXT)
    batch = teacher.tokenizer(TEXT, return_tensors="pt")
    hidden = teacher.hidden_states(batch["input_ids"], batch["attention_mask"])
    expected = dictionary.lookup(batch["input_ids"], hidden)[0].tolist()
    assert [token.sense_id for token in found.tokens] == expected
    assert [token.token_id for token in found.tokens] == batch["input_ids"][0].tolist()
    assert any(token.num_senses > 1 for token in found.tokens)
    for token in found.tokens:
        senses = dictionary.senses_of(token.token_id)
        assert token.num_senses == len(senses.sense_ids)
        if token.local >= 0:
            assert senses.sense_ids[token.local] == token.sense_id
            assert (token.count, token.occurrences) == (int(senses.counts[token.local]), int(senses.counts.sum()))


@pytest.mark.parametrize("metric", ["l2", "dot", "cosine"])
def test_shares_and_distances_by_hand(teacher, dictionary, metric):
    """Shares would be of another temperature, of all senses of the text, or of a metric that the dictionary has not."""
    other = SenseDictionary(dictionary.senses, dictionary.offsets, dictionary.counts, dictionary.spread, metric=metric)
    reader = Reader.of_teacher(teacher, other)
    found = reader.read("the bank and the river")
    for position, token in enumerate(found.tokens):
        vectors, hidden = other.senses_of(token.token_id).vectors, found.hidden[position]
        if metric == "l2":
            scores = vectors @ hidden - vectors.square().sum(1) / 2
        elif metric == "dot":
            scores = vectors @ hidden
        else:
            scores = torch.nn.functional.cosine_similarity(vectors, hidden[None])
        shares = (scores / reader.temperature).softmax(0)
        assert token.local == int(scores.argmax())
        assert token.share == pytest.approx(float(shares[token.local]), abs=1e-4)
        views = reader.senses_at(found, position)
        assert views[0].local == token.local
        assert views[0].distance == 0
        assert sorted(view.local for view in views) == list(range(token.num_senses))
        assert [view.distance for view in views] == sorted(view.distance for view in views)
        for view in views:
            assert view.share == pytest.approx(float(shares[view.local]), abs=1e-4)
            away = float((vectors[view.local] - vectors[token.local]).norm())
            assert view.distance == pytest.approx(away, abs=1e-4)


def test_the_text_is_kept_whole(reader):
    """Blanks, line ends or letters would be lost or doubled between the tokens."""
    found = reader.read(TEXT + "  ")
    assert "".join(token.gap + token.text for token in found.tokens if not token.special) + found.tail == TEXT + "  "
    assert [token.text for token in found.tokens if token.special] == ["[CLS]", "[SEP]"]
    long = reader.read("the bank " * 200)
    assert len(long.tokens) == 64
    assert long.left_out == len(reader.tokenizer("the bank " * 200, verbose=False)["input_ids"]) - 64 == 338
    assert (
        "".join(token.gap + token.text for token in long.tokens if not token.special) + long.tail == "the bank " * 200
    )
    assert reader.read("the bank " * 31).left_out == 0  # as long as the model takes


def test_bytes_of_one_character_show_it_once():
    """Each byte of an emoji would show it again, and the blank before a word would be part of its button."""
    vocabulary = {symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    fast = Tokenizer(models.BPE(vocabulary, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast)
    empty = SenseDictionary(torch.empty(0, 4), torch.zeros(len(vocabulary) + 1, dtype=torch.int64))

    def forward(input_ids, attention_mask):
        return torch.zeros(*input_ids.shape, 4)

    found = Reader(empty, tokenizer, forward, 64, TextForm("x"), "x").read("a 😀b")
    assert len(found.tokens) == 7
    assert [(token.gap, token.text) for token in found.tokens[:3]] == [("", "a"), ("", " "), ("", "😀")]
    assert "".join(token.gap + token.text for token in found.tokens).count("😀") == 1
    assert (found.tokens[-1].gap, found.tokens[-1].text) == ("", "b")


def test_a_decoder_reads_as_its_dictionary_was_built(base, texts):
    """Without its instruction, or open instead of causal, a decoder's tokens would have other senses than in the dictionary."""
    decoder = load_teacher(str(base), attention="causal", instruction="the bank")
    senses = build_dictionary(decoder, texts, max_senses=3, disable_tqdm=True)
    found = Reader.of_teacher(decoder, senses).read("a river")
    batch = decoder.tokenizer("the bank a river", return_tensors="pt")
    hidden = decoder.hidden_states(batch["input_ids"], batch["attention_mask"])
    assert [token.token_id for token in found.tokens] == batch["input_ids"][0].tolist()
    assert [token.sense_id for token in found.tokens] == senses.lookup(batch["input_ids"], hidden)[0].tolist()
    opened = load_teacher(str(base), attention="bidirectional", instruction="the bank")
    with pytest.raises(ValueError, match="causal attention"):
        Reader.of_teacher(opened, senses)


@pytest.mark.parametrize(("text", "number"), [("", 0), ("  \n ", 0), ("\ud800 bank", 3)])
def test_blank_and_broken_texts(reader, text, number):
    """An empty field, or half of a character from the clipboard, would end in an error."""
    assert len(reader.read(text).tokens) == number


def test_tokens_without_senses(teacher):
    """A token that the dictionary does not know, or a dictionary that knows none, would be given another's sense."""
    size = len(teacher.tokenizer)
    empty = Reader.of_teacher(
        teacher, SenseDictionary(torch.empty(0, teacher.dim), torch.zeros(size + 1, dtype=torch.int64))
    )
    found = empty.read("the bank")
    assert {(token.sense_id, token.local, token.share) for token in found.tokens} == {(-100, -1, 0.0)}
    assert empty.senses_at(found, 1) == []
    bank = teacher.tokenizer.convert_tokens_to_ids("bank")
    offsets = torch.zeros(size + 1, dtype=torch.int64)
    offsets[bank + 1 :] = 2
    one = Reader.of_teacher(teacher, SenseDictionary(torch.randn(2, teacher.dim), offsets))
    assert [token.sense_id >= 0 for token in one.read("the bank").tokens] == [False, False, True, False]


def test_a_reader_stands_in_for_its_teacher(reader, teacher, corpus):
    """Contexts of a served page would belong to other vectors than those of inspect; padding would change them."""
    bank = teacher.tokenizer.convert_tokens_to_ids("bank")
    mine, theirs = (occurrences_of(model, corpus, bank, batch_size=5) for model in (reader, teacher))
    assert mine.contexts == theirs.contexts
    assert torch.equal(mine.vectors, theirs.vectors)


def test_a_student_beside_its_teacher(student, teacher, dictionary, reader, tokenizer):
    """The student's choices would be read off another dictionary, or the share of agreement would count tokens without senses."""
    beside = Reader.of_student(student, tokenizer, "student", dictionary)
    one, two = reader.read(TEXT), beside.read(TEXT)
    ids = teacher.tokenizer(TEXT, return_tensors="pt")
    expected = student.eval()(**ids, output_senses=True).sense_ids[0].tolist()
    assert [token.sense_id for token in two.tokens] == expected
    same, labelled = agreement_of(one, two)
    pairs = [(a.sense_id, b) for a, b in zip(one.tokens, expected) if a.sense_id >= 0]
    assert (same, labelled) == (sum(a == b for a, b in pairs), len(pairs))
    assert same < labelled
    alone = Reader.of_student(student, tokenizer, "student")
    assert [token.sense_id for token in alone.read(TEXT).tokens] == expected
    with pytest.raises(ValueError, match="tokens differ"):
        agreement_of(one, reader.read("the bank"))
    other = SenseDictionary(dictionary.senses + 1, dictionary.offsets, tokenizer=tokenizer)
    with pytest.raises(ValueError, match="cannot be compared"):
        Reader.of_student(student, tokenizer, "student", other)


def test_a_folded_model_is_refused_with_a_cure(teacher, dictionary, tokenizer):
    """A folded model would end in an AttributeError, or be read by its keys as if they were senses."""
    config = BertConfig(**{**teacher.model.config.to_dict(), "hidden_size": 8, "num_hidden_layers": 1})
    model = SenseModelForSequenceClassification.from_teacher(teacher, dictionary, backbone=BertModel(config))
    for folded in (model.fold(), model.model.fold()):
        with pytest.raises(ValueError, match="x is a folded model"):
            Reader.of_student(folded, tokenizer, "x", dictionary)


def test_planes_are_found_once_and_forgotten_in_time(reader, dictionary, corpus, monkeypatch):
    """Every click would run the corpus again, or planes of all tokens ever clicked would fill the memory."""
    calls = []
    real = occurrences_of
    monkeypatch.setattr("hf_sense.plane.occurrences_of", lambda *args, **kw: calls.append(args[2]) or real(*args, **kw))
    tokens = [token.token_id for token in reader.read("the bank a river").tokens[1:5]]
    planes = Planes(dictionary, reader, corpus, max_texts=10, kept=2)
    assert planes.known(tokens[0]) is None
    first = planes.find(tokens[0])
    assert planes.find(tokens[0]) is first is planes.known(tokens[0])
    for token in tokens[1:3]:
        planes.find(token)
    assert calls == tokens[:3]
    assert planes.known(tokens[0]) is None
    assert len(first.contexts) == len(first.senses) == len(first.counts)
    assert len(first.dots) == len(first.picked) == len(first.texts) > 0
    assert all("[" in text for text in first.texts)
    assert Planes(dictionary, reader).find(tokens[0]).contexts == []
    with pytest.raises(ValueError, match="no senses"):
        plane_of(dictionary, int((dictionary.offsets.diff() == 0).nonzero()[0]))


def test_a_plane_keeps_distances_that_lie_in_it(dictionary):
    """The picture would be stretched, mirrored from run to run, or show the token elsewhere than its senses."""
    flat = torch.zeros(4, 16)
    flat[:, 3], flat[:, 7] = torch.tensor([0.0, 4.0, 0.0, 4.0]), torch.tensor([0.0, 0.0, 2.0, 2.0])
    plane = plane_of(SenseDictionary(flat, torch.tensor([0, 4])), 0)
    assert sum(plane.variance) == pytest.approx(1)
    np.testing.assert_allclose(
        np.linalg.norm(plane.senses[:, None] - plane.senses, axis=-1), torch.cdist(flat, flat).numpy(), atol=1e-5
    )
    np.testing.assert_allclose(plane.project(flat[1:2])[0].numpy(), plane.senses[1], atol=1e-5)


def test_what_was_cut_from_the_corpus_is_said(reader, dictionary, teacher, texts):
    """Contexts come from the beginnings of texts, or from a part of them, and nobody knows."""
    cut = encode_corpus(texts, teacher.tokenizer, 8, disable_tqdm=True)
    assert 0 < cut.num_cut < 60
    said = Planes(dictionary, reader, cut, max_texts=9).about
    assert f"from 60 texts, of which {cut.num_cut} were longer than 8 tokens and cut there. At most 9 of those" in said
    whole = encode_corpus(texts, teacher.tokenizer, 64, disable_tqdm=True)
    assert Planes(dictionary, reader, whole, max_texts=60).about == "Contexts come from 60 texts."
    assert "none was given" in Planes(dictionary, reader).about


def test_a_text_beyond_a_pages_length_is_said(reader, dictionary):
    """The end of a long document is dropped before any token is counted."""
    answers = Answers([reader], Planes(dictionary, reader))
    text = "the bank " * 3000
    assert "The text has 27,000 characters, and the page takes the first 20,000." in answers.text(text)
    assert "characters" not in answers.text(text[:20_000])


def test_answers_run_a_text_once_and_refuse_keys_that_do_not_fit(reader, dictionary, corpus, monkeypatch):
    """A click would run the model again; a key made up in the browser would reach past the text's end."""
    answers = Answers([reader], Planes(dictionary, reader, corpus))
    found = answers.readings("the bank")
    monkeypatch.setattr(reader, "read", lambda text: pytest.fail("read again"))
    assert answers.readings("the bank") is found
    token_id = found[0].tokens[2].token_id
    key = f"s0-2-{token_id}"
    assert answers.waits("the bank", key)
    assert "Looking for contexts" in answers.panel("the bank", key)
    full = answers.panel("the bank", key, search=True)
    assert "hs-contexts" in full
    assert answers.panel("the bank", key) == full
    assert not answers.waits("the bank", key)
    assert 'aria-pressed="true"' in answers.text("the bank", key)
    for wrong in (
        "",
        "x",
        f"s1-2-{token_id}",
        f"s0-9-{token_id}",
        f"s0-1-{token_id}",
        f"s0--1-{token_id}",
        "s0-2-" + "9" * 99,
    ):
        assert answers.panel("the bank", wrong, search=True) == ""
        assert 'aria-pressed="true"' not in answers.text("the bank", wrong)
