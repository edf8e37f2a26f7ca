"""Coverage: shares counted, distances against what the dictionary expects, and warnings where they belong."""

from __future__ import annotations

import logging
import math

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_sense import build_dictionary, compute_sense_targets
from hf_sense.coverage import MOST_DISTANCE, MOST_WITHOUT_SENSES, Coverage, CoverageMeter, coverage, token_coverage
from hf_sense.dictionary import SenseDictionary
from hf_sense.reading import Reader


def test_tokens_are_counted():
    """Tokens outside the vocabulary would be looked up past its end, or negative ones from its end."""
    dictionary = SenseDictionary(torch.ones(3, 2), torch.tensor([0, 1, 1, 3]))
    found = token_coverage(dictionary, np.array([[0, 1, 2, 2]], np.int32))
    assert (found.tokens, found.with_senses, found.types_with_senses) == (4, 0.75, pytest.approx(2 / 3))
    assert math.isnan(found.distance)
    assert token_coverage(dictionary, torch.tensor([0, 3, -1, 99])).with_senses == 0.25
    with pytest.raises(ValueError, match="no tokens"):
        token_coverage(dictionary, torch.tensor([]))


def test_distance_by_hand():
    """Senses of a single occurrence, whose spread is 0, would make any text look infinitely far."""
    senses = torch.tensor([[0.0, 0.0], [10.0, 0.0], [5.0, 5.0]])
    counts, spread = torch.tensor([9, 1, 5]), torch.tensor([2.0, 0.0, 1.0])
    meter = CoverageMeter(SenseDictionary(senses, torch.tensor([0, 2, 2, 3]), counts, spread))
    hidden = torch.tensor([[1.0, 1.0], [11.0, 0.0], [3.0, 3.0], [5.0, 8.0]])
    meter.look_up(torch.tensor([0, 0, 1, 2]), hidden)
    found = meter.result()
    assert (found.tokens, found.with_senses, found.measured) == (4, 0.75, 2)
    # Squares 2 and 9; expected 2 * 10 / 8 and 1 * 6 / 4.
    assert found.distance == pytest.approx(11 / 4)


def test_a_further_text_like_its_own_lies_at_one():
    """The spread, taken about the occurrences' own mean, is too small: texts like its own would look badly covered."""
    torch.manual_seed(0)
    ids, others = torch.arange(400).repeat_interleave(6), torch.arange(400).repeat_interleave(20)
    centers, vectors = torch.randn(400, 8), torch.randn(2400, 8)
    vectors += centers[ids]
    means = vectors.view(400, 6, 8).mean(1)
    spread = (vectors - means[ids]).square().sum(1).view(400, 6).mean(1)
    meter = CoverageMeter(SenseDictionary(means, torch.arange(401), torch.full((400,), 6), spread))
    meter.look_up(others, centers[others] + torch.randn(len(others), 8))
    assert meter.result().distance == pytest.approx(1, abs=0.03)


def test_spherical_senses_are_measured_on_unit_vectors(teacher, texts):
    """The spread of unit vectors would be held against the distance of long ones."""
    dictionary = build_dictionary(teacher, texts, max_senses=1, method="spherical_kmeans", metric="cosine")
    assert 0.7 < coverage(dictionary, teacher, texts).distance <= 1


def test_coverage_of_its_own_texts(teacher, texts, dictionary):
    """Padding, or the order of the texts, would count among the tokens."""
    found = coverage(dictionary, teacher, texts, batch_size=7)
    assert found.with_senses == found.types_with_senses == 1
    assert found.tokens == sum(len(ids) for ids in teacher.tokenizer(list(texts))["input_ids"])
    assert 0 < found.distance <= 1  # the very occurrences that the senses were made of
    assert found.warning() is None
    read = coverage(dictionary, Reader.of_teacher(teacher, dictionary), texts)
    assert read.distance == pytest.approx(found.distance, rel=1e-4)
    assert coverage(dictionary, teacher, texts, max_texts=3).tokens < found.tokens


def test_warnings_say_the_figures():
    """A user is told that something is bad, but not what, or is told so of a good dictionary."""
    good = Coverage(100, 1 - MOST_WITHOUT_SENSES, 0.2, MOST_DISTANCE, 50)
    assert good.warning() is None
    assert Coverage(100, 1.0, 1.0, float("nan"), 0).warning() is None
    bad = Coverage(1000, 0.4, 0.2, 9.876, 50).warning()
    assert "60.0% of the tokens" in bad
    assert "9.88 times" in bad


def test_targets_of_strange_texts_warn(teacher, dictionary, texts, tmp_path, caplog):
    """A student is trained on texts whose tokens have no senses, and nobody says so."""
    strange = Dataset.from_dict({"text": ["q x z w v k j q x z", "z z x x w w k k j j"] * 4})
    with caplog.at_level(logging.WARNING, logger="hf_sense.targets"):
        compute_sense_targets(strange, teacher, dictionary, cache_dir=tmp_path / "a", disable_tqdm=True)
        compute_sense_targets(strange, teacher, dictionary, cache_dir=tmp_path / "a", disable_tqdm=True)
    assert len(caplog.records) == 1  # stored targets were warned of when they were made
    assert "of the tokens have no senses" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING, logger="hf_sense.targets"):
        own = Dataset.from_dict({"text": list(texts)})
        compute_sense_targets(own, teacher, dictionary, cache_dir=tmp_path / "b", disable_tqdm=True)
    assert not caplog.records


def test_another_teachers_dictionary_is_refused(teacher, texts):
    """Figures of senses that belong to another model's vectors would be believed."""
    dictionary = SenseDictionary(torch.ones(1, teacher.dim), torch.tensor([0, 1]), tokenizer_fingerprint="other")
    with pytest.raises(ValueError, match="differ in their vocabulary"):
        coverage(dictionary, teacher, texts)
