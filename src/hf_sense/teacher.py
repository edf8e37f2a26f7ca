"""Loads a teacher and gives its contextual embeddings: token ids in, last hidden states out.

Whether it sees both ways is set and proved in ``hf_sense.attention``; the conventions of LLM2Vec's checkpoints stand in
``hf_sense.llm2vec``.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
from collections.abc import Iterable, Sequence
from typing import Any, get_args

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_sense.adapters import (
    ADAPTER_FILE,
    adapter_source,
    base_of,
    commit_of,
    merge_adapter,
    settings_of,
)
from hf_sense.attention import prove_bidirectional as prove_bidirectional
from hf_sense.attention import set_attention
from hf_sense.corpus import encode_corpus
from hf_sense.decoders import Attention, is_decoder
from hf_sense.folders import MODEL_TYPES, check_model_name
from hf_sense.llm2vec import TextForm, find_file, last_tokens, read_json, text_lengths
from hf_sense.padding import RightAligned
from hf_sense.pooling import check_pooling, pool
from hf_sense.ranks import processes

_NO_LIMIT = 10**6
_DEFAULT_LENGTH = 512


class Teacher:
    """A loaded encoder or decoder with its tokenizer. Made by ``load_teacher``.

    Attributes:
        model: the backbone, in evaluation mode.
        head_model: the model with its classification head that was passed in, or ``None``.
        tokenizer: the backbone's tokenizer.
        name: what it was loaded from.
        revision: the revision it was loaded from, if known.
        attention: ``"bidirectional"`` or ``"causal"``.
        adapters: name and revision of each adapter that was merged, in order.
        form: how its texts are put: instruction, chat wrapper, LLM2Vec's settings.
        pooling: how ``encode`` makes a text's vector.
        dim: width of its hidden states.
        max_length: the most tokens a text may have.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        revision: str | None = None,
        *,
        attention: str = "bidirectional",
        adapters: Sequence[dict[str, str | None]] = (),
        form: TextForm | None = None,
        pooling: str | None = None,
    ) -> None:
        backbone = model.base_model
        self.head_model = model if backbone is not model else None
        self.model: PreTrainedModel = backbone.eval()
        self.tokenizer = tokenizer
        self.name = name
        self.revision = revision
        self.attention = attention
        self.adapters = list(adapters)
        self.form = form or TextForm(name)
        settings = self.form.settings
        self.pooling = check_pooling(pooling or (settings.pooling if settings else "mean"))
        config = self.model.config
        self.dim = int(config.get_text_config().hidden_size)
        self.max_length = _length_limit(tokenizer, config)
        if settings is not None:
            self.max_length = min(self.max_length, settings.max_length)
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

    @torch.no_grad()
    def encode(
        self,
        texts: Iterable[str] | Iterable[Sequence[str]],
        *,
        batch_size: int = 32,
        disable_tqdm: bool | None = None,
    ) -> torch.Tensor:
        """One vector a text, as LLM2Vec's ``encode`` gives it: ``pooling`` over the text, without its instruction.

        Args:
            texts: strings, or pairs of an instruction and a text. ``form.instruction`` stands before a string alone.
            batch_size: texts of like length the model reads at once.
            disable_tqdm: no progress bar.

        Returns:
            float32 ``(texts, dim)`` on the CPU.

        Raises:
            ValueError: if there are no texts, or an instruction leaves no room for a text.
        """
        rows = [(self.form.instruction, row) if isinstance(row, str) else (row[0], row[1]) for row in texts]
        if not rows:
            raise ValueError("There are no texts to encode.")
        pairs = [self.form.prepared(text, self.tokenizer, instruction) for instruction, text in rows]
        for before in {before for before, _ in pairs if before}:
            length = len(self.tokenizer(before, truncation=False)["input_ids"])
            if length >= self.max_length:
                raise ValueError(
                    f"The instruction has {length} tokens and the teacher takes {self.max_length}: no room for a text. "
                    "Give a shorter instruction."
                )
        vectors = torch.zeros(len(rows), self.dim)
        joined = ["".join(pair) for pair in pairs]
        corpus = encode_corpus(joined, self.tokenizer, self.max_length, quiet=True, disable_tqdm=True)
        counts = np.array(text_lengths([text for _, text in pairs], self.tokenizer, self.max_length))
        for chosen in tqdm(corpus.batches(batch_size), desc="Encoding", unit=" batches", disable=disable_tqdm):
            batch = corpus.padded(chosen, self.tokenizer.pad_token_id or 0)
            hidden = self.hidden_states(batch["input_ids"], batch["attention_mask"])
            mask = batch["attention_mask"]
            mask = last_tokens(mask, counts[chosen].tolist()) if self.form.skips_instruction else mask
            pooled = pool(hidden, mask.to(hidden.device), self.pooling)
            vectors[torch.from_numpy(chosen)] = pooled.float().cpu()
        return vectors

    def description(self) -> dict[str, Any]:
        """What a dictionary's metadata and a student's config say of it."""
        found = {
            "name": self.name,
            "revision": self.revision,
            "model_type": self.model.config.model_type,
            "attention": self.attention,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "max_length": self.max_length,
        }
        if is_decoder(self.model.config) or not self.form.plain:
            found |= {
                "attn_implementation": self.model.config._attn_implementation,
                "adapters": self.adapters,
                "pooling": self.pooling,
                "instruction": self.form.instruction,
                "chat": self.form.chat,
                "llm2vec": dataclasses.asdict(self.form.settings) if self.form.settings else None,
            }
        return found

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
    adapters: str | Sequence[str] = (),
    attention: Attention = "auto",
    pooling: str | None = None,
    instruction: str | None = None,
    chat: bool = False,
    dtype: torch.dtype | str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> Teacher:
    """Loads an encoder, or a decoder the LLM2Vec way, as a teacher.

    A decoder that is to be bidirectional is probed, in the dtype and with the attention backend in use, with and without
    padding. The adapters are merged into the weights in order. A folder or repo that holds an adapter alone (LLM2Vec
    publishes its checkpoints so) is loaded as that adapter on the base that it names.

    Args:
        name_or_model: a folder or Hub id for ``AutoModel``, a loaded model (with or without a classification head, or
            wrapped by PEFT, of which a merged copy is made), or a teacher, which is returned as it is.
        tokenizer: the model's tokenizer; loaded from the same name if not given. One without a pad token pads with its end
            token, as LLM2Vec does.
        adapters: folders or Hub ids of PEFT adapters, merged in order; ``"id@revision"`` pins one.
        attention: ``"bidirectional"`` or ``"causal"`` for a decoder; ``"auto"`` takes bidirectional if its configuration or
            an adapter says so (``is_causal`` false, or ``llm2vec_config.json``), else causal, and logs which.
        pooling: how ``Teacher.encode`` makes a text's vector; what ``llm2vec_config.json`` says, or ``"mean"``.
        instruction: stands before each text.
        chat: wrap texts as a user's messages by the tokenizer's chat template. Bases that LLM2Vec wraps are wrapped anyway.
        dtype: of the weights; the checkpoint's if not given.
        device_map: as in ``AutoModel.from_pretrained``; without it, the device that ``accelerate`` gives this process.
        attn_implementation: ``"sdpa"``, ``"eager"``, ``"flash_attention_2"``, ...
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code that the checkpoint brings.

    Raises:
        ValueError: if the model does not see both ways and should, an adapter belongs to another base, or the model needs
            decoder inputs, or it is a sense model or a dictionary.
        FileNotFoundError: if there is no such folder, and it is no id on the Hub.

    Example:
        >>> load_teacher("org/encoder")  # doctest: +SKIP
        Teacher('org/encoder', model_type='bert', dim=384)
        >>> load_teacher("org/llama", adapters=["org/llama-mntp"], attention="bidirectional")  # doctest: +SKIP
        Teacher('org/llama', model_type='llama', dim=4096)
    """
    if isinstance(name_or_model, Teacher):
        return name_or_model
    if attention not in get_args(Attention):
        raise ValueError(f"attention should be one of {', '.join(get_args(Attention))}, but is {attention!r}.")
    if pooling is not None:
        check_pooling(pooling)
    taken: str = attention
    names = [adapters] if isinstance(adapters, str) else [os.fspath(name) for name in adapters]
    merged: list[dict[str, str | None]] = []
    settings = None
    if isinstance(name_or_model, (str, os.PathLike)):
        name = os.fspath(name_or_model)
        check_model_name(name)
        if (own := read_json(name, ADAPTER_FILE, revision)) is not None and find_file(
            name, "model.safetensors", revision
        ) is None:
            names.insert(0, name if revision is None else f"{name}@{revision}")
            name, revision = base_of(own, name), None
        shared = {"revision": revision, "trust_remote_code": trust_remote_code}
        device_map = processes().device if device_map is None else device_map
        options = {"dtype": dtype, "device_map": device_map, "attn_implementation": attn_implementation}
        config = AutoConfig.from_pretrained(name, **shared)
        _refuse_student(config, name)
        merged = [adapter_source(source) for source in names]
        settings = settings_of(name, revision, merged)
        taken = set_attention(config, attention, merged, name)
        model = AutoModel.from_pretrained(
            name, config=config, **shared, **{k: v for k, v in options.items() if v is not None}
        )
        tokenizer = tokenizer or AutoTokenizer.from_pretrained(name, **shared)
        for source in merged:
            model = merge_adapter(model, source, name)
        revision = commit_of(name, "config.json", revision) or revision
    elif isinstance(name_or_model, PreTrainedModel) or hasattr(name_or_model, "merge_and_unload"):
        if names:
            raise ValueError("adapters are merged into a model that is loaded by name; merge them into yours before.")
        model = name_or_model
        _refuse_student(model.config, model.config._name_or_path or type(model).__name__)
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).merge_and_unload()
        name = model.config._name_or_path or type(model).__name__
        taken = set_attention(model.config, attention, [], name)
        revision = revision or getattr(model.config, "_commit_hash", None)
        if tokenizer is None:
            tokenizer = AutoTokenizer.from_pretrained(name)
    else:
        raise ValueError(
            f"A teacher is a name for AutoModel, a transformers model or a loaded teacher, but a "
            f"{type(name_or_model).__name__} came."
        )
    rows = int(model.config.get_text_config().vocab_size)
    if not 0.5 * rows <= len(tokenizer) <= 1.1 * rows:  # tables are padded, and tokens are added
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens and {name} embeds {rows}: it is not this model's. Is its file missing "
            "beside the weights? Save it there with tokenizer.save_pretrained, or pass tokenizer=."
        )
    if tokenizer.pad_token is None and tokenizer.eos_token is not None:
        tokenizer.pad_token = tokenizer.eos_token
    teacher = Teacher(
        model, tokenizer, name, revision, attention=taken,
        adapters=merged, form=TextForm(name, instruction or "", chat, settings), pooling=pooling,
    )  # fmt: skip
    if taken == "bidirectional":
        prove_bidirectional(teacher)
    return teacher


def _refuse_student(config: PretrainedConfig, name: str) -> None:
    """A student's states are senses already: a dictionary or targets made from them would only repeat its own."""
    if config.model_type in MODEL_TYPES:
        made_from = config.dictionary_metadata.get("teacher", {}).get("name")
        raise ValueError(
            f"{name} is a sense model, whose hidden states have been replaced by senses; it cannot be a teacher. Give the "
            f"model that its dictionary was built with{f': {made_from}' if made_from else ''}."
        )


def _length_limit(tokenizer: PreTrainedTokenizerBase, config: Any) -> int:
    if tokenizer.model_max_length < _NO_LIMIT:
        return int(tokenizer.model_max_length)
    return int(getattr(config.get_text_config(), "max_position_embeddings", 0) or _DEFAULT_LENGTH)
