"""What a distillation is asked for: the fields of ``SenseDistillationConfig``."""

from __future__ import annotations

from dataclasses import dataclass, field

from transformers import TrainingArguments

from hf_sense.ranks import on_cpu

# The losses' weights; but for the first they need the teacher's states.
WEIGHTS = ("sense_weight", "soft_weight", "mse_weight", "cosine_weight", "replaced_weight")


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
    replaced_weight: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the squared error between what the student's selection puts in a state's place and the teacher's "
            "state; trains learned senses too, and runs the teacher."
        },
    )
    commitment_weight: float = field(
        default=0.25,
        metadata={
            "help": "With replaced_weight and the best sense: how strongly a state is kept near the sense that it chooses."
        },
    )
    sense_learning_rate: float | None = field(
        default=None, metadata={"help": "Learning rate of learned senses; that of everything else if not given."}
    )
    fit_temperature: bool = field(
        default=False,
        metadata={
            "help": "After training, fit config.selection_temperature on eval_dataset: by the teacher's states, or without a "
            "teacher by its stored choices."
        },
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
    save_seconds: float | None = field(
        default=None,
        metadata={
            "help": "Also save a checkpoint once so many seconds have passed since the last; hf-sense distill: 45."
        },
    )
    target_cache_dir: str | None = field(default=None, metadata={"help": "Where computed targets are kept."})

    def __post_init__(self) -> None:
        if on_cpu():
            self.use_cpu = True  # without it, processes on the CPU do not know of each other
        super().__post_init__()
        weights = {name: getattr(self, name) for name in WEIGHTS}
        if min(weights.values()) < 0 or not any(weights.values()):
            raise ValueError(f"Loss weights should not be negative, and one should be above 0, but are {weights}.")
        if self.commitment_weight < 0:
            raise ValueError(f"commitment_weight should not be negative, but is {self.commitment_weight}.")
        for name in ("temperature", "sense_learning_rate", "save_seconds"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} should be above 0, but is {value}.")
        self.label_names: list[str] | None = self.label_names or ["sense_labels"]

    @property
    def needs_teacher_states(self) -> bool:
        """Whether a loss compares with the teacher's hidden states, which are not stored."""
        return self.live_teacher or any(getattr(self, name) > 0 for name in WEIGHTS[1:])
