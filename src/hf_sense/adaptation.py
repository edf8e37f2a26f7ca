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
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.pytorch_utils import Conv1D

from hf_sense.adaptation_losses import head_of, mask_token_id
from hf_sense.adaptation_trainers import (
    AdaptationConfig,
    AdaptationTexts,
    ContrastTrainer,
    MaskedTrainer,
    StageTrainer,
)
from hf_sense.adapters import save_adapter
from hf_sense.checkpoints import last_checkpoint
from hf_sense.corpus import encode_corpus, iterate_texts
from hf_sense.decoders import blind_cases, is_decoder, open_attention
from hf_sense.files import write_text
from hf_sense.ranks import processes

logger = logging.getLogger(__name__)

RUN_FILE = "adaptation.json"
_DROPOUTS = ("attention_dropout", "attn_pdrop", "attn_dropout", "attention_probs_dropout_prob")
_SETTINGS = (
    "mntp_steps", "simcse_steps", "mntp_batch_size", "mntp_learning_rate", "mask_share", "mask_token", "full_masking",
    "temperature", "token_dropout", "attention_dropout", "lora_r", "lora_dropout", "pooling", "max_length", "held_out",
    "patience", "min_gain", "model_dtype", "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps",
    "lr_scheduler_type", "warmup_steps", "weight_decay", "optim", "max_grad_norm", "seed", "eval_steps", "bf16", "fp16",
)  # fmt: skip


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
        mask_id = mask_token_id(self.tokenizer, args.mask_token) if self.bidirectional and args.mntp_steps else -1
        pairs = bool(texts) and isinstance(texts[0], tuple)
        flat = [text[0] for text in texts] + [text[1] for text in texts] if pairs else texts
        positions = getattr(config.get_text_config(), "max_position_embeddings", None) or args.max_length
        corpus = encode_corpus(cast(Any, flat), self.tokenizer, min(args.max_length, positions))
        order = np.random.default_rng(args.seed).permutation(len(texts))
        held = min(args.held_out, len(texts) // 10)
        self.texts = AdaptationTexts(
            corpus, self.tokenizer, len(texts), pairs, np.sort(order[held:]), np.sort(order[:held]), mask_id
        )
        least = max(
            args.per_device_train_batch_size if args.simcse_steps else 1,
            args.mntp_batch_size if mask_id >= 0 else 1,
        )
        if held < 2 or len(self.texts.trained) < least:
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
            "texts": {
                "number": self.texts.number,
                "pairs": self.texts.pairs,
                "sha256": self.texts.corpus.sha256,
            },
            "settings": settings | {"processes": processes().num_processes},
        }
        return json.loads(json.dumps(description, default=str))

    def _claim(self) -> None:
        # The first process makes the folder; to the others it would look like somebody else's while it is half made.
        with processes().main_process_first():
            self._look_at_folder()

    def _look_at_folder(self) -> None:
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
        elif processes().is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write()

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
        predict = None if language_model is None else head_of(language_model)
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
        common: dict[str, Any] = {"model": model, "args": chosen, "texts": self.texts}
        trainer: StageTrainer = (
            ContrastTrainer(**common) if predict is None else MaskedTrainer(predict=predict, **common)
        )
        before = trainer.held_out_loss()
        trainer.train(resume_from_checkpoint=last_checkpoint(work))
        after = trainer.held_out_loss()
        if after >= before:
            logger.warning(
                "%s did not lower the held-out loss (%.3f before, %.3f after): do not use its adapter.",
                name,
                before,
                after,
            )
        state = trainer.state
        self.report[name] = {
            "steps": state.global_step,
            "best_step": state.best_global_step,
            "held_out_loss_before": before,
            "held_out_loss_after": after,
            "held_out_losses": [logs["eval_loss"] for logs in state.log_history if "eval_loss" in logs],
            "seconds": round(time.monotonic() - begin, 1),
        }
        if processes().is_main_process:
            self._write()
            save_adapter(self.folder / name, model, self.config(), self.tokenizer, self.args.pooling)
            shutil.rmtree(work, ignore_errors=True)
        processes().wait_for_everyone()


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
