"""The temperature that a table suggests: its value, what it does not depend on, and where it is used."""

from __future__ import annotations

import pytest
import torch

import hf_sense.temperature
from hf_sense import SenseDictionary
from hf_sense.temperature import DIRECTIONS, natural_temperature


def clustered(occurrences, token_ids, labels, **options):
    """A dictionary whose senses are the means of the labels of each token's occurrences."""
    senses, counts, spread, offsets = [], [], [], [0]
    for token in range(int(token_ids.max()) + 1):
        own = token_ids == token
        for label in labels[own].unique():
            points = occurrences[own & (labels == label)]
            senses.append(points.mean(0))
            counts.append(len(points))
            spread.append((points - senses[-1]).square().sum(1).mean())
        offsets.append(len(senses))
    return SenseDictionary(
        torch.stack(senses), torch.tensor(offsets), torch.tensor(counts), torch.stack(spread), **options
    )


@pytest.fixture
def drawn():
    """300 occurrences of 5 tokens, each with its own mean and width."""
    draw = torch.Generator().manual_seed(3)
    token_ids = torch.randint(5, (300,), generator=draw)
    occurrences = torch.randn(300, 8, generator=draw) * (1 + token_ids[:, None]) + 10 * token_ids[:, None]
    return occurrences, token_ids


def test_it_is_the_variance_of_occurrences_whatever_the_number_of_senses(drawn):
    """The loss gets sharper with every further sense, or the temperature is not the one the docs give."""
    occurrences, token_ids = drawn
    away = [(own - own.mean(0)).square().sum() for t in range(5) for own in [occurrences[token_ids == t]]]
    expected = float(sum(away)) / 300 / DIRECTIONS
    for number in (2, 3, 20):
        labels = torch.arange(300) % number
        assert natural_temperature(clustered(occurrences, token_ids, labels)) == pytest.approx(expected, rel=1e-4)


def test_it_grows_with_the_square_of_the_states_but_not_for_cosine(drawn):
    """Teachers with long hidden states train on scores that are all but 0 and 1."""
    occurrences, token_ids = drawn
    labels = torch.arange(300) % 3
    small, large = (clustered(occurrences * factor, token_ids, labels) for factor in (1, 5))
    for metric, factor in (("l2", 25), ("dot", 25), ("cosine", 1)):
        ratio = natural_temperature(large, metric) / natural_temperature(small, metric)
        assert ratio == pytest.approx(factor, rel=1e-4)
    by_cosine = clustered(occurrences, token_ids, labels, metric="cosine")
    assert natural_temperature(by_cosine) == natural_temperature(small, "cosine") < 0.1


def test_blocks_and_parts_of_large_tables(drawn, monkeypatch):
    """A table larger than a block is read wrongly, or one larger than the limit is read whole."""
    occurrences, token_ids = drawn
    dictionary = clustered(occurrences, token_ids, torch.arange(300) % 4)
    whole = natural_temperature(dictionary)
    monkeypatch.setattr(hf_sense.temperature, "_ROWS_AT_ONCE", 3)
    assert natural_temperature(dictionary) == pytest.approx(whole, rel=1e-9)
    monkeypatch.setattr(hf_sense.temperature, "_MOST_ROWS", 8)
    read = []
    monkeypatch.setattr(dictionary, "rows", lambda ids: read.append(ids) or SenseDictionary.rows(dictionary, ids))
    assert 0.1 < natural_temperature(dictionary) / whole < 10
    assert 0 < sum(map(len, read)) <= 8


def test_tables_that_say_nothing():
    """One sense a token, no sense at all, or senses that are equal end in a division by zero."""
    offsets = torch.tensor([0, 1, 2])
    assert natural_temperature(SenseDictionary(torch.randn(2, 4), offsets)) == 1.0
    assert natural_temperature(SenseDictionary(torch.zeros(0, 4), torch.tensor([0, 0]))) == 1.0
    assert natural_temperature(SenseDictionary(torch.ones(2, 4), torch.tensor([0, 2]))) == 1.0
    assert natural_temperature(SenseDictionary(torch.zeros(2, 4), torch.tensor([0, 2])), "cosine") == 1.0
