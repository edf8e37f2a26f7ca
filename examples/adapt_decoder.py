"""Adapt a decoder to give text vectors without labels, and print what that did to its loss and to few-shot accuracy."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import load_dataset
from peft import PeftModel
from real_data import reuters_r8
from transformers import AutoConfig, AutoModel, AutoTokenizer

from hf_sense.adaptation import adapt_decoder
from hf_sense.decoders import open_attention
from hf_sense.evaluation import few_shot_accuracy
from hf_sense.pooling import pool

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--base", "--teacher", dest="base", help="a folder or an id on the Hub [SmolLM2-135M-Instruct]")
parser.add_argument("--dataset", help="a text file, a json lines file, or a data set's id on the Hub [Reuters R8]")
parser.add_argument(
    "--labelled", nargs=2, metavar=("TRAIN", "TEST"), help="json lines with text and label [Reuters R8]"
)
parser.add_argument("--output", default="runs/adapted", help="a stopped run goes on from here")
parser.add_argument("--attention", choices=["bidirectional", "causal"], default="bidirectional")
parser.add_argument("--mntp-steps", type=int, default=60)
parser.add_argument("--simcse-steps", type=int, default=80)
parser.add_argument("--batch-size", type=int, default=48)
parser.add_argument("--mask-token", default="blank")
parser.add_argument("--max-length", type=int, default=64)
parser.add_argument("--samples-per-label", type=int, default=8)
parser.add_argument("--evaluated", type=int, default=1500, help="labelled texts of each split that are looked at")
parser.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
args = parser.parse_args()

if args.base:
    base = args.base
else:
    from smollm2 import decoder_folder

    base = str(decoder_folder())
if not args.dataset:
    data = reuters_r8("train")[0]
elif Path(args.dataset).is_file():
    kind = "text" if args.dataset.endswith(".txt") else "json"
    data = load_dataset(kind, data_files=args.dataset, split="train")
else:
    data = load_dataset(args.dataset, split="train")
if args.labelled:
    sides = [load_dataset("json", data_files=name, split="train").shuffle(seed=0) for name in args.labelled]
    sides = [(list(side["text"]), list(side["label"])) for side in sides]
else:
    sides = [reuters_r8(split) for split in ("train", "test")]
sides = [(texts[: args.evaluated], labels[: args.evaluated]) for texts, labels in sides]
tokenizer = AutoTokenizer.from_pretrained(base)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token


@torch.no_grad()
def accuracy(adapters: list[Path]) -> float:
    """Few-shot accuracy of mean-pooled vectors, with the adapters merged in turn."""
    config = AutoConfig.from_pretrained(base)
    if args.attention == "bidirectional":
        open_attention(config)
    model = AutoModel.from_pretrained(base, config=config, dtype=torch.float32)
    for adapter in adapters:
        model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    model.eval()
    vectors = []
    for texts, _ in sides:
        order = sorted(range(len(texts)), key=lambda number: len(texts[number]))
        made = torch.zeros(len(texts), config.get_text_config().hidden_size)
        for begin in range(0, len(order), 32):
            rows = order[begin : begin + 32]
            batch = tokenizer(
                [texts[row] for row in rows], padding=True, truncation=True, max_length=args.max_length,
                return_tensors="pt", return_token_type_ids=False,
            )  # fmt: skip
            hidden = model(**batch).last_hidden_state
            made[rows] = torch.nn.functional.normalize(pool(hidden, batch["attention_mask"]), dim=1)
        vectors.append(made)
    few = {"samples_per_label": args.samples_per_label}
    return few_shot_accuracy(vectors[0], sides[0][1], vectors[1], sides[1][1], **few).mean


before = accuracy([])
report = adapt_decoder(
    base,
    data,
    args.output,
    attention=args.attention,
    mntp_steps=args.mntp_steps,
    simcse_steps=args.simcse_steps,
    mntp_batch_size=args.batch_size,
    per_device_train_batch_size=args.batch_size,
    mask_token=args.mask_token,
    max_length=args.max_length,
    bf16=args.bf16,
)
stages = [name for name in ("mntp", "simcse") if name in report]
for name in stages:
    figures = report[name]
    print(
        f"{name}: held-out loss {figures['held_out_loss_before']:.3f} before, {figures['held_out_loss_after']:.3f} after "
        f"{figures['best_step']} of {figures['steps']} steps"
    )
line = f"few-shot accuracy: {100 * before:.1f} % before"
for number, name in enumerate(stages, 1):
    after = accuracy([Path(args.output) / done for done in stages[:number]])
    line += f", {100 * after:.1f} % after {name}"
print(line)
