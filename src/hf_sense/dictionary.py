"""The sense dictionary: a ragged table of a few vectors a token, with what picks among them and how it was built.

It looks senses up and saves and loads them; building one is ``hf_sense.builder``'s work, training on one the trainer's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch

from hf_sense import hub, storage
from hf_sense.choosing import choose_in
from hf_sense.model_card import Provenance, dictionary_card, write_card
from hf_sense.ragged import Metric, check_metric
from hf_sense.residual_codes import ResidualCodes
from hf_sense.row_blocks import RowBlocks
from hf_sense.saving import write_dictionary
from hf_sense.vocabulary import token_id_of as token_id_of
from hf_sense.vocabulary import tokenizer_fingerprint as tokenizer_fingerprint

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo
    from transformers import PreTrainedTokenizerBase


class TokenSenses(NamedTuple):
    """The senses of one token, most frequent first as built.

    Attributes:
        sense_ids: their rows in the dictionary.
        vectors: ``(num, dim)``, float32 where they are stored as int8.
        counts: int64 ``(num,)``, occurrences behind each.
        spread: float32 ``(num,)``, mean squared distance of those occurrences to the vector.
    """

    sense_ids: range
    vectors: torch.Tensor
    counts: torch.Tensor
    spread: torch.Tensor


class SenseDictionary:
    """For each token id a few vectors, its senses.

    Args:
        senses: float16, bfloat16, float32, or int8 with ``scales``, ``(num_senses, dim)``, or its row blocks in order.
        offsets: int64 ``(vocab_size + 1,)``; token ``t`` owns rows ``offsets[t]:offsets[t + 1]``.
        counts: int64 ``(num_senses,)``, occurrences behind each sense; ones if not given.
        spread: float32 ``(num_senses,)``, mean squared distance of those occurrences to the sense; zeros if not given.
        metric: how a hidden state picks a sense: ``"dot"``, ``"cosine"`` or ``"l2"``.
        tokenizer_fingerprint: of the tokenizer whose ids these are, from ``tokenizer_fingerprint``.
        metadata: how it was built: ``teacher``, ``clustering``, ``sampling``, ``corpus``, each a dict.
        tokenizer: lets ``senses_of`` take a token as text; it is not saved with the dictionary.
        check_values: look for NaN and infinity; ``None`` does so up to 256 MiB.
        scales: float32 ``(num_senses,)``, what each row of int8 senses is to be multiplied with; ``to(torch.int8)`` makes both.
        codes: shared by all tokens: what a sense leaves of a hidden state is put together from them.

    Attributes:
        hub_source: the repository and commit that it was fetched from or pushed to; ``None`` if neither.

    Raises:
        ValueError: if shapes, dtypes, offsets or the metric do not fit together, or a value is not finite.

    Example:
        >>> dictionary = SenseDictionary(torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([0, 2, 2]))
        >>> hidden = torch.tensor([[[0.1, 0.9], [5.0, 5.0]]])
        >>> dictionary.lookup(torch.tensor([[0, 1]]), hidden)
        tensor([[   1, -100]])
        >>> dictionary.replace(torch.tensor([[0, 1]]), hidden)
        tensor([[[0., 1.],
                 [5., 5.]]])
    """

    def __init__(
        self,
        senses: torch.Tensor | Sequence[torch.Tensor],
        offsets: torch.Tensor,
        counts: torch.Tensor | None = None,
        spread: torch.Tensor | None = None,
        *,
        metric: str = "l2",
        tokenizer_fingerprint: str | None = None,
        metadata: dict[str, Any] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        check_values: bool | None = None,
        scales: torch.Tensor | None = None,
        codes: ResidualCodes | None = None,
    ) -> None:
        self._table = RowBlocks([senses] if isinstance(senses, torch.Tensor) else senses, scales)
        self.offsets = offsets
        total = len(self._table)
        self.counts = torch.ones(total, dtype=torch.int64) if counts is None else counts
        self.spread = torch.zeros(total, dtype=torch.float32) if spread is None else spread
        self.metric: Metric = check_metric(metric)
        self.codes = codes
        self.tokenizer_fingerprint = tokenizer_fingerprint
        self.metadata = dict(metadata or {})
        self.tokenizer = tokenizer
        self.hub_source: hub.Source | None = None
        self._checksums: dict[str, str] | None = None
        self._check_shapes()
        if check_values or (check_values is None and self._table.nbytes <= storage.VERIFY_BYTES):
            self.check_finite()

    def _check_shapes(self) -> None:
        total = self.num_senses
        offsets = self.offsets
        if offsets.ndim != 1 or offsets.dtype != torch.int64 or len(offsets) < 1:
            raise ValueError(
                f"offsets should be int64 (vocab_size + 1,), but is {offsets.dtype} {tuple(offsets.shape)}."
            )
        if int(offsets[0]) != 0 or int(offsets[-1]) != total or bool((offsets[1:] < offsets[:-1]).any()):
            raise ValueError(
                f"offsets should rise from 0 to num_senses = {total} without a step back, but runs from {int(offsets[0])} "
                f"to {int(offsets[-1])}."
            )
        for name, tensor, dtype in (("counts", self.counts, torch.int64), ("spread", self.spread, torch.float32)):
            if tuple(tensor.shape) != (total,) or tensor.dtype != dtype:
                raise ValueError(f"{name} should be {dtype} ({total},), but is {tensor.dtype} {tuple(tensor.shape)}.")
        if bool((self.counts < 0).any()):
            raise ValueError("counts should not be negative.")
        if self.codes is not None and self.codes.dim != self.dim:
            raise ValueError(f"codes should be as wide as the senses, {self.dim}, but are {self.codes.dim}.")

    def _small_tensors(self) -> dict[str, torch.Tensor]:
        small = {"offsets": self.offsets, "counts": self.counts, "spread": self.spread}
        small |= {} if self.scales is None else {"scales": self.scales}
        return small if self.codes is None else {**small, **self.codes.tensors()}

    def check_finite(self) -> None:
        """Reads every sense; raises ``ValueError`` if a value is NaN or infinite. Done at construction up to 256 MiB."""
        self._table.check_finite()

    @property
    def senses(self) -> torch.Tensor:
        """The table as stored, ``(num_senses, dim)``; int8 values are to be multiplied with ``scales``, which ``rows`` does.

        One stored in several files is copied into memory by this; by ``rows`` it is not.
        """
        return self._table.whole()

    @property
    def scales(self) -> torch.Tensor | None:
        """Float32 ``(num_senses,)`` beside int8 senses; ``None`` beside others."""
        return self._table.scales

    @property
    def dim(self) -> int:
        """The width of a sense."""
        return self._table.dim

    @property
    def num_senses(self) -> int:
        """How many senses there are in all."""
        return len(self._table)

    @property
    def vocab_size(self) -> int:
        """How many token ids it knows, with senses or without."""
        return len(self.offsets) - 1

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the senses are stored."""
        return self._table.dtype

    @property
    def fingerprint(self) -> str:
        """Names the table by its bytes: targets and students hold it to know their dictionary again."""
        small = self._small_tensors()
        if self._checksums is None:
            parts = {"senses": self._table.blocks, **{name: [tensor] for name, tensor in small.items()}}
            self._checksums = {name: storage.sha256_of(blocks) for name, blocks in parts.items()}
        names = ["senses", *(name for name in ("offsets", "scales", "codes", "code_scales") if name in small)]
        return hashlib.sha256("".join(self._checksums[name] for name in names).encode()).hexdigest()

    def rows(self, sense_ids: torch.Tensor) -> torch.Tensor:
        """The senses of ``sense_ids`` int64 ``(n,)``, copied to ``(n, dim)``; reads no other row.

        They have the table's dtype; int8 ones come as float32, multiplied with their scales.
        """
        return self._table.rows(sense_ids)

    def senses_of(self, token: int | str, tokenizer: PreTrainedTokenizerBase | None = None) -> TokenSenses:
        """The senses of a token id, or of a token given as text.

        A dictionary that was built in this process knows its teacher's tokenizer; one that was loaded does not, and takes text
        only with ``tokenizer``.

        Raises:
            ValueError: if there is no such token, or it is text and no tokenizer is known.
        """
        if isinstance(token, str):
            tokenizer = tokenizer or self.tokenizer
            if tokenizer is None:
                place = (self.metadata.get("teacher") or {}).get("name") or "the teacher"
                raise ValueError(
                    f"To find the senses of {token!r} the teacher's tokenizer is needed, which is not saved with a dictionary: "
                    f"pass it, AutoTokenizer.from_pretrained({place!r}), or give the token's id."
                )
            token = token_id_of(token, tokenizer)
        if not 0 <= token < self.vocab_size:
            raise ValueError(f"Token id {token} is outside the vocabulary of {self.vocab_size} tokens.")
        ids = range(int(self.offsets[token]), int(self.offsets[token + 1]))
        part = slice(ids.start, ids.stop)
        return TokenSenses(ids, self.rows(torch.arange(ids.start, ids.stop)), self.counts[part], self.spread[part])

    @torch.no_grad()
    def lookup(
        self, input_ids: torch.Tensor, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The best sense of each token by ``metric``; ties go to the lowest sense id.

        Args:
            input_ids: int64 ``(...)``, any leading shape.
            hidden_states: floating ``(..., dim)``, on any device.
            attention_mask: ``(...)``; tokens where it is 0 get no sense.

        Returns:
            int64 ``(...)``, global sense ids; -100 where the token has no sense.

        Raises:
            ValueError: if shapes do not fit, an id is outside the vocabulary, or a score is not finite.
        """
        return choose_in(self, input_ids, hidden_states, attention_mask).sense_ids.view(input_ids.shape)

    @torch.no_grad()
    def encode(
        self, input_ids: torch.Tensor, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As ``lookup``, and the codes of what each sense leaves of the state, int64 ``(..., levels)``; -100 likewise.

        A dictionary without codes has no levels.
        """
        choice = choose_in(self, input_ids, hidden_states, attention_mask, output_codes=True)
        found = choice.sense_ids.new_empty(len(choice.sense_ids), 0) if choice.code_ids is None else choice.code_ids
        return choice.sense_ids.view(input_ids.shape), found.view(*input_ids.shape, found.shape[1])

    def replace(
        self, input_ids: torch.Tensor, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``hidden_states`` ``(..., dim)``, each token's vector replaced by its best sense and its codes, without gradient.

        A token without senses, or under padding, keeps its vector. Arguments and errors are those of ``lookup``; a model
        that does this in its forward pass is ``SenseModel``.
        """
        choice = choose_in(self, input_ids, hidden_states, attention_mask, output_replaced=True)
        return cast(torch.Tensor, choice.replaced).view_as(hidden_states)

    def half_norms(self) -> torch.Tensor | None:
        """As ``RowBlocks.half_norms``."""
        return self._table.half_norms()

    def in_place(self) -> tuple[torch.Tensor, torch.Tensor | None] | None:
        """The rows and their scales as they are kept, not to be written to; ``None`` if they lie in several files."""
        return (self._table.blocks[0], self._table.scales) if len(self._table.blocks) == 1 else None

    def summary(self) -> dict[str, int | float]:
        """Numbers about the table: tokens with senses, senses, occurrences, senses a token, spread, megabytes."""
        lengths = (self.offsets[1:] - self.offsets[:-1])[self.offsets[1:] > self.offsets[:-1]]
        occurrences = int(self.counts.sum())
        return {
            "vocab_size": self.vocab_size,
            "tokens_with_senses": len(lengths),
            "num_senses": self.num_senses,
            "dim": self.dim,
            "occurrences": occurrences,
            "mean_senses_per_token": float(lengths.float().mean()) if len(lengths) else 0.0,
            "median_senses_per_token": int(lengths.median()) if len(lengths) else 0,
            "max_senses_per_token": int(lengths.max()) if len(lengths) else 0,
            "mean_spread": float((self.spread.double() * self.counts).sum() / max(1, occurrences)),
            **({} if self.codes is None else {"code_levels": self.codes.levels, "num_codes": self.codes.num_codes}),
            "megabytes": (self._table.nbytes + (0 if self.codes is None else self.codes.nbytes)) / 1e6,
        }

    def to(self, dtype: torch.dtype | str) -> SenseDictionary:
        """A copy whose senses are float16, bfloat16, float32, or int8 with a scale a row (``hf_sense.quantization``).

        Args:
            dtype: such as ``torch.int8``, or its name, ``"int8"``.

        Raises:
            ValueError: if it is none of these, or a value overflows it; bfloat16 has float32's range.
        """
        known = {str(one).removeprefix("torch."): one for one in storage.SENSE_DTYPES}
        found = known.get(str(dtype).removeprefix("torch."))
        if found is None:
            raise ValueError(f"dtype should be one of {', '.join(known)}, but is {dtype!r}.")
        dtype = found
        table = self._table.to(dtype)
        codes = None if self.codes is None else self.codes.to(dtype)
        return self._copy(table.blocks, self.offsets, self.counts, self.spread, table.scales, codes)

    def merge(self, other: SenseDictionary) -> SenseDictionary:
        """A dictionary with the senses of both: each token's own first, then those of ``other``; and the codes of both.

        Raises:
            ValueError: if ``other`` is no dictionary, or width, vocabulary, tokenizer or metric differ.
        """
        if not isinstance(other, SenseDictionary):
            raise ValueError(
                f"merge takes a SenseDictionary, but a {type(other).__name__} came. SenseDictionary.from_pretrained opens one; "
                "build_dictionary makes one of a teacher and texts."
            )
        for name in ("dim", "vocab_size", "metric", "tokenizer_fingerprint"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(
                    f"Dictionaries to merge must share their {name}, but have {getattr(self, name)!r} and "
                    f"{getattr(other, name)!r}."
                )
        vocabulary = torch.arange(self.vocab_size)
        tokens = torch.cat([torch.repeat_interleave(vocabulary, d.offsets[1:] - d.offsets[:-1]) for d in (self, other)])
        order = tokens.argsort(stable=True)
        # An int8 dictionary and a floating one make one of the latter's dtype.
        both = [d.to(torch.promote_types(self.dtype, other.dtype)) for d in (self, other)]
        return self._copy(
            [torch.cat([d.senses for d in both])[order]],
            self.offsets + other.offsets,
            torch.cat([self.counts, other.counts])[order],
            torch.cat([self.spread, other.spread])[order],
            None if both[0].scales is None else torch.cat([d.scales for d in both])[order],
            both[0].codes.merge(both[1].codes) if both[0].codes is not None else both[1].codes,
            {"corpus": {"merged": [d.metadata.get("corpus") for d in (self, other)]}},
        )

    def _copy(
        self,
        blocks: Sequence[torch.Tensor],
        offsets: torch.Tensor,
        counts: torch.Tensor,
        spread: torch.Tensor,
        scales: torch.Tensor | None,
        codes: ResidualCodes | None,
        metadata: dict[str, Any] | None = None,
    ) -> SenseDictionary:
        return SenseDictionary(
            blocks,
            offsets,
            counts,
            spread,
            metric=self.metric,
            tokenizer_fingerprint=self.tokenizer_fingerprint,
            metadata=self.metadata | (metadata or {}),
            tokenizer=self.tokenizer,
            scales=scales,
            codes=codes,
        )

    def save_pretrained(self, save_directory: str | os.PathLike[str], max_shard_size: int = 5 * 10**9) -> None:
        """Writes the dictionary, its description and a card into a folder, each file whole or not at all.

        Args:
            save_directory: made if it is missing. Other files in it are left alone.
            max_shard_size: bytes of senses a file; past it they are stored in row blocks with an index.
        """
        from hf_sense import __version__

        folder = Path(save_directory)
        if folder.exists() and not folder.is_dir():
            raise ValueError(f"save_directory should be a folder, but {str(folder)!r} is a file.")
        description = {
            "library_version": __version__,
            "dim": self.dim,
            "vocab_size": self.vocab_size,
            "num_senses": self.num_senses,
            "metric": self.metric,
            "tokenizer_fingerprint": self.tokenizer_fingerprint,
            **({} if self.codes is None else {"code_levels": self.codes.levels, "num_codes": self.codes.num_codes}),
            **self.metadata,
        }
        write_dictionary(folder, self._table.blocks, self._small_tensors(), description, max_shard_size)
        write_card(folder, dictionary_card(folder.name, self.metadata, self.summary()))

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
        license: str | None = None,
        datasets: Sequence[str] = (),
        max_shard_size: int = 5 * 10**9,
    ) -> CommitInfo:
        """Pushes the dictionary with its card to the Hub, in one commit: an upload that breaks changes nothing there.

        Args:
            repo_id: ``"org/name"``, a model repository; made if it is missing.
            private: whether a repository that is made is private.
            token: with write access; the one of ``hf auth login`` if not given.
            revision: branch; made from main if it is missing.
            commit_message: ``"Upload sense dictionary"`` if not given.
            create_pr: open a pull request instead.
            license: for the card, such as ``"apache-2.0"``; the teacher's license and that of the texts bear on it.
            datasets: for the card, ids on the Hub of the texts.
            max_shard_size: bytes of senses a file.

        Returns:
            What huggingface_hub returns; its ``oid`` is the commit, also in ``hub_source``.

        Raises:
            ValueError: if ``repo_id`` is no repository's name, or the repository holds a model.
            FileNotFoundError: if the repository is not there and may not be made.
            PermissionError: if the token may not write.
            ConnectionError: if the upload broke.
        """
        from hf_sense.publishing import push_dictionary

        about = Provenance(license=license, datasets=datasets)
        commit = push_dictionary(
            self, repo_id, about, max_shard_size, private=private, token=token, revision=revision,
            commit_message=commit_message, create_pr=create_pr,
        )  # fmt: skip
        self.hub_source = hub.Source(repo_id, commit.oid)
        return commit

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        subfolder: str = "",
        verify: bool | None = None,
    ) -> SenseDictionary:
        """Opens a dictionary that ``save_pretrained`` wrote or ``push_to_hub`` pushed; its senses are memory-mapped.

        Args:
            name_or_path: the folder, or an id on the Hub.
            revision: on the Hub: branch, tag or commit.
            cache_dir: instead of the Hugging Face cache.
            token: for private and gated repositories; the one of ``hf auth login`` if not given.
            local_files_only: do not ask the Hub; ``HF_HUB_OFFLINE=1`` does so for everything.
            subfolder: the folder within it, if any.
            verify: read every sense and compare checksums; ``None`` does so up to 256 MiB.

        Raises:
            FileNotFoundError: if there is no such folder or repository, or a file of it is missing.
            PermissionError: if the repository is gated.
            ValueError: if a file is damaged, hostile, or of a newer format, or ``name_or_path`` is no name.
        """
        if not isinstance(name_or_path, (str, os.PathLike)):
            raise ValueError(
                f"name_or_path should be a folder or an id on the Hub, but is a {type(name_or_path).__name__}."
            )
        name, folder, commit = str(name_or_path), Path(name_or_path), None
        if not folder.exists() and hub.is_repo_id(name):
            within = f"{subfolder.strip('/')}/" if subfolder else ""
            # The configuration tells what the repository is, if it is no dictionary.
            patterns = [f"{within}sense_dictionary*", f"{within}config.json"]
            folder, commit = hub.fetch(
                name, patterns, what="a sense dictionary", revision=revision, cache_dir=cache_dir, token=token,
                local_files_only=local_files_only,
            )  # fmt: skip
        blocks, small, described = storage.read_dictionary(folder / subfolder, verify, str(Path(name, subfolder)))
        own = storage.own_keys(described["format_version"])
        try:
            dictionary = cls(
                blocks,
                **{name: tensor for name, tensor in small.items() if name not in ("codes", "code_scales")},
                codes=ResidualCodes.of(small),
                metric=described["metric"],
                tokenizer_fingerprint=described["tokenizer_fingerprint"],
                metadata={key: value for key, value in described.items() if key not in own},
                check_values=False,  # done, or not asked for
            )
        except ValueError as error:
            raise ValueError(f"{folder / subfolder}: {error}") from error
        dictionary._checksums = described["sha256"]
        dictionary.hub_source = None if commit is None else hub.Source(name, commit)
        return dictionary

    def __repr__(self) -> str:
        return (
            f"SenseDictionary(num_senses={self.num_senses}, dim={self.dim}, vocab_size={self.vocab_size}, "
            f"metric={self.metric!r}, dtype={self.dtype})"
        )
