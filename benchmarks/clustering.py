"""How fast tokens are clustered: beside scikit-learn token by token, and how the cost grows with occurrences and senses.

    python benchmarks/clustering.py --data FOLDER --work CACHE

The folder holds ``banking77``, ``tweeteval_emotion``, ``sst2`` and ``cola``, each with a ``train.jsonl`` of
``{"text": ...}`` a line. all-MiniLM-L6-v2 reads them once; its vectors stay in ``--work``, which later runs read instead. Both
ways get the same tokens, at most 1,000 occurrences each, and the same settings: k-means++ (greedy, ``2 + log k`` candidates), one
start, Lloyd, at most 50 steps, tolerance 1e-4. scikit-learn is spared the tokens that have no more occurrences than senses: each
occurrence is a sense.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import by_turns, ratios, save, shown, spread
from safetensors.torch import load_file, save_file
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from threadpoolctl import threadpool_limits

from hf_sense.clustering import cluster

SETS = ("banking77", "tweeteval_emotion", "sst2", "cola")
STEPS, TOLERANCE = 50, 1e-4
OPERATIONS_SHOWN = 8
_STATUS = Path("/proc/self/status")


def sampled(args: argparse.Namespace) -> dict[str, Any]:
    """The teacher's ``vectors``, ``offsets`` of the tokens that occur and ``weights``, with ``seconds`` each step took."""
    path = args.work / f"vectors-{args.texts or 'all'}.safetensors"
    if path.is_file():
        return {**load_file(path), "seconds": json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))}
    from hf_sense import load_teacher
    from hf_sense.blocks import read_blocks
    from hf_sense.drawing import draw_sample
    from hf_sense.embedding import embed_sample
    from hf_sense.ranks import Ranks
    from hf_sense.unfinished import UnfinishedBuild

    texts = []
    for name in SETS:
        with (args.data / name / "train.jsonl").open(encoding="utf-8") as lines:
            texts += [json.loads(line)["text"] for line in lines][: args.texts]
    teacher = load_teacher(args.teacher or default_teacher())
    begin = time.perf_counter()
    work = UnfinishedBuild(None, {}, Ranks())
    joined = teacher.form.joined(texts, teacher.tokenizer)
    blocks = read_blocks(joined, teacher.tokenizer, teacher.max_length, work.tokens, work.ranks)
    encoded = time.perf_counter()
    sample = draw_sample(blocks, len(teacher.tokenizer), work, max_occurrences=1000)
    drawn = time.perf_counter()
    work.allocate(len(sample.token_ids), teacher.dim)
    embed_sample(teacher, blocks, sample, 32, work)
    vectors = work.whole
    seconds = {"tokenizing": encoded - begin, "sampling": drawn - encoded, "teacher": time.perf_counter() - drawn}
    sizes = np.unique(sample.token_ids, return_counts=True)[1]
    offsets, weights = torch.tensor([0, *sizes]).cumsum(0), torch.from_numpy(sample.weights)
    args.work.mkdir(parents=True, exist_ok=True)
    path.with_suffix(".json").write_text(json.dumps(seconds), encoding="utf-8")
    save_file({"vectors": vectors, "offsets": offsets, "weights": weights}, path)
    return {"vectors": vectors, "offsets": offsets, "weights": weights, "seconds": seconds}


def default_teacher() -> str:
    """The folder of all-MiniLM-L6-v2, fetched if it is not there."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
    from real_data import teacher_folder

    return str(teacher_folder())


def chosen(sample: dict[str, Any], tokens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Vectors, offsets and weights of some tokens alone."""
    starts, sizes = sample["offsets"][:-1][tokens], sample["offsets"].diff()[tokens]
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), sizes.cumsum(0)])
    rows = torch.repeat_interleave(starts - offsets[:-1], sizes) + torch.arange(int(offsets[-1]))
    return sample["vectors"][rows], offsets, sample["weights"][rows]


def ours(problems: tuple[torch.Tensor, ...], senses: int, threads: int) -> float:
    """Clusters all problems with so many threads; returns the inertia."""
    vectors, offsets, weights = problems
    torch.set_num_threads(threads)
    options = {"max_senses": senses, "max_iterations": STEPS, "tolerance": TOLERANCE}
    found = cluster(vectors, offsets, weights=weights, **options)
    return float((found.spread.double() * found.weights).sum())


def theirs(problems: tuple[torch.Tensor, ...], senses: int, threads: int) -> float:
    """The same with scikit-learn, token by token."""
    vectors, offsets, weights = (tensor.numpy() for tensor in problems)
    inertia = 0.0
    with threadpool_limits(threads), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a token with fewer distinct vectors than senses
        for low, high in itertools.pairwise(offsets):
            if high - low > senses:
                means = KMeans(senses, n_init=1, max_iter=STEPS, tol=TOLERANCE, random_state=0, algorithm="lloyd")
                inertia += means.fit(vectors[low:high], sample_weight=weights[low:high]).inertia_
    return inertia


def compare(problems: tuple[torch.Tensor, ...], senses: int, rounds: int) -> dict[str, Any]:
    """Seconds by turns, their ratios, and the ratio of the inertias."""
    inertia: dict[str, float] = {}
    ways = {
        f"{name}, {threads}": (run, threads) for name, run in (("ours", ours), ("theirs", theirs)) for threads in (1, 2)
    }

    def timed(way: str) -> None:
        run, threads = ways[way]
        inertia[way] = run(problems, senses, threads)

    seconds = by_turns({way: lambda w=way: timed(w) for way in ways}, rounds)
    for way, values in seconds.items():
        print(f"  {way.replace('theirs', 'scikit-learn')} thread(s): {shown(values, 's')}")
    pairs = {
        "ours on one thread, times scikit-learn on one": ("theirs, 1", "ours, 1"),
        "ours on two, times scikit-learn on one": ("theirs, 1", "ours, 2"),
        "ours on two, times scikit-learn on two": ("theirs, 2", "ours, 2"),
        "ours on two, times ours on one": ("ours, 1", "ours, 2"),
        "scikit-learn on two, times scikit-learn on one": ("theirs, 1", "theirs, 2"),
    }
    faster = {name: ratios(seconds[slow], seconds[fast]) for name, (slow, fast) in pairs.items()}
    for name, values in faster.items():
        print(f"  {name}: {shown(values, 'times as fast')}")
    print(f"  inertia over scikit-learn's: {inertia['ours, 1'] / inertia['theirs, 1']:.4f}")
    print(f"  inertia on two threads the same number: {inertia['ours, 1'] == inertia['ours, 2']}", flush=True)
    return {"seconds": seconds, "inertia": inertia, "faster": {name: spread(values) for name, values in faster.items()}}


def growth(sample: dict[str, Any], sizes: list[int], senses: int, rounds: int) -> list[dict[str, Any]]:
    """Seconds at so many occurrences, of tokens as they come; when all are used, again with a little noise."""
    draw = torch.Generator().manual_seed(0)
    order = torch.randperm(len(sample["offsets"]) - 1, generator=draw)
    found = []
    for size in sorted(sizes):
        parts, left = [], size
        while left > 0:
            running = sample["offsets"].diff()[order].cumsum(0)
            part = chosen(sample, order[: int((running <= left).sum()) + 1])
            if parts:
                part[0].add_(
                    torch.randn(part[0].shape, generator=draw), alpha=0.1 * float(sample["vectors"][:1000].std())
                )
            parts.append(part)
            left -= len(part[0])
        lengths = torch.cat([offsets.diff() for _, offsets, _ in parts])
        problems = (
            torch.cat([vectors for vectors, _, _ in parts]),
            torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)]),
            torch.cat([weights for _, _, weights in parts]),
        )
        del parts
        _forget_peak()
        before = _resident("VmRSS")
        seconds = by_turns({"ours": lambda p=problems: ours(p, senses, 1)}, rounds if size < 500_000 else 1)["ours"]
        count, peak = len(problems[0]), _resident("VmHWM") - before
        print(
            f"  {count:>9,} occurrences: {shown(seconds, 's')}, {1e6 * statistics.median(seconds) / count:.2f} us each; "
            f"at most {peak / 1e6:.0f} MB beside {problems[0].nbytes / 1e6:.0f} MB of vectors",
            flush=True,
        )
        found.append({"occurrences": count, "seconds": seconds, "bytes": peak, "vectors": problems[0].nbytes})
    return found


def _resident(key: str) -> int:
    """``VmRSS``, the bytes in memory now, or ``VmHWM``, the most since `_forget_peak`; 0 where the system does not say."""
    if not _STATUS.is_file():
        return 0
    return next(1024 * int(line.split()[1]) for line in _STATUS.read_text().splitlines() if line.startswith(key))


def _forget_peak() -> None:
    if _STATUS.is_file():
        _STATUS.with_name("clear_refs").write_text("5")


def by_senses(problems: tuple[torch.Tensor, ...], counts: list[int], rounds: int) -> dict[str, list[float]]:
    """Seconds at so many senses a token; all tokens have more occurrences than the most of them."""
    seconds = by_turns({str(count): lambda c=count: ours(problems, c, 1) for count in counts}, rounds)
    for count, values in seconds.items():
        each = 1e6 * statistics.median(values) / len(problems[0])
        print(
            f"  {count:>3} senses: {shown(values, 's')}, {each:.2f} us an occurrence, {each / int(count):.3f} a sense too"
        )
    return seconds


def exponent(amounts: list[float], seconds: list[float]) -> float:
    """The slope through the points on logarithmic axes: 1 where cost grows as the amount does."""
    return float(np.polyfit(np.log(amounts), np.log(seconds), 1)[0])


def profile(problems: tuple[torch.Tensor, ...], senses: int) -> dict[str, float]:
    """The share of each operation in the clustering's time, one thread."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as watch

    with watch(activities=[ProfilerActivity.CPU]) as watched:
        ours(problems, senses, 1)
    times = {event.key: event.self_cpu_time_total for event in watched.key_averages()}
    total = sum(times.values())
    shares = {name: times[name] / total for name in sorted(times, key=times.__getitem__, reverse=True)}
    for name in list(shares)[:OPERATIONS_SHOWN]:
        print(f"  {name}: {shares[name]:.1%}")
    return shares


def draw_growth(path: Path, found: list[dict[str, Any]], senses: dict[str, list[float]]) -> None:
    """Both curves on logarithmic axes, each with the line of a cost that grows as its amount."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
    from speed_plot import INK

    figure = Figure(figsize=(8.5, 3.4), layout="constrained")
    curves = (
        ("occurrences", [one["occurrences"] for one in found], [one["seconds"] for one in found]),
        ("senses a token", [int(count) for count in senses], list(senses.values())),
    )
    for axes, (label, amounts, seconds) in zip(figure.subplots(1, 2), curves):
        middle = [statistics.median(values) for values in seconds]
        axes.loglog(amounts, middle, "o-", color="#4477aa", label="measured")
        linear = [middle[-1] * amount / amounts[-1] for amount in amounts]
        axes.loglog(amounts, linear, "--", color="#cc6677", label="as the amount")
        axes.set_xlabel(label, color=INK)
        axes.set_ylabel("seconds, one thread", color=INK)
        # Round numbers: the first and last digits of 10,033 say nothing.
        axes.xaxis.set_major_locator(FixedLocator(amounts))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{float(f'{value:.1g}'):,.0f}"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.tick_params(which="both", colors=INK)
        axes.grid(color=INK, alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(INK)
        axes.legend(labelcolor=INK, frameon=False)
    figure.savefig(path, transparent=True)


def main() -> None:
    """Prints the figures, and with ``--output`` writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the four sets")
    parser.add_argument(
        "--work", type=Path, default=Path("runs/clustering"), help="where the teacher's vectors are kept"
    )
    parser.add_argument("--teacher", help="folder or Hub id of an encoder; all-MiniLM-L6-v2 if not given")
    parser.add_argument("--texts", type=int, help="texts of each set; all if not given")
    parser.add_argument("--tokens", type=int, default=3000, help="tokens, drawn at random, of the rounds by turns")
    parser.add_argument("--senses", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**4, 10**5, 10**6], help="occurrences")
    parser.add_argument("--counts", type=int, nargs="+", default=[5, 10, 20, 40], help="senses a token")
    parser.add_argument("--output", type=Path, help="a JSON file of all numbers")
    parser.add_argument("--plot", type=Path, help="an SVG of the growth")
    args = parser.parse_args()
    sample = sampled(args)
    sizes = sample["offsets"].diff()
    begin = time.perf_counter()
    ours((sample["vectors"], sample["offsets"], sample["weights"]), args.senses, 1)
    steps = {**sample["seconds"], "clustering": time.perf_counter() - begin}
    print("Building: " + ", ".join(f"{name} {seconds:.3g} s" for name, seconds in steps.items()))
    draw = torch.Generator().manual_seed(0)
    tokens = torch.randperm(len(sizes), generator=draw)[: args.tokens].sort().values
    problems = chosen(sample, tokens)
    print(f"{len(tokens):,} tokens of {len(sizes):,}, {len(problems[0]):,} occurrences of {len(sample['vectors']):,}:")
    results: dict[str, Any] = {"arguments": {name: str(value) for name, value in vars(args).items()}, "steps": steps}
    results["compared"] = compare(problems, args.senses, args.rounds)
    print("Where the time goes, one thread:")
    results["profile"] = profile(problems, args.senses)
    print(f"Against occurrences, {args.senses} senses, one thread:")
    few = min(3, args.rounds)
    results["growth"] = growth(sample, args.sizes, args.senses, few)
    rich = tokens[sizes[tokens] > max(args.counts)]
    problems = chosen(sample, rich)
    print(f"Against senses, {len(rich):,} tokens with {len(problems[0]):,} occurrences, one thread:")
    results["senses"] = by_senses(problems, args.counts, few)
    slopes = {
        "occurrences": exponent(
            [one["occurrences"] for one in results["growth"]],
            [statistics.median(one["seconds"]) for one in results["growth"]],
        ),
        "senses": exponent(args.counts, [statistics.median(values) for values in results["senses"].values()]),
    }
    print("Exponents: " + ", ".join(f"{name} {slope:.2f}" for name, slope in slopes.items()))
    results["exponents"] = slopes
    if args.plot:
        draw_growth(args.plot, results["growth"], results["senses"])
    save(args.output, results)


if __name__ == "__main__":
    main()
