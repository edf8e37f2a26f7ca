"""What one pass without a sample costs against a build with one: squared error of all occurrences, and accuracy.

    OMP_NUM_THREADS=1 python benchmarks/one_pass.py --data FOLDER

The folder holds ``train.jsonl`` and ``test.jsonl`` with ``{"text": ..., "label": ...}`` a line. Dictionaries of the train texts,
in the order of the file and shuffled: built as usual, streamed after a start on the first texts, that start alone. The error is
the mean squared distance of the train texts' occurrences to the nearest of their token's senses, over that of the usual build;
tokens that have no senses yet are left out of it and counted. Accuracy: logistic regression on a few labelled texts a class, ten
draws, on the teacher's states replaced by senses. The teacher reads all texts once.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
from pathlib import Path
from typing import Any

import torch
from banking77 import MAX_LENGTH, default_teacher, read_rows
from measure import machine, save
from small_students import Kept

from hf_sense import build_dictionary, load_teacher
from hf_sense.corpus import encode_corpus
from hf_sense.dictionary import SenseDictionary
from hf_sense.evaluation import few_shot_accuracy
from hf_sense.pooling import pool
from hf_sense.streaming import stream_dictionary
from hf_sense.teacher import Teacher

BATCH = 64


@torch.inference_mode()
def measured(dictionary: SenseDictionary, teacher: Teacher, texts: list[str]) -> tuple[float, float, torch.Tensor]:
    """Mean squared error of occurrences that have senses, the share that has none, and mean-pooled replaced vectors."""
    corpus = encode_corpus(texts, teacher.tokenizer, MAX_LENGTH, quiet=True, disable_tqdm=True)
    vectors = torch.zeros(len(texts), teacher.dim)
    error, known, count = 0.0, 0, 0
    for rows in corpus.batches(BATCH):
        batch = corpus.padded(rows, teacher.tokenizer.pad_token_id or 0)
        states = teacher.hidden_states(**batch)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        replaced = dictionary.replace(ids, states, mask)
        has = mask.bool() & (dictionary.offsets[ids + 1] > dictionary.offsets[ids])
        error += float((replaced - states)[has].square().sum())
        known, count = known + int(has.sum()), count + int(mask.sum())
        vectors[torch.from_numpy(rows)] = pool(replaced, mask, "mean")
    return error / known, 1 - known / count, vectors


def main() -> None:
    """Runs it and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--start", type=int, default=1000, help="texts before the pass begins")
    parser.add_argument("--shots", type=int, default=8, help="labelled texts a class")
    parser.add_argument("--most", type=int, help="only the first so many texts of each split")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    rows = {split: read_rows(options.data / f"{split}.jsonl")[: options.most] for split in ("train", "test")}
    texts = {split: [row["text"] for row in part] for split, part in rows.items()}
    labels = {split: [row["label"] for row in part] for split, part in rows.items()}
    teacher = load_teacher(options.teacher or default_teacher())
    reader = copy.copy(teacher)
    every = texts["train"] + texts["test"]
    kept = Kept(teacher, encode_corpus(every, teacher.tokenizer, MAX_LENGTH, quiet=True, disable_tqdm=True))
    reader.hidden_states = kept.hidden_states  # type: ignore[method-assign]
    shuffled = list(texts["train"])
    random.Random(0).shuffle(shuffled)
    own: dict[str, Any] = {"max_senses": 20, "max_length": MAX_LENGTH, "disable_tqdm": True}
    ways = {
        "build_dictionary": build_dictionary(reader, texts["train"], **own),
        "one pass, shuffled": stream_dictionary(reader, shuffled, start=options.start, **own),
        "one pass, in the order of the file": stream_dictionary(reader, texts["train"], start=options.start, **own),
        f"the first {options.start} shuffled texts alone": build_dictionary(reader, shuffled[: options.start], **own),
    }
    figures: dict[str, dict[str, float]] = {}
    print("| | error over the build's | occurrences without senses | few labels, % |\n| --- | --- | --- | --- |")
    for name, dictionary in ways.items():
        error, bare, train = measured(dictionary, reader, texts["train"])
        test = measured(dictionary, reader, texts["test"])[2]
        score = few_shot_accuracy(train, labels["train"], test, labels["test"], samples_per_label=options.shots)
        figures[name] = {"error": error, "bare": bare, "accuracy": 100 * score.mean}
        over = error / figures["build_dictionary"]["error"]
        print(f"| {name} | {over:.3f} | {bare:.1%} | {100 * score.mean:.1f} |", flush=True)
    print(json.dumps({"texts": len(texts["train"]), "start": options.start}))
    save(options.output, {"machine": machine(), "ways": figures})


if __name__ == "__main__":
    main()
