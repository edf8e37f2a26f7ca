"""Probes a tiny model of every causal-LM family of transformers and writes docs/decoders.md. Loads no checkpoint.

``python tests/decoder_families.py`` remakes the page; tests/test_decoder_families.py holds it to what is probed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import signal
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from hf_sense.decoders import Forward, blind_cases, is_decoder, open_attention

PAGE = Path(__file__).parent.parent / "docs" / "decoders.md"
BACKENDS = ("sdpa", "eager")
WINDOW = 4  # of families with sliding windows, before they are opened
SECONDS = 5.0  # a build may take
MOST_PARAMETERS = 2_000_000
VOCABULARY = 64

# Fields by which families state their size; those that a configuration has are set.
SIZES: dict[str, Any] = {
    **dict.fromkeys(("vocab_size", "unpadded_vocab_size", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "embedding_size", "attention_hidden_size"), 32),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "swa_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "swa_head_dim", "dim_head", "kv_channels", "global_head_dim", "rotary_dim"), 8),
    **dict.fromkeys(("index_head_dim", "d_rel", "linear_head_dim", "linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "o_lora_rank", "qk_rope_head_dim", "v_head_dim"), 8),
    **dict.fromkeys(("qk_nope_head_dim", "hidden_size_per_layer_input", "gated_norm_rank", "state_size"), 8),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "ffn_hidden_size", "dff", "dim_ff", "n_inner"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "expert_ffn_hidden_size"), 16),
    **dict.fromkeys(("intermediate_size_mlp", "dense_intermediate_size", "shared_intermediate_size"), 16),
    **dict.fromkeys(("shared_experts_intermediate_size",), 16),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"), 2),
    **dict.fromkeys(("n_group", "topk_group", "num_expert_group", "n_shared_experts", "first_k_dense_replace"), 1),
    **dict.fromkeys(("index_n_heads", "linear_num_heads", "linear_num_key_heads", "linear_num_value_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "model_max_length"), 64),
    **dict.fromkeys(("sliding_window", "sliding_window_size"), WINDOW),
    "use_sliding_window": True,
    **dict.fromkeys(("mamba_d_state", "mamba_d_head", "mamba_headdim", "mamba_dt_rank", "time_step_rank"), 8),
    "mamba_n_heads": 8,
    "mamba_expand": 2,
}
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
# What the generic sizes do not reach.
EXCEPTIONS: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8},
    "blt": {"encoder_hash_byte_group_vocab": VOCABULARY},
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"hidden_size": 32, "ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "dots3_note_text": {
        "head_dim": 16,
        **dict.fromkeys(("swa_num_attention_heads", "swa_num_key_value_heads"), 4),
        **dict.fromkeys(("swa_q_lora_rank", "swa_kv_lora_rank", "swa_qk_nope_head_dim", "swa_v_head_dim"), 8),
        "swa_head_dim": 16,
    },
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 8, "mamba_d_head": 8},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "activation_sparsity_pattern": [0.0] * 4,
        "laurel_rank": 8,
        "intermediate_size": [48] * 4,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"], "mamba_n_heads": 8, "mamba_d_head": 8},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 2},
    "nemotron_h": {
        "num_hidden_layers": 4,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 2,
        "moe_shared_expert_intermediate_size": 16,
    },
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "recurrent_gemma": {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": WINDOW},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {
        "num_hidden_layers": 2,
        "layers_block_type": ["linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "adapter_rank": 8,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}


@dataclasses.dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        kind: the model type.
        sdpa: "yes", "no: ...", "refused", "not offered" or "not built".
        eager: the same with eager attention.
        note: why, or what else is to be known.
    """

    kind: str
    sdpa: str
    eager: str
    note: str = ""


class TooSlow(Exception):
    """A build that takes longer than it may."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises ``TooSlow`` in the main thread when the time is over."""

    def stop(*_: Any) -> None:
        raise TooSlow(f"more than {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def sizes_of(config: PretrainedConfig, special: dict[str, Any]) -> dict[str, Any]:
    """The small sizes for a configuration, one layer of each kind that it names."""
    fields = config.to_dict()
    unset = {"head_dim", "num_key_value_heads"} & set(fields)  # which some families cannot leave unset
    if "use_sliding_window" in fields:  # it is off, and the window unset
        unset.add("sliding_window")
    made = {name: value for name, value in SIZES.items() if fields.get(name) is not None or name in unset}
    if fields.get("num_key_value_heads") in (None, fields.get("num_attention_heads")) and "num_key_value_heads" in made:
        made["num_key_value_heads"] = SIZES["num_attention_heads"]
    made |= {name: number for number, name in enumerate(TOKENS) if name in fields and fields[name] is not None}
    kinds = list(dict.fromkeys(fields.get("layer_types") or ()))
    if kinds == ["full_attention"] and "use_sliding_window" in fields:
        kinds = ["sliding_attention", "full_attention"]
    if kinds:
        made["layer_types"] = kinds * (2 if len(kinds) == 1 else 1)
        made["num_hidden_layers"] = len(made["layer_types"])
    if experts := list(dict.fromkeys(fields.get("mlp_layer_types") or ())):
        count = made["num_hidden_layers"]
        made["mlp_layer_types"] = (experts * count)[:count]
    return made | special


def tiny_config(kind: str) -> PretrainedConfig:
    """A family's configuration with small sizes; its nested ones too."""
    config = AutoConfig.for_model(kind)
    special = EXCEPTIONS.get(kind, {})
    nested = {
        name: sizes_of(part, {}) | special.get(name, {})
        for name in config.sub_configs
        if isinstance(part := getattr(config, name, None), PretrainedConfig)
    }
    return AutoConfig.for_model(kind, **(sizes_of(config, special) | nested))


def tiny_model(config: PretrainedConfig, backend: str) -> PreTrainedModel:
    """A seeded model whose weights are large enough for effects to be seen, in evaluation mode."""
    with torch.device("meta"):
        parameters = AutoModel.from_config(config, attn_implementation=backend).num_parameters()
    if parameters > MOST_PARAMETERS:
        raise ValueError(f"{parameters} parameters")
    model = AutoModel.from_config(config, attn_implementation=backend).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.3, generator=generator)
    return model


def kinds() -> list[str]:
    """Model types that transformers has a causal-LM head for."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def skipped(kind: str) -> str | None:
    """Why a kind has no row: it is no decoder for hf_sense, or its text part has a row of its own."""
    if kind not in MODEL_MAPPING_NAMES:
        return "without a class for AutoModel"
    config = AutoConfig.for_model(kind)
    if getattr(config, "is_encoder_decoder", False) or {"text_encoder", "decoder"} <= set(config.sub_configs):
        return "encoder-decoders"
    if not is_decoder(config):
        return "encoders"
    text = config.get_text_config()
    if text is not config and text.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return "composites whose text part has a row"
    return None


def batch(length: int = 12, padding: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask, int64 ``(2, length)``, of which the second row is padded on the right. Not the probe's own ids."""
    ids = torch.randint(3, VOCABULARY, (2, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, length - padding :] = 0
    return ids, mask


def forward_of(model: PreTrainedModel) -> Forward:
    """Its forward pass as the probe takes it."""
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state


def influence(output: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
    """By gradient, how much a hidden state depends on each place of ``(batch, sequence, ...)``: ``(batch, sequence)``."""
    weights = torch.linspace(0.5, 1.5, output.numel()).view_as(output)  # a plain sum is constant after a layer norm
    (gradient,) = torch.autograd.grad((output * weights).sum(), source, retain_graph=True, allow_unused=True)
    return torch.zeros(source.shape[:2]) if gradient is None else gradient.abs().flatten(2).sum(-1)


@contextlib.contextmanager
def watched_embeddings(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Collects the embeddings that go in, as the leaves of the graph."""
    caught: list[torch.Tensor] = []

    def keep(_module: Any, _inputs: Any, output: torch.Tensor) -> torch.Tensor:
        caught.append(output.detach().requires_grad_())
        return caught[-1].clone()  # some families write into it

    handle = model.get_input_embeddings().register_forward_hook(keep)
    try:
        yield caught
    finally:
        handle.remove()


def reach(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """How much the last row's first hidden state depends on each of its tokens' embeddings: ``(sequence,)``."""
    with watched_embeddings(model) as embeddings:
        hidden = forward_of(model)(ids, mask)
    found = influence(hidden[-1, 0], embeddings[0])
    if found.shape[0] != ids.shape[0]:  # one family has the sequence first
        found = found.T
    return found[-1, -ids.shape[1] :]  # one puts a prompt before the text


def directions(model: PreTrainedModel) -> dict[str, str]:
    """Which way each module looks that takes and gives ``(batch, sequence, ...)``, the model itself left out.

    Returns:
        By its name "open", "left" (a middle token's output depends on what stands before and nothing after), "near"
        (on both sides, but not on the ends) or "alone".
    """
    ids, mask = batch(padding=0)
    rows, length = ids.shape
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    handles = []

    def fits(tensor: Any) -> bool:
        return (
            isinstance(tensor, torch.Tensor)
            and tensor.is_floating_point()
            and tensor.shape[:2] == (rows, length)
            and tensor.ndim > 2
        )

    for name, module in model.named_modules():

        def keep(_module: Any, given: Any, named: dict[str, Any], output: Any, name: str = name) -> None:
            entered = given[0] if given else named.get("hidden_states")
            left = output if isinstance(output, torch.Tensor) or not output else output[0]
            if name and fits(entered) and fits(left) and entered.requires_grad and left.requires_grad:
                seen.setdefault(name, (entered, left))

        handles.append(module.register_forward_hook(keep, with_kwargs=True))
    try:
        with watched_embeddings(model):
            forward_of(model)(ids, mask)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    middle = length // 2
    for name, (entered, left) in seen.items():
        sees = influence(left[-1, middle], entered)[-1] > 0
        if not sees[middle + 1 :].any():
            found[name] = "left" if sees[:middle].any() else "alone"
        else:
            found[name] = "open" if sees[-1] and sees[0] else "near"
    return found


def describe(found: dict[str, str]) -> list[str]:
    """In words, which layers are not open, and which parts of open layers are not."""
    if "open" not in found.values():
        return ["layers not looked at singly"]
    numbered = [name for name in found if re.fullmatch(r"(\D+\.)?\D+\.\d+", name)]
    lists = {name.rpartition(".")[0] for name in numbered if found[name] != "alone"}
    layers = {name: found[name] for name in numbered if name.rpartition(".")[0] in lists}
    notes = []
    for way, words in (("left", "read left to right"), ("near", "see their neighbourhood alone")):
        if count := list(layers.values()).count(way):
            notes.append(f"{count} of {len(layers)} layers {words}")
        closed = [name + "." for name, one in layers.items() if one != "open"]
        parts = {
            re.split(r"\.\d+\.", name, maxsplit=1)[-1]
            for name, one in found.items()
            if one == way and name not in layers and not name.startswith(tuple(closed))
        }
        parts = {part for part in parts if not any(part.startswith(other + ".") for other in parts)}
        if parts:
            notes.append(f"parts of open layers ({', '.join(sorted(parts))}) {words}")
    return notes


def opened(kind: str, backend: str) -> PreTrainedModel:
    """A tiny model of the family whose attention was opened."""
    with time_limit(SECONDS):
        config = tiny_config(kind)
        open_attention(config)
        return tiny_model(config, backend)


def probe(kind: str, backend: str) -> tuple[str, str]:
    """What ``hf_sense`` says of a family under a backend, and a note."""
    model = opened(kind, backend)
    forward = forward_of(model)
    with time_limit(SECONDS):
        ids, mask = batch()
        with torch.no_grad():
            if not forward(ids, mask).isfinite().all():
                raise ValueError("its tiny model gives infinite states")
        blind = blind_cases(forward, VOCABULARY)
        if blind:
            return ("no: " + (blind[0] if len(blind) == 1 else "never")), ""
        notes = describe(directions(model))
        if (reach(model, ids, mask)[mask[1] == 0] > 0).any():
            notes.append("padding reaches the text")
    return "yes", "; ".join(notes)


def failure_as_it_comes(kind: str, backend: str) -> str | None:
    """What stops a tiny model of the family from being built and run left to right; ``None`` if nothing does."""
    try:
        with time_limit(SECONDS), torch.no_grad():
            config = tiny_config(kind)
            config.use_cache = config.get_text_config().use_cache = False
            forward_of(tiny_model(config, backend))(*batch())
    except Exception as error:
        return words_of(error)
    return None


def words_of(error: Exception) -> str:
    """An error's kind and the last line of what it says."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {' '.join(lines[-1].split())}"


def answer(kind: str, backend: str) -> tuple[str, str]:
    """What stands in the family's column for the backend, and a note."""
    try:
        return probe(kind, backend)
    except Exception as error:
        if setting := re.search(r"config\.(\w+) is .* cannot be opened", str(error)):
            return "refused", f"`{setting[1]}` confines attention"
        failure = failure_as_it_comes(kind, backend)
        if failure is None:
            return "breaks", f"opened, it fails with {words_of(error)[:100]}"
        if re.search("does not support an attention implementation|scaled_dot", failure):
            return "not offered", ""
        return "not built", failure[:100]


def examine(kind: str) -> Family:
    """The row of a family."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answers = [answer(kind, backend) for backend in BACKENDS]
    notes = dict.fromkeys(note for _, note in answers if note)
    return Family(kind, *(said for said, _ in answers), "; ".join(notes).replace("|", "/"))


def tell(rows: list[Family], without: dict[str, list[str]]) -> str:
    """The page."""
    counts = {backend: sum(getattr(row, backend) == "yes" for row in rows) for backend in BACKENDS}
    either = sum("yes" in (row.sdpa, row.eager) for row in rows)
    partly = sum("read left to right" in row.note for row in rows)
    others = {
        said: [row.kind for row in rows if "yes" not in (row.sdpa, row.eager) and row.eager.partition(":")[0] == said]
        for said in ("no", "refused", "breaks", "not built")
    }
    lines = [
        "# Decoder families",
        "",
        'Which causal language models of transformers become bidirectional with `attention="bidirectional"`. Written by',
        "",
        "```",
        "python tests/decoder_families.py",
        "```",
        "",
        f"with transformers {transformers.__version__}. `load_teacher` probes the real model again each time and believes "
        "this page in nothing.",
        "",
        "A tiny model of each family is built with random weights. Its attention is opened (`is_causal` false, sliding windows "
        f"of {WINDOW} made wide), and its last token is changed, in a text alone and in a padded one. It sees both ways if the "
        "first hidden state changes too.",
        "",
        "| it says | it means |",
        "| --- | --- |",
        "| yes | It sees both ways, with padding and without. |",
        "| no: without padding | It stays causal in silence in a batch without padding; `load_teacher` refuses it. |",
        "| no: never | It stays causal in silence; `load_teacher` refuses it. |",
        "| refused | A setting that cannot be opened confines attention; `load_teacher` refuses it and names the setting. |",
        "| breaks | It runs as it comes and fails when it is opened; `load_teacher` raises. |",
        "| not offered | The family has no such attention; transformers refuses to load it so. |",
        "| not built | No model of it could be made small enough here; nothing is known. |",
        "",
        "A note that layers read left to right means a hybrid: its recurrent or convolutional layers stay as they are, and its "
        "attending layers alone look ahead. It passes the probe, since the first token does see the last, but only through "
        "these layers. Each kind of layer stands once in the tiny model; real models have many more recurrent ones.",
        "",
        f"{len(rows)} families: {counts['sdpa']} see both ways under sdpa, {counts['eager']} under eager, {either} under one "
        f"of them; {partly} of these are hybrids.",
        "",
        *(f"- {said}: {', '.join(names)}" for said, names in others.items() if names),
        "",
        "| family | sdpa | eager | note |",
        "| --- | --- | --- | --- |",
        *(f"| {row.kind} | {row.sdpa} | {row.eager} | {row.note} |" for row in rows),
        "",
        "Kinds with a causal head that have no row:",
        "",
        *(f"- {why}: {', '.join(names)}" for why, names in sorted(without.items())),
    ]
    return "\n".join(lines) + "\n"


def read_page() -> tuple[str, dict[str, Family]]:
    """The version of transformers that the page is of, and its rows."""
    text = PAGE.read_text(encoding="utf-8")
    rows = re.findall(r"^\| ([\w.-]+) \| ([^|]+) \| ([^|]+) \| ([^|]*?) ?\|$", text, re.MULTILINE)
    version = re.search(r"with transformers (\S+)\. ", text)
    return (version[1] if version else ""), {row[0]: Family(*row) for row in rows if row[0] not in ("family", "---")}


def main() -> None:
    """Probes all families and writes the page."""
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)  # models this small are much slower on two
    rows, without = [], {}
    for kind in kinds():
        if why := skipped(kind):
            without.setdefault(why, []).append(kind)
        else:
            rows.append(examine(kind))
    temporary = PAGE.with_suffix(".tmp")
    temporary.write_text(tell(rows, without), encoding="utf-8")
    temporary.replace(PAGE)
    print(f"{len(rows)} families written to {PAGE.name}")


if __name__ == "__main__":
    main()
