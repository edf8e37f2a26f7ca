"""Distil a student of the teacher's first layers, give it a classifier, save it, and serve it from a pipeline."""

from __future__ import annotations

import argparse
from pathlib import Path

from datasets import Dataset, load_dataset
from real_data import reuters_r8, teacher_folder
from transformers import pipeline

from hf_sense import (
    SenseDistillationConfig,
    SenseDistillationTrainer,
    SenseModelForSequenceClassification,
    build_dictionary,
    load_teacher,
)
from hf_sense.evaluation import fit_linear_head

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--teacher", help="a folder or an id on the Hub [all-MiniLM-L6-v2]")
parser.add_argument("--dataset", help="a json lines file with text and label [Reuters R8]")
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--layers", type=int, default=2)
parser.add_argument("--output", type=Path, default=Path("runs/student"))
args = parser.parse_args()

if args.dataset:
    data = load_dataset("json", data_files=args.dataset, split="train")
else:
    texts, labels = reuters_r8("train")
    data = Dataset.from_dict({"text": texts[:1000], "label": labels[:1000]})

teacher = load_teacher(args.teacher or str(teacher_folder()))
dictionary = build_dictionary(teacher, data, max_length=64)
student = SenseModelForSequenceClassification.from_teacher(
    teacher, dictionary, num_hidden_layers=args.layers, pooling="frequency"
)
config = SenseDistillationConfig(
    str(args.output),
    max_steps=args.steps,
    per_device_train_batch_size=32,
    learning_rate=1e-3,
    max_length=64,
    save_strategy="no",
    dataloader_pin_memory=False,
)
trainer = SenseDistillationTrainer(student, config, teacher=teacher, train_dataset=data)
trainer.train()
print("agreement:", trainer.evaluate(trainer.train_dataset)["eval_agreement"])

fit_linear_head(student, teacher.tokenizer, data["text"], data["label"], max_length=64)
trainer.save_model()

classify = pipeline("text-classification", str(args.output))
print(classify(data["text"][:3], truncation=True, max_length=64))
