"""Senses told from the token alone: who gets one, what it is worth, and that counts and models know it."""

from __future__ import annotations

import pytest
import torch

from hf_sense import SenseModel, build_dictionary
from hf_sense.coverage import token_coverage
from hf_sense.dictionary import SenseDictionary
from hf_sense.small_students import token_mean_dictionary
from hf_sense.unseen import _around, _states_alone, _told, cover_vocabulary


@pytest.fixture(scope="module")
def covered(teacher, dictionary):
    return cover_vocabulary(dictionary, teacher, disable_tqdm=True)


def test_each_token_has_senses_and_its_own_are_kept(teacher, dictionary, covered):
    """A token's own senses are moved or renumbered, or a special token that no text held gets one."""
    lacking = {t for t in range(dictionary.vocab_size) if not len(dictionary.senses_of(t).sense_ids)}
    special = set(teacher.tokenizer.all_special_ids)
    assert lacking - special
    for token in range(dictionary.vocab_size):
        own, found = dictionary.senses_of(token), covered.senses_of(token)
        if token in lacking:
            assert len(found.sense_ids) == (token not in special)
            assert not found.counts.any()
            assert (found.spread > 0).all()
        else:
            assert torch.equal(own.vectors, found.vectors)
            assert torch.equal(own.counts, found.counts)
    assert covered.metadata["told_from_token_alone"] == len(lacking - special)
    assert cover_vocabulary(covered, teacher) is covered


def test_a_linear_law_is_found():
    """The regression forgets an offset, or weighs a rare token's noise as a frequent token's mean."""
    torch.manual_seed(0)
    states, slope, offset = torch.randn(300, 6), torch.randn(6, 6), 5 * torch.randn(6)
    means = states @ slope + offset
    counts = torch.full((300,), 1000)
    others = torch.randn(10, 6)
    told, error = _told(states, means, counts, others)
    torch.testing.assert_close(told, others @ slope + offset, atol=0.05, rtol=0.02)
    assert error < 0.01
    noisy, counts[:30] = means.clone(), 1
    noisy[:30] += 100 * torch.randn(30, 6)
    off = (_told(states, noisy, counts, others)[0] - (others @ slope + offset)).square().sum(1).mean()
    evenly = (
        (_told(states, noisy, torch.ones(300).long(), others)[0] - (others @ slope + offset)).square().sum(1).mean()
    )
    assert off < evenly / 4


def test_a_token_stands_in_a_text_of_its_own(teacher):
    """The state of [CLS] or [SEP] would be taken for the token's."""
    tokenizer = teacher.tokenizer
    before, after = _around(teacher)
    assert before.tolist() == [tokenizer.cls_token_id]
    assert after.tolist() == [tokenizer.sep_token_id]
    token = tokenizer.convert_tokens_to_ids("bank")
    inputs = tokenizer("bank", return_tensors="pt")
    expected = teacher.hidden_states(inputs["input_ids"], inputs["attention_mask"])[0, 1]
    found = _states_alone(teacher, torch.tensor([token]), 4, True)
    torch.testing.assert_close(found[0], expected)


def test_they_do_not_count_as_covered(covered, dictionary):
    """Coverage would be perfect for any text, and its warning never come."""
    lacking = int((dictionary.offsets.diff() == 0).nonzero()[-1])
    found = token_coverage(covered, torch.tensor([lacking, int(dictionary.offsets.diff().argmax())]))
    assert found.with_senses == found.types_with_senses == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8])
def test_a_dtype_is_kept(teacher, dictionary, dtype):
    """A small dictionary becomes a large one."""
    assert cover_vocabulary(dictionary.to(dtype), teacher, disable_tqdm=True).dtype == dtype


def test_a_student_says_something_of_a_token_that_no_text_held(teacher, dictionary, covered, tmp_path):
    """The context table answers zeros for half the words of another domain, or forgets them when it is saved."""
    special = set(teacher.tokenizer.all_special_ids)
    token = next(
        t
        for t in range(dictionary.vocab_size)
        if dictionary.offsets[t] == dictionary.offsets[t + 1] and t not in special
    )
    inputs = {"input_ids": torch.tensor([[token]]), "attention_mask": torch.ones(1, 1, dtype=torch.int64)}
    bare = SenseModel.from_teacher(teacher, dictionary, backbone="context", hidden_size=4)
    assert not bare(**inputs).last_hidden_state.any()
    student = SenseModel.from_teacher(teacher, covered, backbone="context", hidden_size=4)
    state = student(**inputs).last_hidden_state
    assert state.any()
    student.save_pretrained(tmp_path)
    torch.testing.assert_close(SenseModel.from_pretrained(tmp_path)(**inputs).last_hidden_state, state)
    assert token_mean_dictionary(covered).counts.min() == 0
    selector = SenseModel.from_teacher(teacher, covered, backbone="selector", hidden_size=4)
    assert selector(**inputs).last_hidden_state.any()


def test_too_few_tokens_to_learn_from(teacher):
    """A regression on three points would tell nonsense of thirty thousand tokens."""
    few = build_dictionary(teacher, ["the bank"], disable_tqdm=True)
    with pytest.raises(ValueError, match="at least 20 tokens, but this dictionary has 4"):
        cover_vocabulary(few, teacher)
    other = SenseDictionary(torch.ones(1, teacher.dim), torch.tensor([0, 1]), tokenizer_fingerprint="other")
    with pytest.raises(ValueError, match="differ in their vocabulary"):
        cover_vocabulary(other, teacher)
