"""A backbone without attention: a token, a window of its neighbours and the text's mean in, a small state out.

It is one more model of Transformers and knows no senses; ``hf_sense.small_students`` makes students of it.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel, initialization
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutput


class ContextNetworkConfig(PretrainedConfig):
    """Configures ``ContextNetwork``.

    Args:
        vocab_size: token ids.
        num_embeddings: rows of the table of embeddings: the first for tokens without one of their own, then one a token.
        hidden_size: width of an embedding and of a state.
        window: tokens that the convolution sees, the token itself in the middle; odd.
        intermediate_size: width of the hidden layer.
        hidden_act: its activation.
        **kwargs: those of every configuration.

    Raises:
        ValueError: if ``hidden_size``, ``window`` or ``num_embeddings`` cannot be.
    """

    model_type = "sense_context_network"
    num_hidden_layers = 1

    def __init__(
        self,
        vocab_size: int = 1,
        num_embeddings: int = 1,
        hidden_size: int = 64,
        window: int = 3,
        intermediate_size: int = 128,
        hidden_act: str = "gelu",
        **kwargs: Any,
    ) -> None:
        if hidden_size < 1:
            raise ValueError(f"hidden_size should be at least 1, but is {hidden_size}.")
        if window < 1 or window % 2 == 0:
            raise ValueError(f"window should be odd, with the token itself in the middle, but is {window}.")
        if num_embeddings < 1:
            raise ValueError(
                f"num_embeddings should be at least 1, the row of unknown tokens, but is {num_embeddings}."
            )
        self.vocab_size = vocab_size
        self.num_embeddings = num_embeddings
        self.hidden_size = hidden_size
        self.window = window
        self.intermediate_size = intermediate_size
        self.hidden_act = hidden_act
        super().__init__(**kwargs)


class ContextNetwork(PreTrainedModel):
    """An embedding, a gated convolution over a window (Dauphin et al. 2017), the text's mean, and one hidden layer on the three.

    Only tokens that it was made for have an embedding of their own, so that a vocabulary costs four bytes a token. Padding
    on either side, and what stands under it, changes nothing.
    """

    config_class = ContextNetworkConfig
    base_model_prefix = "network"
    # There is no attention here: whatever implementation of it the model around asks for will do.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    def __init__(self, config: ContextNetworkConfig) -> None:
        super().__init__(config)
        width = config.hidden_size
        self.rows: torch.Tensor
        self.register_buffer("rows", torch.zeros(config.vocab_size, dtype=torch.int32))
        self.embeddings = nn.Embedding(config.num_embeddings, width)
        self.window = nn.Conv1d(width, 2 * width, config.window, padding="same")
        self.inner = nn.Linear(3 * width, config.intermediate_size)
        self.activation = ACT2FN[config.hidden_act]
        self.outer = nn.Linear(config.intermediate_size, width)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            initialization.normal_(module.weight, std=0.5)
        elif isinstance(module, (nn.Linear, nn.Conv1d)):
            initialization.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            initialization.zeros_(module.bias)

    def get_input_embeddings(self) -> nn.Module:
        """The table of embeddings, ``(num_embeddings, hidden_size)``; ``rows`` says which row is a token's."""
        return self.embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the table of embeddings."""
        self.embeddings = value

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Takes more token ids, or fewer; new ones have the row of unknown tokens, and no row is added or dropped."""
        size = len(self.rows) if new_num_tokens is None else new_num_tokens
        self.rows = nn.functional.pad(self.rows, (0, size - len(self.rows))).clone()
        self.config.vocab_size = size
        return self.embeddings

    def hidden_layer(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """What ``outer`` makes states of, for texts that stand one after the other: less work than with padding.

        Args:
            input_ids: int64 ``(tokens,)`` of all texts.
            lengths: int64 ``(texts,)``, tokens of each; may be 0.

        Returns:
            ``(tokens, intermediate_size)``.
        """
        width, gap = self.config.hidden_size, self.config.window // 2
        text = torch.repeat_interleave(lengths, output_size=len(input_ids))
        place = torch.arange(len(input_ids), device=input_ids.device) + gap * text
        own = self.embeddings(self.rows[input_ids])
        # Zeros between texts, so that no window sees another text.
        apart = own.new_zeros(len(own) + gap * max(len(lengths) - 1, 0), width).index_copy_(0, place, own)
        near = nn.functional.glu(self.window(apart.T), 0).T.index_select(0, place)
        mean = own.new_zeros(len(lengths), width).index_add_(0, text, own) / lengths.clamp_min(1).unsqueeze(1)
        # The text's mean is the same for all of its tokens, and so is what the hidden layer makes of it.
        of_text = nn.functional.linear(mean, self.inner.weight[:, 2 * width :], self.inner.bias)
        of_token = torch.cat([own, near], 1) @ self.inner.weight[:, : 2 * width].T
        return self.activation(of_token + of_text[text])

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutput | tuple[torch.Tensor, ...]:
        """A state for each token.

        Args:
            input_ids: int64 ``(batch, sequence)``.
            attention_mask: ``(batch, sequence)``, 1 at tokens, which stand together; ones if not given.
            inputs_embeds: ``(batch, sequence, hidden_size)``, instead of the embeddings of ``input_ids``.
            output_hidden_states: also return embeddings and states.
            output_attentions: there are none; nothing is returned for it.
            return_dict: ``False`` for a tuple.

        Raises:
            ValueError: if neither or both of ``input_ids`` and ``inputs_embeds`` are given.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Give either input_ids or inputs_embeds.")
        if inputs_embeds is None:
            inputs_embeds = self.embeddings(self.rows[input_ids])
        if attention_mask is None:
            attention_mask = inputs_embeds.new_ones(inputs_embeds.shape[:2])
        mask = attention_mask.unsqueeze(-1)
        # What stands under padding may be anything, NaN included, and zero times NaN is NaN.
        own = inputs_embeds.masked_fill(~mask.bool(), 0.0)
        near = nn.functional.glu(self.window(own.transpose(1, 2)), 1).transpose(1, 2)
        mean = own.float().sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp_min(1)
        seen = torch.cat([own, near, mean.to(own.dtype).expand_as(own)], -1)
        states = self.outer(self.activation(self.inner(seen)))
        result = BaseModelOutput(
            last_hidden_state=states, hidden_states=(inputs_embeds, states) if output_hidden_states else None
        )
        return result if return_dict is not False else result.to_tuple()
