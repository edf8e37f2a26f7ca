"""What sense models return. How it is computed stands in ``hf_sense.modeling_sense`` and ``hf_sense.folded``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutput


@dataclass
class SenseModelOutput(ModelOutput):
    """What ``SenseModel`` returns.

    Attributes:
        last_hidden_state: ``(batch, sequence, sense_dim)``, replaced by senses as ``config.selection`` says.
        contextual_hidden_state: ``(batch, sequence, sense_dim)`` before replacement, with ``output_senses=True``.
        sense_ids: int64 ``(batch, sequence)``, the best senses, -100 where a token has none; with ``output_senses=True``.
        sense_scores: float32 ``(pairs,)``, the score of each sense of each token under the mask, laid out as
            ``RaggedIndex.of(input_ids[attention_mask.bool()], offsets)``; with ``output_senses=True``.
        code_ids: int64 ``(batch, sequence, levels)``, the codes of what each sense leaves, -100 where there is no sense; with
            ``output_senses=True``, of a dictionary with codes.
        hidden_states: the backbone's, with ``output_hidden_states=True``.
        attentions: the backbone's, with ``output_attentions=True``.
    """

    last_hidden_state: torch.Tensor | None = None
    contextual_hidden_state: torch.Tensor | None = None
    sense_ids: torch.Tensor | None = None
    sense_scores: torch.Tensor | None = None
    code_ids: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class SenseClassifierOutput(SequenceClassifierOutput):
    """What a sense model with a classifier returns: loss, logits, and with ``output_senses=True`` the choice too.

    Attributes:
        contextual_hidden_state: as in ``SenseModelOutput``.
        sense_ids: likewise.
        sense_scores: likewise.
        code_ids: likewise.
    """

    contextual_hidden_state: torch.Tensor | None = None
    sense_ids: torch.Tensor | None = None
    sense_scores: torch.Tensor | None = None
    code_ids: torch.Tensor | None = None
