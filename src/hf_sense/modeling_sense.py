"""Sense models: a backbone, an optional projection, and a layer that replaces each hidden state by a sense of its token.

That layer stands in ``hf_sense.sense_table``; how the models are distilled, in ``hf_sense.trainer``; how they are cut out of
a teacher, in ``hf_sense.students``.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.activations import ACT2FN

from hf_sense.backbone import backbone_inputs, make_backbone, run_backbone
from hf_sense.base_model import BaseSenseModel
from hf_sense.configuration_sense import SenseConfig
from hf_sense.context_network import ContextNetwork
from hf_sense.dictionary import SenseDictionary
from hf_sense.folders import check_model_name
from hf_sense.outputs import SenseClassifierOutput, SenseModelOutput
from hf_sense.pooled_context import can_pool_first, pooled_first
from hf_sense.publishing import open_dictionary
from hf_sense.residual_codes import ResidualCodes
from hf_sense.sense_table import SenseTable

if TYPE_CHECKING:
    from hf_sense.folded import FoldedPreTrainedModel

logger = logging.getLogger(__name__)


class SensePreTrainedModel(BaseSenseModel):
    """What both sense models share: loading, resizing, folding; saving and pushing are ``BaseSenseModel``'s."""

    config_class = SenseConfig
    supports_gradient_checkpointing = True
    # Its buffers are not parameters, so accelerate would leave the table behind if it were split.
    _no_split_modules = ["SenseTable"]  # noqa: RUF012

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str] | None, *args: Any, **kwargs: Any
    ) -> SensePreTrainedModel:
        """As every Transformers model; opens the dictionary too, if the configuration says that it lies outside.

        Raises:
            FileNotFoundError: if there is no such folder, and it is no id on the Hub; or as Transformers and
                ``SenseDictionary.from_pretrained``.
            ValueError: if it is the folder of a dictionary, or the dictionary outside is another one.
        """
        if pretrained_model_name_or_path is not None:
            check_model_name(pretrained_model_name_or_path)
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.config.sense_dictionary:
            model.sense_table.outside = open_dictionary(model.config, pretrained_model_name_or_path, kwargs)
        return loaded

    def to_dictionary(self) -> SenseDictionary:
        """The model's senses as a dictionary that can be saved, inspected or given to another student.

        Of learned senses its metadata say so, with the fingerprint of the dictionary that they started from; counts and spread
        are that dictionary's, until ``hf_sense.recount.recount`` counts anew.
        """
        table = self.sense_table
        if table.outside is not None:
            return table.outside
        learned = {"learned_senses": {"started_from": self.config.dictionary_fingerprint}}
        # A copy of learned ones: training goes on in the model's own.
        senses = table.senses.detach().to("cpu", copy=self.config.learned_senses)
        return SenseDictionary(
            senses,
            table.offsets.cpu(),
            table.counts.cpu(),
            table.spread.float().cpu(),
            metric=self.config.metric,
            tokenizer_fingerprint=self.config.tokenizer_fingerprint,
            metadata=self.config.dictionary_metadata | (learned if self.config.learned_senses else {}),
            scales=None if table.scales is None else table.scales.cpu(),
            codes=ResidualCodes.of({name: tensor.cpu() for name, tensor in table.state_dict().items()}),
        )

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As every Transformers model; new tokens have no senses, and the senses of tokens cut off are dropped."""
        backbone = self.base_model.backbone
        # A network of the house has fewer rows than tokens, and knows how to take more tokens.
        own = isinstance(backbone, ContextNetwork)
        resize = backbone.resize_token_embeddings if own else super().resize_token_embeddings
        embeddings = resize(new_num_tokens, *args, **kwargs)
        table, size = self.sense_table, int(self.config.get_text_config().vocab_size)
        old = len(table.offsets) - 1
        if size > old:
            table.offsets = torch.nn.functional.pad(table.offsets, (0, size - old), value=int(table.offsets[-1]))
        elif size < old:
            table.offsets = table.offsets[: size + 1].clone()
            kept = int(table.offsets[-1])
            table.counts, table.spread = table.counts[:kept].clone(), table.spread[:kept].clone()
            if table.outside is None:
                table.put_rows(table.senses.detach()[:kept].clone())
                table.scales = None if table.scales is None else table.scales[:kept].clone()
            self.config.num_senses = kept
        self.config.vocab_size = size
        return embeddings

    def fold(self) -> FoldedPreTrainedModel:
        """A model for inference that gives the same answers and needs less; this one stays as it is.

        See ``hf_sense.folding.fold`` for what is folded and what is refused.
        """
        from hf_sense.folding import fold

        return fold(self)

    @classmethod
    def from_teacher(cls, teacher: Any, dictionary: SenseDictionary, **options: Any) -> SensePreTrainedModel:
        """A student of the teacher's first layers, or of another backbone, with the dictionary's senses.

        See ``hf_sense.students.make_student`` for the options: ``num_hidden_layers``, ``backbone``, ``copy_head``,
        ``dictionary_path``, and every field of ``SenseConfig``.
        """
        from hf_sense.students import make_student

        return make_student(cls, teacher, dictionary, **options)


class SenseModel(SensePreTrainedModel):
    """A backbone whose last hidden state is replaced, token by token, by a sense of the token.

    Example:
        >>> model = SenseModel.from_pretrained("org/skd-minilm")  # doctest: +SKIP
        >>> model(**tokenizer("a text", return_tensors="pt")).last_hidden_state  # doctest: +SKIP
    """

    # A student saved with its classifier is also loaded without it.
    _keys_to_ignore_on_load_unexpected = [r"^classifier\.", r"^head_dense\."]  # noqa: RUF012

    def __init__(self, config: SenseConfig) -> None:
        super().__init__(config)
        if config.backbone_config is None:
            raise ValueError("SenseConfig needs a backbone_config; SenseModel.from_teacher makes one.")
        self.backbone = make_backbone(config.backbone_config)
        width = config.backbone_config.get_text_config().hidden_size
        self.sense_projection = nn.Linear(width, config.sense_dim) if width != config.sense_dim else None
        self.table = SenseTable(config)
        self._backbone_inputs = backbone_inputs(self.backbone)
        self._no_split_modules = sorted({"SenseTable", *(self.backbone._no_split_modules or ())})
        self.post_init()

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_senses: bool = False,
        output_contextual: bool = False,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> SenseModelOutput | tuple[torch.Tensor, ...]:
        """Runs the backbone and replaces its hidden states.

        Args:
            input_ids: int64 ``(batch, sequence)``; a sense is picked among those of its token, so they are needed.
            attention_mask: ``(batch, sequence)``, 1 at tokens; padding may be on either side.
            token_type_ids: ``(batch, sequence)``, passed on to backbones that number segments.
            inputs_embeds: given to the backbone instead of the embeddings of ``input_ids``.
            output_senses: also return what the choice was made from.
            output_contextual: replace nothing and return the contextual hidden states alone; training needs no more.
            output_hidden_states: also return the backbone's hidden states.
            output_attentions: also return the backbone's attentions.
            return_dict: ``False`` for a tuple.
            **kwargs: passed on to the backbone if it takes them.

        Raises:
            ValueError: if ``input_ids`` are missing.
        """
        if input_ids is None:
            raise ValueError("A sense model needs input_ids, also beside inputs_embeds: senses belong to token ids.")
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        contextual, output = run_backbone(
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
        if self.sense_projection is not None:
            contextual = self.sense_projection(contextual)
        if self.config.adds_token_mean:
            contextual = self.table.add_means(contextual, input_ids)
        if output_contextual:
            return SenseModelOutput(last_hidden_state=contextual, contextual_hidden_state=contextual)
        replaced, choice = self.table.replace(contextual, input_ids, attention_mask, self.config, output_senses)
        result = SenseModelOutput(
            last_hidden_state=replaced,
            contextual_hidden_state=contextual if output_senses else None,
            sense_ids=None if choice is None else choice.sense_ids,
            sense_scores=None if choice is None else choice.scores,
            code_ids=None if choice is None else choice.code_ids,
            hidden_states=output.get("hidden_states"),
            attentions=output.get("attentions"),
        )
        return result if return_dict is not False else result.to_tuple()

    def text_vectors(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        pooled: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """As that of every sense model; a context table that only answers pools before it makes states."""
        if input_ids.ndim != 2 or not can_pool_first(self):
            return super().text_vectors(input_ids, attention_mask, token_type_ids, pooled)
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        weights = self.pooling_weights(input_ids, attention_mask if pooled is None else pooled)
        return pooled_first(self, input_ids, attention_mask, weights)


class SenseClassifier(SensePreTrainedModel):
    """A sense model with a linear classifier, after one hidden layer if ``config.head_activation`` says so.

    Its subclasses say what is classified: texts or tokens. With ``selection="hard"`` the loss trains the classifier alone,
    since a table passes no gradient; to fine-tune the backbone choose ``"straight_through"`` or ``"soft"``, or distil it with
    ``SenseDistillationTrainer``.
    """

    classifies_texts = False

    def __init__(self, config: SenseConfig) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self._warned = False
        self.model = SenseModel(config)
        self.head_dense = nn.Linear(config.sense_dim, config.sense_dim) if config.head_activation else None
        self.head_activation = ACT2FN[config.head_activation] if config.head_activation else None
        self.head_dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.sense_dim, config.num_labels)
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
        num_items_in_batch: Any = None,
        output_contextual: bool = False,
        output_senses: bool = False,
    ) -> SenseClassifierOutput | SenseModelOutput | tuple[torch.Tensor, ...]:
        """Classifies texts, or their tokens. Inputs as for ``SenseModel``.

        Args:
            input_ids: int64 ``(batch, sequence)``.
            attention_mask: ``(batch, sequence)``.
            token_type_ids: ``(batch, sequence)``.
            inputs_embeds: ``(batch, sequence, width)``.
            labels: of texts, int64 ``(batch,)`` classes, or floating ``(batch, num_labels)``, as ``config.problem_type`` says;
                of tokens, int64 ``(batch, sequence)``, -100 where a token does not count.
            output_hidden_states: also return the backbone's hidden states.
            output_attentions: also return the backbone's attentions.
            return_dict: ``False`` for a tuple.
            num_items_in_batch: texts, or labelled tokens, over which the loss is a mean, if they are not those of ``labels``.
            output_contextual: classify nothing and return what ``SenseModel`` does with it.
            output_senses: also return what each sense was chosen from.
        """
        if output_contextual:
            return self.model(input_ids, attention_mask, token_type_ids, inputs_embeds, output_contextual=True)
        if labels is not None and self.training:
            self._warn_of_no_gradient()
        more = inputs_embeds is not None or output_senses or output_hidden_states or output_attentions
        if input_ids is not None and not more and self.classifies_texts and can_pool_first(self.model):
            output, vectors = SenseModelOutput(), self.model.text_vectors(input_ids, attention_mask)
        else:
            output = self.model(
                input_ids,
                attention_mask,
                token_type_ids,
                inputs_embeds,
                output_senses=output_senses,
                output_hidden_states=output_hidden_states,
                output_attentions=output_attentions,
            )
            vectors = self.to_classify(output.last_hidden_state, input_ids, attention_mask)
        logits = self.classify(vectors)
        loss = None
        if labels is not None:
            items = {} if num_items_in_batch is None else {"num_items_in_batch": num_items_in_batch}
            loss = self.loss_function(labels=labels, logits=logits, pooled_logits=logits, config=self.config, **items)
        result = SenseClassifierOutput(
            loss=loss,
            logits=logits,
            hidden_states=output.hidden_states,
            attentions=output.attentions,
            contextual_hidden_state=output.contextual_hidden_state,
            sense_ids=output.sense_ids,
            sense_scores=output.sense_scores,
            code_ids=output.code_ids,
        )
        return result if return_dict is not False else result.to_tuple()

    def to_classify(
        self, states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """What ``classify`` is given: the states ``(batch, sequence, sense_dim)`` themselves, or a vector of each text."""
        raise NotImplementedError

    def _warn_of_no_gradient(self) -> None:
        """Says once that a backbone which asks for gradients gets none."""
        hard = self.config.selection == "hard" and not self._warned
        if hard and any(weight.requires_grad for weight in self.model.backbone.parameters()):
            self._warned = True
            logger.warning(
                'With selection="hard" no gradient reaches the backbone: labels train the classifier alone. To fine-tune, '
                'load the model with selection="straight_through" (or "soft"), or freeze the backbone.'
            )

    def classify(self, vectors: torch.Tensor) -> torch.Tensor:
        """Logits ``(..., num_labels)`` of vectors ``(..., sense_dim)``."""
        if self.head_dense is not None and self.head_activation is not None:
            vectors = self.head_activation(self.head_dense(self.head_dropout(vectors)))
        return self.classifier(self.head_dropout(vectors))


class SenseModelForSequenceClassification(SenseClassifier):
    """A sense model that classifies texts: pooling, then the classifier of ``SenseClassifier``."""

    classifies_texts = True

    def to_classify(
        self, states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The pooled vectors, ``(batch, sense_dim)``."""
        return self.model.pool(states, input_ids, attention_mask)
