"""States far from their senses stay: what is far, where the gradient goes, and what cannot do it says so."""

from __future__ import annotations

import pytest
import torch

from hf_sense import SenseConfig, SenseModel, SenseModelForSequenceClassification, build_dictionary
from hf_sense.export import export_program
from hf_sense.spread import expected_distances, squared_distances


@pytest.fixture
def batch(teacher, texts):
    return dict(teacher.tokenizer(list(texts[:8]), padding=True, return_tensors="pt"))


def test_expected_distances_by_hand():
    """A rare sense, whose spread is 0, would be called far from every state but its own."""
    spread, counts = torch.tensor([2.0, 0.0, 1.0, 7.0, 0.0]), torch.tensor([9, 1, 5, 0, 30])
    first, third = 2 * 10 / 8, 1 * 6 / 4
    common = (9 * first + 5 * third) / 14
    assert expected_distances(spread, counts).tolist() == pytest.approx([first, common, third, 7.0, common])
    assert expected_distances(torch.zeros(2), torch.tensor([1, 9])).isinf().all()  # nothing is known: nothing is far


def test_unit_vectors_are_measured_as_such():
    """Long states would all be far from senses of length one."""
    states, senses = torch.tensor([[0.0, 9.0]]), torch.tensor([[1.0, 0.0]])
    assert float(squared_distances(states, senses, units=True)) == pytest.approx(2)
    assert float(squared_distances(states, senses, units=False)) == 82


@pytest.mark.parametrize("outside", [False, True])
@torch.no_grad()
def test_far_states_stay_and_near_ones_do_not(teacher, dictionary, batch, outside, tmp_path):
    """Far is measured against another token's sense, or a kept state still names a sense."""
    path = None
    if outside:
        dictionary.save_pretrained(tmp_path / "senses")
        path = str(tmp_path / "senses")
    model = SenseModel.from_teacher(teacher, dictionary, dictionary_path=path)
    # Another text's states: senses of these tokens are not what fits them best.
    model.backbone.embeddings.position_embeddings.weight.data.add_(0.5)
    plain = model(**batch, output_senses=True)
    kept = batch["attention_mask"].bool()
    ids = plain.sense_ids[kept]
    away = (plain.contextual_hidden_state - plain.last_hidden_state)[kept].square().sum(-1)
    ratio = away / expected_distances(dictionary.spread, dictionary.counts)[ids]
    middle = ratio.sort().values[len(ratio) // 4 : -len(ratio) // 4]
    gap = int(middle.diff().argmax())  # so that rounding cannot decide
    model.config.max_distance = float(middle[gap : gap + 2].mean())
    found = model(**batch, output_senses=True)
    far = torch.zeros_like(kept)
    far[kept] = ratio > model.config.max_distance
    assert 0 < int(far.sum()) < int(kept.sum())
    assert torch.equal(found.last_hidden_state[far], plain.contextual_hidden_state[far])
    assert torch.equal(found.last_hidden_state[~far], plain.last_hidden_state[~far])
    assert (found.sense_ids[far] == -100).all()
    assert torch.equal(found.sense_ids[~far], plain.sense_ids[~far])


def test_a_kept_state_keeps_its_gradient(teacher, dictionary, batch):
    """Fine-tuning would learn nothing from the states that stay."""
    model = SenseModel.from_teacher(teacher, dictionary, max_distance=1e-9)
    states = model(**batch).last_hidden_state
    assert states.requires_grad
    contextual = model(**batch, output_contextual=True).last_hidden_state
    # So small a distance keeps everything; some states are senses themselves, rounding aside.
    assert float(squared_distances(contextual.detach(), states.detach(), units=False).max()) < 1e-9


def test_it_is_saved_and_overridden(teacher, dictionary, tmp_path):
    """A model serves other states than it was measured with."""
    SenseModel.from_teacher(teacher, dictionary, max_distance=2.5).save_pretrained(tmp_path)
    assert SenseModel.from_pretrained(tmp_path).config.max_distance == 2.5
    assert SenseModel.from_pretrained(tmp_path, max_distance=None).config.max_distance is None


def test_what_cannot_do_it_says_so(teacher, dictionary):
    """A folded or exported model, or soft senses, would replace far states after all."""
    with pytest.raises(ValueError, match="above 0"):
        SenseConfig(max_distance=0)
    with pytest.raises(ValueError, match='"straight_through"'):
        SenseConfig(max_distance=2.0, selection="soft")
    model = SenseModelForSequenceClassification.from_teacher(teacher, dictionary, num_labels=2, max_distance=2.0)
    with pytest.raises(ValueError, match=r"max_distance=2\.0"):
        model.fold()
    with pytest.raises(ValueError, match=r"max_distance=2\.0"):
        export_program(model)


def test_spherical_senses(teacher, texts, batch):
    """Unit senses would be far from every state, which is longer."""
    dictionary = build_dictionary(
        teacher, texts, max_senses=2, method="spherical_kmeans", metric="cosine", disable_tqdm=True
    )
    model = SenseModel.from_teacher(teacher, dictionary, max_distance=20.0)
    found = model(**batch, output_senses=True).sense_ids[batch["attention_mask"].bool()]
    assert float((found >= 0).double().mean()) > 0.5
