"""Distils a student: ``SenseDistillationTrainer`` is a ``Trainer`` whose loss is the choice of the teacher's senses.

Targets come from ``hf_sense.targets``, losses from ``hf_sense.losses``; what is here is their place in the training loop.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerState
from transformers.trainer_utils import EvalLoopOutput

from hf_sense.checkpoints import SaveOften
from hf_sense.coded import choose_coded
from hf_sense.collator import INPUTS, SenseDataCollator, code_columns
from hf_sense.corpus import iterate_texts
from hf_sense.distillation_checks import check_losses, check_vocabulary, student_of
from hf_sense.distillation_config import SenseDistillationConfig
from hf_sense.folders import check_keeps_classifier
from hf_sense.fused import choose_senses, sense_loss
from hf_sense.hub import explained
from hf_sense.losses import code_losses, state_losses
from hf_sense.model_card import Provenance, body_facts, model_card, write_card
from hf_sense.modeling_sense import SensePreTrainedModel
from hf_sense.publishing import auto_class_of, copy_companions, pin_dictionary
from hf_sense.replaced_losses import replaced_loss
from hf_sense.row_optimizer import optimizer_of
from hf_sense.selection_temperature import fit_on_batches
from hf_sense.targets import compute_sense_targets
from hf_sense.teacher import Teacher, load_teacher
from hf_sense.temperature import natural_temperature


class SenseDistillationTrainer(Trainer):
    """Trains a student to choose, for each token, the sense that its teacher chooses.

    The loss is a mean over the labelled tokens of the whole step, however it is cut into micro-batches and processes.
    ``agreement``, the share of labelled tokens at which student and teacher choose the same sense, is logged with it; where
    there are codes also ``code_agreement``, the share that are the teacher's, given its sense and its codes before.

    Args:
        model: a student from ``from_teacher``, plain or wrapped by PEFT.
        args: a ``SenseDistillationConfig``.
        teacher: a name, a model, or what ``load_teacher`` returned; not needed if the data sets hold ``sense_labels`` and no
            loss compares hidden states.
        train_dataset: texts, or what ``compute_sense_targets`` returned.
        eval_dataset: likewise, or a dict of such.
        processing_class: the tokenizer; the teacher's if not given.
        **kwargs: further arguments of ``Trainer``.

    Raises:
        ValueError: if the vocabularies of teacher, dictionary and student differ, a teacher is needed and missing, or
            ``output_dir`` holds a classifier that the student would take away.
    """

    loss_is_scaled_for_ga = True
    optimizer: Any

    def __init__(
        self,
        model: SensePreTrainedModel | nn.Module,
        args: SenseDistillationConfig | None = None,
        teacher: str | PreTrainedModel | Teacher | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: PreTrainedTokenizerBase | None = None,
        data_collator: Any = None,
        **kwargs: Any,
    ) -> None:
        args = SenseDistillationConfig("trainer_output") if args is None else args
        if not isinstance(args, SenseDistillationConfig):
            raise ValueError(f"args should be a SenseDistillationConfig, but is a {type(args).__name__}.")
        if kwargs.get("compute_metrics") is not None:
            raise ValueError("This trainer evaluates loss and agreement; for other figures use hf_sense.evaluation.")
        self.student = student_of(model)
        if model is self.student.base_model:  # neither a classifier nor wrapped by PEFT, which saves adapters alone
            check_keeps_classifier(args.output_dir, type(model).__name__)
        self.teacher = None if teacher is None else load_teacher(teacher)
        if processing_class is None and self.teacher is not None:
            processing_class = self.teacher.tokenizer
        if processing_class is None:
            raise ValueError("Pass processing_class (the tokenizer) or a teacher, which brings one.")
        check_vocabulary(self.student, self.teacher, processing_class)
        self._dictionary = self.student.to_dictionary()
        self._target_columns = code_columns(self._dictionary.codes)
        check_losses(args, self.student.config, self._dictionary, self.teacher is not None, eval_dataset is not None)
        self.temperature = args.temperature or natural_temperature(self._dictionary, self.student.config.metric)
        train_dataset, eval_dataset = (
            {name: self._prepared(split, args) for name, split in data.items()}
            if isinstance(data, dict) and not hasattr(data, "column_names")
            else self._prepared(data, args)
            for data in (train_dataset, eval_dataset)
        )
        if args.freeze_embeddings:
            self.student.get_input_embeddings().requires_grad_(False)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator or SenseDataCollator(processing_class, offsets=self._dictionary.offsets),
            **kwargs,
        )
        if args.save_seconds is not None:
            self.add_callback(SaveOften(args.save_seconds))
        if self.teacher is not None and (args.needs_teacher_states or args.fit_temperature):
            self.teacher.model.to(self.args.device)
        # Summed loss, senses agreed upon, labelled tokens, codes agreed upon.
        self._meters = {name: torch.zeros(4, dtype=torch.float64) for name in ("train", "eval")}

    def _prepared(self, dataset: Any, args: SenseDistillationConfig) -> Any:
        names = getattr(dataset, "column_names", None)
        if dataset is None:
            return None
        stored = [name for name in ("sense_labels", "sense_indices") if name in (names or ())]
        if isinstance(names, list) and "input_ids" in names and stored:
            if args.live_teacher:
                return dataset.remove_columns(stored)
            if lacking := [name for name in self._target_columns if name not in names]:
                raise ValueError(
                    f"The student's dictionary has codes, and the targets lack {', '.join(lacking)}: they come from another "
                    "dictionary. Compute them again, with compute_sense_targets, or pass texts and a teacher."
                )
            return dataset
        if self.teacher is None:
            raise ValueError(
                f"The data set has {names} and no sense_labels. Pass a teacher, or what compute_sense_targets returned."
            )
        iterate_texts(dataset, args.text_column)
        if args.live_teacher:
            return _tokenized(dataset, self.teacher, args.text_column, args.max_length)
        return compute_sense_targets(
            dataset,
            self.teacher,
            self._dictionary,
            max_length=args.max_length,
            batch_size=args.target_batch_size,
            cache_dir=args.target_cache_dir,
            text_column=args.text_column,
            coded=True,
            disable_tqdm=args.disable_tqdm or None,
        )

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """As ``Trainer`` does; learned senses are trained by ``hf_sense.row_optimizer``."""
        if self.optimizer is None and self.student.sense_table.senses.requires_grad:
            self.optimizer = optimizer_of(self.model if model is None else model, self.args)
        return super().create_optimizer(model)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer`` does; then fits the student's temperature, if ``args.fit_temperature`` says so."""
        output = super().train(*args, **kwargs)
        if self.args.fit_temperature:
            names = list(self.eval_dataset) if isinstance(self.eval_dataset, dict) else [None]
            batches = (self._prepare_inputs(batch) for name in names for batch in self.get_eval_dataloader(name))
            fit_on_batches(self.student, batches, self.teacher, self.accelerator)
        return output

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "sense_indices" not in self._signature_columns:
            # The collator turns them into sense_labels and code_labels.
            self._signature_columns += ["sense_indices", *self._target_columns]

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """The micro-batches of one step, and how many labelled tokens they hold over all processes."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        count = torch.tensor(sum(int(self._labelled(batch).sum()) for batch in batches), device=device)
        return batches, self.accelerator.gather(count).sum()

    def _labelled(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        if "sense_labels" in batch:
            return batch["sense_labels"] >= 0
        ids = batch["input_ids"]
        offsets = self.student.sense_table.offsets.to(ids.device)
        return (offsets[ids + 1] > offsets[ids]) & batch["attention_mask"].bool()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The weighted sum of the losses over labelled tokens, divided by their number in the step."""
        args = self.args
        given = {name: inputs[name] for name in INPUTS if inputs.get(name) is not None}
        output = model(**given, output_contextual=True)
        kept = self._labelled(inputs).reshape(-1).nonzero().squeeze(-1)
        hidden = output.contextual_hidden_state.reshape(-1, self._dictionary.dim)
        table, input_ids = self.student.sense_table, given["input_ids"].reshape(-1)
        senses, tokens, global_ids = table.lying(input_ids, kept)
        fixed = dataclasses.replace(senses, rows=senses.rows.detach())
        teacher_hidden = None
        if args.needs_teacher_states:
            states = self.teacher.hidden_states(**given)  # type: ignore[union-attr]
            teacher_hidden = states.reshape(-1, self._dictionary.dim)
        codes = table.residual_codes
        if "sense_labels" not in inputs:
            choice = choose_coded(teacher_hidden, tokens, kept, fixed, table.metric, codes)
            targets, code_targets = choice.sense_ids, choice.code_ids
        else:
            targets, code_targets = inputs["sense_labels"].reshape(-1), inputs.get("code_labels")
            if global_ids is not None:
                # The table holds the batch's own senses: targets go by their place in it.
                targets = torch.searchsorted(global_ids, targets)
        losses = torch.zeros(len(kept), device=hidden.device)
        if args.sense_weight:
            own, chosen = sense_loss(hidden, tokens, kept, senses, table.metric, targets, self.temperature)
            losses = losses + args.sense_weight * own
        else:
            chosen = choose_senses(hidden, tokens, kept, fixed, table.metric).sense_ids[kept]
        agreed_codes = losses.new_zeros(())
        if codes is not None and code_targets is not None:
            wanted, taken = code_targets.reshape(-1, codes.levels)[kept], senses.take(targets[kept])
            theirs = None if teacher_hidden is None else teacher_hidden[kept] - taken
            own, code_ids = code_losses(hidden[kept] - taken, wanted, codes, args, theirs, self.temperature)
            losses = losses + own
            agreed_codes = (code_ids == wanted).double().mean(-1).sum()
        if teacher_hidden is not None:
            sides = hidden[kept], teacher_hidden[kept]
            losses = losses + state_losses(*sides, args, senses, tokens[kept], table.metric, self.temperature)
            if args.replaced_weight:
                losses = losses + replaced_loss(*sides, args, self.student.config, senses, tokens[kept])
        total = losses.sum()
        agreed = (chosen == targets[kept]).sum()
        meter = self._meters["train" if model.training else "eval"]
        meter += torch.stack([total.detach(), agreed, agreed.new_tensor(len(kept)), agreed_codes]).to(meter)
        if num_items_in_batch is None:
            loss = total / max(1, len(kept))
        else:
            loss = total * self.accelerator.num_processes / max(1, int(num_items_in_batch))
        # A step without labelled tokens still needs a graph.
        if len(kept) == 0:
            loss = loss + 0.0 * (output.contextual_hidden_state.sum() + senses.rows.sum())
        return (loss, output) if return_outputs else loss

    def _read_meter(self, name: str) -> dict[str, float]:
        """The mean loss and agreements since the last time; nothing if no token was labelled."""
        total, agreed, count, codes = self.accelerator.reduce(
            self._meters[name].to(self.args.device, torch.float32), "sum"
        ).tolist()
        self._meters[name].zero_()
        if not count:
            return {}
        figures = {"loss": total / count, "agreement": agreed / count}
        return figures if self._dictionary.codes is None else figures | {"code_agreement": codes / count}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As ``Trainer`` does; training logs carry the agreement since the last one."""
        if "loss" in logs and (figures := self._read_meter("train")):
            logs |= {key: value for key, value in figures.items() if key != "loss"}
        super().log(logs, start_time)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The batch's loss; hidden states are not gathered."""
        with torch.no_grad():
            loss = self.compute_loss(model, self._prepare_inputs(inputs))
        return loss.detach(), None, None  # type: ignore[union-attr]

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """As ``Trainer`` does; loss and agreement are means over tokens, not over batches."""
        self._meters["eval"].zero_()
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        for key, value in self._read_meter("eval").items():
            output.metrics[f"{metric_key_prefix}_{key}"] = value
        return output

    def load_checkpoint(self, folder: str) -> None:
        """Takes the student and the state of a checkpoint, and does not train. All processes call it, and wait for each other."""
        self._load_from_checkpoint(folder)
        self.state = TrainerState.load_from_json(str(Path(folder) / "trainer_state.json"))
        self.accelerator.wait_for_everyone()

    def create_model_card(self, model_name: str | None = None, **kwargs: Any) -> None:
        """Writes the student's card into ``args.output_dir``; ``license``, ``language`` and ``dataset`` go into it."""
        if not self.is_world_process_zero():
            return
        folder = Path(self.args.output_dir)
        config = self.student.config
        last: dict[str, Any] = next((logs for logs in reversed(self.state.log_history) if "eval_agreement" in logs), {})
        facts = {
            **body_facts(config.get_text_config()),
            "parameters": self.student.num_parameters(),
            "senses": config.num_senses,
            "codes": f"{config.code_levels} x {config.num_codes}" if config.code_levels else None,
            "metric": config.metric,
            "steps": self.state.global_step,
            "agreement": last.get("eval_agreement"),
        }
        about = Provenance(
            license=kwargs.get("license"),
            datasets=_listed(kwargs.get("dataset")),
            language=_listed(kwargs.get("language")),
            metrics={"agreement": last["eval_agreement"]} if last else None,
        )
        folder.mkdir(parents=True, exist_ok=True)
        name = self.hub_model_id or model_name or folder.name
        card = model_card(name, auto_class_of(self.student), config.dictionary_metadata.get("teacher"), facts, about)
        write_card(folder, card)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """As ``Trainer`` does while it trains, with the files of a sense model that it does not know of."""
        if self.is_world_process_zero():
            copy_companions(Path(checkpoint_folder), Path(self.args.output_dir), self.student.config)
        super()._push_from_checkpoint(checkpoint_folder)

    def push_to_hub(self, commit_message: str | None = "End of training", *args: Any, **kwargs: Any) -> Any:
        """As ``Trainer`` does. The student's dictionary, if it lies outside, should be on the Hub already.

        Raises:
            ValueError: if the student's dictionary is a path on this machine.
            FileNotFoundError: if the repository or the dictionary's is not there for this token.
            PermissionError: if the token may not write.
        """
        token = kwargs.get("token") or self.args.hub_token
        pin_dictionary(self.student, token)
        with explained(
            self.args.hub_model_id or Path(self.args.output_dir).name, "a sense model", token=token, writes=True
        ):
            return super().push_to_hub(commit_message, *args, **kwargs)


def _listed(value: str | list[str] | None) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _tokenized(dataset: Any, teacher: Teacher, text_column: str, max_length: int | None) -> Any:
    def tokenize(rows: dict[str, list[str]]) -> Any:
        return teacher.tokenizer(
            list(teacher.form.joined(rows[text_column], teacher.tokenizer)),
            truncation=True,
            max_length=max_length or teacher.max_length,
        )

    return dataset.map(tokenize, batched=True)
