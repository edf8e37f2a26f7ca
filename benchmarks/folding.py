"""What folding for inference saves: megabytes and milliseconds before and after, and how far answers move.

    OMP_NUM_THREADS=1 python benchmarks/folding.py

all-MiniLM-L6-v2 and Reuters R8, fetched once. Students: the teacher's first two layers, and an encoder of two layers of a third
of its width whose weights are drawn, since time and memory do not depend on what it has learned. Each has a linear head fitted
on the stories. Before and after run by turns in one process; medians are printed with the lowest and the highest.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from costs import Given
from measure import by_turns, kept_dictionary, save, shown
from transformers import BertConfig, BertModel

from hf_sense import SenseModelForSequenceClassification, load_teacher
from hf_sense.evaluation import embed, fit_linear_head, predict

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from real_data import reuters_r8, teacher_folder


def megabytes(model: torch.nn.Module, *, backbone: bool) -> float:
    """The model's tensors, with its backbone or without."""
    held = model.state_dict().items()
    return sum(tensor.nbytes for name, tensor in held if backbone or "backbone." not in name) / 1e6


def compare(name: str, model: Any, tokenizer: Any, texts: list[str], max_length: int, rounds: int) -> dict[str, Any]:
    """Before and after of one student."""
    folded = model.fold()
    table = folded.sense_table
    print(f"{name}: {len(table.values)} senses, {len(table.keys)} of them of tokens with two or more")
    ways = {"before": model, "after": folded}
    result: dict[str, Any] = {"senses": len(table.values), "keys": len(table.keys)}
    for way, one in ways.items():
        senses, whole = (megabytes(one, backbone=backbone) for backbone in (False, True))
        result[way] = {"mb_without_backbone": senses, "mb": whole}
        print(f"  {way}: {whole:.1f} MB, {senses:.1f} without the backbone")
    answer = embed if model.base_model is model else predict
    before, after = (answer(one, tokenizer, texts, max_length=max_length, disable_tqdm=True) for one in ways.values())
    apart = (before - after).abs()
    result["apart"], result["texts"] = float(apart.max()), len(texts)
    result["texts_apart"] = int((apart.amax(1) > 1e-5).sum())
    print(
        f"  answers to {len(texts)} texts differ by at most {result['apart']:.2g} (the largest number is "
        f"{before.abs().max():.3g}), to {result['texts_apart']} of them by more than 1e-5"
    )
    long = [text for text in texts if len(text.split()) > max_length][:32]
    batch = tokenizer(long, truncation=True, max_length=max_length, return_tensors="pt")
    with torch.inference_mode():
        given = Given(model.base_model.backbone(**batch))
        # backbone_inputs was asked of the real one, so that both take this one too.
        real = {way: one.base_model.backbone for way, one in ways.items()}

        def run(way: str, alone: bool) -> None:
            one = ways[way]
            one.base_model.backbone = given if alone else real[way]
            one(**batch)

        seconds = by_turns(
            {f"{way}{what}": lambda w=way, a=bool(what): run(w, a) for what in ("", " alone") for way in ways}, rounds
        )
    for way, one in ways.items():
        one.base_model.backbone = real[way]
    for way, values in seconds.items():
        print(f"  {way}: {shown(values, 'ms', 1e3)}")
    for what in ("", " alone"):
        ratio = [after / before for before, after in zip(seconds[f"before{what}"], seconds[f"after{what}"])]
        print(f"  after over before{what}: {shown(ratio, 'times')}")
    result["seconds"] = seconds
    return result


def main() -> None:
    """Prints the tables, and with ``--output`` writes their numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--texts", type=int, default=1000, help="stories to build from and to fit the heads on")
    parser.add_argument("--max-length", type=int, default=128, help="tokens at which a story is cut")
    parser.add_argument("--width", type=int, default=128, help="of the narrow student")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dictionary", type=Path, help="folder that keeps the dictionary; used if it is there")
    parser.add_argument("--output", type=Path, help="a JSON file of all numbers")
    args = parser.parse_args()
    teacher = load_teacher(str(teacher_folder()))
    texts, labels = (part[: args.texts] for part in reuters_r8("train"))
    tests = reuters_r8("test")[0][: args.texts]
    dictionary = kept_dictionary(
        args.dictionary, teacher, texts, max_senses=20, max_length=args.max_length, disable_tqdm=True
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=teacher.model.config.vocab_size, hidden_size=args.width, num_hidden_layers=2,
        num_attention_heads=args.width // 32, intermediate_size=4 * args.width,
    )  # fmt: skip
    arguments = {**vars(args), "output": None, "dictionary": None}
    results: dict[str, Any] = {"threads": torch.get_num_threads(), "arguments": arguments}
    for name, body in (("2 layers", {"num_hidden_layers": 2}), ("narrow", {"backbone": BertModel(config).eval()})):
        model = SenseModelForSequenceClassification.from_teacher(
            teacher, dictionary, pooling="frequency", num_labels=len(set(labels)), **body
        )
        fit_linear_head(model, teacher.tokenizer, texts, labels, max_length=args.max_length, disable_tqdm=True)
        results[name] = compare(name, model, teacher.tokenizer, tests, args.max_length, args.rounds)
    # The last one, without its classifier: senses keep their width, keys come beside them.
    name = "narrow, without the classifier"
    results[name] = compare(name, model.model, teacher.tokenizer, tests, args.max_length, args.rounds)
    save(args.output, results)


if __name__ == "__main__":
    main()
