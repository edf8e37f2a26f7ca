"""What a distillation refuses before it starts: models, vocabularies and losses that do not fit together. It trains nothing."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase

from hf_sense.configuration_sense import SenseConfig
from hf_sense.dictionary import SenseDictionary
from hf_sense.distillation_config import SenseDistillationConfig
from hf_sense.modeling_sense import SensePreTrainedModel
from hf_sense.teacher import Teacher
from hf_sense.vocabulary import tokenizer_fingerprint


def student_of(model: Any) -> SensePreTrainedModel:
    """The sense model that is to be trained, out of PEFT's wrapper if it has one.

    Raises:
        ValueError: if it is none.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    if not isinstance(inner, SensePreTrainedModel):
        raise ValueError(
            f"model should be a SenseModel, or one with a classifier, but is a {type(model).__name__}. "
            "SenseModel.from_teacher(teacher, dictionary, num_hidden_layers=2) makes one."
        )
    return inner


def check_vocabulary(
    student: SensePreTrainedModel, teacher: Teacher | None, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Raises ``ValueError`` if teacher, dictionary and tokenizer differ in their vocabulary."""
    dictionary = student.config.tokenizer_fingerprint
    mine = tokenizer_fingerprint(tokenizer)
    theirs = tokenizer_fingerprint(teacher.tokenizer) if teacher is not None else None
    if len({found for found in (dictionary, mine, theirs) if found is not None}) > 1:
        raise ValueError(
            "Teacher, dictionary and student must share a vocabulary, but their tokenizers' fingerprints are: teacher "
            f"{theirs or 'not given'}, dictionary {dictionary}, student (processing_class) {mine}. Sense ids belong to token "
            "ids, so build the dictionary and the student with this teacher's tokenizer."
        )


def check_losses(
    args: SenseDistillationConfig,
    config: SenseConfig,
    dictionary: SenseDictionary,
    has_teacher: bool,
    has_held_out: bool,
) -> None:
    """Refuses, before long work, a loss that lacks what it compares with.

    Args:
        args: its weights, ``live_teacher`` and ``fit_temperature`` count.
        config: the student's.
        dictionary: of its senses.
        has_teacher: whether a teacher was given.
        has_held_out: whether texts to evaluate on were given.

    Raises:
        ValueError: if there is no teacher, nothing to choose, nothing replaced, or nothing held out, and there should be.
    """
    if args.needs_teacher_states and not has_teacher:
        raise ValueError(
            "soft_weight, mse_weight, cosine_weight, replaced_weight and live_teacher compare with the teacher at every step: "
            "pass teacher."
        )
    chooses = dictionary.codes is not None or int(dictionary.offsets.diff().max()) > 1
    if not args.mse_weight + args.cosine_weight + args.replaced_weight and not chooses:
        raise ValueError(
            "No token of the student has two senses: there is nothing to choose, and a loss on senses is 0. Set mse_weight "
            "and sense_weight=0 to learn the teacher's states, as a context table does."
        )
    if args.replaced_weight and config.selection == "none":
        raise ValueError(
            'With selection="none" nothing is replaced, and replaced_weight has nothing to compare. Set the student\'s '
            'config.selection to "soft" or "hard", or use mse_weight.'
        )
    if args.replaced_weight and dictionary.codes is not None:
        raise ValueError(
            "replaced_weight is for dictionaries without codes. Use sense_weight, which trains the choice of codes too, or "
            "mse_weight."
        )
    if args.fit_temperature and not has_held_out:
        raise ValueError("fit_temperature needs text that the student is not trained on: pass eval_dataset.")
