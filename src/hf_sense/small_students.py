"""The parts of students without a transformer: a ``ContextNetwork`` for a dictionary's tokens, and what stands behind it.

Nothing is trained here, and ``hf_sense.students`` puts the parts together.

Both kinds say how a token, in its text, differs from the token's mean: ``mean + W q``, ``q`` the network's state. The *context
table* is that vector, and needs one row a token; the *selector* chooses among the token's senses by it.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn

from hf_sense.context_network import ContextNetwork, ContextNetworkConfig
from hf_sense.dictionary import SenseDictionary
from hf_sense.ragged import RaggedIndex, expected_sense

# What each kind of backbone makes of the dictionary's senses, if nothing else is asked for.
SELECTIONS = {"selector": "soft", "context": "none"}

_TOKENS_AT_ONCE = 2048


def small_backbone(dictionary: SenseDictionary, vocab_size: int, hidden_size: int, window: int) -> ContextNetwork:
    """A network with an embedding for each token that has senses: the principal components of the tokens' means.

    Args:
        dictionary: the student's.
        vocab_size: token ids of the teacher; those without senses share one embedding.
        hidden_size: width of its embeddings and its states.
        window: tokens that its convolution sees.

    Raises:
        ValueError: if ``hidden_size`` or ``window`` cannot be.
    """
    if not isinstance(hidden_size, int) or not 1 <= hidden_size <= dictionary.dim:
        raise ValueError(
            f"hidden_size should be from 1 to the width of the senses, {dictionary.dim}, but is {hidden_size!r}."
        )
    known = dictionary.offsets.diff().nonzero().squeeze(-1)
    config = ContextNetworkConfig(vocab_size, len(known) + 1, hidden_size=hidden_size, window=window)
    network = ContextNetwork(config)
    network.rows[known] = torch.arange(1, len(known) + 1, dtype=torch.int32)
    if len(known):
        means = token_mean_dictionary(dictionary).senses
        means = means - means.mean(0)
        vectors = means @ _directions(means.T @ means, hidden_size)
        with torch.no_grad():
            network.embeddings.weight[0] = 0.0
            network.embeddings.weight[1:] = vectors / vectors.std(correction=0).clamp_min(1e-12)
    return network


def fill_projection(projection: nn.Linear, dictionary: SenseDictionary) -> None:
    """Sets a projection to the directions in which senses, and codes, differ most from their token's mean, a tenth as long.

    Args:
        projection: from the network's width to that of the senses.
        dictionary: with several senses a token, or codes; with neither, the directions in which the tokens differ.
    """
    scatter, between = torch.zeros(2, dictionary.dim, dictionary.dim)
    for rows, index, counts, means in _blocks(dictionary):
        scatter += _scatter(rows - means[index.rows], counts)
        between += _scatter(means, torch.ones(len(means)))
    if dictionary.codes is not None:
        vectors = dictionary.codes.vectors.flatten(0, 1)
        scatter += _scatter(vectors, torch.ones(len(vectors)) * dictionary.counts.sum() / len(vectors))
    if not scatter.any():
        scatter = between
    with torch.no_grad():
        projection.weight.copy_(0.1 * _directions(scatter, projection.in_features))
        projection.bias.zero_()


def token_mean_dictionary(dictionary: SenseDictionary) -> SenseDictionary:
    """A dictionary with one sense a token, float32: the mean of its senses, each as often as it occurs.

    The spread is that of all of a token's occurrences about the mean.
    """
    parts: list[torch.Tensor] = [torch.zeros(0, dictionary.dim)]
    spread: list[torch.Tensor] = [torch.zeros(0)]
    totals: list[torch.Tensor] = [torch.zeros(0, dtype=torch.int64)]
    begin = 0
    for rows, index, counts, means in _blocks(dictionary):
        own = slice(begin, begin + len(rows))
        begin += len(rows)
        away = (rows - means[index.rows]).square().sum(1) + dictionary.spread[own]
        parts.append(means)
        spread.append(torch.zeros(len(means)).index_add(0, index.rows, away * counts) / _sums(counts, index))
        totals.append(_sums(dictionary.counts[own], index))
    known = dictionary.offsets.diff() > 0
    return SenseDictionary(
        torch.cat(parts),
        nn.functional.pad(known.long().cumsum(0), (1, 0)),
        torch.cat(totals),
        torch.cat(spread),
        metric=dictionary.metric,
        tokenizer_fingerprint=dictionary.tokenizer_fingerprint,
        metadata=dictionary.metadata | {"means_of": dictionary.fingerprint},
    )


def _blocks(dictionary: SenseDictionary) -> Iterator[tuple[torch.Tensor, RaggedIndex, torch.Tensor, torch.Tensor]]:
    """Some tokens at a time: their senses, whose they are, occurrences of each sense (at least 1), and the tokens' means."""
    for tokens in dictionary.offsets.diff().nonzero().squeeze(-1).split(_TOKENS_AT_ONCE):
        own = RaggedIndex.of(tokens, dictionary.offsets)
        rows = dictionary.rows(own.sense_ids).float()
        index = RaggedIndex.of(torch.arange(len(tokens)), own.starts)
        counts = dictionary.counts[own.sense_ids].clamp_min(1).float()
        shares = counts / _sums(counts, index)[index.rows]
        yield rows, index, counts, expected_sense(shares, index, rows, torch.zeros(len(tokens), dictionary.dim))


def _sums(values: torch.Tensor, index: RaggedIndex) -> torch.Tensor:
    return values.new_zeros(len(index.lengths)).index_add(0, index.rows, values)


def _scatter(vectors: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return vectors.T @ (vectors * weights[:, None])


def _directions(scatter: torch.Tensor, number: int) -> torch.Tensor:
    """The eigenvectors of the largest eigenvalues, ``(dim, number)``, largest first."""
    return torch.linalg.eigh(scatter.double()).eigenvectors.flip(1)[:, :number].float()
