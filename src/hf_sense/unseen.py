"""Senses for tokens that the texts did not hold, told from the token alone.

A model that has hidden states of its own does not need them: there a token without senses keeps its state. A student without
a transformer has nothing else to say of such a token. ``docs/domains.md`` has what they win.
"""

from __future__ import annotations

import torch
from tqdm.auto import tqdm

from hf_sense.dictionary import SenseDictionary
from hf_sense.small_students import token_mean_dictionary
from hf_sense.targets import check_teacher
from hf_sense.teacher import Teacher, load_teacher

# Ridge penalties that are tried, as shares of a feature's mean square; the least error on every fifth known token wins.
_PENALTIES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)
_HELD_OUT = 5
# Past so many occurrences a token's mean is known well enough.
_ENOUGH = 20
_FEWEST_KNOWN = 20


def cover_vocabulary(
    dictionary: SenseDictionary,
    teacher: str | Teacher,
    *,
    batch_size: int = 256,
    disable_tqdm: bool | None = None,
) -> SenseDictionary:
    """A dictionary in which each token without senses gets one; the others stay as they are.

    The teacher reads each token alone. A ridge regression from these states to the means of the tokens that have senses is
    fitted on the latter and applied to the former. The new senses have a count of 0, by which ``hf_sense.coverage`` and
    frequency pooling know them, and the error to be expected of them as their spread. Special tokens get none.

    Use it before ``from_teacher(..., backbone="context")`` or ``"selector"``, for texts of another kind than the dictionary's.

    Args:
        dictionary: built with ``teacher``, with senses for 20 tokens or more.
        teacher: a name, or what ``load_teacher`` returned.
        batch_size: tokens the teacher reads at once.
        disable_tqdm: ``True`` hides the progress bar.

    Raises:
        ValueError: if the dictionary cannot be this teacher's, or knows too few tokens to learn from.
    """
    teacher = load_teacher(teacher)
    check_teacher(teacher, dictionary)
    means = token_mean_dictionary(dictionary)
    known = means.offsets.diff() > 0
    if int(known.sum()) < _FEWEST_KNOWN:
        raise ValueError(
            f"Senses of other tokens are learned from those of at least {_FEWEST_KNOWN} tokens, but this dictionary has "
            f"{int(known.sum())}. Build it from more texts."
        )
    wanted = ~known
    wanted[torch.tensor(teacher.tokenizer.all_special_ids, dtype=torch.int64)] = False
    missing = wanted.nonzero().squeeze(-1)
    if not len(missing):
        return dictionary
    learned = known.nonzero().squeeze(-1)
    alone = _states_alone(teacher, torch.cat([learned, missing]), batch_size, disable_tqdm)
    told, error = _told(alone[: len(learned)], means.senses, means.counts, alone[len(learned) :])
    counts = means.counts.double().clamp_min(1)
    within = float((means.spread.double() * counts).sum() / counts.sum())
    rows = SenseDictionary(
        told,
        torch.nn.functional.pad(wanted.long().cumsum(0), (1, 0)),
        torch.zeros(len(missing), dtype=torch.int64),
        torch.full((len(missing),), within + error),
        metric=dictionary.metric,
        tokenizer_fingerprint=dictionary.tokenizer_fingerprint,
    )
    covered = dictionary.merge(rows.to(dictionary.dtype))
    covered.metadata = {**dictionary.metadata, "told_from_token_alone": len(missing)}
    return covered


def _states_alone(
    teacher: Teacher, token_ids: torch.Tensor, batch_size: int, disable_tqdm: bool | None
) -> torch.Tensor:
    """The teacher's state of each token in a text of its own, float32 ``(n, dim)``."""
    before, after = _around(teacher)
    states = []
    bar = tqdm(desc="Tokens alone", unit=" tokens", total=len(token_ids), disable=disable_tqdm)
    with bar:
        for ids in token_ids.split(batch_size):
            batch = torch.cat([before.expand(len(ids), -1), ids[:, None], after.expand(len(ids), -1)], 1)
            hidden = teacher.hidden_states(input_ids=batch, attention_mask=torch.ones_like(batch))
            states.append(hidden[:, len(before)].float().cpu())
            bar.update(len(ids))
    return torch.cat(states)


def _around(teacher: Teacher) -> tuple[torch.Tensor, torch.Tensor]:
    """The ids that the teacher's texts have before and after their own."""
    tokenizer = teacher.tokenizer
    for word in ("the", "a", "is", "I"):
        own = tokenizer(word, add_special_tokens=False)["input_ids"]
        (text,) = teacher.form.joined([word], tokenizer)
        whole = tokenizer(*([text] if isinstance(text, str) else text))["input_ids"]
        places = [at for at in range(len(whole)) if whole[at : at + len(own)] == own]
        if len(own) == 1 and places:
            at = places[-1]
            return torch.tensor(whole[:at], dtype=torch.int64), torch.tensor(whole[at + 1 :], dtype=torch.int64)
    raise ValueError(f"No short word is one token of {teacher.name}'s: there is no text of a single token to make.")


def _told(
    states: torch.Tensor, means: torch.Tensor, counts: torch.Tensor, others: torch.Tensor
) -> tuple[torch.Tensor, float]:
    """Rows for ``others`` ``(m, dim)``, and their expected squared error, by weighted ridge regression of means on states."""
    weights = counts.clamp(1, _ENOUGH).double()
    x, y = states.double(), means.double()
    held = torch.arange(len(x)) % _HELD_OUT == 0

    def fit(rows: torch.Tensor, penalty: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        own = weights[rows, None] / weights[rows].sum()
        x_mean, y_mean = (own * x[rows]).sum(0), (own * y[rows]).sum(0)
        centred = x[rows] - x_mean
        gram = (own * centred).T @ centred
        gram.diagonal().add_(penalty * float(gram.diagonal().mean()) + 1e-12)
        return x_mean, torch.linalg.solve(gram, (own * centred).T @ (y[rows] - y_mean)), y_mean

    def told(fitted: tuple[torch.Tensor, torch.Tensor, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        x_mean, slope, y_mean = fitted
        return (rows - x_mean) @ slope + y_mean

    errors = {}
    for penalty in _PENALTIES:
        away = (told(fit(~held, penalty), x[held]) - y[held]).square().sum(1)
        errors[penalty] = float((away * weights[held]).sum() / weights[held].sum())
    best = min(errors, key=errors.__getitem__)
    everything = torch.ones(len(x), dtype=torch.bool)
    return told(fit(everything, best), others.double()).float(), errors[best]
