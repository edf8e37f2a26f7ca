"""Sense models as graphs, for ``torch.export`` and ONNX, with any number of texts and of tokens.

It changes no model and runs none: the ragged kernel, whose shapes depend on the tokens, is put in a form of fixed rank.

A graph cannot lay out each token's own senses, so that each token here looks at as many rows of the table as the richest
token has, ``max_senses``, and the rows that are not its own are masked. That costs ``max_senses`` over the mean number of
senses more than ``hf_sense.ragged``, and gathers ``_SENSES_AT_ONCE`` rows a token at once: ``batch * sequence * 8 * dim``
floats. In Python use the model itself.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from pathlib import Path

import torch
from torch import nn

from hf_sense.files import write_atomically
from hf_sense.modeling_sense import SenseClassifier, SensePreTrainedModel
from hf_sense.padding import RightAligned
from hf_sense.pooling import frequency_weights, pool
from hf_sense.quantization import dequantize
from hf_sense.ragged import NO_SENSE, half_squared_norms
from hf_sense.sense_table import SenseTable
from hf_sense.token_classification import SenseModelForTokenClassification

_SENSES_AT_ONCE = 8
# A protobuf message holds 2 GiB; weights past this lie in a file beside the graph.
_INLINE_BYTES = 1_800_000_000


class PaddedSenses(nn.Module):
    """The choice among a table's senses with shapes that depend on batch and sequence alone.

    It equals ``SenseTable.replace`` within rounding, near-ties aside.

    Args:
        table: of a model whose senses lie inside, or outside in a dictionary: they are taken in whole.
    """

    def __init__(self, table: SenseTable) -> None:
        super().__init__()
        self.metric = table.metric
        self.register_buffer("senses", _all_senses(table))
        self.register_buffer("offsets", table.offsets.detach())
        self.register_buffer("half_norms", half_squared_norms(self.senses))
        codes = table.residual_codes
        self.register_buffer("codes", None if codes is None else codes.vectors.detach())
        self.register_buffer("code_half_norms", None if codes is None else codes.half_norms.detach())
        lengths = self.offsets[1:] - self.offsets[:-1]
        self.max_senses = int(lengths.max()) if len(lengths) else 0

    def rows(self, sense_ids: torch.Tensor) -> torch.Tensor:
        """The senses ``sense_ids`` of any shape, one dimension more; ids past the table give its last row."""
        return self.senses[sense_ids.clamp(max=len(self.senses) - 1)]

    def scores(self, hidden: torch.Tensor, input_ids: torch.Tensor) -> torch.Tensor:
        """The score of each of a token's senses, as ``hf_sense.ragged.sense_scores`` has them.

        Args:
            hidden: ``(batch, sequence, dim)``.
            input_ids: int64 ``(batch, sequence)``.

        Returns:
            float32 ``(batch, sequence, max_senses)``, the lowest number there is where the token has no such sense.
        """
        hidden = hidden.float()
        if self.metric == "cosine":
            hidden = nn.functional.normalize(hidden, dim=-1, eps=1e-12)
        first = self.offsets[input_ids].unsqueeze(-1)
        lengths = self.offsets[input_ids + 1].unsqueeze(-1) - first
        parts = []
        for begin in range(0, self.max_senses, _SENSES_AT_ONCE):
            columns = torch.arange(begin, min(begin + _SENSES_AT_ONCE, self.max_senses), device=hidden.device)
            part = (self.rows(first + columns).float() @ hidden.unsqueeze(-1)).squeeze(-1)
            if self.metric != "dot":
                halves = self.half_norms[(first + columns).clamp(max=len(self.senses) - 1)]
                part = part - halves if self.metric == "l2" else part / (2 * halves).clamp_min(1e-24).sqrt()
            # Not minus infinity: a soft maximum over nothing would be NaN.
            parts.append(part.masked_fill(columns >= lengths, torch.finfo(part.dtype).min))
        return torch.cat(parts, -1)

    def forward(
        self,
        contextual: torch.Tensor,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        selection: str,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Replaces hidden states as ``SenseTable.replace`` does.

        Args:
            contextual: ``(batch, sequence, dim)``.
            input_ids: int64 ``(batch, sequence)``.
            attention_mask: ``(batch, sequence)``; where it is 0 the state stays.
            selection: ``"hard"``, ``"straight_through"`` or ``"soft"``.
            temperature: divides the scores in ``"soft"``.

        Returns:
            The states, and the best senses' ids, int64 ``(batch, sequence)``, -100 where there is none.
        """
        if self.max_senses == 0:
            return contextual, torch.full_like(input_ids, NO_SENSE)
        first = self.offsets[input_ids]
        has = (self.offsets[input_ids + 1] > first) & attention_mask.bool()
        scores = self.scores(contextual, input_ids)
        best = first + scores.argmax(-1)
        if selection == "soft":
            weights = (scores / temperature).softmax(-1)
            chosen = torch.zeros_like(contextual, dtype=torch.float32)
            for begin in range(0, self.max_senses, _SENSES_AT_ONCE):
                part = weights[..., begin : begin + _SENSES_AT_ONCE]
                columns = torch.arange(begin, begin + part.shape[-1], device=first.device)
                chosen = chosen + (part.unsqueeze(-2) @ self.rows(first.unsqueeze(-1) + columns).float()).squeeze(-2)
        else:
            chosen = self.rows(best)
        if self.codes is not None:
            chosen = chosen + self._codes_of(contextual.float() - chosen, selection == "soft", temperature)
        replaced = torch.where(has.unsqueeze(-1), chosen.to(contextual.dtype), contextual)
        return replaced, torch.where(has, best, NO_SENSE)

    def _codes_of(self, residuals: torch.Tensor, soft: bool, temperature: float) -> torch.Tensor:
        """The codes of ``residuals`` ``(batch, sequence, dim)``, or their means, as ``hf_sense.residual_codes`` has them."""
        left = residuals
        for codes, halves in zip(self.codes, self.code_half_norms):
            scores = left @ codes.t() - halves
            left = left - ((scores / temperature).softmax(-1) @ codes if soft else codes[scores.argmax(-1)])
        return residuals - left


class ExportableModel(nn.Module):
    """A sense model without shapes or branches that depend on data, for ``torch.export``. Gradients are not its concern.

    Args:
        model: a ``SenseModel``, or one with a classifier. It is shared, not copied.
    """

    def __init__(self, model: SensePreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.chosen = PaddedSenses(model.sense_table)
        config = model.config
        weights = torch.ones(len(self.chosen.offsets) - 1)
        if config.pooling == "frequency":
            weights = frequency_weights(model.sense_table.probabilities(), config.frequency_smoothing)
        self.register_buffer("token_weights", weights.detach())
        if config.adds_token_mean:
            known = self.chosen.offsets.diff() > 0
            # The first row is zeros, for tokens without senses.
            means = nn.functional.pad(model.sense_table.token_means(known.nonzero().squeeze(-1)), (0, 0, 1, 0))
            self.register_buffer("token_means", means)
            self.register_buffer("mean_rows", known.cumsum(0) * known)

    @property
    def input_names(self) -> list[str]:
        """The inputs, in order; ``token_type_ids`` only for backbones that number segments."""
        known = inspect.signature(self.model.base_model.backbone.forward).parameters
        segments = getattr(self.model.config.get_text_config(), "type_vocab_size", 0) or 0
        numbered = "token_type_ids" in known and segments > 1
        return ["input_ids", "attention_mask", *(["token_type_ids"] if numbered else [])]

    @property
    def output_names(self) -> list[str]:
        """The outputs, in order."""
        classifies = isinstance(self.model, SenseClassifier)
        senses = [] if self.model.config.selection == "none" else ["sense_ids"]
        return ["logits", *senses] if classifies else ["last_hidden_state", "text_vector", *senses]

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, ...]:
        """``output_names`` of texts.

        Args:
            input_ids: int64 ``(batch, sequence)``.
            attention_mask: int64 ``(batch, sequence)``, 1 at tokens; padding may be on either side.
            token_type_ids: int64 ``(batch, sequence)``.

        Returns:
            ``last_hidden_state`` ``(batch, sequence, sense_dim)`` and ``text_vector`` ``(batch, sense_dim)``, or ``logits``
            ``(batch, num_labels)``, of tokens ``(batch, sequence, num_labels)``; then ``sense_ids`` int64
            ``(batch, sequence)`` unless the selection is ``"none"``.
        """
        inner, config = self.model.base_model, self.model.config
        aligned = RightAligned(attention_mask, always=True)
        inputs = {"input_ids": aligned.move(input_ids), "attention_mask": aligned.move(attention_mask)}
        if token_type_ids is not None:
            inputs["token_type_ids"] = aligned.move(token_type_ids)
        hidden = aligned.restore(inner.backbone(**inputs, return_dict=True).last_hidden_state)
        if inner.sense_projection is not None:
            hidden = inner.sense_projection(hidden)
        if config.adds_token_mean:
            rows = self.mean_rows[input_ids]
            hidden = hidden + self.token_means[rows].to(hidden.dtype)
            hidden = torch.where((rows > 0).unsqueeze(-1), hidden, 0.0)
        sense_ids: tuple[torch.Tensor, ...] = ()
        if config.selection != "none":
            hidden, best = self.chosen(
                hidden, input_ids, attention_mask, config.selection, config.selection_temperature
            )
            sense_ids = (best,)
        if isinstance(self.model, SenseModelForTokenClassification):
            return self.model.classify(hidden), *sense_ids
        vectors = pool(hidden, attention_mask, config.pooling, self.token_weights[input_ids])
        if isinstance(self.model, SenseClassifier):
            return self.model.classify(vectors), *sense_ids
        return hidden, vectors, *sense_ids


def export_program(model: SensePreTrainedModel, max_length: int | None = None) -> torch.export.ExportedProgram:
    """The model as a program of ``torch.export``, for any batch and length; ``torch.export.save`` writes it.

    Its inputs and outputs are those of ``ExportableModel``. For a runtime other than PyTorch see ``export_onnx``.

    Args:
        model: a sense model; evaluation mode is exported, and the mode it is in stays.
        max_length: the most tokens a text will have; the model's limit if not given.

    Raises:
        ValueError: if ``model`` is no sense model, or ``max_length`` is not from 2 to the model's limit.
    """
    if not isinstance(model, SensePreTrainedModel):
        raise ValueError(
            f"Expected a sense model, but got a {type(model).__name__}. AutoModel.from_pretrained opens one; of a folded one "
            "export the model that it was folded from."
        )
    if model.config.max_distance is not None:
        raise ValueError(
            f"A graph cannot leave states in place that are far from their senses (max_distance={model.config.max_distance}). "
            "Load the model with max_distance=None."
        )
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2**20
    if max_length is not None and not 2 <= max_length <= limit:
        raise ValueError(
            f"max_length should be from 2 to the {limit} tokens that the model takes, but is {max_length}."
        )
    training = model.training
    exportable = ExportableModel(model).eval()
    # Not 0 or 1, which torch.export would take for constants.
    example = {name: torch.ones(2, 8, dtype=torch.int64, device=model.device) for name in exportable.input_names}
    if "token_type_ids" in example:
        example["token_type_ids"].zero_()
    axes = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("sequence", min=1, max=max_length or limit)}
    try:
        with torch.no_grad():
            return torch.export.export(
                exportable, (), kwargs=example, dynamic_shapes=dict.fromkeys(example, axes), strict=False
            )
    finally:
        model.train(training)


def export_onnx(
    model: SensePreTrainedModel,
    path: str | os.PathLike[str],
    *,
    max_length: int | None = None,
    opset_version: int | None = None,
) -> Path:
    """Writes the model as an ONNX file, for any batch and length, whole or not at all.

    Its inputs and outputs are those of ``ExportableModel``, by name; padding may be on either side. A model over 1.8 GB keeps
    its weights in a second file, ``path`` with ``.data`` behind it. The tokenizer is not part of it.

    Args:
        model: a sense model in float32; evaluation mode is exported.
        path: the file; its folder is made if it is missing.
        max_length: the most tokens a text will have; the model's limit if not given.
        opset_version: of ONNX; that of this PyTorch if not given.

    Returns:
        ``path``.

    Raises:
        ImportError: without onnx and onnxscript.
        ValueError: if ``model`` is no sense model or not in float32, or ``max_length`` does not fit.
    """
    try:
        import onnxscript  # noqa: F401 (torch.onnx needs it)
    except ImportError as error:
        raise ImportError("Exporting to ONNX needs onnx and onnxscript: pip install hf-sense[onnx]") from error
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"path should be a file, such as {path / 'model.onnx'}, but {path} is a folder.")
    if isinstance(model, SensePreTrainedModel) and model.dtype != torch.float32:
        raise ValueError(
            f"The model is in {model.dtype}, for which ONNX runtimes lack kernels on the CPU. Load it with "
            "dtype=torch.float32, or call model.float()."
        )
    graph = export_program(model, max_length)
    exportable = ExportableModel(model)
    program = torch.onnx.export(
        graph,
        output_names=exportable.output_names,
        opset_version=opset_version,
        dynamo=True,
        verbose=False,
    )
    batch, sequence = program.model.graph.inputs[0].shape
    program.rename_axes({batch: "batch", sequence: "sequence"})
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = [*exportable.parameters(), *exportable.buffers()]
    if sum(tensor.numel() * tensor.element_size() for tensor in weights) <= _INLINE_BYTES:
        write_atomically(path, lambda temporary: program.save(temporary, external_data=False))
        return path
    # The graph names the file of its weights, so both are written under their own names, and the graph comes last.
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        program.save(Path(folder) / path.name, external_data=True)
        for name in (f"{path.name}.data", path.name):
            with open(Path(folder) / name, "rb+") as file:
                os.fsync(file.fileno())
            os.replace(Path(folder) / name, path.with_name(name))
    return path


def _all_senses(table: SenseTable) -> torch.Tensor:
    """Every sense of a table, floating ``(num_senses, dim)``: the only place here that knows how a table keeps them."""
    if table.outside is None and table.scales is not None:
        return dequantize(table.senses, table.scales)
    if table.outside is None:
        return table.senses.detach()
    return table.outside.rows(torch.arange(table.outside.num_senses)).to(table.offsets.device)
