"""A decoder as a teacher on Banking77: as it comes, opened, adapted; with its senses in place; and a student of its layers.

    python benchmarks/decoders.py --data FOLDER [--adapters FOLDER]

SmolLM2-135M-Instruct, or any decoder with ``--base``. ``--adapters`` is what ``hf-sense adapt`` wrote, for the bidirectional
form; ``--causal-adapters`` for the causal. MTEB's protocol on the first texts of a shuffle that ``--seed`` decides;
dictionaries and students see all texts of the train split, and labels are used in the evaluation alone.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tqdm.auto import tqdm

from hf_sense import SenseDistillationConfig, SenseDistillationTrainer, SenseModel, build_dictionary, load_teacher
from hf_sense.corpus import encode_corpus
from hf_sense.evaluation import few_shot_accuracy
from hf_sense.teacher import Teacher

MAX_LENGTH = 64
SAMPLES = 8  # labelled texts of each class in a draw
FORMS_OF_ATTENTION = ["causal", "bidirectional"]
OUTSIDE = "senses"  # the student's dictionary lies beside it, in float16, memory-mapped
# The most that a process holds while it loads a model and reads texts with it, less what it held before. A model of one
# layer and eight tokens goes first, so that the libraries' own code, which loads on first use, is not counted.
_PEAK = """
import ctypes, gc, json, sys, torch
from transformers import AutoConfig, AutoModel
import hf_sense
def status(name):  # of this process alone; getrusage would hand on the parent's
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
config = AutoConfig.from_pretrained(sys.argv[1])
text = config.get_text_config()
text.num_hidden_layers, text.vocab_size = 1, 8
if config.model_type == "sense":
    config.sense_dictionary, config.num_senses, config.vocab_size = None, 8, 8
one = torch.ones(1, 2, dtype=torch.int64)
with torch.no_grad():
    AutoModel.from_config(config).eval()(input_ids=one, attention_mask=one)
gc.collect()
ctypes.CDLL(None).malloc_trim(0)
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
model = AutoModel.from_pretrained(sys.argv[1]).eval()
batch = {name: torch.tensor(rows) for name, rows in json.load(open(sys.argv[2])).items()}
with torch.no_grad():
    model(**batch)
print((status("VmHWM") - before) / 1024)
"""


class Benchmark:
    """The texts, and the rows of the table."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.quiet = True if options.quiet else None
        self.texts: dict[str, list[str]] = {}
        self.labels: dict[str, list[str]] = {}
        self.rows: list[dict[str, Any]] = []
        self.unlabelled: list[str] = []
        for name, most in (("train", options.train_texts), ("test", options.test_texts)):
            lines = (options.data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines]
            if name == "train":
                self.unlabelled = [row["text"] for row in rows][: options.unlabelled_texts]
            random.Random(options.seed).shuffle(rows)
            self.texts[name] = [row["text"] for row in rows[:most]]
            self.labels[name] = [row["label"] for row in rows[:most]]
        rarest, number = min(Counter(self.labels["train"]).items(), key=lambda pair: pair[1])
        if number < SAMPLES:
            raise SystemExit(
                f"Label {rarest!r} has {number} of the {SAMPLES} texts that a draw takes: raise --train-texts."
            )

    def vectors(self, model: SenseModel, teacher: Teacher) -> tuple[dict[str, dict[str, torch.Tensor]], float]:
        """Each split's vectors in four forms out of one pass, and texts a second of that pass."""
        found: dict[str, dict[str, torch.Tensor]] = {}
        begin = time.perf_counter()
        for split, texts in self.texts.items():
            corpus = encode_corpus(texts, teacher.tokenizer, MAX_LENGTH, disable_tqdm=True, quiet=True)
            forms = {name: torch.zeros(len(texts), teacher.dim) for name in FORMS}
            with torch.no_grad(), tqdm(total=len(texts), desc=split, unit=" texts", disable=self.quiet) as bar:
                for rows in corpus.batches(64):
                    batch = corpus.padded(rows, teacher.tokenizer.pad_token_id or 0)
                    output = model(**batch, output_senses=True)
                    for name, (state, pooling) in FORMS.items():
                        model.config.pooling = pooling
                        pooled = model.pool(output[state], batch["input_ids"], batch["attention_mask"])
                        forms[name][torch.from_numpy(rows)] = pooled.float()
                    bar.update(len(rows))
            found[split] = forms
        return found, sum(map(len, self.texts.values())) / (time.perf_counter() - begin)

    def measure(self, name: str, model: SenseModel, teacher: Teacher) -> None:
        """Prints a row of the table."""
        vectors, speed = self.vectors(model, teacher)
        row: dict[str, Any] = {"name": name, "texts_per_second": speed, "parameters": model.num_parameters()}
        for form in FORMS:
            score = few_shot_accuracy(
                vectors["train"][form],
                self.labels["train"],
                vectors["test"][form],
                self.labels["test"],
                samples_per_label=SAMPLES,
            )
            row[form] = 100 * score.mean
        self.rows.append(row)
        cells = " | ".join(f"{row[form]:.1f}" for form in FORMS)
        millions = row["parameters"] / 1e6
        print(f"| {name} | {cells} | {millions:.1f} | {4 * millions:.0f} | {speed:.0f} |", flush=True)


# The hidden states of a sense model's output, and how they are pooled.
FORMS = {
    "continuous": ("contextual_hidden_state", "mean"),
    "continuous, later tokens weigh more": ("contextual_hidden_state", "weighted_mean"),
    "senses": ("last_hidden_state", "mean"),
    "senses, frequency pooling": ("last_hidden_state", "frequency"),
}


def with_senses(bench: Benchmark, name: str, teacher: Teacher, max_senses: str) -> SenseModel:
    """Builds the teacher's dictionary, measures it with its senses in place, and returns that model."""
    dictionary = build_dictionary(
        teacher, bench.unlabelled, max_senses=max_senses, max_length=MAX_LENGTH, dtype=torch.float16,
        disable_tqdm=bench.quiet,
    )  # fmt: skip
    name += f" ({dictionary.num_senses:,} senses)"
    model = SenseModel.from_teacher(teacher, dictionary, selection="hard")
    bench.measure(name, model, teacher)
    return model


def distilled(bench: Benchmark, teacher: Teacher, whole: SenseModel, options: argparse.Namespace) -> SenseModel:
    """A student of the teacher's first layers, trained to choose its senses."""
    student = SenseModel.from_teacher(
        teacher, whole.to_dictionary().to(torch.float16), num_hidden_layers=options.layers, dictionary_path=OUTSIDE
    )
    with tempfile.TemporaryDirectory() as folder:
        args = SenseDistillationConfig(
            folder, max_steps=options.steps, per_device_train_batch_size=32, learning_rate=5e-4,
            warmup_steps=min(20, options.steps // 2), lr_scheduler_type="cosine", freeze_embeddings=True,
            max_length=MAX_LENGTH, save_strategy="no", logging_strategy="no", dataloader_pin_memory=False, report_to=[],
            disable_tqdm=bool(bench.quiet), target_cache_dir=folder, seed=options.seed,
        )  # fmt: skip
        data = Dataset.from_dict({"text": bench.unlabelled})
        SenseDistillationTrainer(student, args, teacher=teacher, train_dataset=data).train()
    return student.eval()


def with_student(bench: Benchmark, name: str, teacher: Teacher, whole: SenseModel, options: argparse.Namespace) -> None:
    """Distils a student, measures it, and sets its memory against the teacher's."""
    student = distilled(bench, teacher, whole, options)
    dictionary = student.to_dictionary()
    name += f": student of {options.layers} layers ({dictionary.num_senses:,} senses)"
    bench.measure(name, student, teacher)
    peaks = [peak_memory(model, teacher, bench.texts["test"]) for model in (teacher.model, student)]
    bench.rows.append({"name": f"{name}: peak MiB, teacher and student with its dictionary", "peaks": peaks})
    megabytes = dictionary.summary()["megabytes"]
    print(
        f"\nPeak memory: teacher {peaks[0]:.0f} MiB, student with its dictionary of {megabytes:.1f} MB {peaks[1]:.0f} MiB, "
        f"{peaks[1] / peaks[0]:.0%}.\n",
        flush=True,
    )


def peak_memory(model: Any, teacher: Teacher, texts: list[str]) -> float:
    """MiB by which a process grows when it loads the model and reads 32 texts with it; the median of five."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        if isinstance(model, SenseModel):
            model.to_dictionary().save_pretrained(Path(folder) / OUTSIDE)
        batch = teacher.tokenizer(texts[:32], padding=True, truncation=True, max_length=MAX_LENGTH)
        path = Path(folder) / "batch.json"
        path.write_text(json.dumps({name: batch[name] for name in ("input_ids", "attention_mask")}))
        command = [sys.executable, "-c", _PEAK, folder, str(path)]
        runs = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(5)]
        return statistics.median(float(out.split()[-1]) for out in runs)


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and test.jsonl")
    parser.add_argument("--base", help="folder or Hub id of a decoder; SmolLM2-135M-Instruct if not given")
    parser.add_argument("--adapters", type=Path, help="folder with mntp/ and simcse/ of the bidirectional form")
    parser.add_argument("--causal-adapters", type=Path, help="folder with simcse/ of the causal form")
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=FORMS_OF_ATTENTION,
        default=FORMS_OF_ATTENTION,
        help="of attention; both if not given",
    )
    parser.add_argument("--skip-raw", action="store_true", help="leave out the decoder as it comes")
    parser.add_argument("--train-texts", type=int, default=2500, help="labelled texts that draws are made from")
    parser.add_argument("--test-texts", type=int, default=1500)
    parser.add_argument("--unlabelled-texts", type=int, help="train texts for dictionary and student; all if not given")
    parser.add_argument(
        "--max-senses", nargs="+", default=["20"],
        help="of a token: numbers, or rules such as n/10,100; a decoder as it comes is measured with the first alone",
    )  # fmt: skip
    parser.add_argument("--layers", type=int, default=8, help="of the student")
    parser.add_argument("--steps", type=int, default=300, help="of the student's training; 0 leaves it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    options = parser.parse_args()
    for folder in (options.adapters, options.causal_adapters):
        if folder is not None and not (folder / "simcse").is_dir():
            parser.error(f"{folder} has no folder simcse: give what hf-sense adapt wrote, once it is done.")
    bench = Benchmark(options)
    base = options.base or default_base()
    header = ["", *FORMS, "parameters M", "MB in float32", "texts a second"]
    print("| " + " | ".join(header) + " |\n| " + " | ".join(["---"] * len(header)) + " |")
    for attention in options.forms:
        folder = options.causal_adapters if attention == "causal" else options.adapters
        if not options.skip_raw:
            raw = load_teacher(base, attention=attention)
            with_senses(bench, f"{attention}, as it comes", raw, options.max_senses[0])
        if folder is None:
            continue
        adapters = [str(folder / stage) for stage in ("mntp", "simcse") if (folder / stage).is_dir()]
        teacher = load_teacher(base, adapters=adapters, attention=attention)
        for max_senses in options.max_senses:
            whole = with_senses(bench, f"{attention}, adapted", teacher, max_senses)
            if options.steps:
                with_student(bench, f"{attention}, adapted", teacher, whole, options)
    if options.output:
        options.output.write_text(json.dumps(bench.rows, indent=2) + "\n", encoding="utf-8")


def default_base() -> str:
    """The folder of SmolLM2-135M-Instruct, as the examples find it."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
    from smollm2 import decoder_folder

    return str(decoder_folder())


if __name__ == "__main__":
    main()
