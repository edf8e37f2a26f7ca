"""The teacher's sense at each token, computed once and found again on the next run.

Targets are stored beside the texts' token ids in columns of a ``datasets`` data set; the teacher is not needed after. On disk a
target is its place among the senses of its token, which is known: one byte, or two if a token has more than 127 senses. Codes
of a dictionary that has them take one byte a level more, or two of more than 256 codes.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_sense.collator import code_columns
from hf_sense.corpus import encode_corpus, iterate_texts
from hf_sense.coverage import CoverageMeter
from hf_sense.dictionary import SenseDictionary
from hf_sense.ragged import NO_SENSE
from hf_sense.teacher import Teacher, load_teacher
from hf_sense.vocabulary import tokenizer_fingerprint

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)

# Texts a cached file, and fewer of long ones: what an interrupt loses at most.
_TEXTS_A_PART = 1000
_TOKENS_A_PART = 128_000
_VERSION = 2
# In place of an index where a token has no sense.
NO_INDEX = -1


def compute_sense_targets(
    dataset: Dataset,
    teacher: str | PreTrainedModel | Teacher,
    dictionary: SenseDictionary,
    *,
    text_column: str | Sequence[str] = "text",
    max_length: int | None = None,
    batch_size: int = 32,
    cache_dir: str | os.PathLike[str] | None = None,
    coded: bool = False,
    disable_tqdm: bool | None = None,
) -> Dataset:
    """Adds the columns that a student learns from: token ids, and for each token the sense that the teacher picks.

    The result is cached in parts under a fingerprint of the teacher's weights, the dictionary, its metric, the tokenizer
    and the texts. A second call reads it, and one that was interrupted goes on from the last part.

    Args:
        dataset: a ``datasets.Dataset`` with a text column. Its other columns are kept.
        teacher: a name, a model, or what ``load_teacher`` returned.
        dictionary: built with that teacher.
        text_column: the column of the texts; two names for text pairs.
        max_length: texts are cut to so many tokens; the teacher's limit if not given.
        batch_size: texts the teacher reads at once.
        cache_dir: where the parts lie; a folder of the ``datasets`` cache if not given.
        coded: return targets as they lie on disk, which is what the trainer asks for; decoded they are written once more.
        disable_tqdm: ``True`` hides the progress bar.

    Returns:
        The data set with ``input_ids`` int32, ``attention_mask`` int8, ``token_type_ids`` (for pairs) uint8 and
        ``sense_labels`` int32: lists of one length, global sense ids, -100 where a token has no sense. If ``coded``, instead
        of the latter ``sense_indices`` int8 or int16: ``sense_labels - offsets[input_ids]``, -1 where a token has no sense.
        Of a dictionary with codes also ``code_labels_1``, ``code_labels_2``, ..., one a level, uint8 or uint16: the teacher's
        code, 0 where a token has no sense.

    Raises:
        ValueError: if the tokenizers or the widths differ, the column is missing, or ``dataset`` is not one split in memory.
    """
    from datasets import Dataset, concatenate_datasets

    if not isinstance(dataset, Dataset):
        iterate_texts(dataset, text_column)
        raise ValueError(
            f"Targets are stored beside a datasets.Dataset, but got a {type(dataset).__name__}. For a list of texts use "
            "Dataset.from_dict({'text': texts})."
        )
    iterate_texts(dataset, text_column)
    if dictionary.num_senses >= 2**31:
        raise ValueError(f"Targets are int32, and the dictionary has {dictionary.num_senses} senses.")
    teacher = load_teacher(teacher)
    check_teacher(teacher, dictionary)
    max_length = teacher.max_length if max_length is None else min(max_length, teacher.max_length)
    identity = "\n".join(
        [str(_VERSION), teacher.fingerprint, dictionary.fingerprint, dictionary.metric,
         tokenizer_fingerprint(teacher.tokenizer), str(max_length)]
    )  # fmt: skip
    folder = Path(cache_dir) if cache_dir is not None else _default_cache()
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    num_cut = 0
    meter = CoverageMeter(dictionary)
    bar = tqdm(desc="Targets", unit=" tokens", unit_scale=True, disable=disable_tqdm)
    with bar:
        step = max(1, min(_TEXTS_A_PART, _TOKENS_A_PART // max_length))
        for begin in range(0, len(dataset), step):
            texts = list(iterate_texts(dataset.select(range(begin, min(begin + step, len(dataset)))), text_column))
            digest = hashlib.sha256(identity.encode())
            texts = list(teacher.form.joined(texts, teacher.tokenizer))
            digest.update("".join(map(repr, texts)).encode(errors="surrogatepass"))
            path = folder / f"targets-{digest.hexdigest()[:32]}.arrow"
            if not path.is_file():
                columns, cut = _targets_of(texts, teacher, dictionary, max_length, batch_size, bar, meter)
                num_cut += cut
                _write_part(path, columns)
            parts.append(Dataset.from_file(str(path if coded else _decoded(path, dictionary))))
    if num_cut:
        logger.warning("%d of %d texts are longer than %d tokens and were cut.", num_cut, len(dataset), max_length)
    if warning := meter.warning():  # of what was computed now
        logger.warning("%s", warning)
    if not parts:
        raise ValueError("The data set has no rows. Check the file and the split.")
    targets = concatenate_datasets(parts)
    replaced = [name for name in targets.column_names if name in dataset.column_names]
    return concatenate_datasets([dataset.remove_columns(replaced), targets], axis=1)


def check_teacher(teacher: Teacher, dictionary: SenseDictionary) -> None:
    """Raises ``ValueError`` if the dictionary cannot be this teacher's."""
    found = tokenizer_fingerprint(teacher.tokenizer)
    if dictionary.tokenizer_fingerprint not in (None, found):
        raise ValueError(
            f"Teacher and dictionary differ in their vocabulary: the teacher's tokenizer has the fingerprint {found}, the "
            f"dictionary {dictionary.tokenizer_fingerprint}. Build the dictionary with this teacher."
        )
    if dictionary.dim != teacher.dim:
        raise ValueError(f"The dictionary's senses are {dictionary.dim} wide, the teacher's states {teacher.dim}.")
    made_with = dictionary.metadata.get("teacher", {}).get("attention", teacher.attention)
    if made_with != teacher.attention:
        raise ValueError(
            f"The dictionary was built with {made_with} attention, and this teacher's is {teacher.attention}. Load it with "
            f'attention="{made_with}", or build a dictionary with it.'
        )


def _default_cache() -> Path:
    import datasets

    return Path(datasets.config.HF_DATASETS_CACHE) / "hf_sense"


def _targets_of(
    texts: list[Any],
    teacher: Teacher,
    dictionary: SenseDictionary,
    max_length: int,
    batch_size: int,
    bar: Any,
    meter: CoverageMeter,
) -> tuple[dict[str, list[np.ndarray]], int]:
    corpus = encode_corpus(texts, teacher.tokenizer, max_length, disable_tqdm=True, quiet=True)
    indices = np.full(len(corpus.input_ids), NO_INDEX, index_dtype(dictionary.offsets.numpy()))
    names = code_columns(dictionary.codes)
    small = dictionary.codes is None or dictionary.codes.num_codes <= 256
    code_labels = np.zeros((len(names), len(indices)), np.uint8 if small else np.uint16)
    for batch in corpus.batches(batch_size):
        inputs = corpus.padded(batch, teacher.tokenizer.pad_token_id or 0)
        hidden = teacher.hidden_states(**inputs)
        ids = inputs["input_ids"].to(hidden.device)
        mask = inputs["attention_mask"].to(hidden.device)
        found, code_ids = (tensor.cpu() for tensor in dictionary.encode(ids, hidden, mask))
        meter.add(ids[mask.bool()], hidden[mask.bool()], found[mask.bool().cpu()])
        local = torch.where(found >= 0, found - dictionary.offsets[inputs["input_ids"]], NO_INDEX).numpy()
        kept = inputs["attention_mask"].bool().numpy()
        lengths = corpus.lengths[batch]
        where = np.repeat(corpus.offsets[batch] - (lengths.cumsum() - lengths), lengths) + np.arange(lengths.sum())
        indices[where] = local[kept]
        code_labels[:, where] = code_ids.clamp_min(0).numpy()[kept].T
        bar.update(int(lengths.sum()))
    cuts = corpus.offsets[1:-1]
    columns = {
        "input_ids": np.split(corpus.input_ids, cuts),
        "attention_mask": np.split(np.ones(len(indices), np.int8), cuts),
        "sense_indices": np.split(indices, cuts),
    }
    columns |= {name: np.split(own, cuts) for name, own in zip(names, code_labels, strict=True)}
    if corpus.token_type_ids is not None:
        columns["token_type_ids"] = np.split(corpus.token_type_ids, cuts)
    return columns, corpus.num_cut


def index_dtype(offsets: np.ndarray) -> np.dtype:
    """What holds the place of a sense among its token's: int8 or int16, by ``offsets`` int64 ``(vocab_size + 1,)``.

    Raises:
        ValueError: if a token has more than 32,767 senses.
    """
    most = int(np.diff(offsets).max(initial=0))
    if most > np.iinfo(np.int16).max:
        raise ValueError(f"Targets hold at most 32767 senses a token, and a token of this dictionary has {most}.")
    return np.dtype(np.int8 if most <= np.iinfo(np.int8).max else np.int16)


def _decoded(path: Path, dictionary: SenseDictionary) -> Path:
    """Beside a part of coded targets, the same with global sense ids."""
    from datasets import Dataset

    decoded = path.with_name(f"{path.stem}-global.arrow")
    if decoded.is_file():
        return decoded
    table = Dataset.from_file(str(path)).data.table.combine_chunks()
    columns = {}
    for name in table.column_names:
        column = table.column(name).combine_chunks()
        cuts = column.offsets.to_numpy()[1:-1]
        values = column.values.to_numpy()
        if name == "sense_indices":
            ids = table.column("input_ids").combine_chunks().values.to_numpy()
            values = np.where(values >= 0, dictionary.offsets.numpy()[ids] + values, NO_SENSE).astype(np.int32)
            name = "sense_labels"
        columns[name] = np.split(values, cuts)
    _write_part(decoded, columns)
    return decoded


def _write_part(path: Path, columns: dict[str, list[np.ndarray]]) -> None:
    from datasets import Features, List, Value
    from datasets.arrow_writer import ArrowWriter

    features = Features({name: List(Value(str(values[0].dtype))) for name, values in columns.items()})
    temporary = path.with_suffix(f".{os.getpid()}.{time.monotonic_ns()}.tmp")
    try:
        with ArrowWriter(path=str(temporary), features=features) as writer:
            writer.write_batch(columns)
            writer.finalize()
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
