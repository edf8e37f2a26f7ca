"""The sense layer of a model: its senses, and the step that puts one of them in each hidden state's place.

The table's layout and its arithmetic are those of ``hf_sense.dictionary`` and ``hf_sense.ragged``; here they become weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_sense.configuration_sense import SenseConfig
from hf_sense.dictionary import SenseDictionary
from hf_sense.quantization import dequantize
from hf_sense.ragged import (
    NO_SENSE,
    RaggedIndex,
    best_sense,
    expected_sense,
    half_squared_norms,
    sense_log_probabilities,
    sense_scores,
    take_senses,
)


class SenseTable(nn.Module):
    """A model's senses: tensors among its weights, or a memory-mapped dictionary kept outside."""

    def __init__(self, config: SenseConfig) -> None:
        super().__init__()
        self.metric = config.metric
        self.outside: SenseDictionary | None = None
        self.senses: torch.Tensor
        self.scales: torch.Tensor | None
        self.offsets: torch.Tensor
        self.counts: torch.Tensor
        self.spread: torch.Tensor
        rows = 0 if config.sense_dictionary else config.num_senses
        vocab_size = config.vocab_size or 0
        int8 = config.sense_dtype == "int8"
        self.register_buffer("senses", torch.zeros(rows, config.sense_dim, dtype=torch.int8 if int8 else None))
        self.register_buffer("scales", torch.zeros(rows, dtype=torch.float32) if int8 else None)
        self.register_buffer("offsets", torch.zeros(vocab_size + 1, dtype=torch.int64))
        self.register_buffer("counts", torch.zeros(config.num_senses, dtype=torch.int64))
        self.register_buffer("spread", torch.zeros(config.num_senses))
        self._half_norms: tuple[Any, torch.Tensor] | None = None
        self._probabilities: tuple[Any, torch.Tensor] | None = None

    def fill(self, dictionary: SenseDictionary, dtype: torch.dtype, outside: bool) -> None:
        """Copies a dictionary's tensors, or keeps it outside; tokens past its vocabulary get no senses."""
        extra = len(self.offsets) - len(dictionary.offsets)
        self.offsets = torch.nn.functional.pad(dictionary.offsets, (0, extra), value=dictionary.num_senses)
        # Copies: weights that are loaded later should not be written into the dictionary.
        self.counts, self.spread = dictionary.counts.clone(), dictionary.spread.clone()
        if outside:
            self.outside = dictionary
        else:
            kept = dictionary.senses.dtype if dictionary.scales is not None else dtype
            self.senses = dictionary.senses.to(kept, copy=True)
            self.scales = None if dictionary.scales is None else dictionary.scales.clone()

    def _apply(self, fn: Any, recurse: bool = True) -> SenseTable:
        """Moves the table as any module, but leaves the scales float32 where a cast makes the weights narrower."""
        if self.scales is not None:
            self.scales = self.scales.view(torch.int32)  # no cast looks at integers
        super()._apply(fn, recurse)
        if self.scales is not None:
            self.scales = self.scales.view(torch.float32)
        return self

    def half_norms(self, senses: torch.Tensor) -> torch.Tensor | None:
        """``|s|^2 / 2`` of each row of the table that ``layout`` gave; kept for the model's own until it changes."""
        if self.metric == "dot":
            return None
        if senses is not self.senses:
            return half_squared_norms(senses)
        key = _state_of(self.senses)
        if self._half_norms is None or self._half_norms[0] != key:
            self._half_norms = key, half_squared_norms(self.senses)
        return self._half_norms[1]

    def probabilities(self) -> torch.Tensor:
        """The share of each token id among the occurrences behind the dictionary, float32 ``(vocab_size,)``."""
        key = _state_of(self.counts), _state_of(self.offsets)
        if self._probabilities is None or self._probabilities[0] != key:
            running = torch.zeros(len(self.counts) + 1, dtype=torch.float64, device=self.counts.device)
            running[1:] = self.counts.to(torch.float64).cumsum(0)
            shares = (running[self.offsets[1:]] - running[self.offsets[:-1]]) / running[-1].clamp_min(1)
            self._probabilities = key, shares.float()
        return self._probabilities[1]

    def layout(self, token_ids: torch.Tensor) -> tuple[RaggedIndex, torch.Tensor, torch.Tensor | None]:
        """The senses of ``token_ids`` ``(n,)``: their layout, the table it points into, and the table's global ids.

        The third is ``None`` where the layout's sense ids are global already. Of a dictionary outside, and of senses
        narrower than float32, the table holds the batch's own rows alone, as float32: the fast kernels take no less.
        """
        if self.outside is None and self.senses.dtype.itemsize >= 4:
            return RaggedIndex.of(token_ids, self.offsets), self.senses, None
        tokens, compact = token_ids.unique(return_inverse=True)
        own = RaggedIndex.of(tokens, self.offsets)
        if self.outside is not None:
            rows = self.outside.rows(own.sense_ids.cpu()).to(token_ids.device)
        elif self.scales is not None:
            rows = dequantize(*(part.index_select(0, own.sense_ids) for part in (self.senses, self.scales)))
        else:
            rows = self.senses.index_select(0, own.sense_ids)
        return RaggedIndex.of(compact, own.starts), rows.float(), own.sense_ids

    def token_means(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The mean of each token's senses, each as often as it occurs.

        Args:
            input_ids: int64 of any shape.

        Returns:
            That shape and ``(dim,)``, float32, or float64 if the senses are; zeros where a token has no sense.
        """
        index, senses, global_ids = self.layout(input_ids.reshape(-1))
        means = senses.new_zeros(len(index.lengths), senses.shape[1])
        if len(index.rows) == int(index.lengths.count_nonzero()):  # one sense each: there is nothing to sum
            means.index_copy_(0, index.rows, senses.index_select(0, index.sense_ids))
        else:
            sense_ids = index.sense_ids if global_ids is None else global_ids[index.sense_ids]
            counts = self.counts[sense_ids].to(senses.dtype).clamp_min(1)
            totals = counts.new_zeros(len(index.lengths)).index_add(0, index.rows, counts)
            means = expected_sense(counts / totals[index.rows], index, senses, means)
        return means.view(*input_ids.shape, senses.shape[1])

    def add_means(self, states: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """States plus their tokens' means, ``(batch, sequence, dim)``; zeros where a token has no sense.

        Nobody has learned what to say of such a token. Zeros leave it out of the direction of a text's mean.

        Args:
            states: ``(batch, sequence, dim)``.
            input_ids: int64 ``(batch, sequence)``.
        """
        bare = (self.offsets[input_ids + 1] == self.offsets[input_ids]).view(-1).nonzero().squeeze(-1)
        total = states + self.token_means(input_ids).to(states.dtype)
        return total.view(-1, total.shape[-1]).index_fill_(0, bare, 0.0).view_as(total)

    def replace(
        self,
        contextual: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        config: SenseConfig,
        output_senses: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Puts a sense of its token in the place of each hidden state under the mask, as ``config.selection`` says.

        Args:
            contextual: ``(batch, sequence, dim)``.
            input_ids: int64 ``(batch, sequence)``.
            attention_mask: ``(batch, sequence)``; where it is 0 the state stays.
            config: its ``selection``, ``selection_temperature`` and ``metric`` count.
            output_senses: also return the choice and what it was made from.

        Returns:
            The states; and with ``output_senses`` the best senses' global ids, int64 ``(batch, sequence)``, -100 where there
            is none, and the scores, float32 ``(pairs,)``.
        """
        if config.selection == "none" and not output_senses:
            return contextual, None, None
        flat = contextual.reshape(-1, contextual.shape[-1])
        kept = attention_mask.reshape(-1).nonzero().squeeze(-1)
        hidden = flat[kept]
        index, senses, global_ids = self.layout(input_ids.reshape(-1)[kept])
        soft = config.selection == "soft"
        with torch.set_grad_enabled(torch.is_grad_enabled() and soft):
            scores = sense_scores(
                hidden if soft else hidden.detach(),
                index,
                senses,
                config.metric,
                self.half_norms(senses),
                check_finite=False,
            )
        best = None if soft and not output_senses else best_sense(scores.detach(), index)
        if soft:
            probabilities = sense_log_probabilities(scores / config.selection_temperature, index).exp()
            chosen = expected_sense(probabilities, index, senses, hidden)
        elif config.selection == "none":
            chosen = hidden
        else:
            chosen = take_senses(senses, best, hidden)
            if config.selection == "straight_through":
                chosen = hidden + (chosen - hidden).detach()
        replaced = flat.index_copy(0, kept, chosen.to(flat.dtype)).view_as(contextual)
        if not output_senses or best is None:
            return replaced, None, None
        if global_ids is not None and len(global_ids):
            best = torch.where(best >= 0, global_ids[best.clamp_min(0)], NO_SENSE)
        sense_ids = torch.full_like(input_ids, NO_SENSE).view(-1)
        sense_ids[kept] = best
        return replaced, sense_ids.view_as(input_ids), scores


def _state_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Changes when the tensor is exchanged, moved, cast, or written to in place, as load_state_dict does."""
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.device, tensor.shape
