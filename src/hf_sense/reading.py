"""Reads a text as a dictionary sees it: for each token the sense that a model chooses, how surely, and what stood near.

It knows teachers and students, and no page: what is shown of a reading is made in ``hf_sense.page``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from hf_sense.dictionary import SenseDictionary, tokenizer_fingerprint
from hf_sense.llm2vec import TextForm
from hf_sense.ragged import NO_SENSE, RaggedIndex, best_sense, sense_log_probabilities, sense_scores
from hf_sense.targets import check_teacher
from hf_sense.teacher import Teacher
from hf_sense.temperature import natural_temperature

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from hf_sense.modeling_sense import SensePreTrainedModel


@dataclass(frozen=True)
class TokenReading:
    """One token of a text and its sense.

    Attributes:
        token_id: its id.
        token: its name in the vocabulary.
        text: how it stands in the text; the name where the tokenizer does not say.
        gap: the text between it and the token before, blanks mostly.
        special: whether the tokenizer put it there, as ``[CLS]``.
        sense_id: the chosen sense's row in the dictionary; -100 where the token has none.
        local: the chosen sense among the token's own, from 0; -1 where it has none.
        num_senses: how many senses the token has.
        count: occurrences behind the chosen sense.
        occurrences: occurrences behind all of the token's senses.
        share: of the choice, from 0 to 1: the soft maximum of the scores at the dictionary's natural temperature.
    """

    token_id: int
    token: str
    text: str
    gap: str
    special: bool
    sense_id: int
    local: int
    num_senses: int
    count: int
    occurrences: int
    share: float


@dataclass(frozen=True)
class Reading:
    """A text, read.

    Attributes:
        tokens: in the order of the text; none if it is blank.
        hidden: float32 ``(tokens, dim)``, the model's contextual embeddings.
        tail: text after the last token.
        left_out: how many tokens were not read, because the model takes no more.
    """

    tokens: list[TokenReading]
    hidden: torch.Tensor
    tail: str = ""
    left_out: int = 0


@dataclass(frozen=True)
class SenseView:
    """One of a token's senses, seen from the one that was chosen.

    Attributes:
        local: its number among the token's own, from 0.
        count: occurrences behind it.
        share: of the choice, from 0 to 1.
        distance: Euclidean, from the chosen sense.
    """

    local: int
    count: int
    share: float
    distance: float


class Reader:
    """A model that gives contextual embeddings, and the dictionary whose senses stand for them.

    Made by ``of_teacher`` or ``of_student``. It can be given to ``hf_sense.contexts`` in a teacher's place.

    Args:
        dictionary: its metric decides.
        tokenizer: the model's.
        forward: padded ``input_ids``, ``attention_mask`` and, if any, ``token_type_ids`` in, ``(batch, sequence, dim)`` out.
        max_length: the most tokens that a text may have.
        form: how texts are put.
        name: what a page calls it.
    """

    def __init__(
        self,
        dictionary: SenseDictionary,
        tokenizer: PreTrainedTokenizerBase,
        forward: Callable[..., torch.Tensor],
        max_length: int,
        form: TextForm,
        name: str,
    ) -> None:
        self.dictionary = dictionary
        self.tokenizer = tokenizer
        self.dim = dictionary.dim
        self.max_length = max_length
        self.form = form
        self.name = name
        self.temperature = natural_temperature(dictionary)
        self._forward = forward
        self._special = set(tokenizer.all_special_ids)

    @classmethod
    def of_teacher(cls, teacher: Teacher, dictionary: SenseDictionary) -> Reader:
        """Reads with the teacher; raises ``ValueError`` if the dictionary cannot be its own."""
        check_teacher(teacher, dictionary)
        return cls(dictionary, teacher.tokenizer, teacher.hidden_states, teacher.max_length, teacher.form, teacher.name)

    @classmethod
    def of_student(
        cls,
        model: SensePreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        dictionary: SenseDictionary | None = None,
    ) -> Reader:
        """Reads with a sense model.

        Args:
            model: with a classifier or without one.
            tokenizer: the model's.
            name: what a page calls it.
            dictionary: the one that the teacher reads with, to compare the two; the model's own if not given.

        Raises:
            ValueError: if the model is folded, or has the senses of another dictionary, or another tokenizer.
        """
        config = model.config
        if config.model_type == "folded_sense":
            raise ValueError(folded_words(name))
        if dictionary is None:
            dictionary = model.to_dictionary()
        elif config.dictionary_fingerprint != dictionary.fingerprint:
            raise ValueError(
                f"{name} has the senses of the dictionary {config.dictionary_fingerprint}, and the teacher reads with "
                f"{dictionary.fingerprint}: their senses cannot be compared. Give a student of this dictionary."
            )
        if config.tokenizer_fingerprint not in (None, tokenizer_fingerprint(tokenizer)):
            raise ValueError(f"The tokenizer beside {name} is not the one that the student was made with.")
        inner = model.base_model.eval()

        @torch.no_grad()
        def forward(**batch: torch.Tensor) -> torch.Tensor:
            batch = {key: tensor.to(model.device) for key, tensor in batch.items()}
            return inner(**batch, output_contextual=True).last_hidden_state

        positions = getattr(config.get_text_config(), "max_position_embeddings", None) or 512
        limit = int(min(tokenizer.model_max_length, positions))
        form = TextForm.of(config.dictionary_metadata.get("teacher", {}))
        return cls(dictionary, tokenizer, forward, limit, form, name)

    def hidden_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The contextual embeddings, ``(batch, sequence, dim)``, of int64 ``(batch, sequence)`` padded on either side."""
        batch = {"input_ids": input_ids, "attention_mask": attention_mask}
        if token_type_ids is not None:
            batch["token_type_ids"] = token_type_ids
        return self._forward(**batch)

    def read(self, text: str) -> Reading:
        """The tokens of one text, each with its sense; without Python loops over tokens before the answer is put together.

        Args:
            text: cut to ``max_length`` tokens.

        Raises:
            ValueError: if a hidden state is NaN or infinite.
        """
        text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if not text.strip():
            return Reading([], torch.empty(0, self.dim))
        if not self.form.plain:
            text = "".join(self.form.prepared(text, self.tokenizer))
        fast = bool(self.tokenizer.is_fast)
        options: dict[str, Any] = {"return_offsets_mapping": True} if fast else {}
        encoded = self.tokenizer(text, truncation=True, max_length=self.max_length, **options)
        ids = torch.tensor(encoded["input_ids"], dtype=torch.int64)
        if not len(ids):
            return Reading([], torch.empty(0, self.dim))
        hidden = self.hidden_states(ids[None], torch.ones_like(ids)[None])[0].float().cpu()
        sense_ids, shares = self._choices(ids, hidden)
        first, last = self.dictionary.offsets[ids], self.dictionary.offsets[ids + 1]
        counts = [self.dictionary.counts[begin:end] for begin, end in zip(first.tolist(), last.tolist())]
        names = self.tokenizer.convert_ids_to_tokens(ids.tolist())
        spans = encoded["offset_mapping"] if fast else [(0, 0)] * len(ids)
        tokens, at = [], 0
        for row, (begin, end) in enumerate(spans):
            token_id, sense_id = int(ids[row]), int(sense_ids[row])
            # Bytes of one character share its place: the first of them shows it, the others their names.
            inside = end > begin >= at
            surface = text[begin:end] if inside else str(names[row])
            stripped = surface.lstrip() if inside and surface.strip() else surface
            gap = text[at : end - len(stripped)] if inside else ("" if fast or not row else " ")
            at = end if inside else at
            local = sense_id - int(first[row]) if sense_id >= 0 else -1
            tokens.append(
                TokenReading(
                    token_id, str(names[row]), stripped, gap, token_id in self._special and not inside, sense_id, local,
                    len(counts[row]), int(counts[row][local]) if local >= 0 else 0, int(counts[row].sum()),
                    float(shares[row]),
                )
            )  # fmt: skip
        left_out = 0
        if len(ids) >= self.max_length:  # perhaps cut
            left_out = len(self.tokenizer(text, verbose=False)["input_ids"]) - len(ids)
        return Reading(tokens, hidden, text[at:] if fast else "", left_out)

    def senses_at(self, reading: Reading, position: int) -> list[SenseView]:
        """The senses of the token at a position: the chosen one, then the others, nearest to it first."""
        token = reading.tokens[position]
        if token.local < 0:
            return []
        index, rows, scores = self._scores(torch.tensor([token.token_id]), reading.hidden[position : position + 1])
        shares = sense_log_probabilities(scores / self.temperature, index).exp().tolist()
        distances = (rows.float() - rows[token.local].float()).norm(dim=1).tolist()
        counts = self.dictionary.senses_of(token.token_id).counts.tolist()
        views = [SenseView(*row) for row in zip(range(len(counts)), counts, shares, distances)]
        return sorted(views, key=lambda view: (view.local != token.local, view.distance))

    def _choices(self, token_ids: torch.Tensor, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Global sense ids, -100 where there is none, and their shares of the choice; both ``(tokens,)``."""
        index, _, scores = self._scores(token_ids, hidden)
        chosen = best_sense(scores, index)
        pairs = index.starts[:-1] + chosen - self._first_pair(index)
        logs = sense_log_probabilities(scores / self.temperature, index)
        found = chosen >= 0
        shares = torch.zeros(len(token_ids))
        shares[found] = logs[pairs[found]].exp().float()
        local = pairs - index.starts[:-1]
        return torch.where(found, self.dictionary.offsets[token_ids] + local, NO_SENSE), shares

    @staticmethod
    def _first_pair(index: RaggedIndex) -> torch.Tensor:
        """The compact id of each token's first sense; of tokens without senses, any."""
        if not len(index.sense_ids):
            return torch.zeros_like(index.lengths)
        return index.sense_ids[index.starts[:-1].clamp_max(len(index.sense_ids) - 1)]

    def _scores(self, token_ids: torch.Tensor, hidden: torch.Tensor) -> tuple[RaggedIndex, torch.Tensor, torch.Tensor]:
        """The senses of these tokens alone: layout, rows and scores."""
        tokens, compact = token_ids.unique(return_inverse=True)
        own = RaggedIndex.of(tokens, self.dictionary.offsets)
        rows = self.dictionary.rows(own.sense_ids).float()
        index = RaggedIndex.of(compact, own.starts)
        return index, rows, sense_scores(hidden, index, rows, self.dictionary.metric)


def folded_words(name: str) -> str:
    """Why a folded model is not read, and what to do."""
    return (
        f"{name} is a folded model: folding leaves out how often each sense occurred and, of a classifier, the senses "
        "themselves, which are what is looked at. Give the model that it was folded from, which chooses the same senses, or its "
        "dictionary."
    )


def agreement_of(first: Reading, second: Reading) -> tuple[int, int]:
    """At how many tokens two readings of one text choose the same sense, and how many tokens have senses.

    Raises:
        ValueError: if the two are of different tokens.
    """
    if [token.token_id for token in first.tokens] != [token.token_id for token in second.tokens]:
        raise ValueError("The two readings should be of one text by one tokenizer, but their tokens differ.")
    pairs = [(a.sense_id, b.sense_id) for a, b in zip(first.tokens, second.tokens) if a.sense_id >= 0]
    return sum(a == b for a, b in pairs), len(pairs)
