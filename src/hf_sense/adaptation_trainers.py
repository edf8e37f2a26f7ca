"""The trainers of a decoder's adapters: masked next-token prediction, and contrast of texts.

Each is a ``Trainer`` on texts that ``hf_sense.adaptation`` chose, stopped by its loss on those that were held out.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import EarlyStoppingCallback, PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_sense.adaptation_losses import (
    LanguageHead,
    batches_of_like_length,
    contrastive_loss,
    drop_tokens,
    mask_tokens,
    masked_next_token_loss,
)
from hf_sense.checkpoints import SaveOften
from hf_sense.corpus import EncodedCorpus
from hf_sense.pooling import Pooling, check_pooling, pool
from hf_sense.ranks import on_cpu, processes


@dataclass
class AdaptationConfig(TrainingArguments):
    """``TrainingArguments`` with what adapting a decoder needs; both stages share them.

    The number of steps is that of the stages: ``max_steps`` and ``num_train_epochs`` do nothing.

    Raises:
        ValueError: if a value is out of its range.
    """

    mntp_steps: int = field(default=100, metadata={"help": "Most steps of masked next-token prediction; 0 skips it."})
    simcse_steps: int = field(default=80, metadata={"help": "Most steps of contrast; 0 skips it."})
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
    temperature: float | None = field(
        default=None,
        metadata={"help": "Divides cosines in the contrastive loss: 0.2 if not given, 0.05 for pairs."},
    )
    token_dropout: float = field(
        default=0.15, metadata={"help": "Share of the tokens that each of a text's two views lacks; not of pairs."}
    )
    attention_dropout: float = field(default=0.2, metadata={"help": "Dropout of attention in the second stage."})
    lora_r: int = field(default=16, metadata={"help": "Rank of the adapters; they are scaled by 2."})
    lora_dropout: float = field(default=0.1, metadata={"help": "Dropout before the adapters."})
    pooling: str = field(default="mean", metadata={"help": "mean, weighted_mean or last_token."})
    max_length: int = field(default=128, metadata={"help": "Texts are cut to so many tokens."})
    held_out: int = field(default=256, metadata={"help": "Texts that are not trained on; at most a tenth."})
    patience: int = field(default=2, metadata={"help": "Evaluations in a row without a gain that end a stage."})
    min_gain: float = field(default=0.01, metadata={"help": "Fall of the held-out loss that counts as a gain."})
    save_seconds: float = field(default=45.0, metadata={"help": "Seconds after which unfinished work is saved."})
    model_dtype: str = field(default="float32", metadata={"help": "Of the base model's weights while training."})
    learning_rate: float = field(default=7e-4, metadata={"help": "Learning rate of the second stage."})
    per_device_train_batch_size: int = field(default=48, metadata={"help": "Texts or pairs a step and device."})
    lr_scheduler_type: str = field(default="linear", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Steps in which the learning rate rises, or a share."})
    eval_steps: float | None = field(default=10, metadata={"help": "Steps between evaluations on held-out texts."})
    logging_steps: float = field(default=10, metadata={"help": "Steps between logs."})

    def __post_init__(self) -> None:
        # Without it bf16 is refused on the CPU, and processes there do not know of each other.
        if on_cpu():
            self.use_cpu = True
        super().__post_init__()
        check_pooling(self.pooling)
        ranges = {
            "mntp_steps": (0, None), "simcse_steps": (0, None), "mntp_batch_size": (1, None), "mask_share": (1e-6, 1),
            "token_dropout": (0, 0.99), "attention_dropout": (0, 0.99), "lora_dropout": (0, 0.99), "lora_r": (1, None),
            "max_length": (2, None), "held_out": (2, None), "patience": (1, None), "min_gain": (0, None),
            "eval_steps": (1, None),
        }  # fmt: skip
        if self.temperature is not None:
            ranges["temperature"] = (1e-6, None)
        for name, (low, high) in ranges.items():
            value = getattr(self, name)
            if value is None or value < low or (high is not None and value > high):
                limit = f"at least {low}" if high is None else f"between {low} and {high}"
                raise ValueError(f"{name} should be {limit}, but is {value}.")
        if self.pooling not in ("mean", "weighted_mean", "last_token"):
            raise ValueError(f"pooling should be mean, weighted_mean or last_token, but is {self.pooling!r}.")
        if not isinstance(getattr(torch, self.model_dtype, None), torch.dtype):
            raise ValueError(f"model_dtype should be float32, bfloat16 or float16, but is {self.model_dtype!r}.")


@dataclass
class AdaptationTexts:
    """What the trainers read.

    Attributes:
        corpus: the texts; of pairs, all first ones and then all second ones.
        tokenizer: the base's.
        number: of texts or pairs.
        pairs: whether they are pairs.
        trained: int64, numbers of texts or pairs that are trained on.
        held: int64, those that are held out.
        mask_id: what stands at masked tokens.
    """

    corpus: EncodedCorpus
    tokenizer: PreTrainedTokenizerBase
    number: int
    pairs: bool
    trained: np.ndarray
    held: np.ndarray
    mask_id: int


class StageTrainer(Trainer):
    """What both stages share: batches of like length, fixed beforehand, and a held-out loss."""

    def __init__(self, model: nn.Module, args: AdaptationConfig, texts: AdaptationTexts) -> None:
        self.texts = texts
        self.control: Any
        per_step = args.gradient_accumulation_steps * processes().num_processes
        order = batches_of_like_length(
            self.cost(texts.trained), args.per_device_train_batch_size, args.max_steps * per_step, args.seed
        )
        super().__init__(
            model=model,
            args=args,
            train_dataset=[int(number) for number in texts.trained[order]],
            eval_dataset=[0],
            data_collator=self.collate,
            callbacks=[EarlyStoppingCallback(args.patience, args.min_gain), SaveOften(args.save_seconds)],
        )

    def cost(self, texts: np.ndarray) -> np.ndarray:
        """Tokens of the texts, or of the pairs: int64 ``(texts,)``."""
        lengths = self.texts.corpus.lengths
        return lengths[texts] + lengths[texts + self.texts.number] if self.texts.pairs else lengths[texts]

    def padded(self, texts: np.ndarray) -> dict[str, torch.Tensor]:
        """Int64 ``(texts, sequence)`` ids and mask."""
        return self.texts.corpus.padded(texts, int(self.texts.tokenizer.pad_token_id))

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


class MaskedTrainer(StageTrainer):
    """Masked next-token prediction: the state before a masked token predicts it."""

    loss_is_scaled_for_ga = True

    def __init__(self, predict: LanguageHead, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.predict = predict.to(self.args.device)

    def collate(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """Padded texts; of a pair, one of the two by turns."""
        texts = np.array(rows)
        if self.texts.pairs:
            texts = texts + self.texts.number * (np.arange(len(texts)) % 2)
        return self.padded(texts)

    def masked(self, batch: dict[str, torch.Tensor], seed: int) -> dict[str, torch.Tensor]:
        """The batch with tokens masked and labels."""
        args, tokenizer = self.args, self.texts.tokenizer
        ids, labels = mask_tokens(
            batch["input_ids"], batch["attention_mask"], self.texts.mask_id, share=args.mask_share, full=args.full_masking,
            special_ids=tokenizer.all_special_ids, vocab_size=len(tokenizer), seed=seed,
        )  # fmt: skip
        return {"input_ids": ids, "attention_mask": batch["attention_mask"], "labels": labels}

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | int | None]:
        """The micro-batches of one step, masked by a draw that the step alone decides, and how many labels they hold."""
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        state, begin = processes(), (self.args.seed + 1) * 2**32
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
            [self.texts.held, self.texts.held + self.texts.number] if self.texts.pairs else [self.texts.held]
        )
        training, total, count = self.model.training, 0.0, 0
        self.model.eval()
        for number, rows in enumerate(self.texts.corpus.batches(self.args.per_device_train_batch_size, held)):
            batch = self.masked(self.padded(rows), number)
            total += float(self._sum(self.model, self._prepare_inputs(batch)))
            count += int((batch["labels"] >= 0).sum())
        self.model.train(training)
        return total / max(1, count)


class ContrastTrainer(StageTrainer):
    """A text's two views, or a pair's two texts, against the others of the batch (of each process, its own)."""

    def collate(self, rows: list[int]) -> dict[str, torch.Tensor]:
        """First all first views, then all second ones."""
        texts = np.array(rows)
        return self.padded(np.concatenate([texts, texts + self.texts.number if self.texts.pairs else texts]))

    @property
    def temperature(self) -> float:
        """That of the loss. At SimCSE's 0.05 two views of a short text soon leave nothing to learn."""
        given = self.args.temperature
        return float(given) if given is not None else 0.05 if self.texts.pairs else 0.2

    def _vectors(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        mask = batch["attention_mask"]
        if self.args.token_dropout and not self.texts.pairs:
            mask = drop_tokens(mask, self.args.token_dropout)
        with self.accelerator.autocast():
            states = model(input_ids=batch["input_ids"], attention_mask=mask).last_hidden_state
        return pool(states.float(), mask, cast(Pooling, self.args.pooling))

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """The mean over the batch's texts."""
        first, second = self._vectors(model, inputs).chunk(2)
        return contrastive_loss(first, second, self.temperature)

    @torch.no_grad()
    def held_out_loss(self) -> float:
        """Mean over the held-out texts, each against all others; views as in training, the same at every call."""
        training, size = self.model.training, self.args.per_device_train_batch_size
        held = self.texts.held
        held = held[np.argsort(-self.cost(held), kind="stable")]
        vectors = []
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(self.args.seed)
            self.model.train(not self.texts.pairs)
            for begin in range(0, len(held), size):
                batch = self._prepare_inputs(self.collate(held[begin : begin + size].tolist()))
                vectors.append(self._vectors(self.model, batch).chunk(2))
        self.model.train(training)
        first, second = (torch.cat(views) for views in zip(*vectors))
        return float(contrastive_loss(first, second, self.temperature))
