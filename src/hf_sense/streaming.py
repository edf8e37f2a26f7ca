"""Senses of a corpus whose sample no disk would hold: sequential k-means of each token, one pass, bounded state.

``hf_sense.build_dictionary`` is the better choice wherever its sample fits: it sees a token's occurrences together, this sees
them once, in order. ``docs/scale.md`` has what that costs.
"""

from __future__ import annotations

import hashlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_sense.build_checks import checked_length
from hf_sense.builder import build_dictionary
from hf_sense.corpus import Text, encode_corpus, iterate_texts
from hf_sense.dictionary import SenseDictionary
from hf_sense.ranks import Ranks
from hf_sense.segments import read_checked, write_checked
from hf_sense.teacher import Teacher, load_teacher
from hf_sense.unfinished import UnfinishedBuild
from hf_sense.vocabulary import tokenizer_fingerprint

_SECONDS_BETWEEN_SAVES = 40.0
_TEXTS_A_STEP = 1024
_SCORES_AT_ONCE = 2**24
_STATE = "state-000000.safetensors"


class StreamingSenses:
    """Each token's senses so far, and how many occurrences each stands for.

    A token's first vectors are its first senses. After that each vector moves the nearest of its token's senses by its share of
    what that stands for (MacQueen 1967), the vectors of a batch at once (Sculley 2010).

    Args:
        vocab_size: token ids run below it.
        dim: width of a vector.
        max_senses: the most senses of a token.
    """

    def __init__(self, vocab_size: int, dim: int, max_senses: int) -> None:
        self.max_senses = max_senses
        self.first = torch.full((vocab_size,), -1, dtype=torch.int64)
        self.filled = torch.zeros(vocab_size, dtype=torch.int64)
        self.used = 0
        self.rows, self.counts, self.away = torch.zeros(0, dim), torch.zeros(0, dtype=torch.int64), torch.zeros(0)

    @classmethod
    def of(cls, dictionary: SenseDictionary, max_senses: int) -> StreamingSenses:
        """Starts from a dictionary, whose tokens have at most so many senses."""
        found = cls(dictionary.vocab_size, dictionary.dim, max_senses)
        lengths = dictionary.offsets.diff()
        tokens = lengths.nonzero().squeeze(-1)
        found._allocate(tokens)
        owner = torch.repeat_interleave(tokens, lengths[tokens])
        rows = found.first[owner] + torch.arange(dictionary.num_senses) - dictionary.offsets[owner]
        found.rows[rows] = dictionary.rows(torch.arange(dictionary.num_senses)).float()
        found.counts[rows] = dictionary.counts.clamp_min(1)
        found.away[rows] = dictionary.spread * dictionary.counts.clamp_min(1)
        found.filled.copy_(lengths)
        return found

    def _allocate(self, tokens: torch.Tensor) -> None:
        self.first[tokens] = self.used + self.max_senses * torch.arange(len(tokens))
        self.used += self.max_senses * len(tokens)
        if self.used > len(self.rows):
            more = max(self.used, 2 * len(self.rows)) - len(self.rows)
            self.rows = torch.cat([self.rows, torch.zeros(more, self.rows.shape[1])])
            self.counts = torch.cat([self.counts, torch.zeros(more, dtype=torch.int64)])
            self.away = torch.cat([self.away, torch.zeros(more)])

    def update(self, token_ids: torch.Tensor, vectors: torch.Tensor) -> None:
        """Takes further occurrences: int64 ``(n,)`` and float32 ``(n, dim)``, in the order of the corpus."""
        new = token_ids[self.first[token_ids] < 0].unique()
        if len(new):
            self._allocate(new)
        order = token_ids.argsort(stable=True)
        tokens = token_ids[order]
        begins = torch.searchsorted(tokens, tokens)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(len(order)) - begins
        fresh = rank < self.max_senses - self.filled[token_ids]
        places = self.first[token_ids] + self.filled[token_ids] + rank
        self.rows[places[fresh]] = vectors[fresh]
        self.counts[places[fresh]] = 1
        self.filled.index_add_(0, token_ids[fresh], torch.ones_like(token_ids[fresh]))
        rest = (~fresh).nonzero().squeeze(-1)
        if len(rest):
            chosen, away = self._nearest(token_ids[rest], vectors[rest])
            sums = torch.zeros(len(rest), self.rows.shape[1])
            rows, inverse, met = chosen.unique(return_inverse=True, return_counts=True)
            sums = sums[: len(rows)].index_add_(0, inverse, vectors[rest] - self.rows[chosen])
            self.counts.index_add_(0, rows, met)
            self.rows[rows] += sums / self.counts[rows, None]
            self.away.index_add_(0, chosen, away)

    def _nearest(self, token_ids: torch.Tensor, vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The row of the nearest of each token's senses, and the squared distance to it."""
        step = max(1, _SCORES_AT_ONCE // (self.max_senses * self.rows.shape[1]))
        columns = torch.arange(self.max_senses)
        rows, away = [], []
        for ids, own in zip(token_ids.split(step), vectors.split(step), strict=True):
            candidates = self.first[ids, None] + columns
            senses = self.rows[candidates]
            scores = torch.bmm(senses, own[:, :, None]).squeeze(-1) - senses.square().sum(-1) / 2
            scores.masked_fill_(columns >= self.filled[ids, None], -torch.inf)
            best = scores.max(1)
            rows.append(candidates.gather(1, best.indices[:, None]).squeeze(-1))
            away.append((own.square().sum(1) - 2 * best.values).clamp_min(0))
        return torch.cat(rows), torch.cat(away)

    def tensors(self) -> dict[str, torch.Tensor]:
        """All that it is."""
        return {
            "first": self.first, "filled": self.filled, "rows": self.rows[: self.used], "counts": self.counts[: self.used],
            "away": self.away[: self.used],
        }  # fmt: skip

    def restore(self, tensors: dict[str, torch.Tensor]) -> None:
        """Becomes what such tensors were."""
        self.first, self.filled = tensors["first"].clone(), tensors["filled"].clone()
        self.rows, self.counts, self.away = (tensors[name].clone() for name in ("rows", "counts", "away"))
        self.used = len(self.rows)

    def senses(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Senses, offsets, counts and spread, as ``SenseDictionary`` takes them; heaviest senses of a token first."""
        owner = torch.repeat_interleave(torch.arange(len(self.first)), self.filled)
        offsets = torch.nn.functional.pad(self.filled.cumsum(0), (1, 0))
        rows = self.first[owner] + torch.arange(len(owner)) - offsets[owner]
        rows = rows[self.counts[rows].argsort(descending=True, stable=True)]
        token_of = torch.zeros(self.used, dtype=torch.int64)
        token_of[self.first[owner] + torch.arange(len(owner)) - offsets[owner]] = owner
        rows = rows[token_of[rows].argsort(stable=True)]
        return self.rows[rows], offsets, self.counts[rows], self.away[rows] / self.counts[rows].clamp_min(1)


def stream_dictionary(
    teacher: str | Teacher,
    texts: Iterable[Any],
    *,
    start: SenseDictionary | int = 20_000,
    text_column: str | Sequence[str] = "text",
    max_senses: int = 20,
    metric: str = "l2",
    max_length: int | None = None,
    special_tokens: bool = True,
    batch_size: int = 32,
    seed: int = 0,
    work_dir: str | Path | None = None,
    corpus_name: str | None = None,
    disable_tqdm: bool | None = None,
) -> SenseDictionary:
    """A dictionary from one pass over texts of any number, without a sample: every occurrence counts, none is kept.

    It starts from the senses that ``build_dictionary`` finds in the first texts, or from a dictionary, and lets them follow what
    comes. Memory is that of the senses: tokens x ``max_senses`` x dim x 4 bytes. The result depends on the order of the texts.

    Args:
        teacher: a name, or what ``load_teacher`` returned.
        texts: as for ``build_dictionary``.
        start: so many texts to begin with; or a dictionary of this teacher, of which the senses go on from their counts.
        text_column: as there.
        max_senses: the most senses of a token.
        metric: how a hidden state will pick a sense; senses are moved by Euclidean distance.
        max_length: as there.
        special_tokens: as there.
        batch_size: as there.
        seed: of the start.
        work_dir: where the state is kept every 40 seconds; the same call goes on from there, to the same bytes.
        corpus_name: what the metadata calls the corpus.
        disable_tqdm: ``True`` hides the progress bar.

    Raises:
        ValueError: if an option or the corpus does not fit, or several processes call it: it is one pass in order.
    """
    ranks = Ranks()
    if ranks.count > 1:
        raise ValueError(
            f"stream_dictionary is one pass in the order of the texts, and {ranks.count} processes call it. Start one, or use "
            "build_dictionary."
        )
    if isinstance(max_senses, bool) or not isinstance(max_senses, int) or max_senses < 1:
        raise ValueError(f"max_senses should be a whole number from 1, but is {max_senses!r}.")
    rows = iterate_texts(texts, text_column)
    teacher = load_teacher(teacher)
    limit = checked_length(max_length, teacher)
    begun = start.fingerprint if isinstance(start, SenseDictionary) else start
    how: dict[str, Any] = {
        "max_senses": max_senses, "metric": metric, "seed": seed, "max_length": limit, "special_tokens": special_tokens,
        "batch_size": batch_size,
    }  # fmt: skip
    about = {"method": "streaming", "start": begun, "teacher_sha256": teacher.fingerprint, **how}
    work = UnfinishedBuild(Path(work_dir) if work_dir else None, about, ranks)
    digest = hashlib.sha256()
    rows = _noted(rows, digest)
    try:
        state, done, tokens = _begun(work, rows, digest, start, teacher, how, disable_tqdm)
        skipped = torch.tensor(() if special_tokens else teacher.tokenizer.all_special_ids, dtype=torch.int64)
        saved = time.monotonic()
        bar = tqdm(desc="Streaming", unit=" tokens", unit_scale=True, initial=tokens, disable=disable_tqdm)
        with bar:
            while chunk := list(itertools.islice(rows, _TEXTS_A_STEP)):
                number = _step(state, teacher, chunk, limit, batch_size, skipped)
                done, tokens = done + len(chunk), tokens + number
                bar.update(number)
                if work.folder is not None and time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    _save(work.folder, state, done, tokens, digest)
                    saved = time.monotonic()
        senses, offsets, counts, spread = state.senses()
        made = SenseDictionary(
            senses, offsets, counts, spread, metric=metric, tokenizer_fingerprint=tokenizer_fingerprint(teacher.tokenizer),
            metadata={
                "teacher": teacher.description(),
                "clustering": {"method": "streaming", "max_senses": max_senses, "start": begun},
                "sampling": {name: how[name] for name in ("seed", "special_tokens", "max_length", "batch_size")},
                "corpus": {"name": corpus_name, "split": None, "texts": done, "tokens": tokens, "sha256": digest.hexdigest()},
            },
            tokenizer=teacher.tokenizer,
        )  # fmt: skip
        if work.folder is not None:
            (work.folder / _STATE).unlink(missing_ok=True)
        work.remove()
    finally:
        work.close()
    return made


def _noted(rows: Iterable[Text], digest: Any) -> Iterator[Text]:
    for text in rows:
        digest.update(repr(text).encode(errors="surrogatepass") + b"\n")
        yield text


def _begun(
    work: UnfinishedBuild,
    rows: Iterator[Text],
    digest: Any,
    start: SenseDictionary | int,
    teacher: Teacher,
    how: dict[str, Any],
    disable_tqdm: bool | None,
) -> tuple[StreamingSenses, int, int]:
    """The state to go on from, with how many texts and tokens are in it; ``rows`` is moved past them."""
    max_senses = how["max_senses"]
    path = None if work.folder is None else work.folder / _STATE
    kept = read_checked(path) if path is not None and path.is_file() else None
    if kept is not None:
        state = StreamingSenses(len(kept["first"]), kept["rows"].shape[1], max_senses)
        state.restore(kept)
        done, tokens = kept["done"].tolist()
        for _ in itertools.islice(rows, done):
            pass
        if digest.digest() != bytes(kept["sha256"].tolist()):
            raise work.differs("corpus", f"the {done:,} texts it has seen", "others")
        return state, done, tokens
    if isinstance(start, SenseDictionary):
        most = int(start.offsets.diff().max())
        if most > max_senses or start.dim != teacher.dim:
            raise ValueError(
                f"A dictionary to start from should have at most max_senses={max_senses} senses a token and the teacher's width "
                f"{teacher.dim}, but has {most} and {start.dim}."
            )
        return StreamingSenses.of(start, max_senses), 0, 0
    first: list[Text] = list(itertools.islice(rows, start))
    built = build_dictionary(teacher, first, disable_tqdm=disable_tqdm, **how)
    return StreamingSenses.of(built, max_senses), len(first), int(built.metadata["corpus"]["tokens"])


def _step(
    state: StreamingSenses, teacher: Teacher, chunk: list[Text], limit: int, batch_size: int, skipped: torch.Tensor
) -> int:
    """Some texts, read in batches of like length; their occurrences are taken in the order of the batches."""
    corpus = encode_corpus(
        teacher.form.joined(chunk, teacher.tokenizer), teacher.tokenizer, limit, quiet=True, disable_tqdm=True
    )
    for batch in corpus.batches(batch_size):
        inputs = corpus.padded(batch, teacher.tokenizer.pad_token_id or 0)
        hidden = teacher.hidden_states(**inputs).float().cpu()
        kept = inputs["attention_mask"].bool() & ~torch.isin(inputs["input_ids"], skipped)
        vectors = hidden[kept]
        if not bool(torch.isfinite(vectors).all()):
            bad = int(batch[(~torch.isfinite(hidden)).any(-1).any(-1).numpy()][0])
            raise ValueError(f"{teacher.name} gives NaN or infinity for {chunk[bad]!r:.80}. Load it in another dtype.")
        state.update(inputs["input_ids"][kept], vectors)
    return int(np.sum(corpus.lengths))


def _save(folder: Path, state: StreamingSenses, done: int, tokens: int, digest: Any) -> None:
    seen = torch.tensor(list(digest.digest()), dtype=torch.uint8)
    write_checked(folder / _STATE, {**state.tensors(), "done": torch.tensor([done, tokens]), "sha256": seen})
