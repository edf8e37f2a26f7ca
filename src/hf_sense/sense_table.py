"""The sense layer of a model: its senses, and the step that puts one of them in each hidden state's place.

The table's layout and its arithmetic are those of ``hf_sense.dictionary`` and ``hf_sense.ragged``; here they become weights.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from hf_sense.coded import CodedChoice, choose_coded
from hf_sense.configuration_sense import SenseConfig
from hf_sense.dictionary import SenseDictionary
from hf_sense.expectation import expect_senses
from hf_sense.fused import has_compiled_kernels
from hf_sense.ragged import (
    NO_SENSE,
    RaggedIndex,
    expected_sense,
    half_squared_norms,
    take_senses,
)
from hf_sense.residual_codes import ResidualCodes
from hf_sense.senses import Senses
from hf_sense.spread import expected_distances, measures_units, squared_distances


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
        self.codes: torch.Tensor | None
        self.code_scales: torch.Tensor | None
        rows = 0 if config.sense_dictionary else config.num_senses
        vocab_size = config.vocab_size or 0
        int8 = config.sense_dtype == "int8"
        senses = torch.zeros(rows, config.sense_dim, dtype=torch.int8 if int8 else None)
        if config.learned_senses:
            self.senses = nn.Parameter(senses)
        else:
            self.register_buffer("senses", senses)
        self.register_buffer("scales", torch.zeros(rows, dtype=torch.float32) if int8 else None)
        self.register_buffer("offsets", torch.zeros(vocab_size + 1, dtype=torch.int64))
        self.register_buffer("counts", torch.zeros(config.num_senses, dtype=torch.int64))
        self.register_buffer("spread", torch.zeros(config.num_senses))
        shape = (config.code_levels, config.num_codes)
        coded = bool(config.code_levels) and not config.sense_dictionary
        codes = torch.zeros(*shape, config.sense_dim, dtype=torch.int8 if int8 else None) if coded else None
        self.register_buffer("codes", codes)
        self.register_buffer("code_scales", torch.zeros(shape, dtype=torch.float32) if coded and int8 else None)
        self._residual_codes: tuple[Any, ResidualCodes] | None = None
        self._half_norms: tuple[Any, torch.Tensor] | None = None
        self._probabilities: tuple[Any, torch.Tensor] | None = None
        self._expected: tuple[Any, torch.Tensor] | None = None

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
            self.put_rows(dictionary.senses.to(kept, copy=True))
            self.scales = None if dictionary.scales is None else dictionary.scales.clone()
            if dictionary.codes is not None:
                codes = dictionary.codes.to(kept)
                self.codes = codes.values.clone()
                self.code_scales = None if codes.scales is None else codes.scales.clone()

    def put_rows(self, rows: torch.Tensor) -> None:
        """Exchanges the model's own senses for ``rows`` ``(num_senses, dim)``; learned ones stay so."""
        learned = isinstance(self.senses, nn.Parameter)
        self.senses = nn.Parameter(rows, requires_grad=self.senses.requires_grad) if learned else rows

    def _apply(self, fn: Any, recurse: bool = True) -> SenseTable:
        """Moves the table as any module, but leaves the scales float32 where a cast makes the weights narrower."""
        names = [name for name in ("scales", "code_scales") if getattr(self, name) is not None]
        for name in names:
            setattr(self, name, getattr(self, name).view(torch.int32))  # no cast looks at integers
        super()._apply(fn, recurse)
        for name in names:
            setattr(self, name, getattr(self, name).view(torch.float32))
        return self

    @property
    def residual_codes(self) -> ResidualCodes | None:
        """The codes, among the weights or of the dictionary outside, on the table's device; ``None`` if it has none."""
        outside = None if self.outside is None else self.outside.codes
        values = self.codes if outside is None else outside.values
        if values is None:
            return None
        scales = None if self.code_scales is None else _state_of(self.code_scales)
        key = _state_of(values), scales, self.offsets.device
        if self._residual_codes is None or self._residual_codes[0] != key:
            if outside is None:
                found = ResidualCodes(values, self.code_scales, check_values=False)
            else:
                found = ResidualCodes(outside.vectors.to(self.offsets.device), check_values=False)
            self._residual_codes = key, found
        return self._residual_codes[1]

    def half_norms(self) -> torch.Tensor | None:
        """``|s|^2 / 2`` of each of the model's own senses, kept until they change; ``None`` if the metric has no use for it."""
        if self.metric == "dot":
            return None
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

    def expected_distances(self) -> torch.Tensor:
        """How far a state is to be expected from each sense, float32 ``(num_senses,)``, squared."""
        key = _state_of(self.counts), _state_of(self.spread)
        if self._expected is None or self._expected[0] != key:
            self._expected = key, expected_distances(self.spread, self.counts)
        return self._expected[1]

    def lying(self, token_ids: torch.Tensor, places: torch.Tensor) -> tuple[Senses, torch.Tensor, torch.Tensor | None]:
        """The senses of ``token_ids`` ``(n,)`` at ``places`` ``(m,)`` as they lie, and the ids by which to ask for them.

        Of a dictionary outside that lies in several files or on another device they are the batch's own rows, brought
        together: ids are then numbered anew, and the third tensor has each row's global sense id. Else it is ``None``.
        So it is with senses that are trained: what makes a gradient of them makes it once, and no larger than it need be.

        Raises:
            ValueError: if senses narrower than float32 are to be trained.
        """
        learned = self.outside is None and self.senses.requires_grad and torch.is_grad_enabled()
        if learned and self.senses.dtype.itemsize < 4:
            raise ValueError(
                f"Learned senses are in {self.senses.dtype}, which rounds most steps away. Train them in float32, with "
                "model.float() or dtype=torch.float32 (bf16=True of the trainer is fine), and cast the model afterwards; "
                "or call table.senses.requires_grad_(False)."
            )
        if self.outside is None and not learned:
            # The compiled kernels compute norms as they go; the others read them.
            on_the_way = self.senses.dtype.itemsize < 4 or (self.senses.device.type == "cpu" and has_compiled_kernels())
            halves = None if on_the_way else self.half_norms()
            return Senses(self.offsets, self.senses.detach(), self.scales, halves), token_ids, None
        in_place = None if self.outside is None else self.outside.in_place()
        if in_place is not None and token_ids.device.type == "cpu":
            # Half the norms of the whole table would read all of it.
            return Senses(self.offsets, *in_place), token_ids, None
        tokens, compact = token_ids[places].unique(return_inverse=True)
        if learned and tokens.device.type == "cpu":
            Senses(self.offsets, self.senses).spans(tokens)  # says what does not fit
        own = RaggedIndex.of(tokens, self.offsets)
        if self.outside is None:
            rows = self.senses.index_select(0, own.sense_ids)
        else:
            rows = self.outside.rows(own.sense_ids.cpu()).to(token_ids.device)
        return Senses(own.starts, rows), torch.zeros_like(token_ids).index_copy(0, places, compact), own.sense_ids

    def token_means(self, input_ids: torch.Tensor) -> torch.Tensor:
        """The mean of each token's senses, each as often as it occurs.

        Args:
            input_ids: int64 of any shape.

        Returns:
            That shape and ``(dim,)``, float32, or float64 if the senses are; zeros where a token has no sense.
        """
        flat = input_ids.reshape(-1)
        lying, tokens, global_ids = self.lying(flat, torch.arange(len(flat), device=flat.device))
        index, senses, own_ids = lying.of(tokens)
        means = senses.new_zeros(len(index.lengths), senses.shape[1])
        if len(index.rows) == int(index.lengths.count_nonzero()):  # one sense each: there is nothing to sum
            means.index_copy_(0, index.rows, senses.index_select(0, index.sense_ids))
        else:
            sense_ids = index.sense_ids
            for ids in (own_ids, global_ids):
                sense_ids = sense_ids if ids is None else ids[sense_ids]
            counts = self.counts[sense_ids].to(senses.dtype).clamp_min(1)
            totals = counts.new_zeros(len(index.lengths)).index_add(0, index.rows, counts)
            means = expected_sense(counts / totals[index.rows], index, senses, means)
        return means.view(*input_ids.shape, senses.shape[1])

    @torch.compiler.disable
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

    # Shapes follow each token's number of senses: torch.compile traces what is before and after.
    @torch.compiler.disable
    def replace(
        self,
        contextual: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        config: SenseConfig,
        output_senses: bool = False,
    ) -> tuple[torch.Tensor, CodedChoice | None]:
        """Puts a sense of its token in the place of each hidden state under the mask, as ``config.selection`` says.

        A dictionary with codes adds those of what the sense leaves of the state; with ``"soft"``, their mean.

        Args:
            contextual: ``(batch, sequence, dim)``.
            input_ids: int64 ``(batch, sequence)``.
            attention_mask: ``(batch, sequence)``; where it is 0 the state stays.
            config: its ``selection``, ``selection_temperature``, ``metric`` and ``max_distance`` count.
            output_senses: also return the choice and what it was made from.

        Returns:
            The states; and with ``output_senses`` the choice, without states: the best senses' global ids, int64 ``(batch,
            sequence)``, -100 where there is none, their codes likewise and ``(levels,)``, the scores, float32 ``(pairs,)``.
        """
        if config.selection == "none" and not output_senses:
            return contextual, None
        flat, ids = contextual.reshape(-1, contextual.shape[-1]), input_ids.reshape(-1)
        kept = attention_mask.reshape(-1).nonzero().squeeze(-1)
        senses, tokens, global_ids = self.lying(ids, kept)
        codes = self.residual_codes
        if config.selection == "soft":
            replaced, choice = self._soft(flat, tokens, kept, senses, codes, config, output_senses)
        else:
            wanted, learned = config.selection != "none", senses.rows.requires_grad
            fixed = dataclasses.replace(senses, rows=senses.rows.detach())
            choice = choose_coded(
                flat, tokens, kept, fixed, config.metric, codes, output_replaced=wanted, output_scores=output_senses
            )
            if choice.replaced is not None and config.max_distance is not None:
                best, chosen = self._near(flat.detach(), choice.sense_ids, choice.replaced, global_ids, config)
                choice = choice._replace(sense_ids=best, replaced=chosen)
            replaced = flat if choice.replaced is None else choice.replaced
            if choice.replaced is not None and learned:
                replaced = take_senses(senses.rows, choice.sense_ids, flat)
            elif choice.replaced is not None and flat.requires_grad:
                # A token without a sense keeps its state, and the state its gradient.
                replaced = torch.where((choice.sense_ids >= 0).unsqueeze(-1), replaced, flat)
            if config.selection == "straight_through":
                through = torch.where((choice.sense_ids >= 0).unsqueeze(-1), flat - flat.detach(), 0.0)
                replaced = replaced + through if learned else flat + (replaced - flat).detach()
        replaced = replaced.view_as(contextual)
        if not output_senses or choice is None:
            return replaced, None
        if global_ids is not None:
            choice = choice.numbered(global_ids)
        code_ids = None if choice.code_ids is None else choice.code_ids.view(*input_ids.shape, -1)
        return replaced, CodedChoice(choice.sense_ids.view_as(input_ids), None, choice.scores, code_ids)

    def _near(
        self,
        flat: torch.Tensor,
        best: torch.Tensor,
        chosen: torch.Tensor,
        global_ids: torch.Tensor | None,
        config: SenseConfig,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The choice without those senses that are too far from their states, which stay."""
        has = (best >= 0).nonzero().squeeze(-1)
        ids = best[has] if global_ids is None else global_ids[best[has]]
        away = squared_distances(flat[has], chosen[has], measures_units(config.dictionary_metadata))
        far = has[away > config.max_distance * self.expected_distances()[ids]]
        return best.index_fill(0, far, NO_SENSE), chosen.index_copy(0, far, flat[far])

    def _soft(
        self,
        flat: torch.Tensor,
        tokens: torch.Tensor,
        kept: torch.Tensor,
        senses: Senses,
        codes: ResidualCodes | None,
        config: SenseConfig,
        output_senses: bool,
    ) -> tuple[torch.Tensor, CodedChoice | None]:
        temperature = config.selection_temperature
        replaced, best, scores = expect_senses(
            flat, tokens, kept, senses, config.metric, temperature, output_scores=output_senses
        )
        if codes is not None:
            # Of a token without senses nothing is left.
            at = kept[senses.spans(tokens[kept])[1] > 0]
            own = replaced[at]
            added = codes.expected(flat[at] - own, temperature)
            replaced = replaced.index_copy(0, at, own + added.to(own.dtype))
        if best is None:
            return replaced, None
        choice = CodedChoice(best, None, scores)
        return replaced, choice if codes is None else choice.add_codes(flat.detach(), senses, codes)


def _state_of(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Changes when the tensor is exchanged, moved, cast, or written to in place, as load_state_dict does."""
    version = None if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), version, tensor.dtype, tensor.device, tensor.shape
