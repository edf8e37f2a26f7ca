"""Folds a sense model for inference: what the choice and the classifier need of each sense is computed once.

It runs no texts; the models that it makes stand in ``hf_sense.folded``.

With a projection ``c = P h + b`` (``P`` is ``(sense_dim, width)``) a sense's score is ``s . c = (P^T s) . h + s . b``: a key
``P^T s`` in the backbone's width and a number. With a linear head ``V`` the pooled vector's logits are ``V`` of a weighted sum of
senses, that is the same weighted sum of ``V s``: ``num_labels`` numbers a sense. A token's mean that is added to ``c`` is the
same for all of the token's senses, and goes into that number. Codes are folded in ``hf_sense.folded_codes``.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator

import torch
from torch import nn

from hf_sense.folded import (
    FoldedPreTrainedModel,
    FoldedSenseConfig,
    FoldedSenseModel,
    FoldedSenseModelForSequenceClassification,
    FoldedTable,
)
from hf_sense.modeling_sense import SenseClassifier, SensePreTrainedModel
from hf_sense.quantization import dequantize
from hf_sense.ragged import half_squared_norms
from hf_sense.sense_table import SenseTable
from hf_sense.token_classification import FoldedSenseModelForTokenClassification, SenseModelForTokenClassification

logger = logging.getLogger(__name__)

# Senses folded at once, in float64.
_ROWS_AT_ONCE = 4096
# What the configuration of a folded model says by itself.
_OWN_FIELDS = (
    "model_type",
    "architectures",
    "auto_map",
    "transformers_version",
    "backbone_config",
    "sense_dim",
    "dtype",
)


@torch.no_grad()
def fold(model: SensePreTrainedModel) -> FoldedPreTrainedModel:
    """A model for inference that answers as ``model`` does in evaluation mode. Users call it as ``model.fold()``.

    Choices are the same but for scores that a projection's rounding cannot tell apart; logits agree within that rounding.
    The log says what the senses took before and take afterwards.

    Args:
        model: float32. A ``SenseModel`` needs a projection: its senses keep their width, and keys come beside them. A
            classifier needs no ``head_activation``: its senses become ``num_labels`` numbers each. Senses that are int8 or lie
            outside become float32 among the weights.

    Returns:
        A ``FoldedSenseModel``, or a ``FoldedSenseModelForSequenceClassification`` or ``FoldedSenseModelForTokenClassification``,
        in evaluation mode, with a copy of the backbone. It cannot be trained.

    Raises:
        ValueError: if it would not give the same answers, or need no less; the message says what to do.
    """
    inner, table = model.base_model, model.sense_table
    classifier = model.classifier if isinstance(model, SenseClassifier) else None
    projection = inner.sense_projection
    _check(model, classifier, projection)
    before = _bytes_of(table) + sum(
        weight.nbytes for layer in (projection, classifier) if layer is not None for weight in layer.parameters()
    )
    lengths = table.offsets.diff()
    key_lengths = torch.where(lengths > 1, lengths, 0)
    backbone = copy.deepcopy(inner.backbone)
    config = FoldedSenseConfig(
        **{name: value for name, value in model.config.to_dict().items() if name not in _OWN_FIELDS},
        backbone_config=backbone.config,
        sense_dim=model.config.sense_dim if classifier is None else classifier.out_features,
        num_keys=int(key_lengths.sum()),
        key_metric="cosine" if model.config.metric == "cosine" and projection is None else "l2",
        # A token's mean that was added to its state takes its only sense away from what codes see.
        codes_see_senses=not (model.config.adds_token_mean and int(lengths.max()) <= 1),
    )
    config.sense_dictionary = config.sense_dictionary_revision = config.sense_dtype = None
    config.adds_token_mean = False
    config._attn_implementation = model.config._attn_implementation
    config.check_selection()
    with torch.device("meta"):
        folded = _class_for(model)(config)
    if set(folded.base_model.backbone.state_dict()) != set(backbone.state_dict()):
        raise ValueError(
            "The backbone holds other weights than its configuration says, as those of adapters: it would not be loaded "
            "again. Merge adapters first, with merge_and_unload()."
        )
    new = folded.base_model.table.to(model.dtype)
    after = new.nbytes + (0 if classifier is None else config.num_labels * model.dtype.itemsize)
    said = f"Folded, senses, projection and classifier take {after / 1e6:.1f} MB instead of {before / 1e6:.1f}."
    if projection is None and after >= before:
        raise ValueError(f"{said} There is no projection to save either: use the model as it is.")
    folded.base_model.backbone = backbone
    _fill(new.to_empty(device=model.device), table, key_lengths, projection, classifier, model.config.adds_token_mean)
    if classifier is not None:
        folded.bias = nn.Parameter(_bias_of(classifier))
    logger.info(said)
    return folded.requires_grad_(False).eval()


def _class_for(model: SensePreTrainedModel) -> type[FoldedPreTrainedModel]:
    if isinstance(model, SenseModelForTokenClassification):
        return FoldedSenseModelForTokenClassification
    return FoldedSenseModelForSequenceClassification if isinstance(model, SenseClassifier) else FoldedSenseModel


def _check(model: SensePreTrainedModel, classifier: nn.Linear | None, projection: nn.Linear | None) -> None:
    if model.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"The model is in {model.dtype}, in which folded scores would be rounded anew and choose otherwise. Load it with "
            "dtype=torch.float32, or call model.float()."
        )
    if classifier is None and projection is None:
        raise ValueError(
            "There is nothing to fold: the model has neither a projection nor a classifier, so that it needs every sense as "
            "it is."
        )
    if classifier is not None and model.config.head_activation:
        raise ValueError(
            f"The classifier has a hidden layer (head_activation={model.config.head_activation!r}), which needs the pooled "
            "senses themselves. Fold the sense model inside instead: model.model.fold(), if it has a projection."
        )
    if model.config.adds_token_mean and projection is None:
        raise ValueError(
            "The model adds its tokens' means to states of the senses' own width, which folded keys do not know. Use the model "
            "as it is, or a smaller hidden_size."
        )
    if model.config.max_distance is not None:
        raise ValueError(
            f"The model leaves states in place that are far from their senses (max_distance={model.config.max_distance}), which "
            "a folded one cannot. Load it with max_distance=None."
        )
    if any(type(layer) not in (nn.Linear, type(None)) for layer in (classifier, projection)):
        raise ValueError("The classifier or the projection is not a plain linear layer. Merge adapters first.")


def _bytes_of(table: SenseTable) -> int:
    """The bytes of a table, wherever its senses lie."""
    inside, outside = sum(tensor.nbytes for tensor in table.buffers()), table.outside
    if outside is None:
        return inside
    beside = sum(part.nbytes for part in (outside.scales, outside.codes) if part is not None)
    return inside + outside.num_senses * outside.dim * outside.dtype.itemsize + beside


def _rows(table: SenseTable) -> Iterator[tuple[slice, torch.Tensor]]:
    """Every sense as the choice sees it, float32 or float64, some thousands at a time."""
    count = len(table.counts)
    for begin in range(0, count, _ROWS_AT_ONCE):
        rows = slice(begin, min(begin + _ROWS_AT_ONCE, count))
        if table.outside is not None:
            yield rows, table.outside.rows(torch.arange(rows.start, rows.stop)).to(table.offsets.device).float()
        elif table.scales is not None:
            yield rows, dequantize(table.senses[rows], table.scales[rows])
        else:
            yield rows, table.senses[rows]


def _fill(
    folded: FoldedTable,
    table: SenseTable,
    key_lengths: torch.Tensor,
    projection: nn.Linear | None,
    classifier: nn.Linear | None,
    adds_token_mean: bool,
) -> None:
    """Writes the folded tensors, sums in float64."""
    folded.offsets.copy_(table.offsets)
    folded.key_offsets.copy_(nn.functional.pad(key_lengths.cumsum(0), (1, 0)))
    folded.token_shares.copy_(table.probabilities())
    codes = table.residual_codes
    if codes is not None and folded.codes is not None:
        folded.codes.fill(codes, projection, classifier)
    owners = torch.repeat_interleave(table.offsets.diff())
    has_key = (key_lengths > 0)[owners]
    key = 0
    for rows, senses in _rows(table):
        chosen = senses[has_key[rows]]
        keys = slice(key, key + len(chosen))
        key += len(chosen)
        # Without a projection keys and norms are the very numbers that the model itself chooses by.
        halves = half_squared_norms(chosen)
        if projection is None:
            folded.keys[keys] = chosen
            folded.shifts[keys] = 0.0 if table.metric == "dot" else halves
        else:
            wide = chosen.double()
            if table.metric == "cosine":
                wide = wide / (2 * halves.double()).clamp_min(1e-24).sqrt()[:, None]
            folded.keys[keys] = (wide @ projection.weight.double()).to(folded.keys.dtype)
            own = halves.double() if table.metric == "l2" else 0.0
            shifts = own - wide @ projection.bias.double()
            if adds_token_mean:
                tokens, which = owners[rows][has_key[rows]].unique(return_inverse=True)
                shifts = shifts - (wide * table.token_means(tokens).double()[which]).sum(1)
            folded.shifts[keys] = shifts.to(folded.shifts.dtype)
        if codes is not None and folded.codes is not None and len(folded.codes.with_senses):
            seen = senses.double()
            if adds_token_mean:
                tokens, which = owners[rows].unique(return_inverse=True)
                seen = seen - table.token_means(tokens).double()[which]
            folded.codes.with_senses[rows] = (seen @ codes.vectors.double().flatten(0, 1).t()).to(folded.values.dtype)
        values = senses if classifier is None else senses.double() @ classifier.weight.double().T
        folded.values[rows] = values.to(folded.values.dtype)
    weight, bias = None, None
    if adds_token_mean:  # then a token without senses has zeros for a state
        folded.fallback.weight.zero_()
        folded.fallback.bias.zero_()
        return
    if projection is not None:
        weight, bias = projection.weight.double(), projection.bias.double()
    if classifier is not None:
        head = classifier.weight.double()
        weight, bias = (head, torch.zeros_like(head[:, 0])) if weight is None else (head @ weight, head @ bias)
    folded.fallback.weight.copy_(weight)
    folded.fallback.bias.copy_(bias)


def _bias_of(layer: nn.Linear) -> torch.Tensor:
    return torch.zeros_like(layer.weight[:, 0]) if layer.bias is None else layer.bias.clone()
