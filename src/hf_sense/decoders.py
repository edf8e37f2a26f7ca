"""Makes a decoder see both ways, and proves that it does: configurations and forward passes in, answers out.

Transformers reads ``config.is_causal``; most decoder families honour it, some ignore it in silence, some only with padding or
without. So it is set here and then probed. Loading stands in ``hf_sense.teacher``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from transformers import PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

Attention = Literal["auto", "bidirectional", "causal"]
# int64 (batch, sequence) ids and mask in, (batch, sequence, dim) hidden states out.
Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Settings that confine attention to the neighbourhood and that nothing here opens.
_CLOSED_WINDOWS = (
    "attention_chunk_size", "attention_window", "attention_window_size", "local_attention", "sliding_window_size",
    "window_size",
)  # fmt: skip
_PROBE_LENGTH = 12
_PROBE_MOST = 640  # longest probe, to see past a small window


def is_decoder(config: PretrainedConfig) -> bool:
    """Whether a model of this configuration is a decoder alone: each token sees what came before."""
    kind = config.model_type
    text_kind = config.get_text_config().model_type
    causal = {kind, text_kind} & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    masked = {kind, text_kind} & set(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    return not getattr(config, "is_encoder_decoder", False) and bool(
        (causal and not masked) or getattr(config, "is_decoder", False)
    )


def open_attention(config: PretrainedConfig) -> dict[str, Any]:
    """Sets a decoder's configuration so that each token sees all others; the model must honour it, so probe it.

    ``is_causal`` and ``use_cache`` become false, sliding windows as wide as the longest text. Both the configuration and its
    text configuration are changed in place, before or after the model is made.

    Returns:
        Each setting that was changed, with the value it had.

    Raises:
        ValueError: if a setting confines attention and cannot be opened; nothing is changed then.
    """
    text = config.get_text_config()
    for name in _CLOSED_WINDOWS:
        if getattr(text, name, None):
            raise ValueError(
                f"{config.model_type} attends in its neighbourhood alone: config.{name} is {getattr(text, name)}, and it "
                'cannot be opened. Use attention="causal", or a family with full attention.'
            )
    before: dict[str, Any] = {}

    def change(name: str, value: Any) -> None:
        if getattr(text, name, None) != value:
            before[name] = getattr(text, name, None)
        setattr(text, name, value)

    change("is_causal", False)
    change("use_cache", False)
    if getattr(text, "sliding_window", None):
        # Grown, not taken away: masks go by the kind of layer, and most families must have a number.
        change("sliding_window", max(text.sliding_window, int(text.max_position_embeddings)))
    if text is not config:
        config.is_causal = False
        config.use_cache = False
    return before


def is_open(config: PretrainedConfig) -> bool:
    """Whether a decoder's configuration asks for attention both ways."""
    return getattr(config.get_text_config(), "is_causal", True) is False


@torch.no_grad()
def blind_cases(forward: Forward, vocab_size: int, window: int | None = None) -> list[str]:
    """In which kinds of batch the first token's hidden state does not change with its text's last token.

    Args:
        forward: the model, in evaluation mode, as it will be used.
        vocab_size: ids below it are used.
        window: a sliding window that was opened; the probe is as long as it where it is short.

    Returns:
        Some of "without padding", "with padding"; empty if the model sees both ways.
    """
    length = _PROBE_LENGTH if window is None else max(_PROBE_LENGTH, min(window, _PROBE_MOST))
    ids = (torch.arange(2 * length).view(2, length) * 7 + 3) % vocab_size
    blind = []
    for name, row, used in (("without padding", slice(0, 1), length), ("with padding", slice(0, 2), length - 3)):
        here, mask = ids[row].clone(), torch.ones_like(ids[row])
        mask[-1, used:] = 0
        other = here.clone()
        other[-1, used - 1] = (other[-1, used - 1] + 1) % vocab_size
        # The same shapes and the same kernels: a state that does not depend on the last token is equal to the last bit.
        first, second = forward(here, mask)[-1, 0], forward(other, mask)[-1, 0]
        if torch.equal(first, second) or not (first.isfinite() & second.isfinite()).all():
            blind.append(name)
    return blind
