"""What every model of the house can do beside its answers: be saved, pushed, and opened by other libraries.

What they answer stands in ``hf_sense.modeling_sense`` and ``hf_sense.folded``.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import CommitInfo
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_sense.folders import check_keeps_classifier
from hf_sense.pooling import frequency_weights, pool_weighted, pooling_weights
from hf_sense.publishing import HUB_ARGUMENTS, push_model, save_dictionary_beside


class BaseSenseModel(PreTrainedModel):
    """A model with a ``backbone`` and a ``table`` in it, itself or in its ``model``."""

    base_model_prefix = "model"
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True

    def save_pretrained(
        self, save_directory: str | os.PathLike[str], *args: Any, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """As every Transformers model; a dictionary beside the weights is saved with them.

        Raises:
            ValueError: if the model has no classifier and the folder holds a sense model that has: it would be lost.
        """
        if self.base_model is self:
            check_keeps_classifier(save_directory, type(self).__name__)
        hub_arguments = {name: kwargs.pop(name) for name in HUB_ARGUMENTS if name in kwargs} if push_to_hub else {}
        super().save_pretrained(save_directory, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            save_dictionary_beside(self, Path(save_directory))
        if push_to_hub:
            self.push_to_hub(hub_arguments.pop("repo_id", Path(save_directory).name), **hub_arguments)

    def push_to_hub(self, repo_id: str, **options: Any) -> CommitInfo:
        """Pushes model, card and, if it lies beside the weights, dictionary in one commit.

        See ``hf_sense.publishing.push_model`` for the options: ``private``, ``token``, ``revision``, ``commit_message``,
        ``commit_description``, ``create_pr``, ``max_shard_size``, ``tokenizer``, ``license``, ``datasets``, ``metrics``.
        """
        return push_model(self, repo_id, **options)

    def save_for_sentence_transformers(
        self, save_directory: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase, **options: Any
    ) -> None:
        """Saves the model so that ``SentenceTransformer(save_directory)`` gives the vectors of ``config.pooling``.

        See ``hf_sense.sentences.save_for_sentence_transformers`` for the options: ``max_seq_length``, ``prompts``,
        ``default_prompt_name``, ``include_prompt``, ``normalize``.
        """
        from hf_sense.sentences import save_for_sentence_transformers

        save_for_sentence_transformers(self, save_directory, tokenizer, **options)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoModel") -> None:
        """Does nothing: it would make every later save copy this package's source files into the model's folder."""

    @property
    def sense_table(self) -> Any:
        """The model's senses."""
        return self.base_model.table

    def get_input_embeddings(self) -> nn.Module:
        """The backbone's token embeddings."""
        return self.base_model.backbone.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the backbone's token embeddings."""
        self.base_model.backbone.set_input_embeddings(value)

    def pool(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One vector a text by ``config.pooling``: ``(batch, sequence, dim)`` in, ``(batch, dim)`` out."""
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return pool_weighted(hidden_states, attention_mask, self.pooling_weights(input_ids, attention_mask))

    def pooling_weights(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """What each token weighs in its text's vector by ``config.pooling``, float32 ``(batch, sequence)``."""
        weights = None
        if self.config.pooling == "frequency":
            weights = frequency_weights(self.sense_table.probabilities(), self.config.frequency_smoothing)[input_ids]
        return pooling_weights(attention_mask, self.config.pooling, weights)

    def text_vectors(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pooled: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """One vector a text: what ``pool`` makes of the last hidden state, within rounding, and faster where that can be.

        Args:
            input_ids: int64 ``(batch, sequence)``.
            attention_mask: ``(batch, sequence)``, 1 at tokens; ones if not given.
            token_type_ids: ``(batch, sequence)``, passed on to backbones that number segments.
            pooled: ``(batch, sequence)``, 1 at those tokens that count for the vector; all if not given.

        Returns:
            ``(batch, sense_dim)``.

        Raises:
            ValueError: if ``input_ids`` are not of two dimensions.
        """
        if input_ids.ndim != 2:
            raise ValueError(
                f"input_ids should be (batch, sequence), but are {tuple(input_ids.shape)}. One text is input_ids[None]."
            )
        inner = self.base_model
        if inner is not self:
            return inner.text_vectors(input_ids, attention_mask, token_type_ids, pooled)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        segments = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        states = inner(input_ids=input_ids, attention_mask=attention_mask, **segments).last_hidden_state
        return inner.pool(states, input_ids, attention_mask if pooled is None else pooled)
