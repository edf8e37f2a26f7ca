"""Likeness of texts and search, by Sentence Transformers' own evaluators: a teacher, its senses, a student, static vectors.

    OMP_NUM_THREADS=1 python benchmarks/retrieval.py --data FOLDER

The folder holds ``train.jsonl`` and ``test.jsonl`` with ``{"text": ..., "label": ...}`` a line, as Banking77 has it. Dictionary
and student see the train texts without labels. On test: pairs of one label or of two (Spearman's correlation and average
precision of the cosine), and the search for all texts of a query's label among those that are no queries (nDCG@10, MAP@100).
Every model is saved as a folder and opened by ``SentenceTransformer``. It tunes nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from banking77 import MAX_LENGTH, default_teacher, read_rows, train
from measure import save
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.evaluation import (
    BinaryClassificationEvaluator,
    EmbeddingSimilarityEvaluator,
    InformationRetrievalEvaluator,
)
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

from hf_sense import SenseModel, build_dictionary, load_teacher
from hf_sense.small_students import token_mean_dictionary
from hf_sense.teacher import Teacher

LAYERS = 2
PCA_DIMS = 256
FIGURES = {
    "Spearman": "pairs_spearman_cosine",
    "AP": "pairs_cosine_ap",
    "nDCG@10": "search_cosine_ndcg@10",
    "MAP@100": "search_cosine_map@100",
}

Draw = tuple[EmbeddingSimilarityEvaluator, BinaryClassificationEvaluator, InformationRetrievalEvaluator]


def draw(rows: list[dict[str, Any]], pairs: int, queries: int, seed: int) -> Draw:
    """Evaluators on texts drawn anew: half of the pairs share a label; ``queries`` texts of each label search the others."""
    generator = random.Random(seed)
    of_label: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        of_label[row["label"]].append(row["text"])
    names = sorted(of_label)
    first, second, alike = [], [], []
    for number in range(pairs):
        if same := number % 2 == 0:
            a, b = generator.sample(of_label[generator.choice(names)], 2)
        else:
            a, b = (generator.choice(of_label[name]) for name in generator.sample(names, 2))
        first.append(a)
        second.append(b)
        alike.append(int(same))
    asked: dict[str, str] = {}
    corpus: dict[str, str] = {}
    wanted: dict[str, set[str]] = {}
    for name in names:
        texts = generator.sample(of_label[name], len(of_label[name]))
        ids = [f"{name} {number}" for number in range(len(texts))]
        asked |= dict(zip(ids[:queries], texts))
        corpus |= dict(zip(ids[queries:], texts[queries:]))
        wanted |= {query: set(ids[queries:]) for query in ids[:queries]}
    return (
        EmbeddingSimilarityEvaluator(first, second, alike, main_similarity="cosine", name="pairs", write_csv=False),
        BinaryClassificationEvaluator(first, second, alike, name="pairs", write_csv=False),
        InformationRetrievalEvaluator(asked, corpus, wanted, name="search", write_csv=False),
    )


def score(folder: Path, rows: list[dict[str, Any]], draws: list[Draw]) -> dict[str, list[float]]:
    """Each figure in every draw, in percent. The texts are encoded once for all draws."""
    encoder = SentenceTransformer(str(folder), device="cpu") if not _is_static(folder) else _static(folder)
    texts = sorted({row["text"] for row in rows})
    vectors = encoder.encode(texts, batch_size=64, show_progress_bar=False, convert_to_tensor=True)
    place = {text: number for number, text in enumerate(texts)}

    def known(inputs: list[str], convert_to_tensor: bool = False, **_: Any) -> Any:
        found = vectors[[place[text] for text in inputs]]
        return found if convert_to_tensor else found.numpy()

    encoder.encode = known
    found: dict[str, list[float]] = {name: [] for name in FIGURES}
    for evaluators in draws:
        together: dict[str, float] = {}
        for evaluator in evaluators:
            together |= evaluator(encoder)
        for name, key in FIGURES.items():
            found[name].append(100 * float(together[key]))
    return found


def _is_static(folder: Path) -> bool:
    return not (folder / "modules.json").is_file() or "StaticEmbedding" in (folder / "modules.json").read_text()


def _static(folder: Path) -> SentenceTransformer:
    return SentenceTransformer(modules=[StaticEmbedding.from_model2vec(str(folder))], device="cpu")


def ways(
    teacher: Teacher, rows: dict[str, list[dict[str, Any]]], steps: int
) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """What is compared: a name, and what saves it in a folder."""
    texts = [row["text"] for row in rows["train"]]
    dictionary = build_dictionary(teacher, texts, max_senses=20, max_length=MAX_LENGTH, disable_tqdm=True)

    def saves(model: SenseModel, **fields: Any) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            for name, value in fields.items():
                setattr(model.config, name, value)
            model.save_for_sentence_transformers(folder, teacher.tokenizer, max_seq_length=MAX_LENGTH)

        return write

    whole = SenseModel.from_teacher(teacher, dictionary)
    yield "teacher, continuous", saves(whole, selection="none", pooling="mean")
    yield "teacher, continuous, frequency pooling", saves(whole, selection="none", pooling="frequency")
    yield "teacher, hard senses", saves(whole, selection="hard", pooling="mean")
    yield "teacher, hard senses, frequency pooling", saves(whole, selection="hard", pooling="frequency")
    yield "teacher, soft senses, frequency pooling", saves(whole, selection="soft", pooling="frequency")
    table = SenseModel.from_teacher(teacher, token_mean_dictionary(dictionary))
    yield "table of means", saves(table, selection="hard", pooling="mean")
    yield "table of means, frequency pooling", saves(table, selection="hard", pooling="frequency")

    def model2vec(folder: Path) -> None:
        from model2vec.distill import distill_from_model

        fresh = load_teacher(teacher.name)  # its embeddings are cut to the tokenizer's size in place
        static = distill_from_model(fresh.model, fresh.tokenizer, device="cpu", pca_dims=min(PCA_DIMS, teacher.dim))
        static.save_pretrained(folder)

    yield "model2vec", model2vec
    if steps:
        bench: Any = SimpleNamespace(texts={"train": texts}, quiet=True)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):  # the trainer prints
            student = train(bench, teacher, dictionary, {}, steps, 0, LAYERS, Path(folder))
        name = f"{LAYERS} layers"
        yield f"{name}, hard senses, frequency pooling", saves(student, selection="hard", pooling="frequency")
        yield f"{name}, soft senses, frequency pooling", saves(student, selection="soft", pooling="frequency")


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--steps", type=int, default=468, help="of 32 texts, of the student; 0 leaves it out")
    parser.add_argument("--pairs", type=int, default=4000, help="in a draw")
    parser.add_argument("--queries", type=int, default=5, help="of each label in a draw")
    parser.add_argument("--draws", type=int, default=3, help="of pairs and queries")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    if options.pairs < 2 or options.queries < 1 or options.draws < 1:
        parser.error("--pairs should be at least 2, --queries and --draws at least 1.")
    rows = {split: read_rows(options.data / f"{split}.jsonl") for split in ("train", "test")}
    draws = [draw(rows["test"], options.pairs, options.queries, seed) for seed in range(options.draws)]
    teacher = load_teacher(options.teacher or default_teacher())
    print(f"| | {' | '.join(FIGURES)} |\n| --- |{' --- |' * len(FIGURES)}")
    scores: dict[str, Any] = {}
    for name, write in ways(teacher, rows, options.steps):
        with tempfile.TemporaryDirectory() as temporary:
            try:
                write(Path(temporary))
            except ImportError as error:
                print(f"| {name} | does not run: {error} |{' |' * (len(FIGURES) - 1)}", flush=True)
                continue
            scores[name] = score(Path(temporary), rows["test"], draws)
        cells = [f"{statistics.mean(scores[name][figure]):.1f}" for figure in FIGURES]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)
    widest = {name: max(max(found[name]) - min(found[name]) for found in scores.values()) for name in FIGURES}
    search = draws[0][2]
    print(
        f"\nIn %, means of {options.draws} draws of {options.pairs} pairs and {len(search.queries)} queries among "
        f"{len(search.corpus)} texts; the student distilled in {options.steps} steps. A row's draws "
        f"differ by at most {', '.join(f'{width:.1f} ({name})' for name, width in widest.items())}; all rows have the same draws."
    )
    save(options.output, {"steps": options.steps, "scores": scores})


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
