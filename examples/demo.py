"""The whole path on real input: build a dictionary, replace, distil, evaluate, save, load.

Without arguments: all-MiniLM-L6-v2 and Reuters R8, fetched once. With ``--teacher`` and ``--dataset``: any encoder, and any
data set with a train and a test split that ``datasets.load_dataset`` reads.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from datasets import Dataset, load_dataset
from real_data import reuters_r8, teacher_folder
from transformers import AutoModelForSequenceClassification, AutoTokenizer, pipeline

import hf_sense  # noqa: F401 (registers the model type)
from hf_sense import (
    SenseDistillationConfig,
    SenseDistillationTrainer,
    SenseModelForSequenceClassification,
    build_dictionary,
    compute_sense_targets,
    load_teacher,
)
from hf_sense.corpus import encode_corpus
from hf_sense.dictionary import SenseDictionary
from hf_sense.evaluation import evaluate_classifier, fit_linear_head
from hf_sense.files import write_text
from hf_sense.report import write_report
from hf_sense.teacher import Teacher

SENTENCES = [
    "the company said its net profit rose in the first quarter",
    "opec ministers agreed to cut oil output to raise prices",
    "the bank of england raised its interest rate by half a point",
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", help="a folder or an id on the Hub [all-MiniLM-L6-v2]")
    parser.add_argument("--dataset", help="a folder or an id on the Hub, with splits train and test [Reuters R8]")
    parser.add_argument("--text-column", default="text")
    parser.add_argument("--label-column", default="label")
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--steps", type=int, default=300, help="training steps of each student")
    parser.add_argument("--train-texts", type=int, default=2000, help="texts for the dictionary and the students")
    parser.add_argument("--test-texts", type=int, default=1000)
    return parser.parse_args()


def splits(args: argparse.Namespace) -> dict[str, Dataset]:
    """Shuffled train and test texts, with string labels."""
    loaded = load_dataset(args.dataset) if args.dataset else None
    result = {}
    for name, most in (("train", args.train_texts), ("test", args.test_texts)):
        if loaded is None:
            texts, labels = reuters_r8(name)
        else:
            texts, labels = loaded[name][args.text_column], [str(x) for x in loaded[name][args.label_column]]
        data = Dataset.from_dict({"text": list(texts), "label": list(labels)}).shuffle(seed=0)
        result[name] = data.select(range(min(most, len(data))))
    return result


class Demo:
    """The teacher, the texts, and the rows of the table."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.data = splits(args)
        self.teacher: Teacher = load_teacher(args.teacher or str(teacher_folder()))
        self.rows: list[list[str]] = []

    def student(
        self, dictionary: SenseDictionary, layers: int | None, selection: str
    ) -> SenseModelForSequenceClassification:
        return SenseModelForSequenceClassification.from_teacher(
            self.teacher, dictionary, num_hidden_layers=layers, selection=selection, pooling="frequency"
        )

    def trainer(
        self, model: SenseModelForSequenceClassification, train: Dataset, **options: object
    ) -> SenseDistillationTrainer:
        config = SenseDistillationConfig(
            str(self.args.output / "trainer"),
            max_steps=self.args.steps,
            per_device_train_batch_size=16,
            per_device_eval_batch_size=32,
            learning_rate=1e-3,
            temperature=1.0,  # that of the published table
            warmup_steps=30,
            lr_scheduler_type="cosine",
            freeze_embeddings=True,
            save_strategy="no",
            logging_steps=100,
            dataloader_pin_memory=False,
            max_length=self.args.max_length,
            **options,
        )
        return SenseDistillationTrainer(model, config, teacher=self.teacher, train_dataset=train)

    def row(
        self, name: str, model: SenseModelForSequenceClassification, dictionary: SenseDictionary | None, agreement: str
    ) -> None:
        tokenizer, length = self.teacher.tokenizer, self.args.max_length
        fit_linear_head(model, tokenizer, self.data["train"]["text"], self.data["train"]["label"], max_length=length)
        scores = evaluate_classifier(
            model, tokenizer, self.data["test"]["text"], self.data["test"]["label"], max_length=length
        )
        megabytes = f"{dictionary.summary()['megabytes']:.1f}" if dictionary else "-"
        cells = [f"{100 * scores['accuracy']:.1f}", agreement, f"{model.num_parameters() / 1e6:.1f}", megabytes]
        self.rows.append([name, *cells, f"{scores['texts_per_second']:.0f}"])
        print(f"{name}: accuracy {cells[0]} %", flush=True)

    def table(self) -> str:
        header = ["", "accuracy %", "agreement %", "parameters M", "dictionary MB", "texts a second"]
        lines = [header, ["---"] * len(header), *self.rows]
        return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    args = arguments()
    begin = time.perf_counter()
    demo = Demo(args)
    args.output.mkdir(parents=True, exist_ok=True)
    teacher, texts = demo.teacher, demo.data["train"]["text"]
    options = {"max_length": args.max_length, "corpus_name": args.dataset or "Reuters R8"}

    dictionary = build_dictionary(teacher, texts, work_dir=args.output / "work", **options)
    dictionary.save_pretrained(args.output / "dictionary")
    teacher.tokenizer.save_pretrained(args.output / "dictionary")
    means = build_dictionary(teacher, texts, max_senses=1, work_dir=args.output / "work-means", **options)

    shared = {"max_length": args.max_length}
    train, test = (compute_sense_targets(demo.data[name], teacher, dictionary, **shared) for name in ("train", "test"))

    demo.row("table of means (one sense a token)", demo.student(means, None, "hard"), means, "-")
    demo.row("teacher", demo.student(dictionary, None, "none"), None, "-")
    demo.row("teacher, replaced by its senses", demo.student(dictionary, None, "hard"), dictionary, "100.0")
    for name, selection, training in (
        ("2 layers, untrained, replaced", "hard", None),
        ("2 layers, squared error, continuous", "none", {"sense_weight": 0.0, "mse_weight": 1.0}),
        ("2 layers, senses, replaced", "hard", {}),
    ):
        student = demo.student(dictionary, 2, selection)
        trainer = demo.trainer(student, train, **(training or {}))
        if training is not None:
            trainer.train()
        agreement = f"{100 * trainer.evaluate(test)['eval_agreement']:.1f}"
        demo.row(name, student, dictionary if selection == "hard" else None, agreement)

    student.save_pretrained(args.output / "student")
    teacher.tokenizer.save_pretrained(args.output / "student")
    corpus = encode_corpus(texts, teacher.tokenizer, args.max_length)
    tokens = [] if args.dataset or args.teacher else ["bank", "interest", "share"]
    report = write_report(dictionary, args.output, corpus=corpus, tokens=tokens, teacher=teacher)
    result = (
        f"{demo.table()}\n\n{torch.get_num_threads()} threads; {(time.perf_counter() - begin) / 60:.1f} minutes in all."
    )
    write_text(report, report.read_text(encoding="utf-8") + f"\n## Results\n\n{result}\n")
    print(
        f"\n{result}\n\nWritten to {args.output}: dictionary/, student/, report.md and its pictures. Loading the student back:\n"
    )

    model = AutoModelForSequenceClassification.from_pretrained(args.output / "student")
    classify = pipeline(
        "text-classification", model=model, tokenizer=AutoTokenizer.from_pretrained(args.output / "student")
    )
    for sentence, answer in zip(SENTENCES, classify(SENTENCES)):
        print(f"{answer['label']:>10} {answer['score']:.2f}  {sentence}")


if __name__ == "__main__":
    main()
