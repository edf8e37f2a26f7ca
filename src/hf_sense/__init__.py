"""Sense dictionaries for Transformers: a few vectors for each token, one a meaning, and students that choose among them.

Importing it registers the model types ``sense`` and ``folded_sense`` with ``AutoConfig``, ``AutoModel``,
``AutoModelForSequenceClassification`` and ``AutoModelForTokenClassification``, and the backbone ``sense_context_network`` with
the first two; the public names below load on first use.
"""

from __future__ import annotations

import importlib
import itertools
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hf_sense.builder import build_dictionary as build_dictionary
    from hf_sense.configuration_sense import SenseConfig as SenseConfig
    from hf_sense.context_network import ContextNetwork as ContextNetwork
    from hf_sense.context_network import ContextNetworkConfig as ContextNetworkConfig
    from hf_sense.dictionary import SenseDictionary as SenseDictionary
    from hf_sense.distillation_config import SenseDistillationConfig as SenseDistillationConfig
    from hf_sense.folded import FoldedSenseConfig as FoldedSenseConfig
    from hf_sense.folded import FoldedSenseModel as FoldedSenseModel
    from hf_sense.folded import FoldedSenseModelForSequenceClassification as FoldedSenseModelForSequenceClassification
    from hf_sense.modeling_sense import SenseModel as SenseModel
    from hf_sense.modeling_sense import SenseModelForSequenceClassification as SenseModelForSequenceClassification
    from hf_sense.targets import compute_sense_targets as compute_sense_targets
    from hf_sense.teacher import load_teacher as load_teacher
    from hf_sense.token_classification import (
        FoldedSenseModelForTokenClassification as FoldedSenseModelForTokenClassification,
    )
    from hf_sense.token_classification import SenseModelForTokenClassification as SenseModelForTokenClassification
    from hf_sense.trainer import SenseDistillationTrainer as SenseDistillationTrainer

__version__ = "0.1.0"

_HOMES = {
    "ContextNetwork": "context_network",
    "ContextNetworkConfig": "context_network",
    "FoldedSenseConfig": "folded",
    "FoldedSenseModel": "folded",
    "FoldedSenseModelForSequenceClassification": "folded",
    "FoldedSenseModelForTokenClassification": "token_classification",
    "SenseConfig": "configuration_sense",
    "SenseDictionary": "dictionary",
    "SenseDistillationConfig": "distillation_config",
    "SenseDistillationTrainer": "trainer",
    "SenseModel": "modeling_sense",
    "SenseModelForSequenceClassification": "modeling_sense",
    "SenseModelForTokenClassification": "token_classification",
    "build_dictionary": "builder",
    "compute_sense_targets": "targets",
    "load_teacher": "teacher",
}
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'hf_sense' has no attribute {name!r}")
    return getattr(importlib.import_module(f"hf_sense.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def register() -> None:
    """Registers the model types with Transformers' Auto classes. Importing ``hf_sense`` has done it; the command does later."""
    from transformers import (
        AutoConfig,
        AutoModel,
        AutoModelForSequenceClassification,
        AutoModelForTokenClassification,
    )

    from hf_sense.configuration_sense import SenseConfig
    from hf_sense.context_network import ContextNetwork, ContextNetworkConfig
    from hf_sense.folded import FoldedSenseConfig, FoldedSenseModel, FoldedSenseModelForSequenceClassification
    from hf_sense.modeling_sense import SenseModel, SenseModelForSequenceClassification
    from hf_sense.token_classification import FoldedSenseModelForTokenClassification, SenseModelForTokenClassification

    AutoConfig.register("sense_context_network", ContextNetworkConfig, exist_ok=True)
    AutoModel.register(ContextNetworkConfig, ContextNetwork, exist_ok=True)
    AutoConfig.register("sense", SenseConfig, exist_ok=True)
    AutoModel.register(SenseConfig, SenseModel, exist_ok=True)
    AutoModelForSequenceClassification.register(SenseConfig, SenseModelForSequenceClassification, exist_ok=True)
    AutoModelForTokenClassification.register(SenseConfig, SenseModelForTokenClassification, exist_ok=True)
    AutoConfig.register("folded_sense", FoldedSenseConfig, exist_ok=True)
    AutoModel.register(FoldedSenseConfig, FoldedSenseModel, exist_ok=True)
    AutoModelForSequenceClassification.register(
        FoldedSenseConfig, FoldedSenseModelForSequenceClassification, exist_ok=True
    )
    AutoModelForTokenClassification.register(FoldedSenseConfig, FoldedSenseModelForTokenClassification, exist_ok=True)


def _is_command() -> bool:
    """Whether this process is the ``hf-sense`` command, whose --help should not wait for torch."""
    argv = sys.orig_argv
    return ("-m", "hf_sense") in itertools.pairwise(argv) or any(
        arg.endswith(("/hf-sense", "\\hf-sense.exe")) for arg in argv[:3]
    )


if not _is_command():
    register()
