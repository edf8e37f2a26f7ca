import builtins
import html
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_sense.corpus import encode_corpus
from hf_sense.dictionary import SenseDictionary
from hf_sense.legend import (
    CONTEXTS,
    FIGURES,
    HINT,
    NO_CORPUS,
    NO_READER,
    NO_SENSES,
    SENSES,
    ambiguous_words,
    plane_words,
)
from hf_sense.pictures import apart
from hf_sense.report import (
    _whole_words,
    ambiguity,
    most_ambiguous,
    nearest_contexts,
    occurrences_of,
    write_report,
)

PNG = b"\x89PNG"


@pytest.fixture(scope="module")
def corpus(teacher, texts):
    """The texts, tokenized."""
    return encode_corpus(texts, teacher.tokenizer, 32, disable_tqdm=True)


@pytest.fixture(scope="module")
def token(teacher, corpus):
    """The most frequent token that is not special."""
    counts = np.bincount(corpus.input_ids, minlength=len(teacher.tokenizer))
    counts[teacher.tokenizer.all_special_ids] = 0
    return int(counts.argmax())


@pytest.fixture(scope="module")
def dictionary(teacher, corpus, token):
    """Two senses for the frequent token, its occurrences' ends; one for every other token of the corpus."""
    lengths = torch.zeros(len(teacher.tokenizer), dtype=torch.int64)
    lengths[torch.from_numpy(np.unique(corpus.input_ids)).long()] = 1
    lengths[token] = 2
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    torch.manual_seed(0)
    senses = torch.randn(int(lengths.sum()), teacher.dim)
    found = occurrences_of(teacher, corpus, token).vectors
    senses[offsets[token] : offsets[token + 1]] = found[[0, int((found - found[0]).norm(dim=1).argmax())]]
    counts = torch.full((len(senses),), 30)
    return SenseDictionary(senses, offsets, counts, tokenizer=teacher.tokenizer)


@pytest.mark.parametrize("rows", [1, 2, 3, 100])
def test_ambiguity_by_hand(rows, monkeypatch):
    """Cutting a large vocabulary into ranges would lose or mix the tokens at their borders."""
    monkeypatch.setattr("hf_sense.report._ROWS_AT_ONCE", rows)
    senses = torch.tensor([[0.0, 0.0], [4.0, 0.0], [7.0, 7.0], [0.0, 1.0], [0.0, 1.0], [0.0, 4.0]])
    counts = torch.tensor([3, 1, 5, 1, 1, 1])
    found = ambiguity(SenseDictionary(senses, torch.tensor([0, 0, 2, 3, 3, 6, 6]), counts))
    # Token 1: mean (1, 0), distances 1 and 3, (3 * 1 + 1 * 9) / 4. Token 4: mean (0, 2), (1 + 1 + 4) / 3.
    assert found.tolist() == pytest.approx([0, 3, 0, 0, 2, 0])


def test_occurrences_are_the_teachers(teacher, corpus, texts, token):
    """Vectors would belong to other places than the contexts beside them, or change with padding."""
    found = occurrences_of(teacher, corpus, token, batch_size=3)
    assert len(found.vectors) == len(found.contexts) == int((corpus.input_ids == token).sum())
    assert all("[" in context for context in found.contexts)
    expected = []
    for text in texts:
        inputs = teacher.tokenizer(text, truncation=True, max_length=32, return_tensors="pt")
        hidden = teacher.hidden_states(inputs["input_ids"], inputs["attention_mask"])
        expected.append(hidden[inputs["input_ids"] == token])
    # cdist by products would round equal vectors apart.
    distances = torch.cdist(found.vectors, torch.cat(expected), compute_mode="donot_use_mm_for_euclid_dist")
    assert float(distances.min(1).values.max()) < 1e-3
    assert float(distances.min(0).values.max()) < 1e-3
    name = teacher.tokenizer.convert_ids_to_tokens(token)
    again = occurrences_of(teacher, texts, name, max_length=32, batch_size=3)
    torch.testing.assert_close(again.vectors, found.vectors)
    assert again.contexts == found.contexts


def test_occurrences_are_bounded(teacher, corpus, token):
    """A frequent token would send the whole corpus through the teacher."""
    found = occurrences_of(teacher, corpus, token, max_texts=1)
    assert 1 <= len(found.contexts) <= int(corpus.lengths.max())
    absent = next(i for i in range(len(teacher.tokenizer)) if i not in set(corpus.input_ids.tolist()))
    assert tuple(occurrences_of(teacher, corpus, absent).vectors.shape) == (0, teacher.dim)


def test_nearest_contexts_belong_to_their_sense(dictionary, teacher, corpus, token):
    """Contexts of one sense would be listed under another, or the farthest first."""
    first, second = nearest_contexts(dictionary, token, teacher, corpus, per_sense=2)
    assert [first.sense_id, second.sense_id] == list(dictionary.senses_of(token).sense_ids)
    found = occurrences_of(teacher, corpus, token)
    for sense in (first, second):
        assert sense.occurrences == 30
        assert 1 <= len(sense.contexts) == len(sense.distances) <= 2
        assert sense.distances == sorted(sense.distances)
        assert sense.distances[0] < 1e-2  # the sense is one of the occurrences
    assert first.contexts[0] == found.contexts[0]


def test_report_writes_what_it_names(dictionary, teacher, corpus, token, tmp_path):
    """The report would show broken pictures, or no figure of the corpus."""
    special = teacher.tokenizer.all_special_ids[0]
    path = write_report(dictionary, tmp_path / "new", corpus=corpus, teacher=teacher, tokens=[token, special])
    text = path.read_text(encoding="utf-8")
    assert "| corpus tokens with senses | 100.00% |" in text
    assert "| corpus texts | 60 |" in text
    assert "corpus texts cut" not in text
    assert f"| `{teacher.tokenizer.convert_ids_to_tokens(token)}` | {token} | 60 | 2 |" in text
    pictures = {part.split(")")[0] for part in text.split("](")[1:]}
    assert {"senses_per_token.png", f"token-{token}.png"} <= pictures
    for name in pictures:
        assert (path.parent / name).read_bytes().startswith(PNG)
    assert sorted(p.name for p in path.parent.iterdir()) == sorted({"report.html", "report.md", *pictures})


def test_report_warns_of_a_corpus_that_is_covered_badly(dictionary, teacher, token, tmp_path, caplog):
    """A dictionary is put to texts of another kind, and its report shows nothing but good figures."""
    strange = encode_corpus(["q x z w v k j q x z"] * 3, teacher.tokenizer, 32, disable_tqdm=True)
    for options in ({}, {"teacher": teacher}):
        caplog.clear()
        path = write_report(dictionary, tmp_path, corpus=strange, tokens=[token], **options)
        assert "of the tokens have no senses" in caplog.text
        for page in (path, path.with_suffix(".html")):
            assert "of the tokens have no senses" in page.read_text(encoding="utf-8")
    assert "corpus distance to senses" in path.read_text(encoding="utf-8")


def test_both_reports_say_the_same(dictionary, teacher, texts, token, tmp_path):
    """Who reads the HTML does not learn what a figure means, or reads of contexts where there are none."""
    unread = next(
        i for i in range(len(teacher.tokenizer)) if int(dictionary.offsets[i + 1]) == int(dictionary.offsets[i])
    )
    cut = encode_corpus(texts, teacher.tokenizer, 8, disable_tqdm=True)
    for name, options in (("with", {"corpus": cut, "teacher": teacher, "max_texts": 7}), ("without", {})):
        path = write_report(dictionary, tmp_path / name, tokenizer=teacher.tokenizer, tokens=[token, unread], **options)
        pages = [path.read_text(encoding="utf-8"), html.unescape(path.with_suffix(".html").read_text(encoding="utf-8"))]
        for page in pages:
            for words in (
                FIGURES,
                SENSES,
                NO_SENSES,
                ambiguous_words(20, 5),
                *plane_words(corpus=False).split(": ")[1::2],
            ):
                assert words.partition(".")[0] in page, words
            assert (f"{CONTEXTS} Contexts come from 60 texts, of which {cut.num_cut} were longer than 8" in page) is (
                name == "with"
            )
            assert ("At most 7 of those that hold a token are read for it." in page) is (name == "with")
            assert (CONTEXTS in page, NO_CORPUS in page) == (name == "with", name == "without")
            assert (HINT in page) is (name == "with" and page is pages[1])
            assert ("corpus texts cut at 8 tokens" in page) is (name == "with")
            assert NO_READER not in page
        first = dictionary.senses_of(token).sense_ids.start
        assert f"| 2 | {first + 1} | 30 |" in pages[0]
        assert f'hs-chip">2</span><div><span class="hs-facts">id {first + 1} · 30 occurrences' in pages[1]


def test_a_corpus_that_nobody_reads_is_said(dictionary, corpus, token, tmp_path):
    """Who gave a corpus without a model reads that there was no corpus."""
    path = write_report(dictionary, tmp_path, corpus=corpus, tokens=[token])
    for page in (path, path.with_suffix(".html")):
        text = page.read_text(encoding="utf-8")
        assert NO_READER in text
        assert NO_CORPUS not in text


def test_whole_words_come_first_and_special_tokens_not_at_all(teacher, dictionary):
    """The report shows [SEP] and pieces of words, which tell a reader nothing."""
    tokenizer = teacher.tokenizer
    names = ["[SEP]", "##s", "s", "bank", "river", "[CLS]", "holds", "money"]
    ids = tokenizer.convert_tokens_to_ids(names)
    apart = torch.tensor([9.0, 8.0, 7.0, 1.0, 3.0, 9.0, 2.0, 4.0])
    lengths = torch.zeros(len(tokenizer), dtype=torch.int64)
    lengths[ids] = 2
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    senses, counts = torch.zeros(int(offsets[-1]), 2), torch.full((int(offsets[-1]),), 30)
    for token_id, away in zip(ids, apart):
        senses[offsets[token_id], 0] = away
    counts[offsets[tokenizer.convert_tokens_to_ids("money")] :][:2] = 5  # too rare to tell
    made = SenseDictionary(senses, offsets, counts)
    assert tokenizer.convert_ids_to_tokens(most_ambiguous(made, 9, tokenizer)) == ["river", "holds", "bank", "##s", "s"]
    assert tokenizer.convert_ids_to_tokens(most_ambiguous(made, 2, tokenizer)) == ["river", "holds"]
    assert set(most_ambiguous(made, 3)) == set(ids[:2] + ids[5:6])  # names are not known


def test_whole_words_of_byte_pieces():
    """A decoder's vocabulary marks the beginning of a word, not its continuation: all its words would pass for pieces."""
    vocabulary = {
        piece: number for number, piece in enumerate(["a", "n", "d", "and", "an", "Ġ", "Ġa", "Ġan", "Ġand", "Ġn"])
    }
    merges = [("Ġ", "a"), ("Ġa", "n"), ("Ġan", "d"), ("a", "n"), ("an", "d"), ("Ġ", "n")]
    fast = Tokenizer(models.BPE(vocabulary, merges))
    fast.pre_tokenizer, fast.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=fast)
    assert tokenizer.convert_ids_to_tokens(sorted(_whole_words(range(len(vocabulary)), tokenizer))) == ["Ġand"]


def test_report_without_teacher_or_names(tmp_path):
    """One sense, none, equal senses, or more than there are colours would stop the report at a picture."""
    senses = torch.cat([torch.randn(45, 1), torch.ones(3, 1)]) * torch.ones(48, 2)
    dictionary = SenseDictionary(senses, torch.tensor([0, 1, 1, 45, 48]), torch.arange(1, 49))
    path = write_report(dictionary, tmp_path, tokens=[0, 1, 2, 3])
    text = path.read_text(encoding="utf-8")
    assert "No senses" in text
    assert (tmp_path / "token-2.png").is_file()
    assert not (tmp_path / "token-1.png").exists()
    empty = SenseDictionary(torch.zeros(0, 2), torch.tensor([0, 0]))
    assert write_report(empty, tmp_path / "empty").is_file()


def test_same_dictionary_same_pictures(dictionary, teacher, corpus, token, tmp_path):
    """A principal direction's arbitrary sign would turn the picture over from run to run."""
    options = {"corpus": corpus, "teacher": teacher, "tokens": [token]}
    first, second = (write_report(dictionary, tmp_path / name, **options).parent for name in "ab")
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


def test_report_refuses(dictionary, teacher, tmp_path):
    """A mistyped token would be found out only after the long work, with half a report written."""
    with pytest.raises(ValueError, match="not a token of the vocabulary"):
        write_report(dictionary, tmp_path / "x", tokens=["no such token at all"])
    with pytest.raises(ValueError, match="outside the vocabulary"):
        write_report(dictionary, tmp_path / "x", tokens=[10**6])
    with pytest.raises(ValueError, match="pass corpus"):
        write_report(dictionary, tmp_path / "x", teacher=teacher)
    assert not (tmp_path / "x").exists()


def test_report_leaves_matplotlib_alone(dictionary, tmp_path):
    """Writing a report in a notebook would change the backend and the style of the user's own plots."""
    import matplotlib

    before = dict(matplotlib.rcParams)
    write_report(dictionary, tmp_path)
    assert dict(matplotlib.rcParams) == before


def test_numbers_do_not_cover_each_other():
    """Senses that lie on one another in the plane would show one number for two."""
    places = apart(np.array([[50.0, 50.0], [50.0, 50.0], [53.0, 50.0], [400.0, 9.0]]), 20.0)
    distance = np.linalg.norm(places[:, None] - places, axis=-1) + 100 * np.eye(4)
    assert distance.min() > 19
    np.testing.assert_allclose(places[3], [400, 9], atol=0.01)


def test_without_matplotlib(dictionary, tmp_path, monkeypatch):
    """Without the extra, the report would stop after the teacher has run."""
    real = builtins.__import__

    def no_matplotlib(name, *args, **kwargs):
        if name.split(".")[0] == "matplotlib":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    with pytest.raises(ImportError, match=r"pip install hf-sense\[plot\]"):
        write_report(dictionary, tmp_path / "x")
    assert not (tmp_path / "x").exists()
