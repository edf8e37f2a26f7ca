"""Every causal-LM family that can be built tiny: what is probed, what docs/decoders.md says, and what is true. No checkpoint."""

from __future__ import annotations

import functools

import pytest
import torch
import transformers
from decoder_families import (
    BACKENDS,
    PAGE,
    VOCABULARY,
    batch,
    directions,
    examine,
    forward_of,
    kinds,
    opened,
    reach,
    read_page,
    skipped,
    tell,
    tiny_config,
    tiny_model,
)
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from hf_sense import load_teacher
from hf_sense.decoders import open_attention

VERSION, ROWS = read_page() if PAGE.exists() else ("", {})
row_of = functools.cache(examine)


@functools.cache
def families():
    """Kinds that have a row."""
    return [kind for kind in kinds() if skipped(kind) is None]


def chunk(number):
    """A tenth of the families, so that a failure says where and all run in little time."""
    return families()[number::10]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Models this small are much slower on two threads, and builds have a time limit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def small_tokenizer():
    """As many tokens as the tiny models embed, and no numbers of segments, as decoders have it."""
    names = ["[PAD]", "[UNK]", "[SEP]", *(f"w{number}" for number in range(VOCABULARY - 3))]
    words = models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="[UNK]")
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), unk_token="[UNK]", eos_token="[SEP]", pad_token="[PAD]", model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def unopened(kind, backend):
    """A tiny model as its family comes, causal, and without a cache."""
    config = tiny_config(kind)
    config.use_cache = config.get_text_config().use_cache = False
    return tiny_model(config, backend)


@pytest.mark.parametrize("number", range(10))
def test_the_page_says_what_is_probed(number):
    """A family stopped to see both ways, or started to, and docs/decoders.md tells the old tale."""
    if transformers.__version__ != VERSION:
        pytest.skip(f"docs/decoders.md is of transformers {VERSION}, and {transformers.__version__} is installed")
    assert chunk(number)
    for kind in chunk(number):
        found, written = row_of(kind), ROWS.get(kind)
        assert written is not None, f"{kind} is missing: python tests/decoder_families.py"
        assert (found.sdpa, found.eager) == (written.sdpa, written.eager), kind
        if "yes" in (found.sdpa, found.eager):
            assert found.note == written.note, kind


def test_the_page_is_whole():
    """The counts of the page, or its words, are of other rows than its table."""
    if transformers.__version__ != VERSION:
        pytest.skip(f"docs/decoders.md is of transformers {VERSION}, and {transformers.__version__} is installed")
    assert set(ROWS) == set(families())
    without = {}
    for kind in kinds():
        if why := skipped(kind):
            without.setdefault(why, []).append(kind)
    assert PAGE.read_text(encoding="utf-8") == tell(list(ROWS.values()), without)


def test_at_least_eighty_families_see_both_ways():
    """A change here or in transformers closes families that users rely on."""
    passing = [kind for kind in families() if "yes" in (row_of(kind).sdpa, row_of(kind).eager)]
    assert len(passing) >= 80, f"{len(passing)} pass: {', '.join(passing)}"


@pytest.mark.parametrize("number", range(10))
def test_what_passes_sees_both_ways(number):
    """The probe lets a causal family through, and its senses are silently those of a causal model.

    Measured by gradient, which has nothing in common with the probe: the first state depends on every token of its text.
    """
    for kind in chunk(number):
        for backend in BACKENDS:
            if getattr(row_of(kind), backend) != "yes":
                continue
            model = opened(kind, backend)
            ids, mask = batch()
            assert (reach(model, ids[:1], mask[:1]) > 0).all(), (kind, backend, "without padding")
            assert (reach(model, ids, mask)[mask[1] == 1] > 0).all(), (kind, backend, "with padding")


def test_the_gradient_knows_a_causal_model():
    """The check above passes whatever comes: it must fail for models that nobody opened."""
    for kind in ("llama", "mistral", "gemma3_text", "qwen3", "gpt2", "olmoe"):
        model = unopened(kind, "eager")
        ids, mask = batch()
        found = reach(model, ids, mask)
        assert found[0] > 0, kind
        assert not found[1:].any(), kind


@pytest.mark.parametrize("number", range(10))
def test_load_teacher_agrees(number, small_tokenizer):
    """A family that does not see both ways becomes a bidirectional teacher in silence, or a good one is turned away."""
    for kind in chunk(number):
        row = row_of(kind)
        if row.eager == "not built":
            continue
        backend = "eager" if row.sdpa in ("not offered", "refused") else "sdpa"
        model, said = unopened(kind, backend), getattr(row, backend)
        if said == "yes":
            assert load_teacher(model, small_tokenizer, attention="bidirectional").attention == "bidirectional", kind
            continue
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (the message is looked at below)
            load_teacher(model, small_tokenizer, attention="bidirectional")
        assert kind in str(caught.value)
        if said != "breaks":
            remedy = 'attn_implementation="eager"' if row.eager == "yes" else 'attention="causal"'
            assert remedy in str(caught.value), kind


@pytest.mark.parametrize("kind", ["stablelm", "nemotron", "gpt_neo", "mamba", "rwkv", "llama4_text"])
def test_the_known_deaf_are_refused_by_name(kind, small_tokenizer):
    """These families ignore ``is_causal``, wholly or in part, and say nothing of it."""
    row = row_of(kind)
    backend = "eager" if row.sdpa in ("not offered", "refused") else "sdpa"
    if getattr(row, backend) == "yes":
        pytest.skip(
            f"{kind} sees both ways with transformers {transformers.__version__}, and the tests above have seen it"
        )
    with pytest.raises(ValueError, match=rf"\b{kind}\b"):
        load_teacher(unopened(kind, backend), small_tokenizer, attention="bidirectional")


@pytest.mark.parametrize("when", ["before the model is made", "after"])
@pytest.mark.parametrize(
    "kind",
    [
        "mistral",
        "mixtral",
        "qwen2",
        "qwen3",
        "gemma2",
        "gemma3_text",
        "ministral",
        "cohere2",
        "gpt_oss",
        "olmo3",
        "phi3",
    ],
)
def test_windows_are_opened_in_each_layer(kind, when):
    """A layer keeps its window of 4 both ways, and a layer beside it with full attention hides that from the probe."""
    config = tiny_config(kind)
    if not getattr(config, "sliding_window", None):  # phi3 comes without
        config.sliding_window = 4
    if getattr(config, "layer_types", None):
        config.layer_types = ["sliding_attention"] * len(config.layer_types)
    config.is_causal = config.use_cache = False
    closed = tiny_model(config, "eager")
    assert "near" in directions(closed).values(), "the window does nothing, so this test shows nothing"
    open_attention(config if when.startswith("before") else closed.config)
    model = tiny_model(config, "eager") if when.startswith("before") else closed
    assert "near" not in directions(model).values()
    ids, mask = batch(length=40, padding=10)
    other = ids.clone()
    other[0, -1], other[1, 29] = (other[0, -1] + 1) % VOCABULARY, (other[1, 29] + 1) % VOCABULARY
    with torch.no_grad():
        before, after = (forward_of(model)(each, mask)[:, 0] for each in (ids, other))
    assert (before != after).any(-1).all()
