"""What is seen to where a model runs over many texts: its mode, its tokenizer, its length, a bar. It does not run it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from torch import nn
from tqdm.auto import tqdm

from hf_sense.vocabulary import tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_sense.base_model import BaseSenseModel


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and afterwards the mode as it was."""
    # Setting the mode of every module shows beside the time of a short text, and mostly it is right already.
    if not any(module.training for module in model.modules()):
        yield
        return
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def check_tokenizer(model: BaseSenseModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ``ValueError`` if the model's senses belong to another tokenizer's ids."""
    expected = model.config.tokenizer_fingerprint
    if expected is None:
        return
    found = tokenizer_fingerprint(tokenizer)
    if found != expected:
        raise ValueError(
            f"The tokenizer is not the model's: its fingerprint is {found}, the model was made with {expected}. Pass the "
            "teacher's tokenizer, which is saved beside the model."
        )


def length_limit(model: BaseSenseModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The most tokens that tokenizer and model take."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return int(min(tokenizer.model_max_length, positions or 512))


def progress_bar(title: str, tokens: int, disable: bool | None) -> Any:
    """Counts tokens."""
    return tqdm(desc=title, total=tokens, unit=" tokens", unit_scale=True, disable=disable)
