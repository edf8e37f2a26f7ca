"""The sample of a corpus whose blocks several ranks hold: each draws from its own, and the lowest of all are kept.

How a sample is drawn and merged stands in ``hf_sense.sampling``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

from hf_sense.blocks import BLOCK, Blocks
from hf_sense.drawn import Drawn
from hf_sense.memory import release
from hf_sense.sample_columns import sample_of, tensors_of
from hf_sense.sampling import SAMPLE_COLUMNS, OccurrenceSample, OccurrenceSampler
from hf_sense.unfinished import UnfinishedBuild


def draw_sample(
    blocks: Blocks,
    vocab_size: int,
    work: UnfinishedBuild,
    *,
    max_occurrences: int,
    first_text: int = 0,
    disable_tqdm: bool | None = None,
    **options: Any,
) -> OccurrenceSample:
    """The sample of all ranks' blocks, on every rank.

    Args:
        blocks: what this rank holds.
        vocab_size: token ids run below it.
        work: who draws, and where it is kept how far they are.
        max_occurrences: of a token.
        first_text: the number of the corpus's first text.
        disable_tqdm: ``True`` hides the progress bar.
        **options: further ones of ``OccurrenceSampler``.
    """
    ranks, drawn = work.ranks, Drawn(work)
    sampler = OccurrenceSampler(vocab_size, max_occurrences=max_occurrences, **options)
    drawn.begin(sampler)
    bar = tqdm(
        desc="Sampling", unit=" tokens", unit_scale=True, total=blocks.tokens // ranks.count,
        disable=disable_tqdm or (None if ranks.main else True),
    )  # fmt: skip
    with bar:
        for number in blocks.own:
            if number not in drawn.covered:
                sampler.add(blocks.block(number), first_text + BLOCK * number)
                drawn.drew(number, sampler)
            bar.update(blocks.tokens_of(number))
    sample = sampler.result()
    # By pairs, so that no rank holds more than two samples at once.
    step = 1
    while step < ranks.count:
        for low in range(0, ranks.count, 2 * step):
            if (high := low + step) < ranks.count:
                sent = ranks.send(tensors_of(sample) if ranks.rank == high else [], high, low)
                if sent:
                    sample = sample.merge(sample_of(sent), max_occurrences)
        step *= 2
    for target in range(1, ranks.count):
        sent = ranks.send(tensors_of(sample) if ranks.main else [], 0, target)
        sample = sample_of(sent) if sent else sample
    release()
    return sample


def kept_sample(work: UnfinishedBuild, draw: Callable[[], OccurrenceSample]) -> OccurrenceSample:
    """The sample that the folder of an unfinished build holds, or else a new one, which it then holds."""
    done = work.parts_done("sample", 1)
    if done:
        columns = work.all_parts("sample", [done[0]])[0]
        return sample_of([columns[name].clone() for name in SAMPLE_COLUMNS])
    sample = draw()
    if work.folder is not None and work.leads:
        work.save_part(0, dict(zip(SAMPLE_COLUMNS, tensors_of(sample), strict=True)), "sample")
    return sample
