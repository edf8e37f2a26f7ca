"""Folded sense models: what ``model.fold()`` makes, for inference. They answer as the model did that they were folded from.

How they are made, and what cannot be folded, stands in ``hf_sense.folding``. Nothing here can be trained.
"""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import torch
from torch import nn

from hf_sense.backbone import backbone_inputs, make_backbone, run_backbone
from hf_sense.base_model import BaseSenseModel
from hf_sense.configuration_sense import SenseConfig
from hf_sense.folded_codes import FoldedCodes
from hf_sense.fused import choose_senses
from hf_sense.outputs import SenseClassifierOutput, SenseModelOutput
from hf_sense.ragged import (
    NO_SENSE,
    Metric,
    RaggedIndex,
    expected_sense,
    sense_log_probabilities,
    sense_scores,
)
from hf_sense.senses import Senses

KEY_METRICS = ("l2", "cosine")


class FoldedSenseConfig(SenseConfig):
    """Configures ``FoldedSenseModel`` and ``FoldedSenseModelForSequenceClassification``; ``model.fold()`` makes it.

    ``sense_dim`` is the width of what stands for a sense: that of the sense, or, of a classifier, ``num_labels``.

    Args:
        num_keys: rows of the table that hidden states are scored with: the senses of tokens that have two or more.
        key_metric: how a hidden state scores a key: ``"l2"`` ``h . key - shift``, or ``"cosine"``.
        codes_see_senses: whether the score of a code depends on the sense that was taken before it.
        **kwargs: those of ``SenseConfig``.

    Raises:
        ValueError: if ``key_metric`` is unknown, or as ``SenseConfig``.
    """

    model_type = "folded_sense"
    auto_classes = {  # noqa: RUF012
        "AutoConfig": "FoldedSenseConfig",
        "AutoModel": "FoldedSenseModel",
        "AutoModelForSequenceClassification": "FoldedSenseModelForSequenceClassification",
        "AutoModelForTokenClassification": "FoldedSenseModelForTokenClassification",
    }

    def __init__(self, num_keys: int = 0, key_metric: str = "l2", codes_see_senses: bool = True, **kwargs: Any) -> None:
        if key_metric not in KEY_METRICS:
            raise ValueError(f"key_metric must be one of {', '.join(KEY_METRICS)}, but is {key_metric!r}.")
        self.num_keys = num_keys
        self.key_metric = key_metric
        self.codes_see_senses = codes_see_senses
        super().__init__(**kwargs)

    def check_selection(self) -> None:
        """Raises ``ValueError`` if the selection is one that folded keys cannot make; it may be set after folding."""
        if self.selection == "none":
            raise ValueError(
                'With selection="none" no sense is chosen: there is nothing to fold. Use the model as it is.'
            )
        if self.selection == "soft" and self.metric == "cosine" and self.key_metric != "cosine":
            raise ValueError(
                'selection="soft" with metric="cosine" needs the length of the projected state, which folded keys do not '
                'know. Use the model unfolded, or selection="hard", which does not need it.'
            )


class FoldedTable(nn.Module):
    """Keys to score hidden states with, and a value for each sense to put in their place.

    A token with one sense needs no key. Key ``j`` of a token belongs to its sense ``j``: both tables keep the order.
    """

    def __init__(self, config: FoldedSenseConfig) -> None:
        super().__init__()
        self.outside = None  # where a model that is not folded has a dictionary
        width = config.get_text_config().hidden_size
        vocab_size = config.vocab_size or 0
        self.keys: torch.Tensor
        self.shifts: torch.Tensor
        self.key_offsets: torch.Tensor
        self.values: torch.Tensor
        self.offsets: torch.Tensor
        self.token_shares: torch.Tensor
        self.register_buffer("keys", torch.zeros(config.num_keys, width))
        self.register_buffer("shifts", torch.zeros(config.num_keys))
        self.register_buffer("key_offsets", torch.zeros(vocab_size + 1, dtype=torch.int64))
        self.register_buffer("values", torch.zeros(config.num_senses, config.sense_dim))
        self.register_buffer("offsets", torch.zeros(vocab_size + 1, dtype=torch.int64))
        self.register_buffer("token_shares", torch.zeros(vocab_size))
        self.fallback = nn.Linear(width, config.sense_dim)
        self.codes: FoldedCodes | None = None
        if config.code_levels:
            rows = config.num_senses if config.codes_see_senses else 0
            self.codes = FoldedCodes(config.code_levels, config.num_codes, width, config.sense_dim or 0, rows)

    @property
    def nbytes(self) -> int:
        """The bytes of all its tensors."""
        return sum(tensor.nbytes for tensor in (*self.buffers(), *self.parameters()))

    def probabilities(self) -> torch.Tensor:
        """The share of each token id among the occurrences behind the dictionary, ``(vocab_size,)``."""
        return self.token_shares

    # As in ``SenseTable``: not for torch.compile to trace.
    @torch.compiler.disable
    def replace(
        self,
        hidden: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        config: FoldedSenseConfig,
        output_senses: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Puts the value of a sense of its token, and of its codes, in the place of each hidden state under the mask.

        Args:
            hidden: ``(batch, sequence, width)``, the backbone's.
            input_ids: int64 ``(batch, sequence)``.
            attention_mask: ``(batch, sequence)``.
            config: its ``selection``, ``selection_temperature`` and ``key_metric`` count.
            output_senses: also return the choice.

        Returns:
            ``(batch, sequence, sense_dim)``, zeros where the mask is 0; and with ``output_senses`` the best senses' ids,
            int64 ``(batch, sequence)``, -100 where there is none, and their codes, ``(batch, sequence, levels)``, if there
            are any.
        """
        config.check_selection()
        kept = attention_mask.reshape(-1).nonzero().squeeze(-1)
        flat, ids = hidden.reshape(-1, hidden.shape[-1]), input_ids.reshape(-1)
        tokens = ids[kept]
        first = self.offsets[tokens]
        bare = (self.offsets[tokens + 1] == first).nonzero().squeeze(-1)
        keys = Senses(self.key_offsets, self.keys, None, self.shifts)
        metric = cast(Metric, config.key_metric)
        # From a token's keys to its senses; one that has no keys takes its first sense.
        to_senses = first - self.key_offsets[tokens]
        best = choose_senses(flat, ids, kept, keys, metric).sense_ids[kept]
        best = torch.where(best >= 0, best + to_senses, first)
        chosen = self.values.new_zeros(len(kept), self.values.shape[1])
        if len(bare) < len(kept):
            chosen = self.values.index_select(0, best.clamp_max(len(self.values) - 1))
        taken = hard = best.clamp_max(len(self.values) - 1)
        if config.selection == "soft":
            index = RaggedIndex.of(tokens, self.key_offsets)
            scores = sense_scores(flat[kept], index, self.keys, metric, self.shifts, check_finite=False)
            probabilities = sense_log_probabilities(scores / config.selection_temperature, index).exp()
            senses = dataclasses.replace(index, sense_ids=index.sense_ids + to_senses[index.rows])
            chosen = expected_sense(probabilities, senses, self.values, chosen)
            if self.codes is not None and len(self.codes.with_senses):
                # A token without keys has one sense, whose products stand already.
                own = self.codes.with_senses.index_select(0, taken)
                taken = expected_sense(probabilities, senses, self.codes.with_senses, own)
        codes = None
        if self.codes is not None:
            temperature = config.selection_temperature if config.selection == "soft" else None
            sums, codes = self.codes(flat[kept], taken, temperature)
            if output_senses and temperature is not None:
                codes = self.codes(flat[kept], hard)[1]
            chosen = chosen + sums.to(chosen.dtype)
        chosen = chosen.to(hidden.dtype).index_copy(0, bare, self.fallback(flat[kept[bare]]).to(hidden.dtype))
        replaced = hidden.new_zeros(input_ids.numel(), chosen.shape[1]).index_copy(0, kept, chosen)
        replaced = replaced.view(*input_ids.shape, -1)
        if not output_senses:
            return replaced, None, None
        sense_ids = torch.full_like(input_ids, NO_SENSE).view(-1)
        sense_ids[kept] = best.index_fill(0, bare, NO_SENSE)
        if codes is None:
            return replaced, sense_ids.view_as(input_ids), None
        code_ids = codes.new_full((len(sense_ids), codes.shape[1]), NO_SENSE)
        code_ids[kept] = codes.index_fill(0, bare, NO_SENSE)
        return replaced, sense_ids.view_as(input_ids), code_ids.view(*input_ids.shape, -1)


class FoldedPreTrainedModel(BaseSenseModel):
    """What both folded models share."""

    config_class = FoldedSenseConfig
    _no_split_modules = ["FoldedTable"]  # noqa: RUF012

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Embedding:
        """Raises ``ValueError``: a folded model keeps the vocabulary that it was folded with."""
        raise ValueError("The embeddings of a folded model cannot be resized. Resize the model it was folded from.")


class FoldedSenseModel(FoldedPreTrainedModel):
    """A backbone whose states are scored in its own width, and replaced by senses; ``SenseModel.fold`` makes it.

    Of a folder that holds a folded classifier it is the part before the pooling: each token's share in the logits.
    """

    _keys_to_ignore_on_load_unexpected = [r"^bias$"]  # noqa: RUF012

    def __init__(self, config: FoldedSenseConfig) -> None:
        super().__init__(config)
        if config.backbone_config is None:
            raise ValueError("FoldedSenseConfig needs a backbone_config; model.fold() makes one.")
        self.backbone = make_backbone(config.backbone_config)
        self.table = FoldedTable(config)
        self._backbone_inputs = backbone_inputs(self.backbone)
        self._no_split_modules = sorted({"FoldedTable", *(self.backbone._no_split_modules or ())})
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_senses: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SenseModelOutput | tuple[torch.Tensor, ...]:
        """Runs the backbone and replaces its hidden states, by zeros under padding. Arguments as for ``SenseModel``.

        Args:
            input_ids: int64 ``(batch, sequence)``.
            attention_mask: ``(batch, sequence)``.
            token_type_ids: ``(batch, sequence)``.
            inputs_embeds: ``(batch, sequence, width)``.
            output_senses: also return ``sense_ids`` and ``code_ids``; there are no contextual states in the senses' width, and
                no scores.
            output_hidden_states: also return the backbone's hidden states.
            output_attentions: also return the backbone's attentions.
            return_dict: ``False`` for a tuple.
            **kwargs: passed on to the backbone.

        Raises:
            ValueError: if ``input_ids`` are missing, or ``config.selection`` was set to one that folded keys cannot make.
        """
        if input_ids is None:
            raise ValueError("A sense model needs input_ids, also beside inputs_embeds: senses belong to token ids.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden, output = run_backbone(
            self.backbone,
            self._backbone_inputs,
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            **kwargs,
        )
        replaced, sense_ids, code_ids = self.table.replace(
            hidden, input_ids, attention_mask, self.config, output_senses
        )
        result = SenseModelOutput(
            last_hidden_state=replaced,
            sense_ids=sense_ids,
            code_ids=code_ids,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )
        return result if return_dict is not False else result.to_tuple()


class FoldedClassifier(FoldedPreTrainedModel):
    """A folded model whose values are what each sense adds to each class. Its subclasses say what is classified."""

    def __init__(self, config: FoldedSenseConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = FoldedSenseModel(config)
        self.bias = nn.Parameter(torch.zeros(config.num_labels))
        self._no_split_modules = self.model._no_split_modules
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        output_senses: bool = False,
    ) -> SenseClassifierOutput | tuple[torch.Tensor, ...]:
        """Classifies texts, or their tokens. Inputs as for ``SenseModel``.

        Args:
            input_ids: int64 ``(batch, sequence)``.
            attention_mask: ``(batch, sequence)``.
            token_type_ids: ``(batch, sequence)``.
            inputs_embeds: ``(batch, sequence, width)``.
            labels: to evaluate with, as those of the model that was folded.
            output_hidden_states: also return the backbone's hidden states.
            output_attentions: also return the backbone's attentions.
            return_dict: ``False`` for a tuple.
            output_senses: also return ``sense_ids`` and ``code_ids``.

        Raises:
            ValueError: if labels are given in training mode.
        """
        if labels is not None and self.training:
            raise ValueError("A folded model cannot be trained. Train the model it was folded from, and fold it again.")
        output = self.model(
            input_ids,
            attention_mask,
            token_type_ids,
            inputs_embeds,
            output_senses=output_senses,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        logits = self.classify(self.to_classify(output.last_hidden_state, input_ids, attention_mask))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, logits=logits, pooled_logits=logits, config=self.config)
        result = SenseClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            sense_ids=output.sense_ids,
            code_ids=output.code_ids,
        )
        return result if return_dict is not False else result.to_tuple()

    def to_classify(
        self, values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """What ``classify`` is given: the values ``(batch, sequence, num_labels)`` themselves, or their sum in each text."""
        raise NotImplementedError

    def classify(self, vectors: torch.Tensor) -> torch.Tensor:
        """Logits of values, both ``(..., num_labels)``."""
        return vectors + self.bias


class FoldedSenseModelForSequenceClassification(FoldedClassifier):
    """A folded model that classifies texts; ``fold`` of a ``SenseModelForSequenceClassification`` makes it."""

    def to_classify(
        self, values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The pooled values, ``(batch, num_labels)``."""
        return self.model.pool(values, input_ids, attention_mask)
