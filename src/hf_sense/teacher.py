"""Loads a teacher and gives its contextual embeddings: token ids in, last hidden states out.

A teacher must see both ways; that is probed, not assumed. Decoders are refused for now.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import torch
from accelerate import PartialState
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES

from hf_sense.padding import RightAligned

_NO_LIMIT = 10**6
_DEFAULT_LENGTH = 512


class Teacher:
    """A loaded encoder with its tokenizer. Made by ``load_teacher``.

    Attributes:
        model: the backbone, in evaluation mode.
        head_model: the model with its classification head that was passed in, or ``None``.
        tokenizer: the backbone's tokenizer.
        name: what it was loaded from.
        revision: the revision it was loaded from, if known.
        dim: width of its hidden states.
        max_length: the most tokens a text may have.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, revision: str | None = None
    ) -> None:
        backbone = model.base_model
        self.head_model = model if backbone is not model else None
        self.model: PreTrainedModel = backbone.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        config = self.model.config
        self.dim = int(config.get_text_config().hidden_size)
        self.max_length = _length_limit(tokenizer, config)
        self.attention = "bidirectional"
        self._fingerprint: str | None = None

    @property
    def device(self) -> torch.device:
        """Where its inputs go."""
        return self.model.device

    @torch.no_grad()
    def hidden_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The last hidden states, after the final norm.

        Args:
            input_ids: int64 ``(batch, sequence)``, padded on either side.
            attention_mask: ``(batch, sequence)``, 1 at tokens.
            token_type_ids: ``(batch, sequence)``, for models that number segments.

        Returns:
            ``(batch, sequence, dim)`` in the model's dtype, on its device. Rows under padding mean nothing.
        """
        aligned = RightAligned(attention_mask)
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None and "token_type_ids" in self.tokenizer.model_input_names:
            inputs["token_type_ids"] = token_type_ids
        inputs = {name: aligned.move(tensor).to(self.device) for name, tensor in inputs.items()}
        return aligned.restore(self.model(**inputs).last_hidden_state)

    def description(self) -> dict[str, Any]:
        """What a dictionary's metadata and a student's config say of it."""
        return {
            "name": self.name,
            "revision": self.revision,
            "model_type": self.model.config.model_type,
            "attention": self.attention,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "max_length": self.max_length,
        }

    @property
    def fingerprint(self) -> str:
        """The sha256 over every weight's name and bytes, with the model type: stored targets name their teacher by it."""
        if self._fingerprint is None:
            digest = hashlib.sha256(self.model.config.model_type.encode())
            for name, tensor in sorted(self.model.state_dict().items()):
                digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def __repr__(self) -> str:
        return f"Teacher({self.name!r}, model_type={self.model.config.model_type!r}, dim={self.dim})"


def load_teacher(
    name_or_model: str | os.PathLike[str] | PreTrainedModel | Teacher,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Teacher:
    """Loads an encoder as a teacher.

    Args:
        name_or_model: a folder or Hub id for ``AutoModel``, a loaded model (with or without a classification head), or a
            teacher, which is returned as it is.
        tokenizer: the model's tokenizer; loaded from the same name if not given.
        dtype: of the weights; the checkpoint's if not given.
        device_map: as in ``AutoModel.from_pretrained``; without it, the device that ``accelerate`` gives this process.
        attn_implementation: ``"sdpa"``, ``"eager"``, ``"flash_attention_2"``, ...
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code that the checkpoint brings.

    Raises:
        ValueError: if the model is a decoder, needs decoder inputs, or does not see both ways.

    Example:
        >>> load_teacher("org/encoder")  # doctest: +SKIP
        Teacher('org/encoder', model_type='bert', dim=384)
    """
    if isinstance(name_or_model, Teacher):
        return name_or_model
    if isinstance(name_or_model, (str, os.PathLike)):
        name = os.fspath(name_or_model)
        shared = {"revision": revision, "trust_remote_code": trust_remote_code}
        device_map = PartialState().device if device_map is None else device_map
        options = {"dtype": dtype, "device_map": device_map, "attn_implementation": attn_implementation}
        _refuse_decoder(AutoConfig.from_pretrained(name, **shared))
        model = AutoModel.from_pretrained(name, **shared, **{k: v for k, v in options.items() if v is not None})
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(name, **shared)
    elif isinstance(name_or_model, PreTrainedModel):
        model, name = name_or_model, name_or_model.config._name_or_path or type(name_or_model).__name__
        _refuse_decoder(model.config)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(name)
    else:
        raise ValueError(
            f"A teacher is a name for AutoModel, a transformers model or a loaded teacher, but a "
            f"{type(name_or_model).__name__} came."
        )
    teacher = Teacher(model, tokenizer, name, revision or getattr(model.config, "_commit_hash", None))
    if not sees_both_ways(teacher):
        raise ValueError(
            f"{name} ({model.config.model_type}) does not see both ways: its first hidden state does not depend on the "
            "last token. Decoders come with a later release; give an encoder."
        )
    return teacher


@torch.no_grad()
def sees_both_ways(teacher: Teacher) -> bool:
    """Whether the hidden state of the first token changes with the last token."""
    vocab_size = int(teacher.model.config.get_text_config().vocab_size)
    ids = torch.arange(8).unsqueeze(0) % vocab_size
    other = ids.clone()
    other[0, -1] = (other[0, -1] + 1) % vocab_size
    mask = torch.ones_like(ids)
    first = teacher.hidden_states(ids, mask)[0, 0], teacher.hidden_states(other, mask)[0, 0]
    return not torch.equal(*first)


def _refuse_decoder(config: Any) -> None:
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{kind} is an encoder-decoder, and a teacher has one stack. Pass its encoder as a loaded model, for example "
            "T5EncoderModel.from_pretrained(name)."
        )
    causal = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if causal or getattr(config, "is_decoder", False):
        raise ValueError(
            f"{kind} is a decoder: its hidden states see only what came before. Decoders come with a later release; give "
            "an encoder, such as a BERT, RoBERTa or DeBERTa model."
        )


def _length_limit(tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    if tokenizer.model_max_length < _NO_LIMIT:
        return int(tokenizer.model_max_length)
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or _DEFAULT_LENGTH)
