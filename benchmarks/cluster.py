"""What a build on many processes would send and wait for: arithmetic, and the merge of samples tried.

    python benchmarks/cluster.py

For a corpus, a vocabulary and a teacher that are given: what each rank reads, draws, sends and clusters, at 1, 8 and 64 ranks.
The merge of two samples is timed here, on a part of their tokens; the network and the rates are assumed, and are options.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from measure import machine, save

from hf_sense.sampling import OccurrenceSample

_PLACE = 36  # bytes of a place of the sample, sent: token, priority, text, position, weight


def sampled(vocabulary: int, tokens: float, most: int) -> np.ndarray:
    """How many occurrences of each token are sampled, if tokens follow Zipf's law."""
    shares = 1 / (np.arange(vocabulary) + 2.7)
    return np.minimum(shares / shares.sum() * tokens, most).astype(np.int64)


def drawn(counts: np.ndarray, seed: int, first_text: int) -> OccurrenceSample:
    """A sample with so many places of each token, at random."""
    draw = np.random.default_rng(seed)
    number = int(counts.sum())
    token_ids = np.repeat(np.arange(len(counts), dtype=np.int32), counts)
    priorities = draw.integers(0, 2**63, number, dtype=np.uint64)
    order = np.lexsort((priorities, token_ids))
    return OccurrenceSample(
        token_ids, priorities[order], first_text + draw.integers(0, 10**7, number), draw.integers(0, 128, number, np.int32),
        np.ones(number, np.int64), counts.copy(),
    )  # fmt: skip


def merge_seconds(counts: np.ndarray, most: int) -> float:
    """What it takes to merge two samples of full size, and what they hold afterwards is checked."""
    first, second = drawn(counts, 0, 0), drawn(counts, 1, 10**8)
    begin = time.process_time()
    merged = first.merge(second, most)
    seconds = time.process_time() - begin
    if not np.array_equal(np.bincount(merged.token_ids, minlength=len(counts)), np.minimum(2 * counts, most)):
        raise SystemExit("The merged sample has other sizes than it should.")
    return seconds


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=float, default=1e9, help="of the corpus")
    parser.add_argument("--vocabulary", type=int, default=128_256)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--most", type=int, default=1000, help="occurrences of a token that are sampled")
    parser.add_argument(
        "--rate", type=float, default=20_000, help="tokens a second of the teacher on one GPU (assumed)"
    )
    parser.add_argument(
        "--tokenizing", type=float, default=500_000, help="tokens a second of a rank's processor (assumed)"
    )
    parser.add_argument("--clustering", type=float, default=2_000, help="vectors a second of a rank (assumed)")
    parser.add_argument("--network", type=float, default=1.25, help="GB a second of each rank (assumed: 10 Gbit/s)")
    parser.add_argument(
        "--every", type=int, default=16, help="merge the samples of one token in so many here, and reckon up to all"
    )
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--output", type=Path, help="write the figures to this JSON file")
    options = parser.parse_args()
    counts = sampled(options.vocabulary, options.tokens, options.most)
    places = int(counts.sum())
    part = counts[:: options.every]
    # Sorting grows as n log n.
    times = places * math.log(max(2, places)) / (part.sum() * math.log(max(2, part.sum())))
    merge = merge_seconds(part, options.most) * times
    read = options.tokens  # at most: texts without a sampled place are not read
    print(
        f"{options.tokens:.0e} tokens, {places:,} places of {options.most} at most, {places * options.dim * 4 / 1e9:.0f} GB of"
    )
    print(
        f"vectors in float32; merging two samples of {places * _PLACE / 1e9:.2f} GB takes {merge:.0f} s of a core, reckoned "
        f"from one token in {options.every}"
    )
    print(
        "| | " + " | ".join(f"{ranks} ranks" for ranks in options.ranks) + " |\n| --- |" + " --- |" * len(options.ranks)
    )
    rows: dict[str, list[float]] = {}
    for ranks in options.ranks:
        steps = math.ceil(math.log2(ranks)) if ranks > 1 else 0
        vectors = places * options.dim * 4 / 1e9
        sent = vectors / ranks * (ranks - 1) / ranks
        stages = {
            "every rank reads all texts, tokenizes its own, s": options.tokens / options.tokenizing / ranks,
            "samples merge by pairs, then go to all, s": steps * (merge + places * _PLACE / 1e9 / options.network)
            + (ranks - 1) * places * _PLACE / 1e9 / options.network,
            "teacher at the most, s": read / options.rate / ranks,
            "vectors sent and received by a rank, GB": sent,
            "sent at that network, one pair at a time, s": sent * ranks / options.network if ranks > 1 else 0.0,
            "clustering, s": places / options.clustering / ranks,
        }
        stages["in all, hours"] = sum(value for name, value in stages.items() if name.endswith(", s")) / 3600
        for name, value in stages.items():
            rows.setdefault(name, []).append(value)
    for name, values in rows.items():
        print(f"| {name} | " + " | ".join(f"{value:,.1f}" for value in values) + " |")
    figures: dict[str, Any] = {"machine": machine(), "places": places, "merge_seconds": merge, "rows": rows}
    save(options.output, figures)


if __name__ == "__main__":
    main()
