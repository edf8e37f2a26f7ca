"""A sense model's folder made into one that Sentence Transformers loads. Encoding texts is then that library's work."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from hf_sense.files import write_text
from hf_sense.llm2vec import TextForm, text_lengths
from hf_sense.pooling import frequency_weights
from hf_sense.vocabulary import tokenizer_fingerprint

if TYPE_CHECKING:
    from hf_sense.modeling_sense import SensePreTrainedModel

_MODES = {"mean": "mean", "weighted_mean": "weightedmean", "cls": "cls", "last_token": "lasttoken", "frequency": "mean"}
_PACKAGE = "sentence_transformers.models"


def save_for_sentence_transformers(
    model: SensePreTrainedModel,
    save_directory: str | os.PathLike[str],
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int | None = None,
    prompts: dict[str, str] | None = None,
    default_prompt_name: str | None = None,
    include_prompt: bool = True,
    normalize: bool = False,
    max_shard_size: int | str = "50GB",
) -> None:
    """Saves a sense model so that ``SentenceTransformer(save_directory)`` gives its vectors. Call it as the model's method.

    The modules are Sentence Transformers' own: ``Transformer``, with ``frequency`` pooling ``WordWeights``, and
    ``Pooling``. Transformers loads the folder as before, a classifier with it.

    Args:
        model: a sense model; of one with a classifier, the vectors are those of the model inside.
        save_directory: made if it is missing.
        tokenizer: the model's.
        max_seq_length: tokens at which texts are cut; what tokenizer and model take if not given.
        prompts: by name, put before texts; the instruction that the model's teacher read, if any, if not given.
        default_prompt_name: used where ``encode`` names none; the teacher's instruction if there is one.
        include_prompt: whether a prompt's tokens count in the text's vector; the teacher's instruction goes by its own rule.
        normalize: scale vectors to norm 1.
        max_shard_size: of a weights file.

    Raises:
        ImportError: without sentence-transformers.
        ValueError: if pooling or the teacher's way of putting texts has no counterpart there, the tokenizer is not the model's,
            or a prompt is missing.
    """
    try:
        from sentence_transformers.sentence_transformer.modules import Pooling, WordWeights
    except ImportError as error:
        raise ImportError("Saving for Sentence Transformers needs it: pip install hf-sense[st]") from error
    inner = model.base_model
    config = inner.config
    if config.pooling not in _MODES:
        raise ValueError(
            f"Pooling {config.pooling!r} has no counterpart in Sentence Transformers. Set config.pooling to one of "
            f"{', '.join(_MODES)} before saving."
        )
    found = tokenizer_fingerprint(tokenizer)
    if config.tokenizer_fingerprint not in (None, found):
        raise ValueError(
            f"The tokenizer is not the model's: its fingerprint is {found}, the model was made with "
            f"{config.tokenizer_fingerprint}. Pass the teacher's tokenizer."
        )
    if prompts is None:
        prompts, include_prompt = _own_prompt(inner, tokenizer, include_prompt)
        default_prompt_name = default_prompt_name or next(iter(prompts), None)
    if default_prompt_name is not None and default_prompt_name not in prompts:
        raise ValueError(
            f"default_prompt_name is {default_prompt_name!r}, but prompts has {sorted(prompts) or 'none'}."
        )
    if prompts and not include_prompt and config.pooling == "weighted_mean":
        raise ValueError(
            "Sentence Transformers weighs a text's tokens by their place after the prompt, hf_sense by their place in the text: "
            "with prompts left out of the vector, weighted_mean would differ. Set config.pooling='mean', or include_prompt=True."
        )

    folder = Path(save_directory)
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    tokenizer.save_pretrained(folder)
    limit = max_seq_length or _length_limit(model, tokenizer)
    _write_json(folder / "sentence_bert_config.json", {"max_seq_length": limit, "do_lower_case": False})
    modules: list[Any] = [("", "Transformer")]
    if config.pooling == "frequency":
        weights = frequency_weights(inner.sense_table.probabilities(), config.frequency_smoothing).tolist()
        names = tokenizer.convert_ids_to_tokens(list(range(len(weights))))
        # Ids past the tokenizer's have no name, and names must differ.
        vocabulary = [f"<id {number}>" if name is None else name for number, name in enumerate(names)]
        # A word that is not listed weighs 1, or what it weighs in lower case.
        listed_weights = {w: weight for w, weight in zip(vocabulary, weights) if weight != 1.0 or w != w.lower()}
        modules.append(("1_WordWeights", WordWeights(vocabulary, listed_weights, unknown_word_weight=1.0)))
    pooling = Pooling(config.sense_dim, pooling_mode=_MODES[config.pooling], include_prompt=include_prompt)
    modules.append((f"{len(modules)}_Pooling", pooling))
    if normalize:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    listed = []
    for number, (path, module) in enumerate(modules):
        (folder / path).mkdir(exist_ok=True)
        if not isinstance(module, str):
            module.save(str(folder / path))
        name = module if isinstance(module, str) else type(module).__name__
        listed.append({"idx": number, "name": str(number), "path": path, "type": f"{_PACKAGE}.{name}"})
    sentence_config = {"prompts": prompts, "default_prompt_name": default_prompt_name, "similarity_fn_name": "cosine"}
    _write_json(folder / "config_sentence_transformers.json", sentence_config)
    _write_json(folder / "modules.json", listed)  # last: with it the folder is Sentence Transformers'


def _own_prompt(
    model: SensePreTrainedModel, tokenizer: PreTrainedTokenizerBase, include_prompt: bool
) -> tuple[dict[str, str], bool]:
    """What the model's teacher read before each text, and whether it counts in the vector."""
    form = TextForm.of(model.config.dictionary_metadata.get("teacher", {}))
    if form.plain:
        return {}, include_prompt
    before, text = form.prepared("text", tokenizer)
    if text != "text":
        raise ValueError(
            f"The model's teacher read {(before + text)!r} for 'text'. Sentence Transformers puts prompts before a text and "
            "nothing after it: encode such texts with hf_sense.evaluation.embed, or pass prompts={} to leave the wrapper out."
        )
    if not before:
        return {}, include_prompt
    if form.skips_instruction:
        ids = tokenizer(before)["input_ids"]
        theirs = len(ids) - (ids[-1] in tokenizer.all_special_ids)
        ours = len(tokenizer(before + text)["input_ids"]) - text_lengths([text], tokenizer, 10**6)[0]
        if theirs != ours:
            raise ValueError(
                f"Sentence Transformers would leave {theirs} tokens of each text out of its vector for the instruction "
                f"{before!r}, hf_sense leaves out {ours}: vectors would differ. Pass prompts= yourself to have theirs."
            )
    return {"instruction": before}, include_prompt and not form.skips_instruction


def _length_limit(model: SensePreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    limits = [size for size in (tokenizer.model_max_length, positions) if size is not None and size < 10**9]
    return int(min(limits, default=512))


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
