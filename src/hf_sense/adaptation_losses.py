"""What adapting a decoder computes: masked tokens, the two stages' losses, and a language model's head by itself.

Tensors in, tensors out; the training around it stands in ``hf_sense.adaptation_trainers``.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import BaseModelOutputWithPast

_MASK_TOKENS = {"blank": "_", "eos": "eos_token", "mask": "mask_token"}


class LanguageHead(nn.Module):
    """A language model without its body: hidden states in, logits out, by the model's own forward."""

    def __init__(self, language_model: PreTrainedModel) -> None:
        super().__init__()
        self.body = _Given()
        setattr(language_model, language_model.base_model_prefix, self.body)
        self.language_model = language_model.eval().requires_grad_(False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """From ``(tokens, dim)`` to ``(tokens, vocabulary)``."""
        self.body.states = states[None]
        ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
        return self.language_model(input_ids=ids, use_cache=False).logits[0]


class _Given(nn.Module):
    """Stands in a body's place and gives states that were computed before."""

    states: torch.Tensor

    @property
    def decoder(self) -> _Given:
        """Some families call their body's decoder."""
        return self

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPast:
        """The states that were set."""
        return BaseModelOutputWithPast(last_hidden_state=cast(Any, self.states))


@torch.no_grad()
def head_of(language_model: PreTrainedModel) -> LanguageHead:
    """The language model's head, taken off its body and found to give the same logits."""
    language_model.eval()
    body = language_model.base_model
    ids = torch.arange(3, 9)[None] % int(body.config.get_text_config().vocab_size)
    expected = language_model(input_ids=ids, use_cache=False).logits[0]
    head = LanguageHead(language_model)
    found = head(body(input_ids=ids, use_cache=False).last_hidden_state[0])
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"The logits of {body.config.model_type} do not follow from its last hidden states alone, as MNTP needs. Use "
            "mntp_steps=0."
        )
    return head


def mask_token_id(tokenizer: PreTrainedTokenizerBase, choice: str) -> int:
    """The id of what stands at masked tokens.

    Args:
        tokenizer: the base's.
        choice: ``"blank"`` (the token ``_``), ``"eos"``, ``"mask"``, or a token of the vocabulary.

    Raises:
        ValueError: if the tokenizer has no such token.
    """
    token = getattr(tokenizer, _MASK_TOKENS[choice]) if choice in ("eos", "mask") else _MASK_TOKENS.get(choice, choice)
    found = tokenizer.get_vocab().get(token) if token is not None else None
    if found is None:
        raise ValueError(
            f"mask_token {choice!r} is {token!r}, and the tokenizer has no such token. Give blank (_), eos, mask, or a token "
            "of its vocabulary."
        )
    return int(found)


def mask_tokens(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    mask_id: int,
    *,
    share: float = 0.2,
    full: bool = False,
    special_ids: list[int] | tuple[int, ...] = (),
    vocab_size: int = 0,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks tokens for MNTP. A text's first token and special tokens stay.

    Args:
        input_ids: int64 ``(batch, sequence)``.
        attention_mask: ``(batch, sequence)``, 1 at tokens.
        mask_id: what stands at masked tokens.
        share: probability that a token is to be predicted.
        full: mask all of these; otherwise 8 in 10, with 1 in 10 replaced by a random token and 1 left as it is.
        special_ids: ids that are never to be predicted.
        vocab_size: random tokens are below it.
        seed: of the draw.

    Returns:
        The masked ids, and labels: the ids at tokens to be predicted, else -100; both int64 ``(batch, sequence)``.
    """
    draw = torch.Generator().manual_seed(seed)
    first = (attention_mask.cumsum(1) == 1) & attention_mask.bool()
    open_to = (
        attention_mask.bool() & ~first & ~torch.isin(input_ids, torch.tensor(list(special_ids), dtype=torch.int64))
    )
    chosen = (torch.rand(input_ids.shape, generator=draw) < share) & open_to
    labels = torch.where(chosen, input_ids, -100)
    fate = torch.rand(input_ids.shape, generator=draw)
    other = torch.randint(max(1, vocab_size), input_ids.shape, generator=draw)
    masked = torch.where(chosen & ((fate < 0.8) | torch.tensor(full)), mask_id, input_ids)
    if not full:
        masked = torch.where(chosen & (fate >= 0.9), other, masked)
    return masked, labels


def masked_next_token_loss(states: torch.Tensor, labels: torch.Tensor, predict: Any) -> torch.Tensor:
    """The cross-entropy of masked tokens given the states one place before them (LLM2Vec, section 2.2), summed.

    Args:
        states: ``(batch, sequence, dim)``.
        labels: int64 ``(batch, sequence)``, -100 where nothing is to be predicted; the first column is not read.
        predict: states ``(tokens, dim)`` to logits ``(tokens, vocabulary)``.
    """
    wanted = labels[:, 1:] >= 0
    if not bool(wanted.any()):
        return states.float().sum() * 0.0  # a step without labels still needs a graph
    return nn.functional.cross_entropy(predict(states[:, :-1][wanted]).float(), labels[:, 1:][wanted], reduction="sum")


def drop_tokens(attention_mask: torch.Tensor, share: float) -> torch.Tensor:
    """The mask with tokens taken out at random, by PyTorch's global generator of the CPU; a text's first token stays.

    Args:
        attention_mask: ``(batch, sequence)``, 1 at tokens.
        share: probability that a token is taken out.
    """
    kept = (torch.rand(attention_mask.shape) >= share).to(attention_mask.device)
    first = (attention_mask.cumsum(1) == 1) & attention_mask.bool()
    return attention_mask * (kept | first)


def contrastive_loss(first: torch.Tensor, second: torch.Tensor, temperature: float = 0.05) -> torch.Tensor:
    """The mean cross-entropy of finding each first vector's second among all seconds by cosine (SimCSE, equation 1).

    Args:
        first: floating ``(texts, dim)``.
        second: likewise, row by row the other view.
        temperature: divides cosines.
    """
    cosines = nn.functional.normalize(first, dim=1) @ nn.functional.normalize(second, dim=1).T
    return nn.functional.cross_entropy(cosines / temperature, torch.arange(len(first), device=first.device))


def batches_of_like_length(lengths: np.ndarray, batch_size: int, batches: int, seed: int) -> np.ndarray:
    """Numbers of texts, ``batch_size`` after ``batch_size`` of like length, batches in random order.

    Args:
        lengths: int64 ``(texts,)``, at least ``batch_size`` of them.
        batch_size: texts a batch.
        batches: how many batches; every text is used once before any is used again, but for those left over.
        seed: of the draw.

    Returns:
        int64 ``(batches * batch_size,)``.
    """
    draw = np.random.default_rng(seed)
    made: list[np.ndarray] = []
    while len(made) < batches:
        order = draw.permutation(len(lengths))
        order = order[np.argsort(lengths[order], kind="stable")]
        begin = int(draw.integers(len(order) % batch_size + 1))
        rows = order[begin : begin + len(order) // batch_size * batch_size].reshape(-1, batch_size)
        made += list(rows[draw.permutation(len(rows))])
    return np.concatenate(made[:batches])
