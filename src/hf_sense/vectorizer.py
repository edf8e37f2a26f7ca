"""A sense model as a scikit-learn transformer: texts in, one vector a text out, for ``Pipeline`` and ``GridSearchCV``.

It trains nothing. Without scikit-learn, ``hf_sense.evaluation.embed`` does the same.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

try:
    from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
except ImportError as error:
    raise ImportError("SenseVectorizer needs scikit-learn: pip install hf-sense[eval]") from error


class SenseVectorizer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Vectors of texts from a saved sense model, or a student distilled from one.

    It has no state to fit: ``fit`` looks at parameters and texts and loads the model, and ``transform`` works without it. A
    pickle holds the parameters alone and loads the model from where it was, so that workers and copies are small.

    Args:
        model_name_or_path: folder or Hub id of a sense model with its tokenizer.
        pooling: how a text's vector is made; the model's own if not given. See ``hf_sense.pooling.pool``.
        selection: what replaces a hidden state; the model's own if not given. See ``SenseConfig``.
        max_length: tokens at which a text is cut; the most that the model takes if not given.
        batch_size: texts of like length in a batch.
        normalize: whether to scale each vector to unit length.
        device: such as ``"cuda:1"``; the first GPU if there is one, else the CPU, if not given.
        verbose: whether to show progress bars and to say how many texts were cut.

    Example:
        >>> from sklearn.linear_model import LogisticRegression  # doctest: +SKIP
        >>> from sklearn.pipeline import make_pipeline  # doctest: +SKIP
        >>> make_pipeline(SenseVectorizer("student"), LogisticRegression()).fit(texts, labels)  # doctest: +SKIP
    """

    def __init__(
        self,
        model_name_or_path: str | os.PathLike[str],
        *,
        pooling: str | None = None,
        selection: str | None = None,
        max_length: int | None = None,
        batch_size: int = 64,
        normalize: bool = False,
        device: str | torch.device | None = None,
        verbose: bool = False,
    ) -> None:
        self.model_name_or_path = model_name_or_path
        self.pooling = pooling
        self.selection = selection
        self.max_length = max_length
        self.batch_size = batch_size
        self.normalize = normalize
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None) -> SenseVectorizer:
        """Checks parameters and texts and loads the model.

        Raises:
            ValueError: if a parameter is not one that the model takes, or ``X`` is not a list or column of texts.
        """
        _texts(X)
        self._load()
        return self

    def transform(self, X: Any) -> np.ndarray:
        """The texts' vectors, float32 ``(texts, sense_dim)``.

        Args:
            X: strings: a list, an array or a pandas column. A blank text gets the vector of its special tokens.

        Raises:
            ValueError: as ``fit``.
        """
        from hf_sense.evaluation import embed

        texts = _texts(X)
        model, tokenizer = self._load()
        vectors = embed(
            model,
            tokenizer,
            texts,
            max_length=self.max_length,
            batch_size=self.batch_size,
            quiet=not self.verbose,
            disable_tqdm=None if self.verbose else True,
        )
        return (torch.nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors).numpy()

    def _load(self) -> tuple[Any, Any]:
        """The model with the chosen pooling and selection, and its tokenizer; kept until a parameter changes."""
        key = (str(self.model_name_or_path), self.pooling, self.selection, self.device)
        kept = getattr(self, "_loaded", None)
        if self.batch_size < 1:
            raise ValueError(f"batch_size should be at least 1, but is {self.batch_size}.")
        if kept is None or kept[0] != key:
            from transformers import AutoConfig, AutoTokenizer

            from hf_sense.modeling_sense import SenseModel

            config = AutoConfig.from_pretrained(self.model_name_or_path)
            if config.model_type != "sense":
                raise ValueError(
                    f"{self.model_name_or_path} is a {config.model_type} model, not a sense model; hf-sense distill makes one."
                )
            chosen = {"pooling": self.pooling, "selection": self.selection}
            # Through the configuration's own checks: a keyword of from_pretrained is not looked at.
            config = type(config)(**{**config.to_dict(), **{name: value for name, value in chosen.items() if value}})
            model = SenseModel.from_pretrained(self.model_name_or_path, config=config).eval()
            device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")
            kept = self._loaded = (key, model.to(device), AutoTokenizer.from_pretrained(self.model_name_or_path))
        limit = min(kept[2].model_max_length, getattr(kept[1].config.get_text_config(), "max_position_embeddings", 512))
        special = kept[2].num_special_tokens_to_add()
        if self.max_length is not None and not special < self.max_length <= limit:
            raise ValueError(
                f"max_length should be more than the {special} special tokens and at most the {limit} that the model takes, but "
                f"is {self.max_length}."
            )
        return kept[1], kept[2]

    @property
    def _n_features_out(self) -> int:
        return int(self._load()[0].config.sense_dim)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_loaded", None)
        return state

    def __sklearn_is_fitted__(self) -> bool:
        """There is nothing to fit."""
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.string = True
        tags.input_tags.two_d_array = False
        return tags


def _texts(data: Any) -> list[str]:
    """The texts of ``data`` as a list; raises ``ValueError`` that guesses the slip."""
    if data is None or isinstance(data, (str, bytes)):
        came = "None" if data is None else f"one {type(data).__name__} ({data[:40]!r}); pass a list, [text]"
        raise ValueError(f"Expected a list, an array or a column of texts, but got {came}.")
    shape = getattr(data, "shape", None)
    if shape is not None and len(shape) != 1:
        raise ValueError(
            f"Expected one text a row, but got a {type(data).__name__} of shape {tuple(shape)}. Choose the column of the texts: "
            "frame['text'], and in a ColumnTransformer the name itself, not a list with it."
        )
    if isinstance(data, dict) or not hasattr(data, "__iter__"):
        raise ValueError(f"Expected a list, an array or a column of texts, but got a {type(data).__name__}.")
    texts = list(data)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"Text {number} should be a string, but is {text!r:.80} ({type(text).__name__}).")
    if not texts:
        raise ValueError("Expected texts, but got none.")
    return [str(text) for text in texts]
