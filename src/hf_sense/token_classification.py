"""Sense models that classify each token: parts of speech, names, the meaning of a word. Texts are classified elsewhere.

``hf_sense.modeling_sense`` and ``hf_sense.folded`` have what these share with the classifiers of texts; a head is fitted on
frozen states in ``hf_sense.token_evaluation``.
"""

from __future__ import annotations

import torch

from hf_sense.folded import FoldedClassifier
from hf_sense.modeling_sense import SenseClassifier


class SenseModelForTokenClassification(SenseClassifier):
    """A sense model that classifies tokens: the classifier of ``SenseClassifier`` on each token's state.

    With ``selection="hard"`` a token's logits depend on its sense alone: they are a table, into which ``fold`` makes them.

    Example:
        >>> model = SenseModelForTokenClassification.from_pretrained("org/sense-tagger")  # doctest: +SKIP
        >>> model(**tokenizer("a text", return_tensors="pt")).logits  # (1, tokens, num_labels)  # doctest: +SKIP
    """

    # Trainer hands over how many labels the whole step has: texts have unlike numbers of them.
    accepts_loss_kwargs = True

    def to_classify(
        self, states: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The states, ``(batch, sequence, sense_dim)``."""
        return states


class FoldedSenseModelForTokenClassification(FoldedClassifier):
    """A folded model that classifies tokens; ``fold`` of a ``SenseModelForTokenClassification`` makes it."""

    def to_classify(
        self, values: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The values, ``(batch, sequence, num_labels)``."""
        return values
