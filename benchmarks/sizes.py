"""What a decoder, its student and its dictionary weigh, from the configuration alone: no weights are needed.

    python benchmarks/sizes.py

Llama-3-8B and a student of 4 layers, or any Llama-like ``--config`` (a folder or Hub id) and ``--layers``. The parameters are
counted twice: by the formulas below, and on an empty model.
"""

from __future__ import annotations

import argparse

import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel, LlamaConfig

LLAMA_3_8B = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}


TEXT = 64  # tokens of the text whose operations are counted


def layer_parameters(config: LlamaConfig) -> int:
    """Queries and output, keys and values, the three matrices of the gated layer, two norms."""
    width, head = config.hidden_size, config.hidden_size // config.num_attention_heads
    attention = 2 * width * width + 2 * width * head * config.num_key_value_heads
    return attention + 3 * width * config.intermediate_size + 2 * width


def body_parameters(config: LlamaConfig, layers: int) -> int:
    """Embeddings, layers, the final norm; no language-model head."""
    return config.vocab_size * config.hidden_size + layers * layer_parameters(config) + config.hidden_size


def counted(config: LlamaConfig, layers: int) -> tuple[int, int]:
    """The parameters of an empty model of so many layers, and its operations on a text of ``TEXT`` tokens."""
    smaller = type(config).from_dict({**config.to_dict(), "num_hidden_layers": layers})
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        model = AutoModel.from_config(smaller, attn_implementation="eager")
        mask = torch.zeros(1, 1, TEXT, TEXT)  # made ready: making one asks for values, which an empty model lacks
        model(input_ids=torch.zeros(1, TEXT, dtype=torch.int64), attention_mask=mask, use_cache=False)
    return int(model.num_parameters()), int(counter.get_total_flops())


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", help="folder or Hub id of a Llama-like decoder; Llama-3-8B's figures if not given")
    parser.add_argument("--layers", type=int, default=4, help="of the student")
    parser.add_argument("--senses", type=float, nargs="+", default=[1, 5, 20], help="senses a token, on average")
    parser.add_argument("--tokens", type=float, default=1e9, help="tokens to store targets for")
    options = parser.parse_args()
    config = AutoConfig.from_pretrained(options.config) if options.config else LlamaConfig(**LLAMA_3_8B)
    width, vocabulary, layers = config.hidden_size, config.vocab_size, config.num_hidden_layers
    operations = {}
    for number in (layers, options.layers):
        found, operations[number] = counted(config, number)
        if found != body_parameters(config, number):
            raise SystemExit(f"The formula gives {body_parameters(config, number)} parameters, an empty model {found}.")
    teacher, student = body_parameters(config, layers), body_parameters(config, options.layers)
    rows: list[tuple[str, str, str]] = [
        ("parameters of a layer", f"{layer_parameters(config):,}", "2 w^2 + 2 w d kv + 3 w i + 2 w"),
        ("teacher, without its language-model head", f"{teacher:,}", f"v w + {layers} layers + w"),
        ("student", f"{student:,} ({student / teacher:.1%})", f"v w + {options.layers} layers + w"),
        ("teacher in bfloat16", f"{2 * teacher / 1e9:.2f} GB", "2 bytes each"),
        ("student in bfloat16", f"{2 * student / 1e9:.2f} GB", "2 bytes each"),
    ]
    most = max(options.senses)
    kinds = [(senses, "bfloat16", 2 * width + 12, "2 w + 12") for senses in options.senses]
    for senses, dtype, sense_bytes, formula in [*kinds, (most, "int8", width + 16, "w + 16")]:
        size = vocabulary * senses * sense_bytes + 8 * (vocabulary + 1)
        whole = 2 * student + size
        rows.append(
            (
                f"senses, {senses:g} a token, {dtype}",
                f"{size / 1e9:.2f} GB; with the student {whole / 1e9:.2f} GB ({whole / (2 * teacher):.0%} of the teacher)",
                f"v k ({formula}) + 8 (v + 1)",
            )
        )
    rows += [
        (
            f"rows in bfloat16 that a batch of 32 x 64 tokens can touch, {most:g} senses each",
            f"at most {32 * 64 * most * 2 * width / 1e9:.2f} GB",
            "32 x 64 k 2 w",
        ),
        (
            "operations a token, teacher",
            f"{2 * layers * layer_parameters(config) / 1e9:.2f} billion",
            "2 x layers' parameters, attention to 64 tokens left out",
        ),
        (
            "operations a token, student",
            f"{2 * options.layers * layer_parameters(config) / 1e9:.2f} billion",
            "likewise",
        ),
        (
            f"counted on empty models, a text of {TEXT} tokens, teacher and student",
            f"{operations[layers] / TEXT / 1e9:.3f} and {operations[options.layers] / TEXT / 1e9:.3f} billion a token",
            "torch.utils.flop_counter, attention included",
        ),
        (
            f"operations a token, choice among {most:g} senses",
            f"{2 * most * width / 1e9:.6f} billion",
            "2 k w",
        ),
        (
            f"targets of {options.tokens:g} tokens as int32",
            f"{4 * options.tokens / 1e9:.1f} GB",
            "4 bytes a token",
        ),
        (
            "hidden states instead, bfloat16",
            f"{2 * width * options.tokens / 1e12:.2f} TB",
            "2 w bytes a token",
        ),
    ]
    print("| | | |\n| --- | --- | --- |")
    for row in rows:
        print("| " + " | ".join(row) + " |")
    print(f"\nw = {width}, v = {vocabulary}, i = {config.intermediate_size}, d kv = keys' width, k senses a token")


if __name__ == "__main__":
    main()
