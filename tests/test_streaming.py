"""Sequential k-means of each token: what a plain loop gives, in bounded state, and stopped and resumed to the same bytes."""

from __future__ import annotations

import pytest
import torch

from hf_sense import build_dictionary
from hf_sense.dictionary import SenseDictionary
from hf_sense.streaming import StreamingSenses, stream_dictionary
from hf_sense.teacher import Teacher


def plain(batches, max_senses):
    """The definition, one occurrence at a time; a batch sees the senses as it found them, and its own first ones."""
    senses: dict[int, list[list]] = {}
    for ids, vectors in batches:
        rest = []
        for token, vector in zip(ids.tolist(), vectors, strict=True):
            own = senses.setdefault(token, [])
            if len(own) < max_senses:
                own.append([vector.clone(), 1, 0.0])
            else:
                rest.append((token, vector))
        moves: dict[tuple[int, int], list] = {}
        for token, vector in rest:
            away = torch.stack([(vector - center).square().sum() for center, _, _ in senses[token]])
            moves.setdefault((token, int(away.argmin())), []).append((vector, float(away.min())))
        for (token, place), met in moves.items():
            center, count, spread = senses[token][place]
            total = sum(vector - center for vector, _ in met)
            senses[token][place] = [
                center + total / (count + len(met)),
                count + len(met),
                spread + sum(a for _, a in met),
            ]
    return senses


@pytest.mark.parametrize("max_senses", [1, 3])
def test_it_is_sequential_k_means(max_senses):
    """A vector moves another token's sense, one too many, or by another share."""
    torch.manual_seed(0)
    batches = [(torch.randint(0, 6, (n,)), torch.randn(n, 5)) for n in (7, 40, 1, 60)]
    state = StreamingSenses(9, 5, max_senses)
    for ids, vectors in batches:
        state.update(ids, vectors)
    expected = plain(batches, max_senses)
    senses, offsets, counts, spread = state.senses()
    assert int(counts.sum()) == sum(len(ids) for ids, _ in batches)
    for token in range(9):
        rows = slice(int(offsets[token]), int(offsets[token + 1]))
        own = sorted(expected.get(token, []), key=lambda sense: -sense[1])
        assert counts[rows].tolist() == [count for _, count, _ in own]
        for row, (center, count, away) in zip(range(rows.start, rows.stop), own, strict=True):
            near = (senses[rows] - center).square().sum(1).argmin() + rows.start
            torch.testing.assert_close(senses[near], center, atol=1e-5, rtol=1e-4)
            assert float(spread[near]) == pytest.approx(away / count, abs=1e-4)
            assert counts[near] == count, row


def test_a_dictionary_goes_on_from_its_counts(dictionary):
    """A dictionary to start from loses senses, or weighs nothing beside what comes."""
    state = StreamingSenses.of(dictionary, 4)
    senses, offsets, counts, spread = state.senses()
    assert torch.equal(offsets, dictionary.offsets)
    assert torch.equal(counts, dictionary.counts)
    torch.testing.assert_close(senses, dictionary.senses)
    torch.testing.assert_close(spread, dictionary.spread)


def error(made, teacher, texts):
    """Mean squared distance of the texts' occurrences to the nearest of their token's senses."""
    batch = teacher.tokenizer(texts, padding=True, return_tensors="pt")
    states = teacher.hidden_states(**batch)
    mask = batch["attention_mask"].bool()
    nearest = made.replace(batch["input_ids"], states, batch["attention_mask"])
    return float((nearest - states)[mask].square().sum(-1).mean())


def test_one_pass_comes_near_to_a_build(teacher, texts):
    """Senses stay where the first texts put them."""
    whole = build_dictionary(teacher, texts, max_senses=3)
    streamed = stream_dictionary(teacher, iter(texts), start=20, max_senses=3)
    short = build_dictionary(teacher, texts[:20], max_senses=3)
    assert int(streamed.counts.sum()) == int(whole.counts.sum())
    assert torch.equal(streamed.offsets, whole.offsets)
    assert error(streamed, teacher, texts) < 1.5 * error(whole, teacher, texts)
    assert error(streamed, teacher, texts) < error(short, teacher, texts)


def test_stopped_and_resumed(teacher, texts, tmp_path, monkeypatch):
    """What was seen is lost or counted twice; another corpus is taken for the same."""
    monkeypatch.setattr("hf_sense.streaming._TEXTS_A_STEP", 5)
    monkeypatch.setattr("hf_sense.streaming._SECONDS_BETWEEN_SAVES", 0.0)
    options = {"start": 10, "max_senses": 3, "batch_size": 4}
    whole = stream_dictionary(teacher, texts, **options)
    original, calls = Teacher.hidden_states, []

    def stopping(*args, **kwargs):
        calls.append(1)
        if len(calls) == 15:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    monkeypatch.setattr(Teacher, "hidden_states", stopping)
    with pytest.raises(KeyboardInterrupt):
        stream_dictionary(teacher, texts, work_dir=tmp_path / "work", **options)
    with pytest.raises(ValueError, match=r"another build.*others"):
        stream_dictionary(teacher, [*texts[:3], "a mole", *texts[4:]], work_dir=tmp_path / "work", **options)
    with pytest.raises(ValueError, match=r"another build.*max_senses"):
        stream_dictionary(teacher, texts, work_dir=tmp_path / "work", **{**options, "max_senses": 4})
    again = stream_dictionary(teacher, iter(texts), work_dir=tmp_path / "work", **options)
    assert len(calls) < 15 + 23
    assert again.fingerprint == whole.fingerprint
    assert torch.equal(again.counts, whole.counts)
    assert not (tmp_path / "work").exists()


def test_started_from_a_dictionary_and_saved(teacher, texts, dictionary, tmp_path):
    """What was streamed cannot be saved, or does not know what it came from."""
    made = stream_dictionary(teacher, texts, start=dictionary, max_senses=4, special_tokens=False)
    made.save_pretrained(tmp_path)
    loaded = SenseDictionary.from_pretrained(tmp_path)
    assert loaded.metadata["clustering"]["start"] == dictionary.fingerprint
    with pytest.raises(ValueError, match="at most max_senses=2"):
        stream_dictionary(teacher, texts, start=dictionary, max_senses=2)


@pytest.mark.parametrize("given", [0, True, "20", 2.5])
def test_max_senses_is_a_number(teacher, texts, given):
    """A rule of the number of occurrences is taken, though nobody knows it beforehand."""
    with pytest.raises(ValueError, match="max_senses should be a whole number"):
        stream_dictionary(teacher, texts, max_senses=given)
