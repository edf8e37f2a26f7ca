"""A build's vectors into its dictionary: clustered part by part, put together, counts scaled to the whole corpus."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from hf_sense.clustering import cluster, number_of_senses
from hf_sense.dictionary import SenseDictionary
from hf_sense.parts import in_parts
from hf_sense.sampled_vectors import SampledVectors
from hf_sense.sampling import OccurrenceSample
from hf_sense.teacher import Teacher
from hf_sense.unfinished import UnfinishedBuild
from hf_sense.vocabulary import tokenizer_fingerprint


def cluster_parts(
    vectors: SampledVectors,
    bounds: np.ndarray,
    sample: OccurrenceSample,
    options: dict[str, Any],
    limits: torch.Tensor | None,
    seed: int,
    work: UnfinishedBuild,
    **how: Any,
) -> list[dict[str, torch.Tensor]]:
    """Clusters the tokens part by part; ``limits`` int64 ``(vocab_size,)`` takes the place of the rule, if given."""
    rule = options["max_senses"]
    senses = number_of_senses(torch.from_numpy(np.diff(bounds)), rule) if limits is None else limits

    def make(first: int, last: int, rows: slice, points: torch.Tensor) -> dict[str, torch.Tensor]:
        result = cluster(
            points,
            torch.from_numpy(bounds[first : last + 1] - bounds[first]),
            seed=seed,
            problem_ids=torch.arange(first, last),
            weights=torch.from_numpy(sample.weights[rows]),
            **{**options, "max_senses": rule if limits is None else limits[first:last]},
        )
        return {name: getattr(result, name) for name in ("centers", "offsets", "weights", "spread")}

    return in_parts(make, bounds, senses.numpy(), vectors, work, "part", "Clustering", **how)


def assembled(
    parts: list[dict[str, torch.Tensor]],
    totals: np.ndarray,
    at_once: int | None,
    metric: str,
    metadata: dict[str, Any],
    teacher: Teacher,
) -> SenseDictionary:
    """The dictionary of all parts; past ``at_once`` bytes its senses stay row blocks, as the parts' files are mapped."""
    shifts = np.cumsum([0] + [len(part["centers"]) for part in parts])
    centers = [part["centers"] for part in parts]
    offsets = torch.cat([parts[0]["offsets"][:1]] + [p["offsets"][1:] + int(s) for p, s in zip(parts, shifts)])
    weights = torch.cat([part["weights"] for part in parts])
    mapped = at_once is not None and sum(block.nbytes for block in centers) > at_once
    return SenseDictionary(
        [block for block in centers if len(block)] if mapped else torch.cat(centers),
        offsets,
        _scaled_counts(weights, offsets, totals),
        torch.cat([part["spread"] for part in parts]),
        metric=metric,
        tokenizer_fingerprint=tokenizer_fingerprint(teacher.tokenizer),
        metadata=metadata,
        tokenizer=teacher.tokenizer,
    )


def _scaled_counts(weights_of: torch.Tensor, offsets_of: torch.Tensor, totals: np.ndarray) -> torch.Tensor:
    """Shares out all of a token's occurrences among its senses as the sample is, by largest remainder; exact in sum."""
    weights, offsets = weights_of.numpy(), offsets_of.numpy()
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    sampled = np.bincount(owner, weights, minlength=len(lengths)).astype(np.int64)
    exact = weights * (totals[owner] / np.maximum(sampled[owner], 1))
    counts = np.floor(exact).astype(np.int64)
    left = totals - np.bincount(owner, counts, minlength=len(lengths)).astype(np.int64)
    order = np.lexsort((-(exact - counts), owner))
    rank = np.empty(len(owner), np.int64)
    rank[order] = np.arange(len(owner)) - offsets[:-1][owner]
    return torch.from_numpy(counts + (rank < left[owner]))
