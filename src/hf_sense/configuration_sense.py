"""The configuration of a sense model: a backbone's, and how its hidden states pick senses. It holds no tensors."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

from transformers import AutoConfig, PretrainedConfig

from hf_sense.files import write_text
from hf_sense.pooling import check_pooling
from hf_sense.ragged import check_metric

Selection = Literal["hard", "straight_through", "soft", "none"]
SELECTIONS: tuple[str, ...] = get_args(Selection)

# With trust_remote_code=True Transformers reads this file out of a model's folder. It hands over the installed package's
# classes, so that no code travels with a model.
_STUB_NAME = "modeling_hf_sense"
STUB_FILE = f"{_STUB_NAME}.py"
_STUB = "Loads the classes of the installed package: pip install hf-sense. The model's own code is there, not here."


class SenseConfig(PretrainedConfig):
    """Configures ``SenseModel`` and the models with a classifier of texts or tokens.

    Args:
        backbone_config: the backbone's configuration, or its dict.
        sense_dim: width of a sense; the backbone's if not given. If they differ, a linear projection stands between.
        num_senses: rows of the dictionary.
        vocab_size: token ids; at least the backbone's.
        metric: how a hidden state scores a sense: ``"l2"``, ``"cosine"`` or ``"dot"``.
        selection: what replaces a hidden state: ``"hard"`` the best sense, ``"straight_through"`` the best sense with the
            gradient of the hidden state, ``"soft"`` the mean of the token's senses under its scores, ``"none"`` nothing.
        selection_temperature: divides the scores in ``"soft"``.
        pooling: how a text's vector is made: see ``hf_sense.pooling.pool``.
        frequency_smoothing: ``a`` in the weight ``a / (a + p(token))`` of ``"frequency"`` pooling.
        sense_dictionary: where the dictionary lies, if it is not among the model's own weights: a single name is a folder
            beside the weights, saved and pushed with them; else a path, or an id on the Hub.
        sense_dictionary_revision: its revision on the Hub; a commit, once the model has been pushed.
        dictionary_fingerprint: of the dictionary that the model was made with.
        tokenizer_fingerprint: of the tokenizer whose ids the dictionary knows.
        dictionary_metadata: how the dictionary was built.
        head_activation: the activation of the classifier's hidden layer; ``None`` if it has no such layer.
        classifier_dropout: probability of dropout before the classifier.
        sense_dtype: ``"int8"`` keeps the senses among the weights as int8 with a float32 scale each, whatever the model's
            dtype; ``None`` keeps them in that dtype.
        learned_senses: make the senses parameters, which start from the dictionary's and are trained with the model. They lie
            among the weights, as floats; ``False`` loads them fixed.
        adds_token_mean: add the mean of the token's senses, each as often as it occurs, to the projected state: the backbone
            then says how a token differs from its mean. A token without senses has zeros for a state.
        code_levels: levels of the codes that all tokens share; 0 for a dictionary without them.
        num_codes: codes of a level.
        max_distance: for texts of another kind than the dictionary's: with ``"hard"`` and ``"straight_through"`` a state stays as
            it is where its squared distance to the best sense is over so many times what is to be expected in the
            dictionary's own texts (``hf_sense.spread``), and has no sense id then. ``None`` replaces however far it is.

    Raises:
        ValueError: if ``metric``, ``selection``, ``pooling`` or ``sense_dtype`` is unknown, ``sense_dtype`` is given for a
            dictionary outside, which keeps its own, learned senses are int8, outside, or beside codes, or ``max_distance`` is
            not above 0, or beside another selection or codes.
    """

    model_type = "sense"
    auto_classes: ClassVar[dict[str, str]] = {
        "AutoConfig": "SenseConfig",
        "AutoModel": "SenseModel",
        "AutoModelForSequenceClassification": "SenseModelForSequenceClassification",
        "AutoModelForTokenClassification": "SenseModelForTokenClassification",
    }
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 (the form that transformers reads)
    attribute_map = {"hidden_size": "sense_dim"}  # noqa: RUF012

    def __init__(
        self,
        backbone_config: PretrainedConfig | dict[str, Any] | None = None,
        sense_dim: int | None = None,
        num_senses: int = 0,
        vocab_size: int | None = None,
        metric: str = "l2",
        selection: str = "hard",
        selection_temperature: float = 1.0,
        pooling: str = "mean",
        frequency_smoothing: float = 1e-3,
        sense_dictionary: str | None = None,
        sense_dictionary_revision: str | None = None,
        dictionary_fingerprint: str | None = None,
        tokenizer_fingerprint: str | None = None,
        dictionary_metadata: dict[str, Any] | None = None,
        head_activation: str | None = None,
        classifier_dropout: float = 0.0,
        sense_dtype: str | None = None,
        adds_token_mean: bool = False,
        code_levels: int = 0,
        num_codes: int = 0,
        learned_senses: bool = False,
        max_distance: float | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(backbone_config, dict):
            backbone_config = AutoConfig.for_model(**backbone_config)
        if selection not in SELECTIONS:
            raise ValueError(f"selection must be one of {', '.join(SELECTIONS)}, but is {selection!r}.")
        if not selection_temperature > 0:
            raise ValueError(f"selection_temperature should be above 0, but is {selection_temperature}.")
        if not frequency_smoothing > 0:
            raise ValueError(f"frequency_smoothing should be above 0, but is {frequency_smoothing}.")
        if sense_dtype not in (None, "int8"):
            raise ValueError(f'sense_dtype should be "int8" or None, but is {sense_dtype!r}.')
        if sense_dtype is not None and sense_dictionary is not None:
            raise ValueError(
                "sense_dtype is for senses among the weights; a dictionary outside keeps its own. Leave one of them out: "
                "SenseDictionary.to(torch.int8) makes a dictionary int8."
            )
        if learned_senses and (sense_dtype is not None or sense_dictionary is not None):
            where = f"sense_dtype={sense_dtype!r}" if sense_dtype else f"sense_dictionary={sense_dictionary!r}"
            raise ValueError(
                f"Learned senses are floats among the model's weights, which does not go with {where}. Leave it out to train "
                "them; afterwards to_dictionary().to(torch.int8) makes them small, and a student of it can keep them outside."
            )
        if learned_senses and code_levels:
            raise ValueError(
                "Codes are fitted to what the dictionary's senses leave, and would not fit senses that move. Leave "
                "learned_senses out, or build a dictionary without codes."
            )
        if max_distance is not None and not max_distance > 0:
            raise ValueError(f"max_distance should be above 0, or None, but is {max_distance}.")
        if max_distance is not None and selection not in ("hard", "straight_through"):
            raise ValueError(
                f'max_distance is for the selections "hard" and "straight_through", which put one sense in a place; '
                f"with {selection!r} leave it out."
            )
        if max_distance is not None and code_levels:
            raise ValueError(
                "max_distance is for dictionaries without shared codes, which bring senses nearer. Leave it out."
            )
        body: Any = backbone_config
        text = body.get_text_config() if body is not None else None
        self.backbone_config: PretrainedConfig | None = body
        self.sense_dim = sense_dim if sense_dim is not None else getattr(text, "hidden_size", None)
        self.num_senses = num_senses
        self.vocab_size = vocab_size if vocab_size is not None else getattr(text, "vocab_size", None)
        self.metric = check_metric(metric)
        self.selection = selection
        self.selection_temperature = selection_temperature
        self.pooling = check_pooling(pooling)
        self.frequency_smoothing = frequency_smoothing
        self.sense_dtype = sense_dtype
        self.sense_dictionary = sense_dictionary
        self.sense_dictionary_revision = sense_dictionary_revision
        self.dictionary_fingerprint = dictionary_fingerprint
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.dictionary_metadata = dictionary_metadata or {}
        self.head_activation = head_activation
        self.classifier_dropout = classifier_dropout
        self.adds_token_mean = adds_token_mean
        self.code_levels = code_levels
        self.num_codes = num_codes
        self.learned_senses = learned_senses
        self.max_distance = max_distance
        super().__init__(**kwargs)

    def get_text_config(self, *args: Any, **kwargs: Any) -> PretrainedConfig:
        """The backbone's text configuration: it owns the embeddings that ``resize_token_embeddings`` resizes."""
        if self.backbone_config is None:
            return self
        return self.backbone_config.get_text_config(*args, **kwargs)

    @property
    def dictionary_is_beside(self) -> bool:
        """Whether the dictionary is a folder beside the model's weights."""
        where = self.sense_dictionary
        return bool(where) and Path(str(where)).name == where and where not in (".", "..")

    def save_pretrained(self, save_directory: str | os.PathLike[str], *args: Any, **kwargs: Any) -> None:
        """As every configuration; the file through which ``trust_remote_code=True`` finds the classes is written beside it."""
        # Loaded through that file from the Hub, the map names the repository that it came from.
        self.auto_map = {auto: f"{_STUB_NAME}.{name}" for auto, name in self.auto_classes.items()}
        super().save_pretrained(save_directory, *args, **kwargs)
        names = list(self.auto_classes.values())
        stub = f'"""{_STUB}"""\n\nfrom hf_sense import {", ".join(names)}\n\n__all__ = {names}\n'
        write_text(Path(save_directory) / STUB_FILE, stub)

    @classmethod
    def register_for_auto_class(cls, auto_class: str = "AutoConfig") -> None:
        """Does nothing: it would make every later save copy this package's source files into the model's folder."""
