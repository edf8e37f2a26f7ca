"""How far a further occurrence is to be expected from its sense, told from the spread that a dictionary records.

It looks at no text and no model: ``hf_sense.coverage`` and ``SenseConfig.max_distance`` measure against it.
"""

from __future__ import annotations

from typing import Any

import torch

# A sense with fewer occurrences behind it has no spread to speak of.
ENOUGH_OCCURRENCES = 5


def expected_distances(spread: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The squared distance to each sense that a further occurrence of it has on average.

    The spread of ``n`` occurrences is about their own mean; about it a further one lies ``(n + 1) / (n - 1)`` times as far off.
    Senses of fewer than five occurrences, or of equal ones, have the others' mean, by counts; those of none, told from
    elsewhere, their spread.

    Args:
        spread: float32 ``(num_senses,)``, mean squared distances.
        counts: int64 ``(num_senses,)``, occurrences behind each.

    Returns:
        float32 ``(num_senses,)``; infinity where nothing is known.
    """
    # Equal texts give equal vectors, which have no spread however many they are.
    enough = (counts >= ENOUGH_OCCURRENCES) & (spread > 0)
    weights = counts.double()
    expected = spread.double() * (weights + 1) / (weights - 1).clamp_min(1)
    common = float((expected * weights)[enough].sum() / weights[enough].sum()) if bool(enough.any()) else 0.0
    expected = torch.where(enough, expected, torch.where(counts == 0, spread.double(), common))
    return torch.where(expected > 0, expected, torch.inf).float()


def measures_units(metadata: dict[str, Any]) -> bool:
    """Whether a dictionary's spread, by its metadata, is that of unit vectors: distances are then measured on those."""
    return bool((metadata.get("clustering") or {}).get("method") == "spherical_kmeans")


def squared_distances(states: torch.Tensor, senses: torch.Tensor, units: bool) -> torch.Tensor:
    """Between rows, float32 ``(n,)``; of states ``(n, dim)`` at length one if ``units``, as ``measures_units`` says."""
    states = states.float()
    if units:
        states = torch.nn.functional.normalize(states, dim=-1)
    return (states - senses.float()).square().sum(-1)
