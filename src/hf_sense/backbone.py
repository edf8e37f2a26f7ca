"""The encoder or decoder inside a sense model: made empty, and run on batches padded on either side. It picks no senses."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from hf_sense.padding import RightAligned


def make_backbone(config: PretrainedConfig) -> PreTrainedModel:
    """An empty model of ``config``, without a pooling layer where the class lets one choose."""
    model_class = MODEL_MAPPING.get(type(config), None)
    if isinstance(model_class, type) and "add_pooling_layer" in inspect.signature(model_class).parameters:
        return AutoModel.from_config(config, add_pooling_layer=False)
    return AutoModel.from_config(config)


def backbone_inputs(backbone: PreTrainedModel) -> set[str]:
    """The names of the arguments that the backbone takes."""
    return set(inspect.signature(backbone.forward).parameters)


def run_backbone(
    backbone: PreTrainedModel,
    known: set[str],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    token_type_ids: torch.Tensor | None,
    inputs_embeds: torch.Tensor | None,
    **extra: Any,
) -> tuple[torch.Tensor, ModelOutput]:
    """The last hidden state ``(batch, sequence, width)``, and all that the backbone returned.

    Args:
        backbone: numbers positions from the first column, so that padding is moved to the right for it.
        known: ``backbone_inputs`` of it; ``token_type_ids`` are left out if it takes none.
        input_ids: int64 ``(batch, sequence)``.
        attention_mask: ``(batch, sequence)``, 1 at tokens; padding may be on either side.
        token_type_ids: ``(batch, sequence)``.
        inputs_embeds: ``(batch, sequence, width)``, instead of the embeddings of ``input_ids``.
        **extra: passed on where not ``None``.
    """
    aligned = RightAligned(attention_mask)
    inputs = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
    inputs |= {"input_ids": input_ids} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
    inputs = {name: aligned.move(tensor) for name, tensor in inputs.items() if tensor is not None and name in known}
    given = {name: value for name, value in extra.items() if value is not None}
    output = backbone(**inputs, **given, return_dict=True)
    return aligned.restore(output.last_hidden_state), output
