"""What senses stored as float16, bfloat16 and int8 keep of float32 ones: choices, accuracy, size and time.

    python benchmarks/small_dictionaries.py --data FOLDER

The folder holds ``train.jsonl`` and ``test.jsonl`` with ``{"text": ..., "label": ...}`` a line. The teacher's states are
replaced by senses of each dtype, from one dictionary of the train texts, opened from disk and outside the model; the time of
a replacement, over that with float32, is also measured for senses among the model's weights. Agreement with float32 counts
test tokens that have two senses or more. It tunes nothing.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from pathlib import Path

import torch

# The folder of this script is on the path: its neighbours' readers and clocks serve here too.
from banking77 import MAX_LENGTH, default_teacher, read_rows
from measure import by_turns, kept_dictionary, save

from hf_sense import SenseModel, load_teacher
from hf_sense.corpus import encode_corpus
from hf_sense.dictionary import SenseDictionary
from hf_sense.evaluation import few_shot_accuracy, linear_probe
from hf_sense.teacher import Teacher

DTYPES = ("float32", "float16", "bfloat16", "int8")
POOLINGS = ("mean", "frequency")


class Batches:
    """Texts as the teacher reads them: token ids, its states and masks, 64 texts at a time."""

    def __init__(self, teacher: Teacher, texts: list[str]) -> None:
        corpus = encode_corpus(texts, teacher.tokenizer, MAX_LENGTH, disable_tqdm=True)
        self.parts: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        self.order: list[int] = []
        for rows in corpus.batches(64):
            inputs = corpus.padded(rows, teacher.tokenizer.pad_token_id)
            self.parts.append((inputs["input_ids"], teacher.hidden_states(**inputs), inputs["attention_mask"]))
            self.order += rows.tolist()

    @torch.inference_mode()
    def replaced(self, model: SenseModel) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The states of each batch with senses in their place, and the ids of these senses, all in a row."""
        found = [model.table.replace(states, ids, mask, model.config, True) for ids, states, mask in self.parts]
        return [states for states, _ in found], torch.cat([choice.sense_ids.reshape(-1) for _, choice in found])

    @torch.inference_mode()
    def vectors(self, model: SenseModel, states: list[torch.Tensor]) -> torch.Tensor:
        """One vector a text, in the order of the texts, pooled as the model's configuration says."""
        pooled = torch.cat([model.pool(own, ids, mask) for own, (ids, _, mask) in zip(states, self.parts, strict=True)])
        result = torch.empty_like(pooled)
        result[torch.tensor(self.order)] = pooled
        return result


def accuracies(
    model: SenseModel, batches: dict[str, Batches], labels: dict[str, list[str]], probe: bool
) -> dict[str, float]:
    """Percent right of a regression on 8 labelled texts a class and, if asked for, of one on all, for each pooling."""
    states = {split: part.replaced(model)[0] for split, part in batches.items()}
    figures = {}
    for pooling in POOLINGS:
        model.config.pooling = pooling
        vectors = {split: part.vectors(model, states[split]) for split, part in batches.items()}
        sides = (vectors["train"], labels["train"], vectors["test"], labels["test"])
        figures[f"8 a class, {pooling}"] = 100 * few_shot_accuracy(*sides).mean
        if probe:
            figures[f"all texts, {pooling}"] = 100 * linear_probe(*sides)
    return figures


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--texts", type=int, help="only the first so many texts of each split")
    parser.add_argument("--probe", action="store_true", help="also fit a regression on all train texts")
    parser.add_argument("--rounds", type=int, default=9, help="how often each replacement is timed")
    parser.add_argument("--dictionary", type=Path, help="folder that keeps the dictionary; used if it is there")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    threads = torch.get_num_threads()
    torch.set_num_threads(os.cpu_count() or 1)  # until the replacement is timed
    rows = {split: read_rows(options.data / f"{split}.jsonl")[: options.texts] for split in ("train", "test")}
    teacher = load_teacher(options.teacher or default_teacher())
    texts = {split: [row["text"] for row in part] for split, part in rows.items()}
    labels = {split: [row["label"] for row in part] for split, part in rows.items()}
    built = kept_dictionary(
        options.dictionary, teacher, texts["train"], max_senses=20, max_length=MAX_LENGTH, disable_tqdm=True
    )
    batches = {split: Batches(teacher, part) for split, part in texts.items()}
    test = batches["test"]
    with tempfile.TemporaryDirectory() as folder:
        models, dictionaries, figures = {}, {}, {}
        for name in DTYPES:
            path = Path(folder) / name
            built.to(getattr(torch, name)).save_pretrained(path)
            dictionaries[name] = SenseDictionary.from_pretrained(path)
            models[name] = SenseModel.from_teacher(teacher, dictionaries[name], dictionary_path=str(path))
        for name, dictionary in dictionaries.items():
            figures[name] = {
                "MB": dictionary.summary()["megabytes"],
                **accuracies(models[name], batches, labels, options.probe),
            }
        inside = {name: SenseModel.from_teacher(teacher, dictionaries[name]) for name in ("float32", "int8")}
        ways = {("outside", name): model for name, model in models.items()}
        ways |= {("among the weights", name): model for name, model in inside.items()}
        torch.set_num_threads(threads)
        seconds = by_turns({way: lambda own=own: test.replaced(own) for way, own in ways.items()}, options.rounds)
        chosen = {name: test.replaced(model)[1] for name, model in models.items()}
    token_ids = torch.cat([ids.reshape(-1) for ids, _, _ in test.parts])
    counted = (built.offsets.diff()[token_ids] > 1) & (chosen["float32"] >= 0)
    for name in models:
        figures[name]["agreement"] = 100 * float((chosen[name] == chosen["float32"])[counted].double().mean())
    for (where, name), own in seconds.items():
        ratios = [mine / other for mine, other in zip(own, seconds[where, "float32"], strict=True)]
        figures[name][f"time, {where}"] = statistics.median(ratios)
    print(f"{len(texts['train'])} texts to build from, {len(texts['test'])} to test, {built}")
    keys = list(figures["float32"])
    print("| | " + " | ".join(keys) + " |\n| --- |" + " --- |" * len(keys))
    for name, values in figures.items():
        print(f"| {name} | " + " | ".join(f"{values[key]:.2f}" if key in values else "" for key in keys) + " |")
    named = {" ".join(way): own for way, own in seconds.items()}
    save(options.output, {"figures": figures, "seconds": named})


if __name__ == "__main__":
    main()
