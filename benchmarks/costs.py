"""What senses cost and save: cached targets, replacement, and whether a build gives the same senses again.

    python benchmarks/costs.py

all-MiniLM-L6-v2 and Reuters R8, fetched once, or any encoder with ``--teacher`` and texts, one a line, with ``--texts``.
What is compared is run in one process, by turns; medians are printed with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

# The folder of this script is on the path.
from measure import by_turns, show, shown

from hf_sense import (
    SenseDistillationConfig,
    SenseDistillationTrainer,
    SenseModel,
    build_dictionary,
    compute_sense_targets,
    load_teacher,
)
from hf_sense.corpus import encode_corpus
from hf_sense.dictionary import SenseDictionary
from hf_sense.sampling import sample_occurrences
from hf_sense.teacher import Teacher

LAYERS = 2


class Given(torch.nn.Module):
    """In a backbone's place: what it said before, at no cost."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, **inputs: Any) -> Any:
        """The same output whatever comes in."""
        return self.output


def replacement(teacher: Teacher, texts: list[str], rounds: int) -> dict[str, Any]:
    """A student's forward pass on 32 texts of 64 tokens, as it is and with its states replaced."""
    dictionary = build_dictionary(teacher, texts, max_senses=20, max_length=64, disable_tqdm=True)
    model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=LAYERS).eval()
    batch = teacher.tokenizer(
        [text for text in texts if len(text.split()) > 64][:32], truncation=True, max_length=64, return_tensors="pt"
    )
    alone = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=LAYERS).eval()
    alone.backbone = Given(model.backbone(**batch))

    @torch.inference_mode()
    def forward(model: SenseModel, selection: str) -> None:
        model.config.selection = selection
        model(**batch)

    seconds = by_turns(
        {
            "continuous": lambda: forward(model, "none"),
            "replaced": lambda: forward(model, "hard"),
            "replacement alone": lambda: forward(alone, "hard"),
        },
        rounds,
    )
    share = [alone / whole for alone, whole in zip(seconds["replacement alone"], seconds["continuous"])]
    pairs = int((dictionary.offsets.diff())[batch["input_ids"]].sum())
    print(
        f"Replacement, {tuple(batch['input_ids'].shape)} tokens, {pairs / batch['input_ids'].numel():.1f} senses a token"
    )
    show(seconds, "ms", 1e3)
    print(f"  replacement over the {LAYERS} layers: {shown(share, '%', 100)}")
    return {"seconds": seconds, "share": statistics.median(share)}


def cached_targets(teacher: Teacher, texts: list[str], rounds: int) -> dict[str, Any]:
    """An epoch of a student's training with stored targets, and with the teacher run at every step."""
    dictionary = build_dictionary(teacher, texts, max_senses=20, max_length=96, disable_tqdm=True)
    data = Dataset.from_dict({"text": texts})
    losses: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        stored = compute_sense_targets(data, teacher, dictionary, max_length=96, cache_dir=folder, disable_tqdm=True)
        computing = time.perf_counter() - begin

        def epoch(name: str, live: bool) -> None:
            student = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=LAYERS)
            for module in student.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            args = SenseDistillationConfig(
                folder, num_train_epochs=1, per_device_train_batch_size=16, learning_rate=1e-4, freeze_embeddings=True,
                live_teacher=live, logging_steps=1, save_strategy="no", report_to=[], disable_tqdm=True, max_length=96,
                target_cache_dir=folder, dataloader_pin_memory=False, log_level="error",
            )  # fmt: skip
            trainer = SenseDistillationTrainer(
                student,
                args,
                teacher=teacher if live else None,
                processing_class=teacher.tokenizer,
                train_dataset=stored,
            )
            trainer.pop_callback(next(c for c in trainer.callback_handler.callbacks if "Printer" in type(c).__name__))
            trainer.train()
            losses[name] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

        seconds = by_turns({"cached": lambda: epoch("cached", False), "live": lambda: epoch("live", True)}, rounds)
    ratio = [live / cached for live, cached in zip(seconds["live"], seconds["cached"])]
    apart = max(abs(a - b) for a, b in zip(losses["cached"], losses["live"], strict=True))
    print(f"Targets, an epoch of {len(texts)} texts cut at 96 tokens, {LAYERS} layers trained")
    show(seconds, "s")
    print(f"  live over cached: {shown(ratio, 'times')}; computing the targets once: {computing:.3g} s")
    print(
        f"  {len(losses['live'])} losses, {losses['live'][0]:.3f} to {losses['live'][-1]:.3f}, at most {apart:.1e} apart"
    )
    return {"seconds": seconds, "ratio": statistics.median(ratio), "computing": computing, "loss_difference": apart}


def sameness(teacher: Teacher, texts: list[str]) -> dict[str, Any]:
    """A build again: stopped and resumed, with other batches, with the texts turned round."""
    options: dict[str, Any] = {"max_length": 96, "disable_tqdm": True}
    whole = build_dictionary(teacher, texts, **options)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        stopped = _stopped(teacher, texts, Path(folder) / "work", options)
        resumed = build_dictionary(teacher, texts, work_dir=Path(folder) / "work", **options)
        for name, dictionary in (("one", whole), ("two", resumed)):
            dictionary.save_pretrained(Path(folder) / name / "senses")  # the card's title is the folder's name
        files = sorted(path.name for path in (Path(folder) / "one" / "senses").iterdir())
        equal = all(len({(Path(folder) / n / "senses" / f).read_bytes() for n in ("one", "two")}) == 1 for f in files)
    results["resumed"] = equal
    print(f"Builds from {len(texts)} texts, {whole.num_senses} senses")
    print(
        f"  stopped after {stopped} batches and resumed: {'the same' if equal else 'OTHER'} bytes ({', '.join(files)})"
    )
    reverse = texts[::-1]
    for name, other_texts, batch_size in (
        ("batch size 1", texts, 1),
        ("batch size 64", texts, 64),
        ("order", reverse, 32),
    ):
        other = build_dictionary(teacher, other_texts, batch_size=batch_size, **options)
        sampled = _sampled(teacher, texts, 96) == _sampled(teacher, other_texts, 96)
        share = _equal_tokens(whole, other)
        results[name] = {"same_sample": sampled, "equal_tokens": share}
        print(
            f"  {name}: {'the same' if sampled else 'ANOTHER'} sample; senses equal within rounding for {share:.2%} of tokens"
        )
    return results


def _stopped(teacher: Teacher, texts: list[str], work: Path, options: dict[str, Any]) -> int:
    """Interrupts a build half-way through its batches; returns after how many."""
    hidden_states, calls = teacher.hidden_states, 0
    half = len(texts) // 64

    def interrupted(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls > half:
            raise KeyboardInterrupt
        return hidden_states(*args, **kwargs)

    teacher.hidden_states = interrupted  # type: ignore[method-assign]
    try:
        build_dictionary(teacher, texts, work_dir=work, **options)
    except KeyboardInterrupt:
        return half
    finally:
        teacher.hidden_states = hidden_states  # type: ignore[method-assign]
    raise RuntimeError("The build was not interrupted: give more texts.")


def _sampled(teacher: Teacher, texts: list[str], max_length: int) -> set[tuple[bytes, int, int]]:
    """The sampled occurrences as (the text's token ids, position, token id)."""
    corpus = encode_corpus(texts, teacher.tokenizer, max_length, disable_tqdm=True, quiet=True)
    sample = sample_occurrences(corpus, len(teacher.tokenizer), max_occurrences=1000, seed=0)
    bounds = list(pairwise(corpus.offsets.tolist()))
    return {
        (corpus.input_ids[slice(*bounds[text])].tobytes(), int(position), int(token))
        for text, position, token in zip(sample.texts, sample.positions, sample.token_ids)
    }


def _equal_tokens(one: SenseDictionary, other: SenseDictionary) -> float:
    """The share of tokens with the same number of senses, each within 1e-4 of its own; 1 if there are none."""
    lengths = one.offsets.diff()
    present = lengths > 0
    same = lengths == other.offsets.diff()
    for token in (present & same).nonzero()[:, 0].tolist():
        distances = torch.cdist(one.senses_of(token).vectors, other.senses_of(token).vectors)
        same[token] = bool((distances.min(1).values < 1e-4).all() and (distances.min(0).values < 1e-4).all())
    return float(same[present].float().mean()) if bool(present.any()) else 1.0


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--texts", type=Path, help="a file with a text a line; stories of Reuters R8 if not given")
    parser.add_argument("--rounds", type=int, default=7, help="measured turns of each way")
    parser.add_argument("--count", type=int, default=1000, help="how many texts")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))
    from real_data import reuters_r8, teacher_folder

    texts = options.texts.read_text(encoding="utf-8").splitlines() if options.texts else reuters_r8("train")[0]
    texts = [text for text in texts if text.strip()][: options.count]
    teacher = load_teacher(options.teacher or str(teacher_folder()))
    machine = (
        f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )
    print(machine)
    figures = {
        "machine": machine,
        "replacement": replacement(teacher, texts, 3 * options.rounds),
        "cached_targets": cached_targets(teacher, texts, options.rounds),
        "sameness": sameness(teacher, texts),
    }
    if options.output:
        options.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
