"""The student of ``compare.py`` that learns its teacher's logits instead of its states: a classifier, not a text vector.

Its teacher is the regression on the teacher's mean-pooled vectors that the accuracy of the teacher is measured with: of each draw
of labelled texts one, whose logits of all train texts the student learns. Their labels beyond the draw it does not see.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from compared_texts import Batch
from compared_ways import OURS, Answered, Recipe, Rows, Workshop, as_they_are
from torch import nn
from transformers import DataCollatorWithPadding, Trainer, TrainingArguments
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_sense import SenseModel
from hf_sense.pooling import pool
from hf_sense.scores import few_shot_draws, fit_regression, numbered

Linear = tuple[np.ndarray, np.ndarray]  # weights (labels, dim), biases (labels,)
DEV_DRAWS = 2  # each is a training


class OfLogits(nn.Module):
    """A student's layers, their states pooled and of unit length, and a classifier that begins as the teacher's."""

    def __init__(self, student: SenseModel, teacher: Linear, normalize: bool) -> None:
        super().__init__()
        self.student, self.normalize = student, normalize
        weight, bias = (torch.from_numpy(part).float() for part in teacher)
        self.classifier = nn.Linear(weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.classifier.weight.copy_(weight)
            self.classifier.bias.copy_(bias)

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Logits, and how far their distribution is from that of ``labels``, the teacher's logits (Hinton et al. 2015)."""
        states = self.student(input_ids, attention_mask, output_contextual=True).last_hidden_state
        vectors = pool(states, attention_mask, "mean")
        logits = self.classifier(nn.functional.normalize(vectors, dim=-1) if self.normalize else vectors)
        if labels is None:
            return SequenceClassifierOutput(logits=logits)
        own, wanted = logits.log_softmax(-1), labels.log_softmax(-1)
        loss = nn.functional.kl_div(own, wanted, reduction="batchmean", log_target=True)
        return SequenceClassifierOutput(loss=loss, logits=logits)


@dataclass(frozen=True)
class LogitStudent(Recipe):
    """Layers that learn a teacher's logits, a training a draw.

    Attributes:
        layers: of the teacher's.
    """

    layers: int = 1
    trained: bool = True

    def rows(self, shop: Workshop, seed: int, **settings: Any) -> Rows:
        texts = shop.texts
        train, _ = shop.rows(texts.teacher_way, {"teacher": as_they_are})["teacher"]["mean"]
        names, ids = numbered(texts.train.labels)
        truth = np.array([names.index(label) for label in texts.test.labels])
        unit = train / np.maximum(np.linalg.norm(train, axis=1, keepdims=True), 1e-12)
        draws = DEV_DRAWS if texts.dev else texts.draws
        shots = []
        for regression in few_shot_draws(unit, ids, samples_per_label=texts.shots, draws=draws):
            shots.append(self.train(shop, seed, regression, unit, True, **settings) == truth)
        probe = None
        if not texts.dev:
            probe = self.train(shop, seed, fit_regression(train, ids, 10.0), train, False, **settings) == truth
        return {self.name: {"mean": Answered(np.stack(shots), probe)}}

    def train(
        self, shop: Workshop, seed: int, teacher: Linear, vectors: np.ndarray, normalize: bool, learning_rate: float
    ) -> np.ndarray:
        """Trains a student on this teacher's logits; the classes that it gives the test texts."""
        torch.manual_seed(seed)
        student = SenseModel.from_teacher(shop.teacher, shop.dictionary(**OURS), num_hidden_layers=self.layers)
        student.get_input_embeddings().requires_grad_(False)
        model = OfLogits(student, teacher, normalize)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        logits = (vectors @ teacher[0].T + teacher[1]).astype(np.float32)
        corpus = shop.texts.train.corpus
        rows = [
            {"input_ids": corpus.input_ids[begin:end].astype(np.int64), "labels": own}
            for begin, end, own in zip(corpus.offsets, corpus.offsets[1:], logits)
        ]
        args = TrainingArguments(
            str(shop.work / "trained"),
            per_device_train_batch_size=32,
            learning_rate=learning_rate,
            warmup_steps=0.05,
            lr_scheduler_type="cosine",
            train_sampling_strategy="group_by_length",
            max_steps=shop.steps,
            save_strategy="no",
            logging_strategy="no",
            dataloader_pin_memory=False,
            report_to=[],
            seed=seed,
            disable_tqdm=True,
        )
        padded = DataCollatorWithPadding(shop.teacher.tokenizer)
        Trainer(model, args, train_dataset=rows, data_collator=padded).train()  # type: ignore[arg-type]
        model.eval()
        found, order = [], []
        for places, batch in shop.texts.test.batches(shop.teacher.tokenizer.pad_token_id):
            with torch.no_grad():
                found.append(_classes(model, batch))
            order.append(places)
        return np.concatenate(found)[np.concatenate(order).argsort()]


def _classes(model: OfLogits, batch: Batch) -> np.ndarray:
    return model(batch["input_ids"], batch["attention_mask"]).logits.argmax(1).numpy()
