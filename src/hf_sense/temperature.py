"""The unit in which a dictionary's scores are sharp or flat. It reads a table and trains nothing.

Scores of ``dot`` and ``l2`` grow with the square of the hidden states' length, which differs between teachers by orders of
magnitude; a temperature taken from the table makes losses on senses mean the same for all of them.
"""

from __future__ import annotations

import torch

from hf_sense.dictionary import SenseDictionary

_ROWS_AT_ONCE = 8192
_MOST_ROWS = 2**18  # of a larger table, tokens at even steps
# How many equal and independent directions a token's variance is taken to have; with so many it is 1 for all-MiniLM-L6-v2 on
# short questions, where a temperature of 1 is known to work.
DIRECTIONS = 24


@torch.no_grad()
def natural_temperature(dictionary: SenseDictionary, metric: str | None = None) -> float:
    """The temperature at which ``l2`` scores are log-likelihoods of Gaussians with the variance of a token's occurrences.

    With ``v`` the mean squared distance of a token's occurrences to their mean, over tokens of two or more senses and each
    as often as it occurs, that is ``v / 24`` for ``l2`` and ``dot``; for ``cosine`` it is divided by the mean squared length
    of the senses. Of a dictionary with codes, which tell occurrences of a token with one sense apart too, all tokens count.
    ``v`` includes the spread within senses, so that it hardly depends on how many senses there are. Of a table of more than
    262,144 senses a part is read.

    Args:
        dictionary: its senses, counts and spread count.
        metric: that of the scores; the dictionary's own if not given.

    Returns:
        A number above 0; 1 where no token has two senses that differ.
    """
    lengths = dictionary.offsets[1:] - dictionary.offsets[:-1]
    tokens = (lengths > (1 if dictionary.codes is None else 0)).nonzero().squeeze(-1)
    tokens = tokens[:: 1 + int(lengths[tokens].sum()) // _MOST_ROWS]
    scatter, squares, occurrences = 0.0, 0.0, 0
    blocks = lengths[tokens].cumsum(0) // _ROWS_AT_ONCE
    for block in tokens.split(torch.unique_consecutive(blocks, return_counts=True)[1].tolist()):
        many = lengths[block]
        owner = torch.repeat_interleave(many)
        starts = dictionary.offsets[block] - (many.cumsum(0) - many)
        ids = starts[owner] + torch.arange(len(owner))
        vectors, counts = dictionary.rows(ids).double(), dictionary.counts[ids].double()
        means = torch.zeros(len(block), dictionary.dim, dtype=torch.float64)
        means.index_add_(0, owner, vectors * counts[:, None])
        means /= torch.zeros(len(block), dtype=torch.float64).index_add_(0, owner, counts)[:, None].clamp_min(1)
        away = (vectors - means[owner]).square().sum(1) + dictionary.spread[ids]
        scatter += float((away * counts).sum())
        squares += float((vectors.square().sum(1) * counts).sum())
        occurrences += int(counts.sum())
    unit = max(1, occurrences) if (metric or dictionary.metric) != "cosine" else squares
    return scatter / unit / DIRECTIONS if scatter > 0 and unit > 0 else 1.0
