"""Counts anew which of a student's senses its teacher chooses, and how far off they are. It trains nothing.

Senses that were trained are no longer the centres of the occurrences that they were clustered from.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_sense.corpus import Text, encode_corpus, iterate_texts
from hf_sense.fused import choose_senses
from hf_sense.targets import check_teacher
from hf_sense.teacher import Teacher, load_teacher

if TYPE_CHECKING:
    from hf_sense.modeling_sense import SensePreTrainedModel


@torch.no_grad()
def recount(
    student: SensePreTrainedModel,
    teacher: str | PreTrainedModel | Teacher,
    texts: Iterable[Text],
    *,
    max_length: int | None = None,
    batch_size: int = 32,
    disable_tqdm: bool | None = None,
) -> None:
    """Sets counts and spread of the student's senses to those of the teacher's choices among them.

    Counts are occurrences in ``texts``: frequency pooling then goes by these texts, and a sense that nobody chooses has 0.

    Args:
        student: with senses among its weights.
        teacher: that of its dictionary.
        texts: those that the dictionary was built from, or others of their kind.
        max_length: texts are cut to so many tokens; the teacher's limit if not given.
        batch_size: texts read at once.
        disable_tqdm: ``True`` hides the progress bar.

    Raises:
        ValueError: if the senses lie outside the model, teacher and student do not fit, or there are no texts.
    """
    table = student.sense_table
    if table.outside is not None:
        raise ValueError(
            "The student's dictionary lies outside, where others may use it: it is not written to. Make the student without "
            "dictionary_path, or build another dictionary."
        )
    teacher = load_teacher(teacher)
    check_teacher(teacher, student.to_dictionary())
    texts = list(teacher.form.joined(iterate_texts(texts), teacher.tokenizer))
    limit = teacher.max_length if max_length is None else min(max_length, teacher.max_length)
    corpus = encode_corpus(texts, teacher.tokenizer, limit, disable_tqdm=disable_tqdm)
    counts = torch.zeros_like(table.counts)
    away = torch.zeros(len(counts), dtype=torch.float32, device=counts.device)
    with tqdm(
        desc="Counting", unit=" tokens", unit_scale=True, total=len(corpus.input_ids), disable=disable_tqdm
    ) as bar:
        for numbers in corpus.batches(batch_size):
            inputs = corpus.padded(numbers, teacher.tokenizer.pad_token_id or 0)
            states = teacher.hidden_states(**inputs).to(counts.device)
            ids, mask = (inputs[name].reshape(-1).to(counts.device) for name in ("input_ids", "attention_mask"))
            places = mask.nonzero().squeeze(-1)
            senses, tokens, _ = table.lying(ids, places)
            flat = states.reshape(-1, states.shape[-1]).to(torch.float32)
            best, chosen, _ = choose_senses(flat, tokens, places, senses, table.metric, output_replaced=True)
            found = (best >= 0).nonzero().squeeze(-1)
            counts.index_add_(0, best[found], torch.ones_like(found))
            if chosen is not None:
                away.index_add_(0, best[found], (chosen - flat)[found].square().sum(-1))
            bar.update(int(corpus.lengths[numbers].sum()))
    table.counts = counts
    table.spread = (away / counts.clamp_min(1)).to(table.spread.dtype)
    about = {"recounted": {"texts": len(corpus.lengths), "tokens": len(corpus.input_ids)}}
    student.config.dictionary_metadata = {**student.config.dictionary_metadata, **about}
