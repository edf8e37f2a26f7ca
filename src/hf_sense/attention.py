"""How a teacher's tokens see each other: set in its configuration, then proved, not believed.

What a decoder needs for that, and the probe itself, stand in ``hf_sense.decoders``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from transformers import PretrainedConfig

from hf_sense.adapters import says_bidirectional
from hf_sense.decoders import blind_cases, is_decoder, is_open, open_attention

if TYPE_CHECKING:
    from hf_sense.teacher import Teacher

logger = logging.getLogger(__name__)


def set_attention(
    config: PretrainedConfig, attention: str, adapters: Sequence[dict[str, str | None]], name: str
) -> str:
    """Says which attention is taken, and sets the configuration of a decoder to it.

    Args:
        config: the model's; a decoder's is changed in place.
        attention: ``"auto"``, ``"bidirectional"`` or ``"causal"``, as in ``load_teacher``.
        adapters: those that will be merged; with ``"auto"`` their settings count.
        name: the model's, for what is said.

    Raises:
        ValueError: if it is an encoder-decoder, or an encoder that is to be causal.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"{kind} is an encoder-decoder, and a teacher has one stack. Pass its encoder as a loaded model, for example "
            "T5EncoderModel.from_pretrained(name)."
        )
    if not is_decoder(config):
        if attention == "causal":
            raise ValueError(f'{name} ({kind}) is an encoder and has no causal form. Leave attention="causal" out.')
        return "bidirectional"
    if attention == "auto":
        attention = "bidirectional" if is_open(config) or any(map(says_bidirectional, adapters)) else "causal"
        other = "causal" if attention == "bidirectional" else "bidirectional"
        logger.warning(
            '%s is a decoder (%s); its attention is %s. attention="%s" would make it so.', name, kind, attention, other
        )
    if attention == "bidirectional":
        open_attention(config)
    else:
        for each in (config, config.get_text_config()):
            each.use_cache = False
            if getattr(each, "is_causal", None) is False:
                each.is_causal = True
    return attention


def prove_bidirectional(teacher: Teacher) -> None:
    """Raises ``ValueError``, with the family and the remedy, if a first token does not see its text's last token."""
    model, config = teacher.model, teacher.model.config
    vocab_size = int(config.get_text_config().vocab_size)
    window = getattr(config.get_text_config(), "sliding_window", None)
    kind, backend = config.model_type, config._attn_implementation
    try:
        blind = blind_cases(teacher.hidden_states, vocab_size, window)
    except Exception as error:
        if not is_decoder(config):
            raise
        raise ValueError(
            f"{teacher.name} is a decoder of the family {kind}, which fails once its attention is opened: {error}. Use "
            'attention="causal", or another family.'
        ) from error
    if not blind:
        one_way = sorted(
            {
                name
                for name in getattr(config.get_text_config(), "layer_types", None) or ()
                if "attention" not in name or name.startswith("linear")
            }
        )
        if one_way:
            logger.warning(
                "%s has layers that read left to right whatever its attention: %s.", teacher.name, ", ".join(one_way)
            )
        return
    if not is_decoder(config):
        raise ValueError(
            f"{teacher.name} ({kind}) does not see both ways in a batch {' or '.join(blind)}: its first hidden state does not "
            "depend on the last token, or is not finite. Give another encoder."
        )
    remedy = 'Use attention="causal", or another family.'
    if backend != "eager":
        try:
            model.set_attn_implementation("eager")
            if not blind_cases(teacher.hidden_states, vocab_size, window):
                remedy = 'Pass attn_implementation="eager", with which it does; or use attention="causal".'
        except Exception:
            logger.debug("The probe of %s with eager attention failed.", kind, exc_info=True)
        finally:
            model.set_attn_implementation(backend)
    raise ValueError(
        f"{teacher.name} is a decoder of the family {kind}, which does not become bidirectional with {backend} attention in a "
        f"batch {' or '.join(blind)}: its first hidden state does not depend on the last token, or is not finite. {remedy}"
    )
