"""Use a dictionary as a drop-in replacement in a fine-tuned classifier, whose own head answers on the replaced vectors."""

from __future__ import annotations

import argparse

import torch
from datasets import Dataset, load_dataset
from real_data import reuters_r8, teacher_folder
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments

from hf_sense import SenseModelForSequenceClassification, build_dictionary, load_teacher
from hf_sense.evaluation import evaluate_classifier

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--teacher", help="a folder or an id on the Hub [all-MiniLM-L6-v2]")
parser.add_argument("--dataset", help="a json lines file with text and label [Reuters R8]")
parser.add_argument("--steps", type=int, default=60)
args = parser.parse_args()

if args.dataset:
    data = load_dataset("json", data_files=args.dataset, split="train")
else:
    texts, labels = reuters_r8("train")
    data = Dataset.from_dict({"text": texts[:600], "label": labels[:600]})
name = args.teacher or str(teacher_folder())
tokenizer = AutoTokenizer.from_pretrained(name)
classes = sorted(set(data["label"]))
numbers = {label: number for number, label in enumerate(classes)}

# A plain Transformers classifier, fine-tuned with a plain Trainer.
torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained(
    name, num_labels=len(classes), label2id=numbers, id2label=dict(enumerate(classes))
)
encoded = data.map(lambda rows: tokenizer(rows["text"], truncation=True, max_length=64), batched=True)
encoded = encoded.map(lambda row: {"labels": numbers[row["label"]]}).remove_columns(["text", "label"])
training = TrainingArguments(
    "runs/classifier", max_steps=args.steps, learning_rate=1e-4, save_strategy="no", dataloader_pin_memory=False
)
Trainer(model, training, train_dataset=encoded, processing_class=tokenizer).train()

# Its hidden states are replaced by senses; its pooler and classifier stay as they are.
teacher = load_teacher(model.eval(), tokenizer)
dictionary = build_dictionary(teacher, data, max_length=64)
for selection in ("none", "hard"):
    replaced = SenseModelForSequenceClassification.from_teacher(
        teacher, dictionary, copy_head=True, selection=selection, pooling="cls"
    )
    scores = evaluate_classifier(replaced, tokenizer, data["text"], data["label"], max_length=64)
    print(f"selection {selection}: accuracy {scores['accuracy']:.3f}")
