"""How ``compare.py`` trains its students, with layers and without, on a teacher's states that were kept. It measures nothing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import torch
from banking77 import MAX_LENGTH
from compared_ways import OURS, Recipe, Rows, Workshop, as_they_are, replacing
from datasets import Dataset

from hf_sense import SenseDistillationConfig, SenseDistillationTrainer, SenseModel
from hf_sense.temperature import natural_temperature

SENSES: dict[str, Any] = {}
SQUARED_ERROR = {"sense_weight": 0.0, "mse_weight": 1.0}
COSINE = {"sense_weight": 0.0, "cosine_weight": 1.0}
BOTH = {"mse_weight": 30.0}  # the squared error is a mean over the width: so weighed the two are of one size
SOFT_TARGETS = {"sense_weight": 0.0, "soft_weight": 1.0}


@dataclass(frozen=True)
class Student(Recipe):
    """A student, trained, and read in one way or several.

    Attributes:
        losses: fields of ``SenseDistillationConfig``.
        senses: options of its dictionary.
        selections: by row, what replaces its states.
        shape: options of ``from_teacher``: ``num_hidden_layers``, or ``backbone`` and ``hidden_size``.
    """

    losses: dict[str, Any] = field(default_factory=dict)
    senses: dict[str, Any] = field(default_factory=lambda: dict(OURS))
    selections: dict[str, str] = field(default_factory=dict)
    shape: dict[str, Any] = field(default_factory=dict)
    trained: bool = True

    @property
    def row_names(self) -> list[str]:
        return list(self.selections)

    def model(self, shop: Workshop, **fields: Any) -> SenseModel:
        """Before training."""
        shape = dict(self.shape)
        if "hidden_size" in shape:  # less than the senses' width, which tests have small
            shape["hidden_size"] = min(shape["hidden_size"], shop.teacher.dim // 2)
        return SenseModel.from_teacher(shop.teacher, shop.dictionary(**self.senses), **shape, **fields)

    def rows(self, shop: Workshop, seed: int, **settings: Any) -> Rows:
        model = self.train(shop, seed, **settings)
        heads = {row: replacing(model, selection) for row, selection in self.selections.items()}
        return shop.rows(lambda batch: model(**batch, output_contextual=True).last_hidden_state, heads)

    def train(
        self, shop: Workshop, seed: int, learning_rate: float, temperature_times: float = 1.0, **more: Any
    ) -> SenseModel:
        torch.manual_seed(seed)
        model = self.model(shop)
        if temperature_times != 1:
            more["temperature"] = temperature_times * natural_temperature(shop.dictionary(**self.senses))
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        small = "backbone" in self.shape
        length = {"num_train_epochs": shop.epochs} if small else {"max_steps": shop.steps}
        folder = str(shop.work / "trained")
        args = SenseDistillationConfig(
            folder,
            per_device_train_batch_size=32,
            learning_rate=learning_rate,
            warmup_steps=0.05,
            lr_scheduler_type="cosine",
            freeze_embeddings=not small,
            train_sampling_strategy="group_by_length",
            max_length=MAX_LENGTH,
            save_strategy="no",
            logging_strategy="no",
            dataloader_pin_memory=False,
            report_to=[],
            seed=seed,
            disable_tqdm=True,
            target_cache_dir=str(shop.work / "targets"),
            **{**length, **self.losses, **more},
        )
        data = Dataset.from_dict({"text": shop.learned_from})
        trainer = SenseDistillationTrainer(model, args, teacher=shop.reader, train_dataset=data)
        begin = time.process_time()
        trainer.train()
        self.spent.append(time.process_time() - begin)
        return model.eval()

    @property
    def spent(self) -> list[float]:
        """CPU seconds of the trainings so far."""
        return _SPENT.setdefault(self.name, [])


_SPENT: dict[str, list[float]] = {}


@dataclass(frozen=True)
class ContextTable(Student):
    """The student that corrects the token's mean; also with its rows as int8."""

    losses: dict[str, Any] = field(default_factory=lambda: dict(SQUARED_ERROR))

    @property
    def row_names(self) -> list[str]:
        return [self.name, f"{self.name}, int8"]

    def rows(self, shop: Workshop, seed: int, **settings: Any) -> Rows:
        model = self.train(shop, seed, **settings)
        small = self.model(shop, sense_dtype="int8")
        small.backbone.load_state_dict(model.backbone.state_dict())
        if model.sense_projection is not None and small.sense_projection is not None:
            small.sense_projection.load_state_dict(model.sense_projection.state_dict())
        found: Rows = {}
        for row, own in zip(self.row_names, (model, small)):
            found |= shop.rows(lambda batch, own=own: own(**batch).last_hidden_state, {row: as_they_are})
        return found
