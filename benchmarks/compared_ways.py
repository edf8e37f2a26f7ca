"""How ``compare.py`` makes text vectors without training: the teacher, senses in it, static vectors, counts of words.

Every recipe sees the train texts without labels, and a teacher's states of them that were kept. It measures nothing.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from banking77 import MAX_LENGTH
from compared_texts import POOLINGS, Batch, TextSet, Way

from hf_sense import SenseModel, build_dictionary
from hf_sense.dictionary import SenseDictionary
from hf_sense.small_students import token_mean_dictionary
from hf_sense.teacher import Teacher, load_teacher


class Answered(NamedTuple):
    """What a row that is a classifier itself answered rightly: few-shot, bool ``(draws, texts)``, and by all train labels."""

    shots: np.ndarray
    probe: np.ndarray | None


# A row's text vectors: by pooling, those of the train and of the test texts.
Rows = dict[str, dict[str, list[np.ndarray] | Answered]]
Head = Callable[[torch.Tensor, Batch], torch.Tensor]

OURS = {"max_senses": 20, "metric": "l2"}
PAPER = {"max_senses": 20, "method": "paper", "metric": "dot"}
HARD, SOFT = {"selection": "hard"}, {"selection": "soft"}
FEWER = (2, 5, "n/10,100")
CODES: dict[str, dict[str, Any]] = {
    f"means + {levels} x {codes} codes": {
        "max_senses": 1, "codes": codes, "code_levels": levels, "metric": "l2", "dtype": torch.int8,
    }
    for levels, codes in ((1, 1024), (2, 256))
}  # fmt: skip
# The same without the tokens that the texts hold but once.
TWICE = {f"{name}, seen twice": {**options, "min_count": 2} for name, options in CODES.items() if "2 x 256" in name}
# As many senses as 3 MB hold, shared out among the tokens that the texts hold three times.
BUDGET = {"budget": "3MB", "min_count": 3, "metric": "l2", "dtype": torch.int8}
STEPS = 600  # of 32 texts, for every student with layers
EPOCHS = 6  # for students without


class Workshop:
    """A data set with its teacher, and the dictionaries made for it so far.

    Args:
        teacher: a real one: its layers and its tokenizer are used, its states are those that were kept.
        texts: to be measured on.
        work: where dictionaries and targets are kept.
        sources: other data sets whose train texts dictionary and students learn from; the set's own if none.
        steps: of every student with layers.
        epochs: of every student without.
    """

    def __init__(
        self,
        teacher: Teacher,
        texts: TextSet,
        work: Path,
        sources: Sequence[TextSet] = (),
        steps: int = STEPS,
        epochs: float = EPOCHS,
    ) -> None:
        self.teacher, self.texts, self.work, self.steps, self.epochs = teacher, texts, work, steps, epochs
        for source in sources:
            texts.kept.take(source.kept)
        self.reader = copy.copy(teacher)
        self.reader.hidden_states = texts.kept.hidden_states  # type: ignore[method-assign]
        parts = [source.train for source in sources] or [texts.train]
        self.learned_from = [text for part in parts for text in part.texts]
        ids = np.concatenate([part.corpus.input_ids for part in parts])
        counts = np.bincount(ids, minlength=len(teacher.tokenizer))
        self.shares = torch.from_numpy(counts / counts.sum()).float()
        # The share of the test texts' tokens that no dictionary of these texts knows.
        self.bare = float((counts[texts.test.corpus.input_ids] == 0).mean())
        self.made: dict[str, SenseDictionary] = {}

    def dictionary(self, **options: Any) -> SenseDictionary:
        """That of the texts to learn from, made once for the same options."""
        name = hashlib.sha256(repr(sorted(options.items())).encode()).hexdigest()[:16]
        folder = self.work / f"dictionary-{name}"
        if name not in self.made:
            if not folder.is_dir():
                built = build_dictionary(
                    self.reader, self.learned_from, max_length=MAX_LENGTH, disable_tqdm=True, **options
                )
                built.save_pretrained(folder)
            self.made[name] = SenseDictionary.from_pretrained(folder)
        return self.made[name]

    def rows(self, base: Way, heads: dict[str, Head]) -> Rows:
        """The vectors of each head on the states of one base."""
        return self.texts.vectors(base, heads, self.shares)  # type: ignore[return-value]


def replacing(model: SenseModel, selection: str | None = None) -> Head:
    """States replaced by the model's senses, as its configuration says or by another selection."""
    config = copy.deepcopy(model.config)
    config.selection = selection or config.selection
    return lambda states, batch: model.table.replace(states, batch["input_ids"], batch["attention_mask"], config)[0]


def as_they_are(states: torch.Tensor, batch: Batch) -> torch.Tensor:
    """States that nothing replaces."""
    return states


@dataclass(frozen=True)
class Recipe:
    """One job: how its rows are made.

    Attributes:
        name: of the job.
        grid: the settings that are tried on the development split; the best is measured.
        trained: whether a seed changes it.
        only: the data sets that it is measured on; all if empty.
        at_most: seeds.
    """

    name: str
    grid: tuple[dict[str, Any], ...] = ({},)
    trained: bool = False
    only: tuple[str, ...] = ()
    at_most: int = 99

    @property
    def row_names(self) -> list[str]:
        """What it makes."""
        return [self.name]

    def rows(self, shop: Workshop, seed: int, **settings: Any) -> Rows:
        """Text vectors by row and pooling."""
        raise NotImplementedError


@dataclass(frozen=True)
class InTeacher(Recipe):
    """The teacher's own states, and dictionaries put in their place.

    Attributes:
        senses: by row: options of the dictionary, and fields of the model's configuration; ``None`` for the states themselves.
    """

    senses: dict[str, tuple[dict[str, Any], dict[str, Any]] | None] = field(default_factory=dict)

    @property
    def row_names(self) -> list[str]:
        return list(self.senses)

    def rows(self, shop: Workshop, seed: int, **settings: Any) -> Rows:
        heads: dict[str, Head] = {}
        for row, one in self.senses.items():
            heads[row] = as_they_are if one is None else replacing(in_teacher(shop, one[0], **one[1]))
        return shop.rows(shop.texts.teacher_way, heads)


def in_teacher(shop: Workshop, options: dict[str, Any], temperature_times: float = 1.0, **fields: Any) -> SenseModel:
    """A model with the dictionary's senses, of which the table is used; its other weights are not."""
    model = SenseModel.from_teacher(shop.teacher, shop.dictionary(**options), num_hidden_layers=1, **fields)
    model.config.selection_temperature *= temperature_times
    return model


@dataclass(frozen=True)
class TableOfMeans(Recipe):
    """One vector a token: the mean of its occurrences. No network runs."""

    def rows(self, shop: Workshop, seed: int, **settings: Any) -> Rows:
        model = SenseModel.from_teacher(
            shop.teacher, token_mean_dictionary(shop.dictionary(**OURS)), num_hidden_layers=1
        )
        return shop.rows(lambda batch: model.table.token_means(batch["input_ids"]), {self.name: as_they_are})


@dataclass(frozen=True)
class Model2Vec(Recipe):
    """The package's static embeddings, distilled from the same teacher."""

    def rows(self, shop: Workshop, seed: int, **settings: Any) -> Rows:
        static = static_model(shop, **settings)
        texts = shop.texts.train.texts, shop.texts.test.texts
        vectors = [static.encode(part, max_length=MAX_LENGTH).astype(np.float32) for part in texts]
        return {self.name: {POOLINGS[0]: vectors}}


def model2vec_folder(shop: Workshop, pca_dims: int, sif_coefficient: float) -> Path:
    """Where it lies: it is of no texts, so that all data sets share it."""
    return shop.work.parent.parent / f"model2vec-{pca_dims}-{sif_coefficient}"


def static_model(shop: Workshop, pca_dims: int, sif_coefficient: float) -> Any:
    """Made once for these settings, and kept in the work folder."""
    from model2vec import StaticModel
    from model2vec.distill import distill_from_model

    folder = model2vec_folder(shop, pca_dims, sif_coefficient)
    if not folder.is_dir():
        fresh = load_teacher(shop.teacher.name)  # its embeddings are cut to the tokenizer's size in place
        static = distill_from_model(
            fresh.model,
            fresh.tokenizer,
            device="cpu",
            pca_dims=min(pca_dims, fresh.dim),
            sif_coefficient=sif_coefficient,
        )
        static.save_pretrained(folder)
    return StaticModel.from_pretrained(folder)


@dataclass(frozen=True)
class TfIdf(Recipe):
    """Weighted counts of words; the weights are those of the train texts."""

    def rows(self, shop: Workshop, seed: int, **settings: Any) -> Rows:
        from sklearn.feature_extraction.text import TfidfVectorizer

        counter = TfidfVectorizer(min_df=min(2, len(shop.texts.train.texts)), dtype=np.float32, **settings)
        train = counter.fit_transform(shop.texts.train.texts)
        return {self.name: {POOLINGS[0]: [train.toarray(), counter.transform(shop.texts.test.texts).toarray()]}}
