"""Adapts a decoder to give text vectors: a base model and texts without labels in, LoRA adapters in LLM2Vec's layout out.

After BehnamGhader et al., *LLM2Vec*, arXiv 2404.05961: masked next-token prediction (MNTP), then contrast (SimCSE, Gao et al.
2021), each a ``Trainer`` run. It does not load what it wrote; ``hf_sense.teacher`` does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from accelerate import PartialState
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.pytorch_utils import Conv1D

from hf_sense.corpus import encode_corpus, iterate_texts
from hf_sense.decoders import blind_cases, is_decoder, open_attention
from hf_sense.pooling import Pooling, check_pooling, pool
from hf_sense.storage import write_text

logger = logging.getLogger(__name__)

RUN_FILE = "adaptation.json"
_MASK_TOKENS = {"blank": "_", "eos": "eos_token", "mask": "mask_token"}
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")
_SETTINGS = (
    "mntp_steps", "simcse_steps", "mntp_batch_size", "mntp_learning_rate", "mask_share", "mask_token", "full_masking",
    "temperature", "attention_dropout", "lora_r", "lora_dropout", "pooling", "max_length", "held_out", "patience",
    "min_gain", "model_dtype", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm", "seed", "eval_steps", "bf16", "fp16",
)  # fmt: skip


@dataclass
class AdaptationConfig(TrainingArguments):
    """``TrainingArguments`` with what adapting a decoder needs; both stages share them.

    The number of steps is that of the stages: ``max_steps`` and ``num_train_epochs`` do nothing.

    Raises:
        ValueError: if a value is out of its range.
    """

    mntp_steps: int = field(default=100, metadata={"help": "Most steps of masked next-token prediction; 0 skips it."})
    simcse_steps: int = field(default=200, metadata={"help": "Most steps of contrast; 0 skips it."})
    mntp_batch_size: int = field(default=64, metadata={"help": "Texts a step and device in the first stage."})
    mntp_learning_rate: float = field(default=3e-4, metadata={"help": "Learning rate of the first stage."})
    mask_share: float = field(default=0.2, metadata={"help": "Share of the tokens that are to be predicted."})
    mask_token: str = field(
        default="blank",
        metadata={"help": 'What stands at masked tokens: "blank" (_), "eos", "mask", or a token of the vocabulary.'},
    )
    full_masking: bool = field(
        default=False,
        metadata={"help": "Mask all of them; otherwise 8 in 10, as BERT, with 1 in 10 random and 1 left as it is."},
    )
    temperature: float = field(default=0.05, metadata={"help": "Divides cosines in the contrastive loss."})
    attention_dropout: float = field(default=0.2, metadata={"help": "Dropout of attention in the second stage."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters; they are scaled by 2."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout before the adapters."})
    pooling: str = field(default="mean", metadata={"help": "mean, weighted_mean or last_token."})
    max_length: int = field(default=128, metadata={"help": "Texts are cut to so many tokens."})
    held_out: int = field(default=256, metadata={"help": "Texts that are not trained on; at most a tenth."})
    patience: int = field(default=2, metadata={"help": "Evaluations in a row without a gain that end a stage."})
    min_gain: float = field(default=0.0, metadata={"help": "Fall of the held-out loss that counts as a gain."})
    save_seconds: float = field(default=45.0, metadata={"help": "Seconds after which unfinished work is saved."})
    model_dtype: str = field(default="float32", metadata={"help": "Of the base model's weights while training."})
    learning_rate: float = field(default=3e-4, metadata={"help": "Learning rate of the second stage."})
    per_device_train_batch_size: int = field(default=48, metadata={"help": "Texts or pairs a step and device."})
    lr_scheduler_type: str = field(default="constant", metadata={"help": "Schedule of the learning rate."})
    eval_steps: float | None = field(default=10, metadata={"help": "Steps between evaluations on held-out texts."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between logs."})

    def __post_init__(self) -> None:
        super().__post_init__()
        check_pooling(self.pooling)
        ranges = {
            "mntp_steps": (0, None), "simcse_steps": (0, None), "mntp_batch_size": (1, None), "mask_share": (1e-6, 1),
            "temperature": (1e-6, None), "attention_dropout": (0, 0.99), "lora_dropout": (0, 0.99), "lora_r": (1, None),
            "max_length": (2, None), "held_out": (2, None), "patience": (1, None), "min_gain": (0, None),
            "eval_steps": (1, None),
        }  # fmt: skip
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is None or value < low or (high is not None and value > high):
                limit = f"at least {low}" if high is None else f"between {low} and {high}"
                raise ValueError(f"{name} should be {limit}, but is {value}.")
        if self.pooling not in ("mean", "weighted_mean", "last_token"):
            raise ValueError(f"pooling should be mean, weighted_mean or last_token, but is {self.pooling!r}.")
        if not isinstance(getattr(torch, self.model_dtype, None), torch.dtype):
            raise ValueError(f"model_dtype should be float32, bfloat16 or float16, but is {self.model_dtype!r}.")


def adapt_decoder(
    base: str | os.PathLike[str],
    dataset: Any,
    output_dir: str | os.PathLike[str],
    *,
    text_column: str | list[str] = "text",
    attention: Literal["bidirectional", "causal"] = "bidirectional",
    revision: str | None = None,
    args: AdaptationConfig | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """Trains adapters that turn a decoder into an encoder of texts. The same call goes on where a stopped one was.

    First MNTP with both-way attention, then SimCSE on top of it, or contrast of pairs where ``text_column`` names two columns.
    Each is stopped by its loss on held-out texts, and its best adapter is kept. ``attention="causal"`` has no MNTP.

    Args:
        base: a folder or Hub id of a decoder.
        dataset: texts, pairs of texts, or one split of a ``datasets`` data set; blank ones and repetitions are left out.
        output_dir: receives ``mntp/`` and ``simcse/``, each as LLM2Vec lays out an adapter, and ``adaptation.json``.
        text_column: the column of the texts; two for pairs.
        attention: how the adapted model will be used.
        revision: branch, tag or commit of the base on the Hub.
        args: all settings; its ``output_dir`` is not read.
        **settings: fields of ``AdaptationConfig``, instead of ``args``.

    Returns:
        What ``adaptation.json`` holds: ``run``, and for each stage ``steps``, ``best_step``, ``held_out_loss_before``,
        ``held_out_loss_after`` and ``seconds``.

    Raises:
        ValueError: if the base is no decoder or stays causal, texts are missing or too few, or ``output_dir`` is of another
            run.
    """
    if attention not in ("bidirectional", "causal"):
        raise ValueError(f"attention should be 'bidirectional' or 'causal', but is {attention!r}.")
    if args is not None and settings:
        raise ValueError(f"Give args or single settings, not both; {', '.join(settings)} came with args.")
    unknown = set(settings) - {known.name for known in dataclasses.fields(AdaptationConfig)}
    if unknown:
        raise ValueError(f"AdaptationConfig has no field {', '.join(sorted(unknown))}.")
    args = args or AdaptationConfig(output_dir=str(output_dir), **settings)
    run = _Run(os.fspath(base), dataset, Path(output_dir), text_column, attention, revision, args)
    for name in ("mntp", "simcse"):
        steps = args.mntp_steps if name == "mntp" else args.simcse_steps
        if steps and not (run.folder / name).is_dir() and not (name == "mntp" and attention == "causal"):
            run.stage(name, steps)
    return run.report


class _Run:
    """One call's model, texts and folder, checked before long work."""

    def __init__(
        self,
        base: str,
        dataset: Any,
        folder: Path,
        text_column: str | list[str],
        attention: str,
        revision: str | None,
        args: AdaptationConfig,
    ) -> None:
        self.base, self.folder, self.args, self.revision, self.bidirectional = (
            base, folder, args, revision, attention == "bidirectional",
        )  # fmt: skip
        texts = _distinct(iterate_texts(dataset, text_column))
        config = self.config()
        if not is_decoder(config):
            raise ValueError(
                f"{base} is a {config.model_type} model, not a decoder: it sees both ways already. Use it as a teacher as "
                "it is."
            )
        self.tokenizer = AutoTokenizer.from_pretrained(base, revision=revision)
        if self.tokenizer.pad_token_id is None:
            if self.tokenizer.eos_token_id is None:
                raise ValueError(f"The tokenizer of {base} has neither a pad token nor an end token. Set pad_token.")
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.mask_id = mask_token_id(self.tokenizer, args.mask_token) if self.bidirectional and args.mntp_steps else -1
        self.pairs = bool(texts) and isinstance(texts[0], tuple)
        flat = [text[0] for text in texts] + [text[1] for text in texts] if self.pairs else texts
        positions = getattr(config.get_text_config(), "max_position_embeddings", None) or args.max_length
        self.corpus = encode_corpus(cast(Any, flat), self.tokenizer, min(args.max_length, positions))
        order = np.random.default_rng(args.seed).permutation(len(texts))
        held = min(args.held_out, len(texts) // 10)
        self.held, self.trained = np.sort(order[:held]), np.sort(order[held:])
        self.num_texts = len(texts)
        least = max(
            args.per_device_train_batch_size if args.simcse_steps else 1,
            args.mntp_batch_size if self.mask_id >= 0 else 1,
        )
        if held < 2 or len(self.trained) < least:
            raise ValueError(
                f"{len(texts)} different texts are too few: a tenth is held out, at least 2, and a step takes {least} of the "
                "others. Give more texts or a smaller per_device_train_batch_size and mntp_batch_size."
            )
        self.report: dict[str, Any] = {"run": self._description(config, attention)}
        self._claim()

    def _description(self, config: PretrainedConfig, attention: str) -> dict[str, Any]:
        known = {key: value for key, value in config.to_dict().items() if key not in ("_name_or_path", "use_cache")}
        settings = {name: getattr(self.args, name) for name in _SETTINGS}
        description = {
            "base": self.base,
            "revision": self.revision,
            "config_sha256": hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest(),
            "attention": attention,
            "texts": {"number": self.num_texts, "pairs": self.pairs, "sha256": self.corpus.sha256},
            "settings": settings | {"processes": PartialState().num_processes},
        }
        return json.loads(json.dumps(description, default=str))

    def _claim(self) -> None:
        path, now = self.folder / RUN_FILE, self.report["run"]
        if path.is_file():
            try:
                self.report = json.loads(path.read_text(encoding="utf-8"))
                before = self.report["run"]
            except (ValueError, KeyError, TypeError):
                raise ValueError(f"{path} is damaged. Give another output_dir, or remove this one.") from None
            if before != now:
                flat = [
                    {**run, **run.get("settings", {}), "settings": None} if isinstance(run, dict) else {}
                    for run in (before, now)
                ]
                names = [name for name in flat[1] if flat[0].get(name) != flat[1][name]]
                earlier, later = ({name: run.get(name) for name in names} for run in flat)
                raise ValueError(
                    f"{self.folder} holds another run: it was made with {earlier}, and now came {later}. Give another "
                    "output_dir, or remove this one."
                )
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise ValueError(f"output_dir should be new, empty, or that of the same run, but {self.folder} is not.")
        elif PartialState().is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write()
        PartialState().wait_for_everyone()

    def _write(self) -> None:
        write_text(self.folder / RUN_FILE, json.dumps(self.report, indent=2) + "\n")

    def config(self) -> PretrainedConfig:
        """The base's configuration as the adapters are to be used with it."""
        config = AutoConfig.from_pretrained(self.base, revision=self.revision)
        if self.bidirectional and is_decoder(config):
            open_attention(config)
        return config

    def stage(self, name: str, steps: int) -> None:
        """Trains one stage, or the rest of it, and saves its adapter; then its unfinished work is removed."""
        from peft import LoraConfig, PeftModel, get_peft_model

        args, begin, work = self.args, time.monotonic(), self.folder / f"{name}.work"
        torch.manual_seed(args.seed)
        config, options = self.config(), {"revision": self.revision, "dtype": getattr(torch, args.model_dtype)}
        language_model = None
        if name == "mntp":
            language_model = AutoModelForCausalLM.from_pretrained(self.base, config=config, **options)
            body = language_model.base_model
        else:
            for dropout in _DROPOUTS:
                if hasattr(config.get_text_config(), dropout):
                    setattr(config.get_text_config(), dropout, args.attention_dropout)
            body = AutoModel.from_pretrained(self.base, config=config, **options)
            if (self.folder / "mntp").is_dir():
                body = PeftModel.from_pretrained(body, str(self.folder / "mntp")).merge_and_unload()
        if self.bidirectional:
            _check_both_ways(body, self.base)
        predict = None if language_model is None else _head_of(language_model)
        lora = LoraConfig(
            r=args.lora_r, lora_alpha=2 * args.lora_r, lora_dropout=args.lora_dropout, target_modules=_linear_names(body)
        )  # fmt: skip
        model = get_peft_model(body, lora)
        model.peft_config["default"].base_model_name_or_path = self.base
        model.peft_config["default"].revision = self.revision
        batch_size = args.mntp_batch_size if name == "mntp" else args.per_device_train_batch_size
        replace: Any = dataclasses.replace  # the type checker does not see the fields of TrainingArguments
        chosen = replace(
            args,
            output_dir=str(work),
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=args.mntp_learning_rate if name == "mntp" else args.learning_rate,
            eval_strategy="steps",
            eval_steps=min(int(args.eval_steps or steps), steps),
            save_strategy="steps",
            save_steps=min(int(args.eval_steps or steps), steps),
            save_total_limit=1,
            load_best_model_at_end=True,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            push_to_hub=False,
            dataloader_pin_memory=args.dataloader_pin_memory and torch.cuda.is_available(),
            label_names=[],
        )
        common: dict[str, Any] = {"model": model, "args": chosen, "run": self}
        trainer: _StageTrainer = (
            _ContrastTrainer(**common) if predict is None else _MaskedTrainer(predict=predict, **common)
        )
        before = trainer.held_out_loss()
        trainer.train(resume_from_checkpoint=_last_checkpoint(work))
        after = trainer.held_out_loss()
        state = trainer.state
        self.report[name] = {
            "steps": state.global_step,
            "best_step": state.best_global_step,
            "held_out_loss_before": before,
            "held_out_loss_after": after,
            "held_out_losses": [logs["eval_loss"] for logs in state.log_history if "eval_loss" in logs],
            "seconds": round(time.monotonic() - begin, 1),
        }
        if PartialState().is_main_process:
            self._write()
            self._save(name, model)
            shutil.rmtree(work, ignore_errors=True)
        PartialState().wait_for_everyone()

    def _save(self, name: str, model: Any) -> None:
        """An adapter in the layout of LLM2Vec's published ones, under its name once it is whole."""
        for stale in self.folder.glob(f".{name}.*"):
            shutil.rmtree(stale)
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}.", dir=self.folder))
        temporary.chmod(0o755)
        model.save_pretrained(temporary)
        config = self.config()
        config.architectures = [type(model.get_base_model()).__name__]
        config.save_pretrained(temporary)
        self.tokenizer.save_pretrained(temporary)
        pooling = "eos_token" if self.args.pooling == "last_token" else self.args.pooling
        settings = {"pooling_mode": pooling, "max_length": 512, "doc_max_length": 400, "skip_instruction": True}
        write_text(temporary / "llm2vec_config.json", json.dumps(settings, indent=2) + "\n")
        os.replace(temporary, self.folder / name)


class _StageTrainer(Trainer):
    """What both stages share: batches of like length, fixed beforehand, and a held-out loss."""

    def __init__(self, model: nn.Module, args: TrainingArguments, run: _Run) -> None:
        self.run = run
        self.control: Any
        per_step = args.gradient_accumulation_steps * PartialState().num_processes
        order = batches_of_like_length(
            self.cost(run.trained), args.per_device_train_batch_size, args.max_steps * per_step, args.seed
        )
        super().__init__(
            model=model,
            args=args,
            train_dataset=[int(number) for number in run.trained[order]],
            eval_dataset=[0],
            data_collator=self.collate,
            callbacks=[
                EarlyStoppingCallback(run.args.patience, run.args.min_gain),
                _SaveOften(run.args.save_seconds),
            ],
        )

    def cost(self, texts: np.ndarray) -> np.ndarray:
        """Tokens of the texts, or of the pairs: int64 ``(texts,)``."""
        lengths = self.run.corpus.lengths
        return lengths[texts] + lengths[texts + self.run.num_texts] if self.run.pairs else lengths[texts]

    def padded(self, texts: np.ndarray) -> dict[str, torch.Tensor]:
        """Int64 ``(texts, sequence)`` ids and mask."""
        return self.run.corpus.padded(texts, int(self.run.tokenizer.pad_token_id))

    def collate(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """A batch of text numbers."""
        raise NotImplementedError

    def held_out_loss(self) -> float:
        """The stage's loss on the held-out texts, the same at every call for the same weights."""
        raise NotImplementedError

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Logs the held-out loss."""
        metrics = {f"{metric_key_prefix}_loss": self.held_out_loss()}
        self.log(metrics)
        control: Any = self.control
        self.control = self.callback_handler.on_evaluate(self.args, self.state, control, metrics)
        return metrics


class _MaskedTrainer(_StageTrainer):
    """Masked next-token prediction: the state before a masked token predicts it."""

    loss_is_scaled_for_ga = True

    def __init__(self, predict: _Head, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.predict = predict.to(self.args.device)

    def collate(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Padded texts; of a pair, one of the two by turns."""
        texts = np.array(rows)
        if self.run.pairs:
            texts = texts + self.run.num_texts * (np.arange(len(texts)) % 2)
        return self.padded(texts)

    def masked(self, batch: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
        """The batch with tokens masked and labels."""
        args, tokenizer = self.run.args, self.run.tokenizer
        ids, labels = mask_tokens(
            batch["input_ids"], batch["attention_mask"], self.run.mask_id, share=args.mask_share, full=args.full_masking,
            special_ids=tokenizer.all_special_ids, vocab_size=len(tokenizer), seed=seed,
        )  # fmt: skip
        return {"input_ids": ids, "attention_mask": batch["attention_mask"], "labels": labels}

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """The micro-batches of one step, masked by a draw that the step alone decides, and how many labels they hold."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        state, begin = PartialState(), (self.args.seed + 1) * 2**32
        place = (self.state.global_step * state.num_processes + state.process_index) * num_batches
        batches = [self.masked(batch, begin + place + number) for number, batch in enumerate(batches)]
        count = torch.tensor(sum(int((batch["labels"] >= 0).sum()) for batch in batches), device=device)
        return batches, self.accelerator.gather(count).sum()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The sum over masked tokens, divided by their number in the step."""
        total = self._sum(model, inputs)
        count = num_items_in_batch if num_items_in_batch is not None else (inputs["labels"] >= 0).sum()
        return total * self.accelerator.num_processes / max(1, int(count))

    def _sum(self, model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        with self.accelerator.autocast():
            states = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).last_hidden_state
            return masked_next_token_loss(states, inputs["labels"], self.predict)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean over the masked tokens of the held-out texts."""
        held = np.concatenate(
            [self.run.held, self.run.held + self.run.num_texts] if self.run.pairs else [self.run.held]
        )
        training, total, count = self.model.training, 0.0, 0
        self.model.eval()
        for number, rows in enumerate(self.run.corpus.batches(self.args.per_device_train_batch_size, held)):
            batch = self.masked(self.padded(rows), number)
            total += float(self._sum(self.model, self._prepare_inputs(batch)))
            count += int((batch["labels"] >= 0).sum())
        self.model.train(training)
        return total / max(1, count)


class _ContrastTrainer(_StageTrainer):
    """A text's two views, or a pair's two texts, against the others of the batch (of each process, its own)."""

    def collate(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """First all first views, then all second ones."""
        texts = np.array(rows)
        return self.padded(np.concatenate([texts, texts + self.run.num_texts if self.run.pairs else texts]))

    def _vectors(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        with self.accelerator.autocast():
            states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
        return pool(states.float(), batch["attention_mask"], cast(Pooling, self.run.args.pooling))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The mean over the batch's texts."""
        first, second = self._vectors(model, inputs).chunk(2)
        return contrastive_loss(first, second, self.run.args.temperature)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean over the held-out texts, each against all others; dropout as in training, the same at every call."""
        training, size = self.model.training, self.args.per_device_train_batch_size
        held = self.run.held
        held = held[np.argsort(-self.cost(held), kind="stable")]
        vectors = []
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.args.seed)
            self.model.train(not self.run.pairs)
            for begin in range(0, len(held), size):
                batch = self._prepare_inputs(self.collate(held[begin : begin + size].tolist()))
                vectors.append(self._vectors(self.model, batch).chunk(2))
        self.model.train(training)
        first, second = (torch.cat(views) for views in zip(*vectors))
        return float(contrastive_loss(first, second, self.run.args.temperature))


class _SaveOften(TrainerCallback):
    """Asks for a checkpoint once so many seconds have passed since the last."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last = seconds, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After each step."""
        if time.monotonic() - self.last >= self.seconds:
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After each checkpoint."""
        self.last = time.monotonic()


class _Head(nn.Module):
    """A language model without its body: hidden states in, logits out, by the model's own forward."""

    def __init__(self, language_model: PreTrainedModel) -> None:
        super().__init__()
        self.body = _Given()
        setattr(language_model, language_model.base_model_prefix, self.body)
        self.language_model = language_model.eval().requires_grad_(False)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """From ``(tokens, dim)`` to ``(tokens, vocabulary)``."""
        self.body.states = states[None]
        ids = torch.zeros(1, len(states), dtype=torch.int64, device=states.device)
        return self.language_model(input_ids=ids, use_cache=False).logits[0]


class _Given(nn.Module):
    """Stands in a body's place and gives states that were computed before."""

    states: torch.Tensor

    @property
    def decoder(self) -> _Given:
        """Some families call their body's decoder."""
        return self

    def forward(self, *_: Any, **__: Any) -> BaseModelOutputWithPast:
        """The states that were set."""
        return BaseModelOutputWithPast(last_hidden_state=cast(Any, self.states))


@torch.no_grad()
def _head_of(language_model: PreTrainedModel) -> _Head:
    """The language model's head, taken off its body and found to give the same logits."""
    language_model.eval()
    body = language_model.base_model
    ids = torch.arange(3, 9)[None] % int(body.config.get_text_config().vocab_size)
    expected = language_model(input_ids=ids, use_cache=False).logits[0]
    head = _Head(language_model)
    found = head(body(input_ids=ids, use_cache=False).last_hidden_state[0])
    if found.shape != expected.shape or not torch.allclose(found, expected, rtol=1e-3, atol=1e-3):
        raise ValueError(
            f"The logits of {body.config.model_type} do not follow from its last hidden states alone, as MNTP needs. Use "
            "mntp_steps=0."
        )
    return head


def _check_both_ways(body: PreTrainedModel, name: str) -> None:
    body.eval()
    vocab_size = int(body.config.get_text_config().vocab_size)

    def forward(ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return body(input_ids=ids, attention_mask=mask).last_hidden_state

    if blind := blind_cases(forward, vocab_size):
        raise ValueError(
            f"{name} ({body.config.model_type}) stays causal in batches {' and '.join(blind)}, whatever its configuration "
            'says. Use attention="causal".'
        )


def _linear_names(body: nn.Module) -> list[str]:
    """Names of the linear layers, as PEFT matches them."""
    found = {
        name.rpartition(".")[2] for name, module in body.named_modules() if isinstance(module, (nn.Linear, Conv1D))
    }
    return sorted(name for name in found if not name.isdigit())


def _distinct(texts: Iterator[Any]) -> list[Any]:
    """Texts without blank ones and repetitions, which would be their own negatives."""
    every = list(texts)
    kept = list(dict.fromkeys(t for t in every if all(part.strip() for part in (t if isinstance(t, tuple) else (t,)))))
    if len(kept) < len(every):
        logger.info("%d of %d texts are blank or repeat another and are left out.", len(every) - len(kept), len(every))
    if not kept:
        raise ValueError(
            f"Expected texts, but got {'none' if not every else f'{len(every)} that are all blank'}. Check the file, the "
            "split and the column."
        )
    return kept


def _last_checkpoint(work: Path) -> str | None:
    """The newest checkpoint that is whole; its last file is the trainer's state."""
    for path in sorted(work.glob("checkpoint-*"), key=lambda path: -int(path.name.rpartition("-")[2])):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
            return str(path)
        except (OSError, ValueError):
            shutil.rmtree(path)
    return None


def mask_token_id(tokenizer: PreTrainedTokenizerBase, choice: str) -> int:
    """The id of what stands at masked tokens.

    Args:
        tokenizer: the base's.
        choice: ``"blank"`` (the token ``_``), ``"eos"``, ``"mask"``, or a token of the vocabulary.

    Raises:
        ValueError: if the tokenizer has no such token.
    """
    token = getattr(tokenizer, _MASK_TOKENS[choice]) if choice in ("eos", "mask") else _MASK_TOKENS.get(choice, choice)
    found = tokenizer.get_vocab().get(token) if token is not None else None
    if found is None:
        raise ValueError(
            f"mask_token {choice!r} is {token!r}, and the tokenizer has no such token. Give blank (_), eos, mask, or a token "
            "of its vocabulary."
        )
    return int(found)


def mask_tokens(
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    mask_id: int,
    *,
    share: float = 0.2,
    full: bool = False,
    special_ids: list[int] | tuple[int, ...] = (),
    vocab_size: int = 0,
    seed: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks tokens for MNTP. A text's first token and special tokens stay.

    Args:
        input_ids: int64 ``(batch, sequence)``.
        attention_mask: ``(batch, sequence)``, 1 at tokens.
        mask_id: what stands at masked tokens.
        share: probability that a token is to be predicted.
        full: mask all of these; otherwise 8 in 10, with 1 in 10 replaced by a random token and 1 left as it is.
        special_ids: ids that are never to be predicted.
        vocab_size: random tokens are below it.
        seed: of the draw.

    Returns:
        The masked ids, and labels: the ids at tokens to be predicted, else -100; both int64 ``(batch, sequence)``.
    """
    draw = torch.Generator().manual_seed(seed)
    first = (attention_mask.cumsum(1) == 1) & attention_mask.bool()
    open_to = (
        attention_mask.bool() & ~first & ~torch.isin(input_ids, torch.tensor(list(special_ids), dtype=torch.int64))
    )
    chosen = (torch.rand(input_ids.shape, generator=draw) < share) & open_to
    labels = torch.where(chosen, input_ids, -100)
    fate = torch.rand(input_ids.shape, generator=draw)
    other = torch.randint(max(1, vocab_size), input_ids.shape, generator=draw)
    masked = torch.where(chosen & ((fate < 0.8) | torch.tensor(full)), mask_id, input_ids)
    if not full:
        masked = torch.where(chosen & (fate >= 0.9), other, masked)
    return masked, labels


def masked_next_token_loss(states: torch.Tensor, labels: torch.Tensor, predict: Any) -> torch.Tensor:
    """The cross-entropy of masked tokens given the states one place before them (LLM2Vec, section 2.2), summed.

    Args:
        states: ``(batch, sequence, dim)``.
        labels: int64 ``(batch, sequence)``, -100 where nothing is to be predicted; the first column is not read.
        predict: states ``(tokens, dim)`` to logits ``(tokens, vocabulary)``.
    """
    wanted = labels[:, 1:] >= 0
    if not bool(wanted.any()):
        return states.float().sum() * 0.0  # a step without labels still needs a graph
    return nn.functional.cross_entropy(predict(states[:, :-1][wanted]).float(), labels[:, 1:][wanted], reduction="sum")


def contrastive_loss(first: torch.Tensor, second: torch.Tensor, temperature: float = 0.05) -> torch.Tensor:
    """The mean cross-entropy of finding each first vector's second among all seconds by cosine (SimCSE, equation 1).

    Args:
        first: floating ``(texts, dim)``.
        second: likewise, row by row the other view.
        temperature: divides cosines.
    """
    cosines = nn.functional.normalize(first, dim=1) @ nn.functional.normalize(second, dim=1).T
    return nn.functional.cross_entropy(cosines / temperature, torch.arange(len(first), device=first.device))


def batches_of_like_length(lengths: np.ndarray, batch_size: int, batches: int, seed: int) -> np.ndarray:
    """Numbers of texts, ``batch_size`` after ``batch_size`` of like length, batches in random order.

    Args:
        lengths: int64 ``(texts,)``, at least ``batch_size`` of them.
        batch_size: texts a batch.
        batches: how many batches; every text is used once before any is used again, but for those left over.
        seed: of the draw.

    Returns:
        int64 ``(batches * batch_size,)``.
    """
    draw = np.random.default_rng(seed)
    made: list[np.ndarray] = []
    while len(made) < batches:
        order = draw.permutation(len(lengths))
        order = order[np.argsort(lengths[order], kind="stable")]
        begin = int(draw.integers(len(order) % batch_size + 1))
        rows = order[begin : begin + len(order) // batch_size * batch_size].reshape(-1, batch_size)
        made += list(rows[draw.permutation(len(rows))])
    return np.concatenate(made[:batches])
