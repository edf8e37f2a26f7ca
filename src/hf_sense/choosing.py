"""The choice in a dictionary as it lies: arguments checked, the batch's own rows brought together where they must be.

The arithmetic is that of ``hf_sense.coded``; a model's choice among its weights stands in ``hf_sense.sense_table``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from hf_sense.coded import CodedChoice, choose_coded
from hf_sense.fused import has_compiled_kernels
from hf_sense.ragged import RaggedIndex
from hf_sense.residual_codes import ResidualCodes
from hf_sense.senses import Senses

if TYPE_CHECKING:
    from hf_sense.dictionary import SenseDictionary


def choose_in(
    dictionary: SenseDictionary,
    input_ids: torch.Tensor,
    hidden_states: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    output_replaced: bool = False,
    output_codes: bool = False,
) -> CodedChoice:
    """What ``hf_sense.coded.choose_coded`` says of a batch, by a dictionary's metric.

    Args:
        dictionary: in memory or memory-mapped, in one file or in several.
        input_ids: int64 ``(...)``.
        hidden_states: floating ``(..., dim)``, on any device.
        attention_mask: ``(...)``; tokens where it is 0 get no sense.
        output_replaced: also return the states replaced.
        output_codes: also return the codes; with ``output_replaced`` they are found anyway.

    Raises:
        ValueError: if shapes do not fit, an id is outside the vocabulary, or a score is not finite.
    """
    if hidden_states.shape != (*input_ids.shape, dictionary.dim):
        raise ValueError(
            f"hidden_states should be {(*input_ids.shape, dictionary.dim)} for input_ids {tuple(input_ids.shape)} and this "
            f"dictionary's width, but is {tuple(hidden_states.shape)}."
        )
    hidden = hidden_states.reshape(-1, dictionary.dim)
    token_ids = input_ids.reshape(-1).to(hidden.device)
    if token_ids.numel() and (int(token_ids.min()) < 0 or int(token_ids.max()) >= dictionary.vocab_size):
        raise ValueError(
            f"input_ids should be in 0..{dictionary.vocab_size - 1}, but run from {int(token_ids.min())} to "
            f"{int(token_ids.max())}. Was the text tokenized with the dictionary's tokenizer?"
        )
    if attention_mask is None:
        places = torch.arange(len(token_ids), device=hidden.device)
    else:
        places = attention_mask.reshape(-1).bool().nonzero().squeeze(-1).to(hidden.device)
    in_place = dictionary.in_place()
    global_ids = None
    if in_place is not None and in_place[0].device == hidden.device:
        # The compiled kernels compute norms as they go; the others read them.
        keep = dictionary.metric != "dot" and dictionary.dtype == torch.float32 and not has_compiled_kernels()
        senses = Senses(dictionary.offsets, *in_place, dictionary.half_norms() if keep else None)
    else:
        # The table is elsewhere or in several files: bring the batch's own rows together and number them anew.
        tokens, compact = token_ids[places].to(dictionary.offsets.device).unique(return_inverse=True)
        own = RaggedIndex.of(tokens, dictionary.offsets)
        global_ids = own.sense_ids.to(hidden.device)
        senses = Senses(own.starts.to(hidden.device), dictionary.rows(own.sense_ids).to(hidden.device, torch.float32))
        token_ids = torch.zeros_like(token_ids).index_copy(0, places, compact.to(hidden.device))
    codes = dictionary.codes if output_codes or output_replaced else None
    if codes is not None and codes.values.device != hidden.device:
        codes = ResidualCodes(codes.vectors.to(hidden.device), check_values=False)
    choice = choose_coded(
        hidden, token_ids, places, senses, dictionary.metric, codes, output_replaced=output_replaced, check_finite=True
    )
    return choice if global_ids is None else choice.numbered(global_ids)
