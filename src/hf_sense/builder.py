"""Builds a sense dictionary: corpus, sample, teacher, clusters, dictionary.

It orders the work and keeps it bounded; what each step computes stands in the module of its name.
"""

from __future__ import annotations

import difflib
import inspect
import logging
import numbers
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_sense.budget import enough_senses, senses_within, shared_senses
from hf_sense.clustering import Clusters, cluster, number_of_senses
from hf_sense.code_training import check_codes, fit_dictionary_codes
from hf_sense.corpus import EncodedCorpus, encode_corpus, iterate_texts
from hf_sense.dictionary import SenseDictionary
from hf_sense.parts import in_parts
from hf_sense.ragged import check_metric
from hf_sense.ranks import processes
from hf_sense.recipes import settings_of
from hf_sense.sampling import OccurrenceSample, sample_occurrences
from hf_sense.teacher import Teacher, load_teacher
from hf_sense.unfinished import UnfinishedBuild
from hf_sense.vocabulary import tokenizer_fingerprint

logger = logging.getLogger(__name__)

_SECONDS_BETWEEN_SAVES = 20.0


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
    work_dir: str | Path | None = None,
    corpus_name: str | None = None,
    disable_tqdm: bool | None = None,
    **clustering: Any,
) -> SenseDictionary:
    """Clusters the teacher's contextual embeddings of each token over a corpus.

    The sample of occurrences is drawn before the teacher runs, so the teacher reads only texts that hold one of them, and
    memory is that of the sample: at most ``max_occurrences`` vectors a token. With ``work_dir`` those vectors lie in a file
    instead, and a build that was stopped goes on from there when it is called again; the result has the same bytes.

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
        work_dir: where unfinished work is kept; removed once the dictionary is built.
        corpus_name: what the metadata calls the corpus.
        disable_tqdm: ``True`` hides the progress bars; by default ``TQDM_DISABLE`` decides.
        **clustering: further options of ``hf_sense.clustering.cluster``.

    Returns:
        The dictionary, on the CPU. Under ``torch.distributed`` the ranks share the teacher's work and each returns it.

    Raises:
        ValueError: before long work, if an option or the corpus does not fit; later, if the teacher gives NaN or infinity,
            with the text that caused it.
    """
    metric, method = settings_of(recipe, metric, method)
    check_metric(metric)
    check_codes(codes, code_levels)
    if max_senses is None:
        max_senses = 20 if budget is None else 100
    number_of_senses(torch.ones(1, dtype=torch.int64), max_senses)
    if dtype not in (torch.float32, torch.bfloat16, torch.float16, torch.int8):
        raise ValueError(
            f"dtype should be torch.float32, torch.bfloat16, torch.float16 or torch.int8, but is {dtype!r}."
        )
    for name, value in (
        ("min_occurrences", min_occurrences),
        ("min_count", min_count),
        ("max_occurrences", max_occurrences),
        ("batch_size", batch_size),
    ):
        if not _is_whole(value) or value < 1:
            raise ValueError(f"{name} should be a whole number from 1, but is {value!r}.")
    if not _is_whole(seed):
        raise ValueError(f"seed should be a whole number, but is {seed!r}.")
    _check_options(clustering)
    options = {"method": method, "max_senses": max_senses, "min_occurrences": min_occurrences, **clustering}
    if budget is not None:
        senses_within(budget, dim=1, vocab_size=0, dtype=dtype)
    one = None if budget is None else 1
    cluster(torch.zeros(0, 1), torch.zeros(1, dtype=torch.int64), seed=seed, budget=one, **options)
    found = iterate_texts(texts, text_column)
    teacher = load_teacher(teacher)
    max_length = _checked_length(max_length, teacher)

    corpus = encode_corpus(
        teacher.form.joined(found, teacher.tokenizer), teacher.tokenizer, max_length, disable_tqdm=disable_tqdm
    )
    vocab_size = len(teacher.tokenizer)
    excluded = () if special_tokens else tuple(teacher.tokenizer.all_special_ids)
    sample = sample_occurrences(corpus, vocab_size, max_occurrences=max_occurrences, seed=seed, excluded_ids=excluded)
    if not len(sample.token_ids):
        raise ValueError(
            "The texts hold special tokens alone; with special_tokens=False nothing is left to build from."
        )
    sample = sample.without_rare(min_count)
    shared, allowed = {}, None
    if budget is not None:
        shape = {"dim": teacher.dim, "dtype": dtype, "codes": (codes or 0) * code_levels}
        allowed = enough_senses(budget, sample.totals, **shape)
        shared = {"budget": budget, "budget_senses": allowed}
    metadata = {
        "teacher": teacher.description(),
        "clustering": options | shared | ({} if codes is None else {"codes": codes, "code_levels": code_levels}),
        "sampling": {
            "seed": seed,
            "max_occurrences": max_occurrences,
            "min_count": min_count,
            "special_tokens": special_tokens,
            "max_length": max_length,
            "batch_size": batch_size,
        },
        "corpus": {
            "name": corpus_name or _name_of(texts),
            "split": str(split) if (split := getattr(texts, "split", None)) is not None else None,
            "texts": len(corpus.offsets) - 1,
            "tokens": len(corpus.input_ids),
            "sha256": corpus.sha256,
        },
    }
    work = UnfinishedBuild(Path(work_dir) if work_dir else None, {**metadata, "teacher_sha256": teacher.fingerprint})
    vectors = _embed_sample(teacher, corpus, sample, batch_size, work, disable_tqdm)
    bounds = np.searchsorted(sample.token_ids, np.arange(vocab_size + 1)).astype(np.int64)
    limits = None
    if allowed is not None:
        limits = shared_senses(vectors, bounds, sample, options, allowed, seed, work, disable_tqdm)
    clusters = _cluster_parts(vectors, bounds, sample, options, limits, seed, work, disable_tqdm)
    dictionary = SenseDictionary(
        clusters.centers,
        clusters.offsets,
        _scaled_counts(clusters, sample.totals),
        clusters.spread,
        metric=metric,
        tokenizer_fingerprint=tokenizer_fingerprint(teacher.tokenizer),
        metadata=metadata,
        tokenizer=teacher.tokenizer,
    )
    if codes is not None:
        quiet = disable_tqdm or (None if work.rank == 0 else True)
        dictionary.codes = fit_dictionary_codes(
            dictionary, vectors, sample, codes, code_levels, seed=seed, disable_tqdm=quiet
        )
    work.remove()
    return dictionary if dtype == torch.float32 else dictionary.to(dtype)


def _is_whole(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _check_options(clustering: dict[str, Any]) -> None:
    """Refuses options that ``cluster`` does not have, or that are no numbers; it checks their ranges itself."""
    own = inspect.signature(build_dictionary).parameters.values()
    further = {
        name: parameter.default
        for name, parameter in inspect.signature(cluster).parameters.items()
        if isinstance(parameter.default, (int, float)) and name not in ("max_senses", "min_occurrences", "seed")
    }
    known = [parameter.name for parameter in own if parameter.kind is not parameter.VAR_KEYWORD] + list(further)
    for name, value in clustering.items():
        if name not in further:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            raise ValueError(
                f"build_dictionary has no option {name!r}{f'; did you mean {near[0]!r}?' if near else '.'} Those of clustering "
                f"are {', '.join(further)}."
            )
        whole = isinstance(further[name], int)
        if not (_is_whole(value) if whole else isinstance(value, numbers.Real)):
            raise ValueError(f"{name} should be a {'whole number' if whole else 'number'}, but is {value!r}.")


def _checked_length(max_length: int | None, teacher: Teacher) -> int:
    if max_length is None:
        return teacher.max_length
    special = teacher.tokenizer.num_special_tokens_to_add()
    if not special < max_length <= teacher.max_length:
        raise ValueError(
            f"max_length should be more than the {special} special tokens and at most the {teacher.max_length} that "
            f"{teacher.name} takes, but is {max_length}."
        )
    return max_length


def _name_of(texts: Any) -> str | None:
    return getattr(getattr(texts, "info", None), "dataset_name", None)


def _embed_sample(
    teacher: Teacher,
    corpus: EncodedCorpus,
    sample: OccurrenceSample,
    batch_size: int,
    work: UnfinishedBuild,
    disable_tqdm: bool | None,
) -> torch.Tensor:
    """The teacher's vector at each place of the sample, float32 ``(n, dim)``."""
    by_text = np.argsort(sample.texts, kind="stable")
    sampled_texts, starts, counts = np.unique(sample.texts[by_text], return_index=True, return_counts=True)
    batches = corpus.batches(batch_size, sampled_texts)
    vectors = work.vectors(len(sample.token_ids), teacher.dim)
    done = work.batches_done()
    sizes = [int(corpus.lengths[batch].sum()) for batch in batches]
    bar = tqdm(
        desc="Embedding", unit=" tokens", unit_scale=True, total=sum(sizes), initial=sum(sizes[:done]),
        disable=disable_tqdm or (None if work.rank == 0 else True),
    )  # fmt: skip
    saved = time.monotonic()
    number = done
    try:
        with bar:
            for number in range(done, len(batches)):
                if number % work.ranks == work.rank:
                    batch = batches[number]
                    which = np.searchsorted(sampled_texts, batch)
                    lengths = counts[which]
                    rows = by_text[
                        np.repeat(starts[which] - (lengths.cumsum() - lengths), lengths) + np.arange(lengths.sum())
                    ]
                    hidden = teacher.hidden_states(**corpus.padded(batch, teacher.tokenizer.pad_token_id or 0))
                    places = torch.from_numpy(np.repeat(np.arange(len(batch)), lengths)).to(hidden.device)
                    positions = torch.from_numpy(sample.positions[rows].astype(np.int64)).to(hidden.device)
                    taken = hidden[places, positions].float().cpu()
                    _refuse_non_finite(taken, np.repeat(batch, lengths), teacher, corpus)
                    vectors[torch.from_numpy(rows)] = taken
                bar.update(sizes[number])
                if time.monotonic() - saved > _SECONDS_BETWEEN_SAVES:
                    work.save(number + 1)
                    saved = time.monotonic()
            number = len(batches)
    finally:
        # `number` is the batch that was not finished: an interrupt loses that one alone.
        work.save(number)
    if work.ranks > 1:
        # Each row was written by one rank and is zero on the others, so that the sum is exact.
        vectors = reduce(vectors.to(processes().device), "sum").cpu()
    return vectors


def _refuse_non_finite(vectors: torch.Tensor, texts: np.ndarray, teacher: Teacher, corpus: EncodedCorpus) -> None:
    if bool(torch.isfinite(vectors).all()):
        return
    text = int(texts[(~torch.isfinite(vectors)).any(-1).numpy()][0])
    ids = corpus.input_ids[corpus.offsets[text] : corpus.offsets[text + 1]]
    raise ValueError(
        f"{teacher.name} gives NaN or infinity for text {text} ({teacher.tokenizer.decode(ids)[:80]!r}). In float16 load it "
        "with dtype=torch.bfloat16 or torch.float32; else remove the text."
    )


def _cluster_parts(
    vectors: torch.Tensor,
    bounds: np.ndarray,
    sample: OccurrenceSample,
    options: dict[str, Any],
    limits: torch.Tensor | None,
    seed: int,
    work: UnfinishedBuild,
    disable_tqdm: bool | None,
) -> Clusters:
    """Clusters the tokens part by part; ``limits`` int64 ``(vocab_size,)`` takes the place of the rule, if given."""
    rule = options["max_senses"]
    senses = number_of_senses(torch.from_numpy(np.diff(bounds)), rule) if limits is None else limits

    def make(first: int, last: int, rows: slice) -> dict[str, torch.Tensor]:
        result = cluster(
            vectors[rows],
            torch.from_numpy(bounds[first : last + 1] - bounds[first]),
            seed=seed,
            problem_ids=torch.arange(first, last),
            weights=torch.from_numpy(sample.weights[rows]),
            **{**options, "max_senses": rule if limits is None else limits[first:last]},
        )
        return {name: getattr(result, name) for name in ("centers", "offsets", "labels", "weights", "spread")}

    parts = in_parts(make, bounds, senses.numpy(), work, "part", "Clustering", disable_tqdm)
    shifts = np.cumsum([0] + [len(part["centers"]) for part in parts])
    return Clusters(
        centers=torch.cat([part["centers"] for part in parts]),
        offsets=torch.cat([parts[0]["offsets"][:1]] + [p["offsets"][1:] + int(s) for p, s in zip(parts, shifts)]),
        labels=torch.cat([part["labels"] + int(shift) for part, shift in zip(parts, shifts)]),
        weights=torch.cat([part["weights"] for part in parts]),
        spread=torch.cat([part["spread"] for part in parts]),
    )


def _scaled_counts(clusters: Clusters, totals: np.ndarray) -> torch.Tensor:
    """Shares out all of a token's occurrences among its senses as the sample is, by largest remainder; exact in sum."""
    weights, offsets = clusters.weights.numpy(), clusters.offsets.numpy()
    lengths = np.diff(offsets)
    owner = np.repeat(np.arange(len(lengths)), lengths)
    sampled = np.bincount(owner, weights, minlength=len(lengths)).astype(np.int64)
    exact = weights * (totals[owner] / np.maximum(sampled[owner], 1))
    counts = np.floor(exact).astype(np.int64)
    left = totals - np.bincount(owner, counts, minlength=len(lengths)).astype(np.int64)
    order = np.lexsort((-(exact - counts), owner))
    rank = np.empty(len(owner), np.int64)
    rank[order] = np.arange(len(owner)) - offsets[:-1][owner]
    return torch.from_numpy(counts + (rank < left[owner]))
