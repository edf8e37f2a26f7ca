"""What a distillation is asked for: the fields of ``SenseDistillationConfig``."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_sense.ranks import on_cpu


@dataclass
class SenseDistillationConfig(TrainingArguments):
    """``TrainingArguments`` with what distilling senses needs.

    Raises:
        ValueError: if a weight is negative, all are zero, or the temperature is not positive.
    """

    sense_weight: float = field(
        default=1.0, metadata={"help": "Weight of the cross-entropy on the teacher's senses (the paper's loss)."}
    )
    soft_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the divergence from the teacher's distribution over senses; runs the teacher."},
    )
    mse_weight: float = field(
        default=0.0, metadata={"help": "Weight of the squared error to the teacher's hidden states; runs the teacher."}
    )
    cosine_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of one minus the cosine to the teacher's hidden states; runs the teacher."},
    )
    temperature: float | None = field(
        default=None,
        metadata={"help": "Divides sense scores in the losses on senses; taken from the dictionary if not given."},
    )
    live_teacher: bool = field(
        default=False, metadata={"help": "Run the teacher at every step instead of computing its senses once, before."}
    )
    freeze_embeddings: bool = field(
        default=False, metadata={"help": "Leave the student's input embeddings as they are."}
    )
    text_column: str = field(
        default="text", metadata={"help": "Column of the texts, where targets are to be computed."}
    )
    max_length: int | None = field(default=None, metadata={"help": "Texts are cut to so many tokens."})
    target_batch_size: int = field(default=32, metadata={"help": "Texts the teacher reads at once for the targets."})
    target_cache_dir: str | None = field(default=None, metadata={"help": "Where computed targets are kept."})

    def __post_init__(self) -> None:
        if on_cpu():
            self.use_cpu = True  # without it, processes on the CPU do not know of each other
        super().__post_init__()
        weights = {name: getattr(self, name) for name in ("sense_weight", "soft_weight", "mse_weight", "cosine_weight")}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"Loss weights should not be negative, and one should be above 0, but are {weights}.")
        if self.temperature is not None and not self.temperature > 0:
            raise ValueError(f"temperature should be above 0, but is {self.temperature}.")
        self.label_names: list[str] | None = self.label_names or ["sense_labels"]

    @property
    def needs_teacher_states(self) -> bool:
        """Whether a loss compares with the teacher's hidden states, which are not stored."""
        return self.live_teacher or self.soft_weight > 0 or self.mse_weight > 0 or self.cosine_weight > 0
