"""Do clusters of a word's contextual embeddings match its meanings? On CoarseWSD-20, or data of the same form.

    python benchmarks/word_senses.py --data FOLDER

The folder holds a folder a word, with ``train.jsonl`` and ``test.jsonl`` of
``{"word": ..., "position": ..., "tokens": [...], "sense": ...}`` a line. No label is used to cluster, only to name each
cluster by its majority in train. What is clustered: the teacher's vector of the word, and that vector beside the mean of its
neighbours' vectors, each of norm 1. How many neighbours, and which layer, was chosen on parts of train.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from sklearn.cluster import AgglomerativeClustering

from hf_sense import load_teacher
from hf_sense.clustering import cluster
from hf_sense.dictionary import SenseDictionary
from hf_sense.evaluation import word_sense_scores
from hf_sense.kmeans import kmeans
from hf_sense.teacher import Teacher

BESIDE = ", word and neighbours"
# How vectors are clustered, and how one then picks its cluster.
RECIPES = (("kmeans", "dot"), ("kmeans", "l2"), ("spherical_kmeans", "cosine"))


# Spherical clusters are the better ones on a word's vector: the others are not tried beside its neighbours.
BESIDE_RECIPES = (("spherical_kmeans", "cosine"),)


def word_vectors(
    teacher: Teacher, rows: list[dict[str, Any]], reach: int, batch_size: int = 32
) -> tuple[torch.Tensor, torch.Tensor]:
    """The teacher's vector of the word at ``position``, the mean of its pieces, and the mean of the pieces around it.

    Args:
        teacher: an encoder.
        rows: with ``tokens`` and ``position``.
        reach: how many pieces before and after the word count as its neighbours; special tokens do not.
        batch_size: sentences at once.

    Returns:
        Both float32 ``(rows, dim)``; a word without neighbours stands for them itself.
    """
    vectors = torch.zeros(len(rows), teacher.dim)
    around = torch.zeros(len(rows), teacher.dim)
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number]["tokens"]))
    for begin in range(0, len(order), batch_size):
        chosen = order[begin : begin + batch_size]
        batch = teacher.tokenizer(
            [rows[number]["tokens"] for number in chosen],
            is_split_into_words=True,
            truncation=True,
            max_length=teacher.max_length,
            padding=True,
            return_tensors="pt",
        )
        hidden = teacher.hidden_states(batch["input_ids"], batch["attention_mask"]).float().cpu()
        for place, number in enumerate(chosen):
            position = rows[number]["position"]
            pieces = [at for at, word in enumerate(batch.word_ids(place)) if word == position]
            if not pieces:
                raise ValueError(f"Word {position} of a text lies past the teacher's {teacher.max_length} tokens.")
            near = [
                at
                for at, word in enumerate(batch.word_ids(place))
                if word not in (None, position) and pieces[0] - reach <= at <= pieces[-1] + reach
            ]
            vectors[number] = hidden[place, pieces].mean(0)
            around[number] = hidden[place, near or pieces].mean(0)
    return vectors, around


def score_word(teacher: Teacher, folder: Path, options: argparse.Namespace) -> dict[str, list[list[float]]]:
    """Accuracy, NMI and ARI of each recipe on one word, in %, for each seed of the clustering."""
    rows = {name: _read(folder / f"{name}.jsonl") for name in ("train", "test")}
    gold = {name: [row["sense"] for row in part] for name, part in rows.items()}
    states = {name: word_vectors(teacher, part, options.reach) for name, part in rows.items()}
    vectors = {name: word for name, (word, _) in states.items()}
    beside = {
        name: torch.cat([torch.nn.functional.normalize(part, dim=1) for part in both], 1)
        for name, both in states.items()
    }
    guesses = {"most frequent sense": [Counter(gold["train"]).most_common(1)[0][0]] * len(gold["test"])}
    for suffix, part in (("", vectors), (BESIDE, beside)):
        unit = {name: torch.nn.functional.normalize(own, dim=1) for name, own in part.items()}
        nearest = (unit["test"] @ unit["train"].T).argmax(1).tolist()
        guesses[f"nearest labelled neighbour{suffix}"] = [gold["train"][number] for number in nearest]
    scores = {
        name: [[100 * sum(a == b for a, b in zip(guess, gold["test"])) / len(guess)]] for name, guess in guesses.items()
    }
    for count, shown in ((20, "20"), (len(set(gold["train"])), "gold number")):
        for suffix, part, recipes in (("", vectors, RECIPES), (BESIDE, beside, BESIDE_RECIPES)):
            scores |= {
                f"{name}{suffix}, k = {shown}": found
                for name, found in _cluster_scores(part, gold, count, recipes, options).items()
            }
    return scores


def _cluster_scores(
    vectors: dict[str, torch.Tensor],
    gold: dict[str, list[str]],
    count: int,
    recipes: tuple[tuple[Any, str], ...],
    options: argparse.Namespace,
) -> dict[str, list[list[float]]]:
    """What each way of clustering these vectors into so many is worth, for each seed."""
    scores = {}
    for method, metric in recipes:
        found = [
            cluster(
                vectors["train"],
                torch.tensor([0, len(vectors["train"])]),
                method=method,
                max_senses=count,
                seed=seed * options.restarts,
                restarts=options.restarts,
            ).centers
            for seed in range(options.seeds)
        ]
        scores[f"{method}, {metric}"] = [_scores(vectors, gold, part, metric) for part in found]
    found = [_from_ward(torch.nn.functional.normalize(vectors["train"], dim=1), count)]
    scores["spherical_kmeans from Ward's start, cosine"] = [_scores(vectors, gold, found[0], "cosine")]
    return scores


def _from_ward(points: torch.Tensor, count: int) -> torch.Tensor:
    """Centres of spherical k-means that starts from Ward's hierarchical clustering: no chance in it."""
    count = min(count, len(points))
    joined = torch.from_numpy(AgglomerativeClustering(count).fit_predict(points.numpy()))
    start = _means(points, joined, count)
    ones = torch.ones(1, len(points))
    return _means(points, kmeans(points[None], ones, count, start=start[None], spherical=True).members[0], count)


def _means(points: torch.Tensor, members: torch.Tensor, count: int) -> torch.Tensor:
    sums = torch.zeros(count, points.shape[1]).index_add_(0, members, points)
    return torch.nn.functional.normalize(sums, dim=1)


def _scores(
    vectors: dict[str, torch.Tensor], gold: dict[str, list[str]], centers: torch.Tensor, metric: str
) -> list[float]:
    # One word is a dictionary of one token.
    counts = torch.ones(len(centers), dtype=torch.int64)
    senses = SenseDictionary(centers, torch.tensor([0, len(centers)]), counts, torch.zeros(len(centers)), metric=metric)
    ids = {
        name: senses.lookup(torch.zeros(len(part), dtype=torch.int64), part).numpy() for name, part in vectors.items()
    }
    result = word_sense_scores(ids["train"], gold["train"], ids["test"], gold["test"])
    return [100 * result.accuracy, 100 * result.nmi, 100 * result.ari]


def _read(path: Path) -> list[dict[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with a folder a word")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--seeds", type=int, default=5, help="how many times each recipe clusters each word")
    parser.add_argument("--restarts", type=int, default=10, help="starts of k-means, of which the best is kept")
    parser.add_argument("--reach", type=int, default=6, help="pieces before and after a word that are its neighbours")
    parser.add_argument("--output", type=Path, help="write the scores, word by word, to this JSON file")
    options = parser.parse_args()
    folders = sorted(path.parent for path in options.data.glob("*/train.jsonl"))
    if not folders:
        parser.error(f"{options.data} holds no folder with a train.jsonl; it should hold one a word.")
    teacher = load_teacher(options.teacher or default_teacher())
    words = {folder.name: score_word(teacher, folder, options) for folder in folders}
    print(
        f"Means over {len(words)} words and {options.seeds} seeds, in %; the range is that of the seeds.\n\n"
        "| | accuracy | range | NMI | ARI |\n| --- | --- | --- | --- | --- |"
    )
    for name in next(iter(words.values())):
        by_seed = torch.tensor([scores[name] for scores in words.values()]).mean(0)
        means = [f"{mean:.1f}" for mean in by_seed.mean(0).tolist()]
        if len(means) == 1:
            print(f"| {name} | {means[0]} | | | |")
        else:
            span = f"{by_seed[:, 0].min():.1f} to {by_seed[:, 0].max():.1f}" if len(by_seed) > 1 else ""
            print(f"| {name} | {means[0]} | {span} | {means[1]} | {means[2]} |")
    if options.output:
        options.output.write_text(json.dumps(words, indent=2) + "\n")


def default_teacher() -> str:
    """The folder of all-MiniLM-L6-v2, as the examples find it."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
    from real_data import teacher_folder

    return str(teacher_folder())


if __name__ == "__main__":
    main()
