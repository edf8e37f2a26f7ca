"""The choice of a sense, its loss, and what both add to a model, beside the plain loop over tokens and beside reading memory.

    python benchmarks/sense_kernels.py

A batch of 32 stories cut at 64 tokens, all-MiniLM-L6-v2's states of them, and a dictionary of at most 20 senses a token from
other stories of Reuters R8; the data is fetched once. *The loop* is what one would write first: for each token one matrix
product, one arg max and one copy; for the loss, one cross-entropy. *Reading once* sums the batch's distinct sense rows, laid
side by side: a choice has to read them, so it is the limit. *Reading in place* sums them where they lie. Ways take turns in one
process; medians and their range. At width 4,096 states and senses are drawn, with the same tokens.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from costs import Given

# The folder of this script is on the path.
from measure import by_turns, kept_dictionary, machine, ratios, save, show, shown, spread
from numba import njit

from hf_sense import SenseModel, load_teacher
from hf_sense.fused import choose_senses, sense_loss
from hf_sense.quantization import quantize
from hf_sense.senses import Senses
from hf_sense.teacher import Teacher

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from real_data import reuters_r8, teacher_folder

MAX_SENSES, TOKENS, TEXTS, WIDE = 20, 64, 32, 4096


@contextmanager
def kernels_of(name: str) -> Iterator[None]:
    """Within it, the kernels of PyTorch alone or also those that Numba compiles."""
    before = os.environ.get("HF_SENSE_COMPILED")
    os.environ["HF_SENSE_COMPILED"] = "1" if name == "numba" else "0"
    try:
        yield
    finally:
        del os.environ["HF_SENSE_COMPILED"]
        if before is not None:
            os.environ["HF_SENSE_COMPILED"] = before


def with_kernels(name: str, call: Callable[[], Any]) -> Callable[[], Any]:
    """``call`` with these kernels."""

    def run() -> None:
        with kernels_of(name):
            call()

    return run


def loop(hidden: torch.Tensor, token_ids: list[int], senses: Senses) -> torch.Tensor:
    """The best sense of each token by ``dot``, one token after the other."""
    result = torch.empty_like(hidden)
    for place, token in enumerate(token_ids):
        first, last = senses.offsets[token], senses.offsets[token + 1]
        own = senses.rows[first:last]
        result[place] = own[(own @ hidden[place]).argmax()] if last > first else hidden[place]
    return result


def loop_loss(hidden: torch.Tensor, token_ids: list[int], senses: Senses, targets: torch.Tensor) -> torch.Tensor:
    """The summed cross-entropy of the targets, one token after the other."""
    total = torch.zeros(())
    for place, token in enumerate(token_ids):
        first, last = senses.offsets[token], senses.offsets[token + 1]
        if last > first:
            scores = senses.rows[first:last] @ hidden[place]
            total = total + torch.nn.functional.cross_entropy(scores, targets[place] - first)
    return total


def own_rows(token_ids: torch.Tensor, senses: Senses) -> torch.Tensor:
    """The batch's distinct senses, side by side."""
    tokens = token_ids.unique()
    return torch.cat([senses.rows[senses.offsets[token] : senses.offsets[token + 1]] for token in tokens])


@njit(nogil=True, fastmath={"reassoc", "contract", "nsz"})
def sum_in_place(rows: Any, offsets: Any, tokens: Any) -> Any:
    """The sum of the tokens' senses, read where they lie, one token after the other."""
    total = np.float32(0)
    for token in tokens:
        for row in range(offsets[token], offsets[token + 1]):
            for at in range(rows.shape[1]):
                total += rows[row, at]
    return total


def added_memory(call: Callable[[], Any]) -> float | None:
    """How many MB the process grows by at the most while ``call`` runs; ``None`` where the system does not say."""

    def held(name: str) -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name))

    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        before = held("VmRSS")
        call()
        return (held("VmHWM") - before) * 1024 / 1e6
    except OSError:
        return None


def choice(hidden: torch.Tensor, token_ids: torch.Tensor, senses: Senses, rounds: int, slow: bool) -> dict[str, Any]:
    """Choice and replacement: the loop, both kinds of kernels, narrower senses, and reading."""
    places, listed = torch.arange(len(token_ids)), token_ids.tolist()
    read = own_rows(token_ids, senses)
    pairs = int(senses.offsets.diff()[token_ids].sum())
    figures: dict[str, Any] = {
        "tokens": len(token_ids),
        "distinct_tokens": len(token_ids.unique()),
        "pairs": pairs,
        "distinct_rows": len(read),
        "distinct_rows_mb": read.nbytes / 1e6,
        "width": hidden.shape[1],
    }
    print(
        f"{figures['tokens']} tokens, {figures['distinct_tokens']} of them distinct; {pairs} pairs of a token and a sense; "
        f"{len(read)} distinct senses of width {hidden.shape[1]}, {read.nbytes / 1e6:.1f} MB"
    )
    narrow = {
        "bfloat16": replace(senses, rows=senses.rows.bfloat16()),
        "float16": replace(senses, rows=senses.rows.half()),
    }
    values, scales = quantize(senses.rows)
    narrow["int8"] = Senses(senses.offsets, values, scales)

    in_place = senses.rows.numpy(), senses.offsets.numpy(), token_ids.unique().numpy()

    def choose(own: Senses = senses, replaced: bool = False) -> Any:
        return choose_senses(hidden, token_ids, places, own, "l2", output_replaced=replaced)

    ways: dict[str, Callable[[], Any]] = {
        "loop": lambda: loop(hidden, listed, senses),
        "replaced": with_kernels("numba", lambda: choose(replaced=True)),
        "chosen": with_kernels("numba", choose),
        "reading once": lambda: read.sum(),
        "reading in place": lambda: sum_in_place(*in_place),
    }
    seconds = by_turns(ways, rounds)
    # Written over, it leaves nothing else in the cache.
    other = torch.ones(32 * 2**20)
    empty = {f"{name}, cache emptied": values for name, values in by_turns(ways, rounds, lambda: other.add_(1)).items()}
    plain = {
        "replaced, PyTorch's kernels": with_kernels("torch", lambda: choose(replaced=True)),
        "chosen, PyTorch's kernels": with_kernels("torch", choose),
    }
    slower = by_turns({"loop": ways["loop"], **plain}, rounds)
    dtypes = {
        "chosen": ways["chosen"],
        **{f"chosen, {name}": with_kernels("numba", lambda own=own: choose(own)) for name, own in narrow.items()},
    }
    narrower = by_turns(dtypes, rounds)
    compared = {
        "loop over replaced": ratios(seconds["loop"], seconds["replaced"]),
        "loop over replaced, cache emptied": ratios(empty["loop, cache emptied"], empty["replaced, cache emptied"]),
        "loop over replaced, PyTorch's kernels": ratios(slower["loop"], slower["replaced, PyTorch's kernels"]),
        "chosen over reading once": ratios(seconds["chosen"], seconds["reading once"]),
        "chosen over reading once, cache emptied": ratios(
            empty["chosen, cache emptied"], empty["reading once, cache emptied"]
        ),
        "reading in place over reading once, cache emptied": ratios(
            empty["reading in place, cache emptied"], empty["reading once, cache emptied"]
        ),
        **{f"chosen, {name}, over float32": ratios(narrower[f"chosen, {name}"], narrower["chosen"]) for name in narrow},
    }
    seconds |= {**empty, **{name: slower[name] for name in plain}}
    seconds |= {name: values for name, values in narrower.items() if name != "chosen"}
    show(seconds, "ms", 1e3)
    show(compared, "times")
    figures["ms"] = {name: spread(values, 1e3) for name, values in seconds.items()}
    figures["ratios"] = {name: spread(values) for name, values in compared.items()}
    if slow:
        with kernels_of("numba"):
            figures["added_mb"] = added_memory(choose)
        print(
            f"  memory that a choice adds: {figures['added_mb']} MB; the batch's own rows: {read.nbytes / 1e6:.1f} MB"
        )
    return figures


def loss(hidden: torch.Tensor, token_ids: torch.Tensor, senses: Senses, rounds: int) -> dict[str, Any]:
    """Forward and backward of the cross-entropy, with targets that are given."""
    targets = choose_senses(hidden, token_ids, torch.arange(len(token_ids)), senses, "dot").sense_ids
    places, listed = (targets >= 0).nonzero().squeeze(-1), token_ids.tolist()
    states = hidden + 0.3 * torch.randn_like(hidden)

    def ours() -> None:
        own = states.clone().requires_grad_(True)
        sense_loss(own, token_ids, places, senses, "dot", targets)[0].sum().backward()

    def plain() -> None:
        own = states.clone().requires_grad_(True)
        loop_loss(own, listed, senses, targets).backward()

    seconds = by_turns({"loop": plain, **{n: with_kernels(n, ours) for n in ("torch", "numba")}}, rounds)
    compared = {
        "loop over the loss": ratios(seconds["loop"], seconds["numba"]),
        "loop over the loss, PyTorch's kernels": ratios(seconds["loop"], seconds["torch"]),
    }
    print("Loss, forward and backward")
    show(seconds, "ms", 1e3)
    show(compared, "times")
    return {
        "ms": {name: spread(values, 1e3) for name, values in seconds.items()},
        "ratios": {name: spread(values) for name, values in compared.items()},
    }


def forward(teacher: Teacher, model: SenseModel, batch: dict[str, torch.Tensor], rounds: int) -> dict[str, Any]:
    """A student's forward pass with its states replaced and without, and the replacement alone."""
    real = model.backbone
    with torch.inference_mode():
        given = Given(real(**batch))

        def run(selection: str, backbone: Any) -> None:
            model.backbone, model.config.selection = backbone, selection
            model(**batch)

        seconds = by_turns(
            {
                "continuous": lambda: run("none", real),
                "replaced": lambda: run("hard", real),
                "replacement alone": lambda: run("hard", given),
            },
            3 * rounds,
        )
    model.backbone = real
    share = [alone / whole for alone, whole in zip(seconds["replacement alone"], seconds["continuous"], strict=True)]
    layers = model.config.get_text_config().num_hidden_layers
    print(f"Forward pass, {layers} layers, {tuple(batch['input_ids'].shape)} tokens")
    show(seconds, "ms", 1e3)
    print(f"  replacement alone over continuous: {shown(share, '%', 100)}")
    return {
        "layers": layers,
        "ms": {name: spread(values, 1e3) for name, values in seconds.items()},
        "ratios": {"replacement alone over continuous": spread(share)},
    }


def training_step(teacher: Teacher, model: SenseModel, batch: dict[str, torch.Tensor], rounds: int) -> dict[str, Any]:
    """A step with the loss on senses, and one with the squared error to states that are given."""
    states = teacher.hidden_states(**batch).reshape(-1, model.config.sense_dim).clone()
    ids, mask = batch["input_ids"].reshape(-1), batch["attention_mask"].reshape(-1).bool()
    places = mask.nonzero().squeeze(-1)
    senses, _, _ = model.sense_table.lying(ids, places)
    targets = choose_senses(states, ids, places, senses, "l2").sense_ids
    places = (targets >= 0).nonzero().squeeze(-1)
    model.train()
    model.get_input_embeddings().requires_grad_(False)
    optimizer = torch.optim.AdamW([part for part in model.parameters() if part.requires_grad], lr=1e-5)

    def step(of_senses: bool) -> None:
        hidden = model(**batch, output_contextual=True).contextual_hidden_state.reshape(-1, states.shape[1])
        if of_senses:
            total = sense_loss(hidden, ids, places, senses, "l2", targets)[0].mean()
        else:
            total = (hidden[places] - states[places]).square().mean()
        total.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.config.selection = "none"
    seconds = by_turns({"senses": lambda: step(True), "squared error": lambda: step(False)}, 3 * rounds)
    ratio = ratios(seconds["senses"], seconds["squared error"])
    print(f"Training step, {model.config.get_text_config().num_hidden_layers} layers, embeddings frozen")
    show(seconds, "ms", 1e3)
    print(f"  senses over squared error: {shown(ratio, 'times')}")
    return {
        "ms": {name: spread(values, 1e3) for name, values in seconds.items()},
        "ratios": {"senses over squared error": spread(ratio)},
    }


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--texts", type=Path, help="a file with a text a line; stories of Reuters R8 if not given")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=11, help="measured turns of each way")
    parser.add_argument("--width", type=int, default=WIDE, help="of the states and senses that are drawn")
    parser.add_argument("--dictionary", type=Path, help="folder that keeps the dictionary; used if it is there")
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    if options.texts:
        texts = [text for text in options.texts.read_text(encoding="utf-8").splitlines() if text.strip()]
        stories = texts
    else:
        texts, stories = reuters_r8("train")[0][:2000], reuters_r8("test")[0]
        stories = [text for text in stories if len(text.split()) > TOKENS]
    teacher = load_teacher(options.teacher or str(teacher_folder()))
    dictionary = kept_dictionary(
        options.dictionary,
        teacher,
        texts,
        max_senses=MAX_SENSES,
        max_length=min(128, teacher.max_length),
        disable_tqdm=True,
    )
    depth = teacher.model.config.get_text_config().num_hidden_layers
    batch = dict(
        teacher.tokenizer(
            stories[:TEXTS], truncation=True, max_length=TOKENS, padding=True, return_tensors="pt"
        )
    )  # fmt: skip
    ids = batch["input_ids"].reshape(-1)
    hidden = teacher.hidden_states(**batch).reshape(-1, teacher.dim).clone()
    senses = Senses(dictionary.offsets, dictionary.senses)
    # Of the wide table only the batch's own senses are drawn, as many as are real.
    tokens, compact = ids.unique(return_inverse=True)
    lengths = dictionary.offsets.diff()[tokens]
    offsets = torch.nn.functional.pad(lengths.cumsum(0), (1, 0))
    torch.manual_seed(0)
    wide = Senses(offsets, torch.randn(int(offsets[-1]), options.width))
    wide_hidden = torch.randn(len(ids), options.width)
    figures: dict[str, Any] = {"threads": {}}
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"\n{machine()}")
        one = figures["threads"][str(threads)] = {}
        with torch.inference_mode():
            one["choice"] = choice(hidden, ids, senses, options.rounds, False)
            one["choice, wide"] = choice(wide_hidden, compact, wide, max(7, options.rounds // 2), True)
        one["loss"] = loss(hidden, ids, senses, max(7, options.rounds // 2))
        model = SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=min(2, depth)).eval()
        one["forward"] = forward(teacher, model, batch, options.rounds)
        one["training_step"] = training_step(teacher, model, batch, options.rounds)
    save(options.output, figures)


if __name__ == "__main__":
    main()
