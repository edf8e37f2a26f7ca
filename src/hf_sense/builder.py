"""Builds a sense dictionary: corpus, sample, teacher, clusters, dictionary.

It orders the work and keeps it bounded; what each step computes stands in the module of its name.
"""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_sense.assembly import assembled, cluster_parts
from hf_sense.blocks import ChangedCorpus, read_blocks
from hf_sense.budget import enough_senses, shared_senses
from hf_sense.build_checks import check_clustering, checked_length, checked_options
from hf_sense.code_training import fit_dictionary_codes
from hf_sense.corpus import iterate_texts
from hf_sense.dictionary import SenseDictionary
from hf_sense.drawing import draw_sample, kept_sample
from hf_sense.embedding import embed_sample
from hf_sense.kept_samples import KeptSample, check_keep, keep_sample
from hf_sense.memory import MemoryLimit, shown_bytes
from hf_sense.ranks import Ranks
from hf_sense.sampled_vectors import SampledVectors
from hf_sense.segments import free_bytes
from hf_sense.teacher import Teacher, load_teacher
from hf_sense.unfinished import UnfinishedBuild
from hf_sense.watch import Watch

# In what samples must agree to be put together.
_SAMPLE_OPTIONS = ("seed", "max_occurrences", "special_tokens", "max_length")


def build_dictionary(
    teacher: str | PreTrainedModel | Teacher,
    texts: Iterable[Any],
    *,
    text_column: str | Sequence[str] = "text",
    recipe: str = "default",
    max_senses: int | str | None = None,
    budget: int | str | None = None,
    codes: int | None = None,
    code_levels: int = 1,
    metric: str | None = None,
    method: str | None = None,
    min_occurrences: int = 1,
    min_count: int = 1,
    max_occurrences: int = 1000,
    max_length: int | None = None,
    special_tokens: bool = True,
    batch_size: int = 32,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    max_memory: int | str | None = None,
    work_dir: str | Path | None = None,
    update: str | Path | None = None,
    keep_samples: str | Path | None = None,
    corpus_name: str | None = None,
    disable_tqdm: bool | None = None,
    **clustering: Any,
) -> SenseDictionary:
    """Clusters the teacher's contextual embeddings of each token over a corpus.

    Texts are read once, never held, and tokenized in blocks. The sample of occurrences is drawn before the teacher runs, so the
    teacher reads only texts that hold one of them, and memory is that of the sample: at most ``max_occurrences`` vectors a token.
    With ``work_dir`` they lie in files instead, and a build that was stopped, by whatever, goes on from there when it is called
    again, with any number of processes; the result has the same bytes.

    Args:
        teacher: a name for ``AutoModel``, a loaded model, or what ``load_teacher`` returned.
        texts: strings, pairs of strings, or one split of a ``datasets`` data set, in memory or streamed.
        text_column: the column of a data set that holds the text; two names for text pairs.
        recipe: ``"default"``, ``"paper"`` or ``"words"`` (``hf_sense.recipes``): metric and method where they are not given.
        max_senses: the most senses a token gets: a number, or a rule of its occurrences such as ``"n/10"``, ``"sqrt"`` or
            ``"n/10,100"`` (at most 100). If not given 20, and 100 under a budget.
        budget: the most senses of all tokens together, 5000, or the size of the dictionary's file with senses in
            ``dtype``, such as ``"3MB"`` (``hf_sense.budget.senses_within``), shared out so that the summed squared error is
            least; each token has one at least and ``max_senses`` at most. For ``"kmeans"`` and ``"spherical_kmeans"``.
        codes: so many vectors a level that all tokens share: what the best sense leaves of a hidden state is put together from
            them (residual vector quantization). With ``max_senses=1``, a small dictionary that still tells contexts apart.
        code_levels: how many such vectors a state takes, one of each level.
        metric: how a hidden state will pick a sense: ``"l2"`` (the default), ``"cosine"`` or ``"dot"``.
        method: ``"kmeans"`` (the default), or another of ``hf_sense.clustering.cluster``.
        min_occurrences: tokens with fewer keep each of their vectors as a sense.
        min_count: tokens that occur fewer times get no senses, and keep their contextual embedding.
        max_occurrences: how many distinct occurrences of a token are sampled at most.
        max_length: texts are cut to so many tokens; the model's limit if not given.
        special_tokens: whether tokens such as ``[CLS]`` get senses. They are always part of the input.
        batch_size: texts the teacher reads at once.
        seed: of the sample and of the clustering.
        dtype: of the stored senses; ``torch.int8`` stores a scale a row beside them.
        max_memory: what the process may take, teacher and all, such as ``"4GB"``: past it token ids and contextual embeddings lie
            in files of ``work_dir``, or of a temporary folder. The dictionary is the same.
        work_dir: where unfinished work is kept; removed once the dictionary is built. Ranks on several machines may share it or
            have their own.
        update: a folder that ``keep_samples`` wrote: the dictionary is that of its texts and these, with the same sample as if
            all had been given at once. The teacher reads only these.
        keep_samples: a folder for the sample and its contextual embeddings, to add texts to later.
        corpus_name: what the metadata calls the corpus.
        disable_tqdm: ``True`` hides the progress bars; by default ``TQDM_DISABLE`` decides.
        **clustering: further options of ``hf_sense.clustering.cluster``.

    Returns:
        The dictionary, on the CPU. Under ``torch.distributed`` the ranks share the work and each returns it.

    Raises:
        ValueError: before long work, if an option or the corpus does not fit; later, if the teacher gives NaN or infinity,
            with the text that caused it.
        OSError: if the disk is full; what was done is kept in ``work_dir``.
        RuntimeError: if another rank died, with its name.
    """
    check_clustering(clustering, list(inspect.signature(build_dictionary).parameters))
    metric, options = checked_options(
        recipe=recipe, metric=metric, method=method, max_senses=max_senses, budget=budget, codes=codes, code_levels=code_levels,
        dtype=dtype, seed=seed, min_occurrences=min_occurrences, min_count=min_count, max_occurrences=max_occurrences,
        batch_size=batch_size, max_memory=max_memory, **clustering,
    )  # fmt: skip
    if keep_samples is not None:
        check_keep(keep_samples)
    found = iterate_texts(texts, text_column)
    ranks = Ranks()
    with Watch(ranks):
        teacher = load_teacher(teacher)
        max_length = checked_length(max_length, teacher)
        old = KeptSample.open(update, ranks) if update is not None else None
        sampling = {
            "seed": seed,
            "max_occurrences": max_occurrences,
            "min_count": min_count,
            "special_tokens": special_tokens,
            "max_length": max_length,
            "batch_size": batch_size,
        }
        identity = {"teacher_sha256": teacher.fingerprint, **{name: sampling[name] for name in _SAMPLE_OPTIONS}}
        if old is not None:
            old.check(identity)
        limit = MemoryLimit.of(max_memory)
        metadata: dict[str, Any] = {
            "teacher": teacher.description(),
            "clustering": options
            | ({} if budget is None else {"budget": budget})
            | ({} if codes is None else {"codes": codes, "code_levels": code_levels}),
            "sampling": sampling,
        }
        described = {**metadata, "teacher_sha256": teacher.fingerprint, "update": old and old.sha256}
        with (
            _folder_for_work(work_dir, max_memory) as folder,
            contextlib.closing(UnfinishedBuild(folder, described, ranks)) as work,
        ):
            try:
                blocks = read_blocks(
                    teacher.form.joined(found, teacher.tokenizer), teacher.tokenizer, max_length, work.tokens, ranks,
                    disable_tqdm=disable_tqdm,
                )  # fmt: skip
            except ChangedCorpus as error:
                raise work.differs("corpus", "the texts it was begun with", f"others: {error}") from None
            corpus = {
                "name": corpus_name or _name_of(texts),
                "split": str(split) if (split := getattr(texts, "split", None)) is not None else None,
                "texts": blocks.texts,
                "tokens": blocks.tokens,
                "sha256": blocks.sha256,
            }
            work.check_corpus(corpus)
            metadata["corpus"] = corpus if old is None else old.corpus_with(corpus)
            excluded = () if special_tokens else tuple(teacher.tokenizer.all_special_ids)
            first_text = 0 if old is None else old.texts
            whole = kept_sample(
                work,
                lambda: draw_sample(
                    blocks, len(teacher.tokenizer), work, max_occurrences=max_occurrences, seed=seed, excluded_ids=excluded,
                    first_text=first_text, chunk=limit.waiting(), disable_tqdm=disable_tqdm,
                ),
            )  # fmt: skip
            if old is not None:
                whole = old.sample.merge(whole, max_occurrences)
            if not len(whole.token_ids):
                raise ValueError(
                    "The texts hold special tokens alone; with special_tokens=False nothing is left to build from."
                )
            sample, kept = whole, None
            if min_count > 1:
                sample = whole.without_rare(min_count)
                if keep_samples is None and old is None:
                    whole = sample  # the teacher need not read what is left out
                else:
                    left_in = whole.totals[whole.token_ids] >= min_count
                    kept = np.where(left_in, left_in.cumsum() - 1, -1)
            allowed = None
            if budget is not None:
                shape = {"dim": teacher.dim, "dtype": dtype, "codes": (codes or 0) * code_levels}
                allowed = enough_senses(budget, sample.totals, **shape)
                metadata["clustering"]["budget_senses"] = allowed
            _check_disk(work.folder, len(whole.token_ids), teacher.dim)
            work.allocate(len(whole.token_ids), teacher.dim)
            embed_sample(
                teacher, blocks, whole, batch_size, work, first_text=first_text, piece_bytes=limit.pieces(),
                disable_tqdm=disable_tqdm,
            )  # fmt: skip
            if old is not None:
                old.put_into(work, whole)
            if keep_samples is not None:
                keep_sample(
                    Path(keep_samples), whole, SampledVectors(work, len(whole.token_ids), teacher.dim), identity,
                    metadata["corpus"], ranks,
                )  # fmt: skip
            vectors = SampledVectors(work, len(sample.token_ids), teacher.dim, kept)
            bounds = np.searchsorted(sample.token_ids, np.arange(len(sample.totals) + 1)).astype(np.int64)
            at_once = limit.vectors(teacher.dim)
            limits = None
            if allowed is not None:
                limits = shared_senses(
                    vectors,
                    bounds,
                    sample,
                    options,
                    allowed,
                    seed,
                    work,
                    rows_at_once=at_once,
                    disable_tqdm=disable_tqdm,
                )
            clusters = cluster_parts(
                vectors, bounds, sample, options, limits, seed, work, rows_at_once=at_once, disable_tqdm=disable_tqdm
            )
            dictionary = assembled(clusters, sample.totals, limit.senses(), metric, metadata, teacher)
            if codes is not None:
                quiet = disable_tqdm or (None if ranks.main else True)
                dictionary.codes = fit_dictionary_codes(
                    dictionary, vectors, sample, codes, code_levels, seed=seed, disable_tqdm=quiet
                )
            if dtype != torch.float32:
                dictionary = dictionary.to(dtype)
            work.remove()
    return dictionary


def _name_of(texts: Any) -> str | None:
    return getattr(getattr(texts, "info", None), "dataset_name", None)


@contextlib.contextmanager
def _folder_for_work(work_dir: str | Path | None, max_memory: int | str | None) -> Iterator[Path | None]:
    """Where work is kept: the folder that was given; for a limit of memory alone a temporary one; or none."""
    if work_dir is None and max_memory is not None:
        with tempfile.TemporaryDirectory(prefix="hf-sense-") as folder:
            yield Path(folder) / "work"
    else:
        yield Path(work_dir) if work_dir else None


def _check_disk(folder: Path | None, places: int, dim: int) -> None:
    """Refuses what the disk cannot hold, before the teacher runs."""
    if folder is None:
        return
    there = sum(path.stat().st_size for path in folder.glob("vectors-*.safetensors"))
    needed = places * (4 * dim + 8) - there
    if needed > (free := free_bytes(folder)):
        raise ValueError(
            f"{folder} needs room for {shown_bytes(needed)} of contextual embeddings, and its disk has {shown_bytes(free)} free. "
            "Make room, give a work_dir on another disk, or lower max_occurrences."
        )
