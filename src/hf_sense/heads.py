"""A classifier's last layer: fitted by regression on vectors that do not change, and its labels' names. It runs no model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from hf_sense.scores import Label, as_array, fit_regression, sklearn_module

if TYPE_CHECKING:
    from hf_sense.modeling_sense import SenseClassifier


def check_can_be_fitted(model: SenseClassifier) -> None:
    """Before long work: ``ValueError`` if a hidden layer stands before the classifier, ``ImportError`` without scikit-learn."""
    if getattr(model, "head_dense", None) is not None:
        raise ValueError(
            "A head can be fitted straight on the vectors alone, but this model has a hidden layer before its classifier "
            f"(head_activation={model.config.head_activation!r}). Train it with Trainer, or make the model without copy_head."
        )
    sklearn_module("linear_model")


def fit_classifier(
    model: SenseClassifier, vectors: torch.Tensor, names: Sequence[Label], ids: np.ndarray, C: float
) -> float:
    """Logistic regression of ``ids`` ``(n,)``, which number ``names``, on ``vectors`` ``(n, sense_dim)``, into the classifier.

    Returns:
        The accuracy on these vectors, from 0 to 1.
    """
    weight, bias = (torch.from_numpy(part) for part in fit_regression(as_array(vectors), ids, C))
    layer = model.classifier
    if layer.out_features != len(names):
        layer = nn.Linear(layer.in_features, len(names), device=layer.weight.device, dtype=layer.weight.dtype)
        model.classifier = layer
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.copy_(bias)
    model.config.id2label = {number: str(name) for number, name in enumerate(names)}
    model.config.label2id = {str(name): number for number, name in enumerate(names)}
    model.config.num_labels = model.num_labels = len(names)
    model.config.problem_type = "single_label_classification"
    return float(((vectors.double() @ weight.T + bias).argmax(1).numpy() == ids).mean())


def known_ids(model: SenseClassifier, labels: Sequence[Label]) -> np.ndarray:
    """The number of each label; raises ``ValueError`` if one is not the model's."""
    numbers: dict[str, int] = {str(name): int(number) for name, number in model.config.label2id.items()}
    ids = []
    for label in labels:
        number = numbers.get(str(label), label)
        if not isinstance(number, int) or not 0 <= number < model.num_labels:
            nameless = all(name.startswith("LABEL_") for name in numbers)
            remedy = (
                "The model has no label names: set config.label2id and id2label, or fit its head, which does."
                if nameless
                else "Was the model fitted on another data set?"
            )
            raise ValueError(
                f"{label!r} is not one of the model's {model.num_labels} labels ({', '.join(list(numbers)[:5])}"
                f"{', ...' if len(numbers) > 5 else ''}). {remedy}"
            )
        ids.append(number)
    return np.array(ids)
