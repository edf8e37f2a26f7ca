"""What a build refuses before it reads or computes: options that are none, numbers out of range, lengths that do not fit."""

from __future__ import annotations

import difflib
import inspect
import numbers
from typing import Any

import torch

from hf_sense.budget import senses_within
from hf_sense.clustering import cluster, number_of_senses
from hf_sense.code_training import check_codes
from hf_sense.memory import bytes_of
from hf_sense.ragged import check_metric
from hf_sense.recipes import settings_of
from hf_sense.teacher import Teacher


def checked_options(
    *,
    recipe: str = "default",
    metric: str | None = None,
    method: str | None = None,
    max_senses: int | str | None = None,
    budget: int | str | None = None,
    codes: int | None = None,
    code_levels: int = 1,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    min_occurrences: int = 1,
    min_count: int = 1,
    max_occurrences: int = 1000,
    batch_size: int = 32,
    max_memory: int | str | None = None,
    **clustering: Any,
) -> tuple[str, dict[str, Any]]:
    """The metric, and the options of ``cluster``, of what ``build_dictionary`` was given.

    Raises:
        ValueError: if an option does not fit.
    """
    metric, method = settings_of(recipe, metric, method)
    check_metric(metric)
    check_codes(codes, code_levels)
    if max_senses is None:
        max_senses = 20 if budget is None else 100
    number_of_senses(torch.ones(1, dtype=torch.int64), max_senses)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.int8):
        raise ValueError(
            f"dtype should be torch.float32, torch.bfloat16, torch.float16 or torch.int8, but is {dtype!r}."
        )
    _check_numbers(
        seed,
        min_occurrences=min_occurrences,
        min_count=min_count,
        max_occurrences=max_occurrences,
        batch_size=batch_size,
    )
    if max_memory is not None:
        bytes_of(max_memory)
    options = {"method": method, "max_senses": max_senses, "min_occurrences": min_occurrences, **clustering}
    if budget is not None:
        senses_within(budget, dim=1, vocab_size=0, dtype=dtype)
    one = None if budget is None else 1
    cluster(torch.zeros(0, 1), torch.zeros(1, dtype=torch.int64), seed=seed, budget=one, **options)
    return metric, options


def _check_numbers(seed: Any, **at_least_one: Any) -> None:
    for name, value in at_least_one.items():
        if not _is_whole(value) or value < 1:
            raise ValueError(f"{name} should be a whole number from 1, but is {value!r}.")
    if not _is_whole(seed):
        raise ValueError(f"seed should be a whole number, but is {seed!r}.")


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def check_clustering(clustering: dict[str, Any], known: list[str]) -> None:
    """Refuses options that ``cluster`` does not have, or that are no numbers; it checks their ranges itself.

    Args:
        clustering: the options.
        known: the names of ``build_dictionary``'s own.
    """
    further = {
        name: parameter.default
        for name, parameter in inspect.signature(cluster).parameters.items()
        if isinstance(parameter.default, (int, float)) and name not in ("max_senses", "min_occurrences", "seed")
    }
    known = [name for name in known if name != "clustering"] + list(further)
    for name, value in clustering.items():
        if name not in further:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            raise ValueError(
                f"build_dictionary has no option {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} Those of clustering "
                f"are {', '.join(further)}."
            )
        whole = isinstance(further[name], int)
        if not (_is_whole(value) if whole else isinstance(value, numbers.Real)):
            raise ValueError(f"{name} should be a {'whole number' if whole else 'number'}, but is {value!r}.")


def checked_length(max_length: int | None, teacher: Teacher) -> int:
    """The length at which texts are cut: the teacher's limit, or the one that was given, if it leaves room for a text."""
    if max_length is None:
        return teacher.max_length
    special = teacher.tokenizer.num_special_tokens_to_add()
    if not special < max_length <= teacher.max_length:
        raise ValueError(
            f"max_length should be more than the {special} special tokens and at most the {teacher.max_length} that "
            f"{teacher.name} takes, but is {max_length}."
        )
    return max_length
