"""LLM2Vec's conventions: its settings beside an adapter, instructions, wrappers, and how a text is shortened.

After BehnamGhader et al., *LLM2Vec: Large Language Models Are Secretly Powerful Text Encoders*, arXiv 2404.05961, and the
behaviour of its package, release 0.2.3. It handles strings and token ids, and runs no model.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HFValidationError, RepositoryNotFoundError
from transformers import PreTrainedTokenizerBase

SETTINGS_FILE = "llm2vec_config.json"
_POOLINGS = {"mean": "mean", "weighted_mean": "weighted_mean", "eos_token": "last_token", "last_token": "last_token"}

# What stands before and after a text for a chat model: by the base model's name, as the package has it.
CHAT_WRAPPERS = {
    "meta-llama/Meta-Llama-3-8B-Instruct": ("<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"),
    "mistralai/Mistral-7B-Instruct-v0.2": ("[INST] ", " [/INST]"),
    "meta-llama/Llama-2-7b-chat-hf": ("[INST] ", " [/INST]"),
    "google/gemma-2-9b-it": ("<bos><start_of_turn>user\n", "<end_of_turn>"),
    "Qwen/Qwen2-1.5B-Instruct": ("<|im_start|>user\n", "<|im_end|>"),
    "Qwen/Qwen2-7B-Instruct": ("<|im_start|>user\n", "<|im_end|>"),
}


@dataclass(frozen=True)
class LLM2VecSettings:
    """How texts become vectors.

    Attributes:
        pooling_mode: ``"mean"``, ``"weighted_mean"``, ``"eos_token"`` or ``"last_token"``.
        max_length: tokens of instruction and text at which they are cut.
        doc_max_length: tokens of the text alone, above which its last words are dropped.
        skip_instruction: whether the text alone is pooled, without the instruction before it.
    """

    pooling_mode: str = "mean"
    max_length: int = 512
    doc_max_length: int = 400
    skip_instruction: bool = True

    @property
    def pooling(self) -> str:
        """The name of the pooling in ``hf_sense.pooling``."""
        return _POOLINGS[self.pooling_mode]


def find_file(folder_or_id: str, name: str, revision: str | None = None) -> Path | None:
    """A file of a folder or of a Hub repo, or ``None`` if it has no such file."""
    if os.path.isdir(folder_or_id):
        path = Path(folder_or_id) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(folder_or_id, name, revision=revision))
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None  # whoever needs the repo itself will say what is wrong with it


def read_json(folder_or_id: str, name: str, revision: str | None = None) -> dict[str, Any] | None:
    """A JSON file of a folder or Hub repo; ``None`` if there is none.

    Raises:
        ValueError: if it is not a JSON object.
    """
    path = find_file(folder_or_id, name, revision)
    if path is None:
        return None
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name} of {folder_or_id} is not JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name} of {folder_or_id} should be a JSON object, but is a {type(value).__name__}.")
    return value


def read_settings(folder_or_id: str, revision: str | None = None) -> LLM2VecSettings | None:
    """What ``llm2vec_config.json`` says, in a folder or on the Hub; ``None`` if there is none.

    Raises:
        ValueError: if a value is not of its kind.
    """
    found = read_json(folder_or_id, SETTINGS_FILE, revision)
    if found is None:
        return None
    names = {field.name for field in dataclasses.fields(LLM2VecSettings)}
    settings = LLM2VecSettings(**{name: value for name, value in found.items() if name in names})
    lengths = settings.max_length, settings.doc_max_length
    if (
        settings.pooling_mode not in _POOLINGS
        or not all(type(length) is int and length > 0 for length in lengths)
        or type(settings.skip_instruction) is not bool
    ):
        raise ValueError(
            f"{SETTINGS_FILE} of {folder_or_id} should have a pooling_mode out of {', '.join(_POOLINGS)}, a max_length and a "
            f"doc_max_length above 0 and skip_instruction true or false, but has {settings}."
        )
    return settings


def shortened(text: str, tokenizer: PreTrainedTokenizerBase, settings: LLM2VecSettings) -> str:
    """The text without its last words until it has at most ``doc_max_length`` tokens; white space becomes single blanks.

    As LLM2Vec does it: each round keeps that share of the words which the tokens were too many.
    """

    def length(text: str) -> int:
        ids = tokenizer(text, truncation=True, max_length=settings.max_length, add_special_tokens=False)["input_ids"]
        return len(ids)

    while (tokens := length(text)) > settings.doc_max_length:
        words = text.split()
        text = " ".join(words[: int(len(words) * settings.doc_max_length / tokens)])
    return text


def wrapped(
    text: str, instruction: str, tokenizer: PreTrainedTokenizerBase, base: str, pooling_mode: str, chat: bool
) -> tuple[str, str]:
    """What is tokenized, in two parts: what stands before the text, and the text with what stands after it.

    Args:
        text: shortened already.
        instruction: may be empty.
        tokenizer: for its chat template and end token.
        base: the base model's name, which decides the wrapper of a chat model.
        pooling_mode: ``"eos_token"`` appends the end token.
        chat: wrap the text as a user's message: as LLM2Vec has it for ``base``, else by the tokenizer's chat template.
    """
    before = f"{instruction.strip()} " if instruction else ""
    prefix, suffix = "", ""
    if base in CHAT_WRAPPERS:
        prefix, suffix = CHAT_WRAPPERS[base]
    elif chat:
        prefix, suffix = _template(tokenizer)
    if prefix or suffix:
        before, text = prefix + before, text.rstrip() + suffix
    if pooling_mode == "eos_token" and base != "meta-llama/Meta-Llama-3-8B-Instruct":
        end = tokenizer.eos_token or ""
        text = text.rstrip() + (f" {end}" if end == "</s>" else end)
    return before, text


@dataclass(frozen=True)
class TextForm:
    """How a model's texts are put before they are tokenized; kept in a dictionary's and a student's metadata.

    Attributes:
        base: the base model's name, which decides a chat wrapper.
        instruction: stands before each text.
        chat: wrap texts as a user's messages.
        settings: of LLM2Vec's checkpoint; ``None`` if there is none.
    """

    base: str
    instruction: str = ""
    chat: bool = False
    settings: LLM2VecSettings | None = None

    @classmethod
    def of(cls, description: dict[str, Any]) -> TextForm:
        """From a teacher's description in the metadata."""
        settings = description.get("llm2vec")
        return cls(
            str(description.get("name")),
            description.get("instruction") or "",
            bool(description.get("chat")),
            LLM2VecSettings(**settings) if settings else None,
        )

    @property
    def plain(self) -> bool:
        """Whether texts stay as they are."""
        return self.settings is None and not self.instruction and not self.chat and self.base not in CHAT_WRAPPERS

    @property
    def skips_instruction(self) -> bool:
        """Whether the text alone is pooled."""
        return (self.settings or LLM2VecSettings()).skip_instruction

    def prepared(
        self, text: Any, tokenizer: PreTrainedTokenizerBase, instruction: str | None = None
    ) -> tuple[str, str]:
        """What stands before a text, and the text, shortened, with what stands after it.

        Raises:
            ValueError: if a pair of texts comes, or ``chat`` is set and the tokenizer has no template.
        """
        if not isinstance(text, str):
            raise ValueError("An instruction or a chat wrapper stands before a single text, but a pair of texts came.")
        settings = self.settings or LLM2VecSettings()
        instruction = self.instruction if instruction is None else instruction
        return wrapped(
            shortened(text, tokenizer, settings), instruction, tokenizer, self.base, settings.pooling_mode, self.chat
        )

    def joined(self, texts: Iterable[Any], tokenizer: PreTrainedTokenizerBase) -> Iterable[Any]:
        """The texts as they are tokenized; unchanged if the form is plain."""
        return texts if self.plain else ("".join(self.prepared(text, tokenizer)) for text in texts)


def _template(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    if not tokenizer.chat_template:
        raise ValueError("chat=True wraps texts by the tokenizer's chat template, and it has none. Leave chat out.")
    mark = "\u0001text\u0001"
    made = str(tokenizer.apply_chat_template([{"role": "user", "content": mark}], tokenize=False))
    before, _, after = made.partition(mark)
    if tokenizer.bos_token and before.startswith(tokenizer.bos_token):
        before = before.removeprefix(tokenizer.bos_token)  # the tokenizer puts it there itself
    return before, after


def text_lengths(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_length: int) -> list[int]:
    """The tokens that each text has on its own."""
    rows = tokenizer(texts, truncation=True, max_length=max_length, add_special_tokens=False)["input_ids"]
    return [len(row) for row in rows]


def last_tokens(attention_mask: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """``(batch, sequence)``: the mask, left at so many last tokens of each row. Padding may be on either side."""
    from_end = attention_mask.flip(1).cumsum(1).flip(1)  # 1 at a text's last token, 2 at the one before, ...
    return attention_mask * (from_end <= torch.tensor(counts, device=attention_mask.device)[:, None])
