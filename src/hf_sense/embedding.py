"""The teacher's vectors at the places of a sample: block by block of the corpus, shared out among ranks, kept as it goes."""

from __future__ import annotations

import time

import numpy as np
import torch
from tqdm.auto import tqdm

from hf_sense.blocks import BLOCK, Blocks
from hf_sense.corpus import EncodedCorpus
from hf_sense.memory import release
from hf_sense.sampling import OccurrenceSample
from hf_sense.teacher import Teacher
from hf_sense.unfinished import UnfinishedBuild

_SECONDS_BETWEEN_SAVES = 20.0
_BYTES_A_PIECE = 64 * 2**20


def embed_sample(
    teacher: Teacher,
    blocks: Blocks,
    sample: OccurrenceSample,
    batch_size: int,
    work: UnfinishedBuild,
    *,
    first_text: int = 0,
    piece_bytes: int | None = None,
    disable_tqdm: bool | None = None,
) -> None:
    """Writes pieces with ``rows`` and ``vectors`` to ``work.vectors``, for each place of the sample that stands in the corpus.

    A process that works alone in memory writes to ``work.whole``.

    Batches are cut from the sampled texts of a block, of like length, whatever the number of ranks; ``BLOCK * block + i`` is
    the number of the ``i``-th.

    Args:
        teacher: runs on the batches of this rank's blocks that are not done.
        blocks: the corpus.
        sample: its places.
        batch_size: texts the teacher reads at once.
        work: keeps what is done.
        first_text: the number that the corpus's first text has in the sample; places in earlier texts are not this corpus's.
        piece_bytes: of embeddings that are held until they are written, at most; 64 MiB if not given.
        disable_tqdm: ``True`` hides the progress bar.

    Raises:
        ValueError: if the teacher gives NaN or infinity, with the text that caused it.
    """
    ranks = work.ranks
    done = set().union(*ranks.gather(work.vectors.done()))
    by_text = np.argsort(sample.texts, kind="stable")
    texts, starts, counts = np.unique(sample.texts[by_text], return_index=True, return_counts=True)
    edges = np.searchsorted(
        texts, [first_text + BLOCK * number for number in (*blocks.own, *(n + 1 for n in blocks.own))]
    )
    bar = tqdm(
        desc="Embedding", unit=" places", unit_scale=True, total=int(counts[texts >= first_text].sum()),
        disable=disable_tqdm or (None if ranks.main else True),
    )  # fmt: skip
    writer = _Writer(work, min(_BYTES_A_PIECE, piece_bytes or _BYTES_A_PIECE))
    with bar:
        try:
            for number, low, high in zip(blocks.own, edges[: len(blocks.own)], edges[len(blocks.own) :], strict=True):
                if low == high:
                    continue
                corpus, begin = blocks.block(number), first_text + BLOCK * number
                own = slice(int(low), int(high))
                for at, batch in enumerate(corpus.batches(batch_size, texts[own] - begin)):
                    which = own.start + np.searchsorted(texts[own], batch + begin)
                    lengths = counts[which]
                    if BLOCK * number + at not in done:
                        # Places of one text lie together in ``by_text``.
                        rows = by_text[
                            np.repeat(starts[which] - (lengths.cumsum() - lengths), lengths) + np.arange(lengths.sum())
                        ]
                        hidden = teacher.hidden_states(**corpus.padded(batch, teacher.tokenizer.pad_token_id or 0))
                        places = torch.from_numpy(np.repeat(np.arange(len(batch)), lengths)).to(hidden.device)
                        positions = torch.from_numpy(sample.positions[rows].astype(np.int64)).to(hidden.device)
                        taken = hidden[places, positions].float().cpu()
                        _refuse_non_finite(taken, np.repeat(batch, lengths), begin, teacher, corpus)
                        writer.add(BLOCK * number + at, torch.from_numpy(rows), taken)
                    bar.update(int(lengths.sum()) * (1 if ranks.count == 1 else ranks.count))
        finally:
            writer.flush()  # an interrupt loses the batch that was not finished alone
    ranks.wait()
    if work.shared:
        work.vectors.refresh()


def _refuse_non_finite(
    vectors: torch.Tensor, texts: np.ndarray, begin: int, teacher: Teacher, corpus: EncodedCorpus
) -> None:
    if bool(torch.isfinite(vectors).all()):
        return
    text = int(texts[(~torch.isfinite(vectors)).any(-1).numpy()][0])
    ids = corpus.input_ids[corpus.offsets[text] : corpus.offsets[text + 1]]
    raise ValueError(
        f"{teacher.name} gives NaN or infinity for text {begin + text} ({teacher.tokenizer.decode(ids)[:80]!r}). In float16 load "
        "it with dtype=torch.bfloat16 or torch.float32; else remove the text."
    )


class _Writer:
    """Rows on their way to a piece, in two buffers that stay, so that memory does not go up and down with the pieces."""

    def __init__(self, work: UnfinishedBuild, most: int) -> None:
        self.work, self.most = work, most
        self.held = self.sorted = torch.empty(0, 0)
        self._clear()

    def _clear(self) -> None:
        self.numbers: list[int] = []
        self.rows: list[torch.Tensor] = []
        self.count, self.since = 0, time.monotonic()

    def add(self, number: int, rows: torch.Tensor, vectors: torch.Tensor) -> None:
        if self.work.whole is not None:
            self.work.whole[rows] = vectors
            return
        if self.count + len(rows) > len(self.held):
            self.flush()
            if len(rows) > len(self.held):
                self.held = self.sorted = vectors[:0]  # given back before larger ones are taken
                size = max(len(rows), self.most // max(1, vectors[:1].nbytes))
                self.held, self.sorted = (vectors.new_empty(size, vectors.shape[1]) for _ in range(2))
        self.numbers.append(number)
        self.rows.append(rows)
        self.held[self.count : self.count + len(rows)] = vectors
        self.count += len(rows)
        if time.monotonic() - self.since > _SECONDS_BETWEEN_SAVES:
            self.flush()

    def flush(self) -> None:
        if self.numbers:
            numbers, rows = self.numbers, torch.cat(self.rows)
            order = rows.argsort()
            out = (
                self.sorted[: self.count] if self.work.folder is not None else None
            )  # in memory a piece is kept itself
            vectors = torch.index_select(self.held[: self.count], 0, order, out=out)
            self._clear()
            self.work.vectors.add(numbers, {"rows": rows[order], "vectors": vectors})
            release()  # the teacher's batches of all shapes leave holes
