"""What it takes to serve the ways of ``compare.py``: megabytes to keep, and texts a second over the teacher's.

Weights do not change either, so nothing is trained here. Ways take turns in one process, from texts to vectors, on one thread.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from banking77 import MAX_LENGTH
from compared_methods import RECIPES
from compared_students import ContextTable, Student
from compared_texts import BATCH
from compared_ways import BUDGET, CODES, FEWER, OURS, PAPER, TWICE, Workshop, in_teacher, model2vec_folder, static_model
from measure import by_turns, ratios, spread
from small_students import megabytes

from hf_sense import SenseModel
from hf_sense.corpus import encode_corpus
from hf_sense.pooling import pool
from hf_sense.small_students import token_mean_dictionary

TEXTS = 256
Answer = Callable[[list[str]], Any]


def serve(shop: Workshop, results: Any, rounds: int) -> dict[str, Any]:
    """By row: MB as saved and in float16, and if rounds are asked for texts a second and how many times the teacher's."""
    figures: dict[str, Any] = {}
    ways: dict[str, Answer] = {}
    for row, answer, sizes in _served(shop, results, layers=rounds > 0):
        figures[row] = sizes
        ways[row] = answer
    texts = (shop.texts.test.texts * TEXTS)[:TEXTS]
    if rounds:
        seconds = by_turns({row: lambda way=way: way(texts) for row, way in ways.items()}, rounds)
        for row, own in seconds.items():
            figures[row]["texts_per_second"] = len(texts) / statistics.median(own)
            figures[row]["times"] = spread(ratios(seconds["teacher"], own))
    return figures


def _served(shop: Workshop, results: Any, layers: bool) -> Any:
    teacher = shop.teacher
    yield "teacher", _reading(shop, _pooled(lambda batch: teacher.hidden_states(**batch))), megabytes(teacher.model)
    whole = {"teacher, 20 senses, hard": (OURS, "hard"), "teacher, 20 senses, soft": (OURS, "soft"),
             "teacher, paper's recipe": (PAPER, "hard")}  # fmt: skip
    if not layers:  # sizes alone are asked for, and counting clusters takes minutes
        del whole["teacher, paper's recipe"]
    for row, (options, selection) in whole.items():
        model = SenseModel.from_teacher(teacher, shop.dictionary(**options), selection=selection)
        yield row, _of(shop, model), megabytes(model) | _alone(shop, options)
    fewer = {f"{k} senses, hard": {"max_senses": k, "metric": "l2"} for k in FEWER}
    fewer["3 MB of senses, hard, int8"] = BUDGET
    for name, options in (fewer | {f"{name}, int8": options for name, options in (CODES | TWICE).items()}).items():
        model = SenseModel.from_teacher(teacher, shop.dictionary(**options), selection="hard")
        yield f"teacher, {name}", _of(shop, model), megabytes(model) | _alone(shop, options)
    table = token_mean_dictionary(shop.dictionary(**OURS))
    means = in_teacher(shop, {"max_senses": 1, "metric": "l2"})
    means.table.fill(table, torch.float32, outside=False)
    reading = _reading(shop, _pooled(lambda batch: means.table.token_means(batch["input_ids"])))
    yield "table of means", reading, megabytes(table)
    for recipe in RECIPES:
        if isinstance(recipe, ContextTable):
            for row, fields in zip(recipe.row_names, ({}, {"sense_dtype": "int8"})):
                model = recipe.model(shop, **fields)
                yield row, _of(shop, model), megabytes(model)
        elif isinstance(recipe, Student) and (layers or "backbone" in recipe.shape):
            model = recipe.model(shop)
            for row, selection in recipe.selections.items():
                model.config.selection = selection
                bare = selection == "none" and "num_hidden_layers" in recipe.shape
                served = model.fold() if recipe.shape.get("backbone") == "selector" else model
                # Continuous states need no senses beside the layers.
                yield row, _of(shop, served), megabytes(model.backbone if bare else served)
    settings = results.settings_of(next(one for one in RECIPES if one.name == "model2vec"))
    try:
        static = static_model(shop, **settings)
    except ImportError:
        return
    folder = model2vec_folder(shop, **settings)
    size = sum(path.stat().st_size for path in Path(folder).glob("*.safetensors")) / 1e6
    kept = {"MB as saved": size, "MB float16": size * 2 / static.embedding.dtype.itemsize}
    yield "model2vec", lambda texts: static.encode(texts, max_length=MAX_LENGTH, use_multiprocessing=False), kept


def _alone(shop: Workshop, options: dict[str, Any]) -> dict[str, float]:
    dictionary = shop.dictionary(**options)
    sizes = megabytes(dictionary)
    if dictionary.dtype == torch.int8:  # what is int8 stays so
        sizes["MB float16"] = sizes["MB as saved"]
    return {f"dictionary, {name}": size for name, size in sizes.items()}


def _of(shop: Workshop, model: Any) -> Answer:
    selection, pooling = model.config.selection, "mean"

    def vectors(batch: dict[str, torch.Tensor]) -> torch.Tensor:
        model.config.selection, model.config.pooling = selection, pooling  # rows of one student share the model
        return model.text_vectors(**batch)

    return _reading(shop, vectors)


def _pooled(
    states: Callable[[dict[str, torch.Tensor]], torch.Tensor],
) -> Callable[[dict[str, torch.Tensor]], torch.Tensor]:
    return lambda batch: pool(states(batch), batch["attention_mask"], "mean")


def _reading(shop: Workshop, vectors: Callable[[dict[str, torch.Tensor]], torch.Tensor]) -> Answer:
    tokenizer = shop.teacher.tokenizer

    @torch.inference_mode()
    def answer(texts: list[str]) -> np.ndarray:
        corpus = encode_corpus(texts, tokenizer, MAX_LENGTH, quiet=True, disable_tqdm=True)
        found = []
        for rows in corpus.batches(BATCH):
            found.append(vectors(corpus.padded(rows, tokenizer.pad_token_id)).numpy())
        return np.concatenate(found)

    return answer
