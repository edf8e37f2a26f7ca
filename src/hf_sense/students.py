"""Makes a student: the teacher's first layers or another backbone, a dictionary, and, if asked, the teacher's classifier.

It copies weights and trains nothing.
"""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer, PretrainedConfig, PreTrainedModel

from hf_sense.configuration_sense import SenseConfig
from hf_sense.decoders import is_decoder
from hf_sense.dictionary import SenseDictionary
from hf_sense.small_students import SELECTIONS, fill_projection, small_backbone, token_mean_dictionary
from hf_sense.targets import check_teacher
from hf_sense.teacher import Teacher, load_teacher
from hf_sense.temperature import natural_temperature
from hf_sense.vocabulary import tokenizer_fingerprint

if TYPE_CHECKING:
    from hf_sense.modeling_sense import SensePreTrainedModel


def make_student(
    model_class: type[SensePreTrainedModel],
    teacher: str | PreTrainedModel | Teacher,
    dictionary: SenseDictionary,
    *,
    num_hidden_layers: int | None = None,
    backbone: str | PreTrainedModel | None = None,
    hidden_size: int | None = None,
    window: int | None = None,
    copy_head: bool = False,
    dictionary_path: str | None = None,
    **config_fields: Any,
) -> SensePreTrainedModel:
    """A student with the dictionary's senses. Users call it as ``SenseModel.from_teacher``.

    Args:
        model_class: ``SenseModel``, or one with a classifier.
        teacher: a name, a model (with its classification head for ``copy_head``), or what ``load_teacher`` returned.
        dictionary: built with that teacher.
        num_hidden_layers: keep the teacher's first so many layers; all of them if not given.
        backbone: another, smaller model with the same vocabulary instead; a projection takes it to the teacher's width. Or
            a student without a transformer: ``"selector"`` chooses among the token's senses, ``"context"`` corrects the
            token's mean and keeps one row a token of the dictionary.
        hidden_size: of those two, the width of embeddings and states; 64 if not given.
        window: of those two, how many tokens the convolution sees; 3 if not given.
        copy_head: copy the teacher's classifier, of texts with its pooler, and freeze them (Wang et al. 2025, section 4).
        dictionary_path: leave the senses in a dictionary outside instead of among the weights: a single name, such as
            ``"senses"``, for a folder that is saved beside the weights; a path; or an id on the Hub. ``dictionary`` should
            be what it holds.
        **config_fields: fields of ``SenseConfig``, such as ``pooling``, ``selection`` or ``num_labels``. With
            ``sense_dtype="int8"`` the dictionary is made int8; one that is int8 stays so.

    Raises:
        ValueError: if tokenizer, width or number of layers do not fit, naming both sides.
    """
    _check_options(dictionary, dictionary_path, config_fields)
    small = SELECTIONS.get(backbone) if isinstance(backbone, str) else None
    if small is None and (hidden_size, window) != (None, None):
        raise ValueError(f"hidden_size and window are for the backbones {_named(SELECTIONS)}: others have their own.")
    teacher = load_teacher(teacher)
    check_teacher(teacher, dictionary)
    found = tokenizer_fingerprint(teacher.tokenizer)
    if backbone is None:
        body, config = teacher.model, _cut_config(teacher.model.config, num_hidden_layers)
    elif num_hidden_layers is not None:
        raise ValueError("Give num_hidden_layers or backbone, not both: a backbone comes with its own layers.")
    elif small is not None:
        if backbone == "context":
            if dictionary_path is not None:
                raise ValueError(
                    "The context table keeps the means of the dictionary's tokens, which are not what lies at "
                    "dictionary_path. Leave it out."
                )
            dictionary = token_mean_dictionary(dictionary)
        vocab_size = int(teacher.model.config.get_text_config().vocab_size)
        body = small_backbone(
            dictionary, vocab_size, 64 if hidden_size is None else hidden_size, 3 if window is None else window
        )
        config = body.config
        config_fields = {"selection": small, "adds_token_mean": True, **config_fields}
    else:
        body = _load_backbone(backbone, found)
        config = body.config
    vocab_size = int(config.get_text_config().vocab_size)
    if vocab_size < dictionary.vocab_size:
        raise ValueError(
            f"The backbone embeds {vocab_size} tokens, the dictionary knows {dictionary.vocab_size}. They must share a "
            "vocabulary."
        )
    decoder = is_decoder(teacher.model.config)
    inherited: dict[str, Any] = {"pooling": teacher.pooling} if decoder else {}
    head = _teacher_head(teacher, model_class) if copy_head else None
    if head is not None and teacher.head_model is not None:
        dense, activation, linear = head
        of_texts = {} if _is_of_tokens(model_class) else {"pooling": "last_token" if decoder else "cls"}
        inherited = {
            "head_activation": activation,
            **(of_texts or inherited),
            **{name: getattr(teacher.head_model.config, name) for name in ("id2label", "label2id", "problem_type")},
        }
    config_fields = {"metric": dictionary.metric, **inherited, **config_fields}
    if dictionary_path is None:
        int8 = config_fields.setdefault("sense_dtype", "int8" if dictionary.dtype == torch.int8 else None) == "int8"
        if int8 != (dictionary.dtype == torch.int8):
            dictionary = dictionary.to(torch.int8 if int8 else torch.float32)
    config_fields.setdefault("selection_temperature", natural_temperature(dictionary, config_fields["metric"]))
    student = model_class(
        SenseConfig(
            backbone_config=config,
            sense_dim=dictionary.dim,
            num_senses=dictionary.num_senses,
            code_levels=0 if dictionary.codes is None else dictionary.codes.levels,
            num_codes=0 if dictionary.codes is None else dictionary.codes.num_codes,
            vocab_size=vocab_size,
            sense_dictionary=dictionary_path,
            sense_dictionary_revision=_commit_of(dictionary, dictionary_path),
            dictionary_fingerprint=dictionary.fingerprint,
            tokenizer_fingerprint=dictionary.tokenizer_fingerprint or found,
            dictionary_metadata=dictionary.metadata,
            **config_fields,
        )
    )
    dtype = body.dtype
    student.to(dtype)
    inner = student.base_model
    _copy_weights(body, inner.backbone)
    inner.table.fill(dictionary, dtype, outside=dictionary_path is not None)
    if small is not None and inner.sense_projection is not None:
        fill_projection(inner.sense_projection, dictionary)
    if head is not None:
        if not hasattr(student, "classifier"):
            raise ValueError(
                "copy_head needs a model with a head: SenseModelForSequenceClassification.from_teacher, or "
                "SenseModelForTokenClassification.from_teacher."
            )
        if dense is not None:
            student.head_dense.load_state_dict(dense.state_dict())
            student.head_dense.requires_grad_(False)
        with torch.no_grad():
            student.classifier.weight.copy_(linear.weight)
            student.classifier.bias.copy_(0.0 if linear.bias is None else linear.bias)
        student.classifier.requires_grad_(False)
    return student.eval()


def _check_options(dictionary: Any, dictionary_path: Any, fields: dict[str, Any]) -> None:
    """A misspelt option would end up in the configuration, where nothing reads it."""
    if not isinstance(dictionary, SenseDictionary):
        raise ValueError(
            f"dictionary should be a SenseDictionary, but is a {type(dictionary).__name__}. "
            "SenseDictionary.from_pretrained opens one."
        )
    if dictionary_path is not None and not isinstance(dictionary_path, str):
        raise ValueError(f"dictionary_path should be text, but is a {type(dictionary_path).__name__}.")
    own = set(inspect.signature(SenseConfig.__init__).parameters) - {"self", "kwargs"}
    options = own | {"num_hidden_layers", "backbone", "hidden_size", "window", "copy_head", "dictionary_path"}
    plain = PretrainedConfig()
    if unknown := [name for name in fields if name not in own and not hasattr(plain, name)]:
        near = difflib.get_close_matches(unknown[0], options, 1, 0.5)
        raise ValueError(f"There is no option {unknown[0]!r}{f'; did you mean {near[0]!r}?' if near else '.'}")


def _named(names: Iterable[str]) -> str:
    return " or ".join(f'"{name}"' for name in names)


def _commit_of(dictionary: SenseDictionary, where: str | None) -> str | None:
    source = dictionary.hub_source
    return source.commit if source is not None and source.repo_id == where else None


def _cut_config(config: PretrainedConfig, num_hidden_layers: int | None) -> PretrainedConfig:
    config = copy.deepcopy(config)
    text = config.get_text_config()
    layers = int(text.num_hidden_layers)
    keep = layers if num_hidden_layers is None else num_hidden_layers
    if not 1 <= keep <= layers:
        raise ValueError(f"num_hidden_layers should be from 1 to the teacher's {layers}, but is {num_hidden_layers}.")
    for name, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == layers and "layer" in name:
            setattr(text, name, value[:keep])
    text.num_hidden_layers = keep
    return config


def _load_backbone(backbone: str | PreTrainedModel, teacher_fingerprint: str) -> PreTrainedModel:
    if isinstance(backbone, PreTrainedModel):
        return backbone.base_model
    try:
        found = tokenizer_fingerprint(AutoTokenizer.from_pretrained(backbone))
    except OSError as error:
        if "/" in backbone:  # an id or a path: what failed is said already
            raise
        raise ValueError(
            f"There is no backbone {backbone!r}: give {_named(SELECTIONS)}, a folder, an id on the Hub, or a loaded model."
        ) from error
    if found != teacher_fingerprint:
        raise ValueError(
            f"The backbone {backbone} has another tokenizer than the teacher: fingerprints {found} and "
            f"{teacher_fingerprint}. A student needs the teacher's vocabulary."
        )
    return AutoModel.from_pretrained(backbone)


def _copy_weights(source: PreTrainedModel, target: PreTrainedModel) -> None:
    weights = source.state_dict()
    wanted = target.state_dict()
    missing = [name for name in wanted if name not in weights or weights[name].shape != wanted[name].shape]
    if missing:
        raise ValueError(
            f"The teacher has no weights for {len(missing)} tensors of the student ({', '.join(missing[:3])}, ...); "
            f"{source.config.model_type} models cannot be cut to their first layers. Pass a backbone instead."
        )
    target.load_state_dict({name: weights[name] for name in wanted})


def _is_of_tokens(model_class: type) -> bool:
    return model_class.__name__.endswith("ForTokenClassification")  # as Transformers picks the loss


def _teacher_head(
    teacher: Teacher, student_class: type[SensePreTrainedModel]
) -> tuple[nn.Module | None, str | None, nn.Linear]:
    """The teacher's hidden layer, its activation and its last layer, by the names that Transformers' models use."""
    model = teacher.head_model
    classifier = getattr(model, "classifier", None) or getattr(model, "score", None)  # decoders say score
    if model is None or classifier is None:
        raise ValueError(
            "copy_head needs a teacher with a classifier: pass the AutoModelForSequenceClassification or "
            "AutoModelForTokenClassification model."
        )
    if _is_of_tokens(type(model)) != _is_of_tokens(student_class):
        raise ValueError(
            f"The teacher is a {type(model).__name__} and the student a {student_class.__name__}, but one that classifies texts "
            "and one that classifies tokens cannot share a head. Make a student of the teacher's kind."
        )
    if _is_of_tokens(type(model)) and isinstance(classifier, nn.Linear):
        return None, None, classifier
    if isinstance(classifier, nn.Linear):
        if isinstance(getattr(model, "pre_classifier", None), nn.Linear):  # DistilBERT
            return model.pre_classifier, "relu", classifier
        pooler = getattr(model, "pooler", None) or getattr(model.base_model, "pooler", None)
        if isinstance(pooler, nn.Linear):  # ALBERT
            return pooler, "tanh", classifier
        if pooler is not None and isinstance(getattr(pooler, "dense", None), nn.Linear):  # BERT and DeBERTa
            return pooler.dense, getattr(model.config, "pooler_hidden_act", None) or "tanh", classifier
        if pooler is None:
            return None, None, classifier
    elif isinstance(getattr(classifier, "out_proj", None), nn.Linear) and isinstance(
        getattr(classifier, "dense", None), nn.Linear
    ):  # RoBERTa and ELECTRA
        return classifier.dense, "gelu" if model.config.model_type == "electra" else "tanh", classifier.out_proj
    raise ValueError(
        f"The head of {type(model).__name__} is not one that can be copied (a pooler and a linear classifier, as in BERT, "
        "RoBERTa, DeBERTa, DistilBERT, ELECTRA, ALBERT). Train one with hf_sense.evaluation.fit_linear_head instead."
    )
