"""A sample as tensors, to be sent and to be kept in files, and back."""

from __future__ import annotations

import numpy as np
import torch

from hf_sense.sampling import SAMPLE_COLUMNS, OccurrenceSample


def tensors_of(sample: OccurrenceSample) -> list[torch.Tensor]:
    """Its columns, in the order of its fields; priorities as int64."""
    return [torch.from_numpy(getattr(sample, name).view(_signed(getattr(sample, name)))) for name in SAMPLE_COLUMNS]


def _signed(values: np.ndarray) -> np.dtype:
    return np.dtype(np.int64) if values.dtype == np.uint64 else values.dtype


def sample_of(tensors: list[torch.Tensor]) -> OccurrenceSample:
    """The sample of such columns."""
    columns = {name: tensor.numpy() for name, tensor in zip(SAMPLE_COLUMNS, tensors, strict=True)}
    return OccurrenceSample(**{**columns, "priorities": columns["priorities"].view(np.uint64)})
