"""What dominates each stage, by PyTorch's profiler and by Python's: shares of the time of one thread.

    python benchmarks/profiles.py

A student of the first layers of all-MiniLM-L6-v2 on stories of Reuters R8, fetched once: its forward pass with senses in place,
a training step, text vectors, targets. Building is profiled by ``benchmarks/clustering.py``.
"""

from __future__ import annotations

import argparse
import cProfile
import io
import pstats
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

# The folder of this script is on the path.
from measure import machine, save
from torch.profiler import ProfilerActivity, profile

from hf_sense import SenseModel, build_dictionary, compute_sense_targets, load_teacher
from hf_sense.evaluation import embed
from hf_sense.fused import choose_senses, sense_loss

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from real_data import reuters_r8, teacher_folder

SHOWN = 6
# PyTorch's profiler does not see Numba's kernels: what it sees is taken from the whole by the clock.
NOT_SEEN = "outside PyTorch's kernels"


def operators(call: Callable[[], Any], repeats: int) -> dict[str, float]:
    """The share of each operator in the time of ``call``, largest first, and of what is none."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        for _ in range(repeats):
            with torch.profiler.record_function("whole"):
                call()
    events = {event.key: event for event in seen.key_averages()}
    whole = events.pop("whole")
    own = {name: event.self_cpu_time_total / whole.cpu_time_total for name, event in events.items()}
    own[NOT_SEEN] = whole.self_cpu_time_total / whole.cpu_time_total
    return dict(sorted(own.items(), key=lambda item: -item[1])[:SHOWN])


def functions(call: Callable[[], Any]) -> dict[str, float]:
    """The share of each Python function, and built-in one, in the time of ``call``, largest first."""
    call()
    seen = cProfile.Profile()
    seen.runcall(call)
    stats: Any = pstats.Stats(seen, stream=io.StringIO())
    found = {
        f"{Path(file).name}:{name}" if line else name: own / stats.total_tt
        for (file, line, name), (_, _, own, _, _) in stats.stats.items()
    }
    return dict(sorted(found.items(), key=lambda item: -item[1])[:SHOWN])


def main() -> None:
    """Runs the profiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--texts", type=Path, help="a file with a text a line; stories of Reuters R8 if not given")
    parser.add_argument("--count", type=int, default=256, help="texts")
    parser.add_argument("--repeats", type=int, default=10, help="of a forward pass and of a step")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    texts = options.texts.read_text(encoding="utf-8").splitlines() if options.texts else reuters_r8("train")[0]
    texts = [text for text in texts if text.strip()][: options.count]
    teacher = load_teacher(options.teacher or str(teacher_folder()))
    dictionary = build_dictionary(teacher, texts, max_senses=20, max_length=64, disable_tqdm=True)
    depth = min(2, teacher.model.config.get_text_config().num_hidden_layers)
    model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=depth).eval()
    batch = dict(teacher.tokenizer(texts[:32], truncation=True, max_length=64, padding=True, return_tensors="pt"))
    ids, mask = batch["input_ids"].reshape(-1), batch["attention_mask"].reshape(-1)
    places = mask.nonzero().squeeze(-1)
    senses, _, _ = model.sense_table.lying(ids, places)
    states = teacher.hidden_states(**batch).reshape(-1, dictionary.dim).clone()
    targets = choose_senses(states, ids, places, senses, "l2").sense_ids
    labelled = (targets >= 0).nonzero().squeeze(-1)
    student = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=depth, selection="none").train()
    student.get_input_embeddings().requires_grad_(False)
    optimizer = torch.optim.AdamW([part for part in student.parameters() if part.requires_grad], lr=1e-5)

    @torch.inference_mode()
    def forward() -> None:
        model(**batch)

    def step() -> None:
        hidden = student(**batch, output_contextual=True).contextual_hidden_state.flatten(0, 1)
        sense_loss(hidden, ids, labelled, senses, "l2", targets)[0].mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    def vectors() -> None:
        embed(model, teacher.tokenizer, texts, max_length=64, disable_tqdm=True)

    def compute() -> None:
        with tempfile.TemporaryDirectory() as folder:
            compute_sense_targets(
                Dataset.from_dict({"text": texts}), teacher, dictionary, max_length=64, cache_dir=folder, coded=True,
                disable_tqdm=True,
            )  # fmt: skip

    print(machine())
    figures: dict[str, Any] = {}
    for title, shares in (
        (f"forward pass, {depth} layers, replaced, operators", operators(forward, options.repeats)),
        (f"training step, {depth} layers, operators", operators(step, options.repeats)),
        ("text vectors, functions", functions(vectors)),
        ("targets, functions", functions(compute)),
    ):
        print(f"{title}: " + ", ".join(f"{name} {share:.1%}" for name, share in shares.items()))
        figures[title] = shares
    save(options.output, {"shares": figures})


if __name__ == "__main__":
    main()
