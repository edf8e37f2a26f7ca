"""What a build refuses before it reads or computes: options that are none, numbers out of range, lengths that do not fit."""

from __future__ import annotations

import difflib
import inspect
import numbers
from typing import Any

from hf_sense.clustering import cluster
from hf_sense.teacher import Teacher


def check_numbers(seed: Any, **at_least_one: Any) -> None:
    """Raises ``ValueError`` if the seed is no whole number, or one of the others none from 1."""
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
