"""What targets cost: to compute beside the teacher's own passes, to keep, and to read beside a training step.

    python benchmarks/targets.py

all-MiniLM-L6-v2, a dictionary of at most 20 senses a token, and stories of Reuters R8 cut at 64 tokens; the data is fetched
once. *The teacher alone* runs over the same batches and throws its states away.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

# The folder of this script is on the path.
from measure import by_turns, kept_dictionary, machine, ratios, save, show, shown, spread
from torch.utils.data import DataLoader

from hf_sense import SenseModel, compute_sense_targets, load_teacher
from hf_sense.collator import SenseDataCollator
from hf_sense.corpus import encode_corpus
from hf_sense.fused import sense_loss

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from real_data import reuters_r8, teacher_folder

MAX_LENGTH, BATCH = 64, 32


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--texts", type=Path, help="a file with a text a line; stories of Reuters R8 if not given")
    parser.add_argument("--count", type=int, default=256, help="texts to compute targets for")
    parser.add_argument("--rounds", type=int, default=9, help="measured turns of each way")
    parser.add_argument("--dictionary", type=Path, help="folder that keeps the dictionary; used if it is there")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    texts = options.texts.read_text(encoding="utf-8").splitlines() if options.texts else reuters_r8("train")[0]
    texts = [text for text in texts if text.strip()]
    teacher = load_teacher(options.teacher or str(teacher_folder()))
    dictionary = kept_dictionary(
        options.dictionary,
        teacher,
        texts[:2000],
        max_senses=20,
        max_length=min(128, teacher.max_length),
        disable_tqdm=True,
    )
    texts = texts[: options.count]
    data = Dataset.from_dict({"text": texts})
    corpus = encode_corpus(texts, teacher.tokenizer, MAX_LENGTH, quiet=True, disable_tqdm=True)
    batches = [corpus.padded(batch, teacher.tokenizer.pad_token_id or 0) for batch in corpus.batches(BATCH)]

    def passes() -> None:
        for batch in batches:
            teacher.hidden_states(**batch)

    def compute() -> None:
        with tempfile.TemporaryDirectory() as folder:
            compute_sense_targets(
                data, teacher, dictionary, max_length=MAX_LENGTH, batch_size=BATCH, cache_dir=folder, coded=True,
                disable_tqdm=True,
            )  # fmt: skip

    print(machine())
    seconds = by_turns({"the teacher alone": passes, "targets": compute}, options.rounds)
    ratio = ratios(seconds["targets"], seconds["the teacher alone"])
    print(f"Computing the targets of {len(texts)} texts, {len(corpus.input_ids)} tokens, a batch of {BATCH}")
    show(seconds, "s")
    print(f"  targets over the teacher alone: {shown(ratio, 'times')}")
    figures: dict[str, Any] = {
        "tokens": len(corpus.input_ids),
        "seconds": {name: spread(values) for name, values in seconds.items()},
        "ratios": {"targets over the teacher alone": spread(ratio)},
    }
    with tempfile.TemporaryDirectory() as folder:
        stored = compute_sense_targets(
            data, teacher, dictionary, max_length=MAX_LENGTH, cache_dir=folder, coded=True, disable_tqdm=True
        )
        size = sum(path.stat().st_size for path in Path(folder).glob("*.arrow"))
        column = stored.data.table.column("sense_indices")
        figures["bytes_a_target"] = sum(chunk.nbytes for chunk in column.chunks) / figures["tokens"]
        figures["bytes_a_token_with_text"] = size / figures["tokens"]
        print(
            f"On disk: {figures['bytes_a_target']:.2f} bytes a target, where its list begins included; "
            f"{figures['bytes_a_token_with_text']:.2f} a token with its id and mask; hidden states would take "
            f"{4 * teacher.dim}"
        )
        loader = DataLoader(stored.remove_columns("text"), BATCH, collate_fn=SenseDataCollator(
            teacher.tokenizer, offsets=dictionary.offsets))  # fmt: skip
        student = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=1).train()
        student.config.selection = "none"
        student.get_input_embeddings().requires_grad_(False)
        optimizer = torch.optim.AdamW([part for part in student.parameters() if part.requires_grad], lr=1e-5)

        def read() -> list[dict[str, torch.Tensor]]:
            return list(loader)

        kept = read()

        def train() -> None:
            for batch in kept:
                ids, labels = batch["input_ids"].reshape(-1), batch["sense_labels"].reshape(-1)
                inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
                hidden = student(**inputs, output_contextual=True).contextual_hidden_state.flatten(0, 1)
                places = (labels >= 0).nonzero().squeeze(-1)
                senses, _, _ = student.sense_table.lying(ids, places)
                sense_loss(hidden, ids, places, senses, "l2", labels)[0].mean().backward()
                optimizer.step()
                optimizer.zero_grad()

        seconds = by_turns({"read": read, "train": train}, options.rounds)
    share = ratios(seconds["read"], seconds["train"])
    print(f"An epoch of {len(kept)} batches, 1 layer trained, embeddings frozen")
    show(seconds, "ms", 1e3)
    print(f"  reading over training: {shown(share, '%', 100)}")
    figures["ms"] = {name: spread(values, 1e3) for name, values in seconds.items()}
    figures["ratios"]["reading over training"] = spread(share)
    save(options.output, figures)


if __name__ == "__main__":
    main()
