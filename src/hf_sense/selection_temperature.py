"""The temperature of soft selection, fitted on held-out text. It trains no weight, and reads no labels of texts.

``hf_sense.temperature`` has the one that a table suggests, which is where the search starts.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel

from hf_sense.collator import INPUTS
from hf_sense.corpus import Text, encode_corpus, iterate_texts
from hf_sense.ragged import (
    best_sense,
    expected_sense,
    sense_cross_entropy,
    sense_log_probabilities,
    sense_scores,
)
from hf_sense.targets import check_teacher
from hf_sense.teacher import Teacher, load_teacher

if TYPE_CHECKING:
    from hf_sense.modeling_sense import SensePreTrainedModel

logger = logging.getLogger(__name__)

Criterion = Literal["states", "choices"]
CRITERIA: tuple[str, ...] = get_args(Criterion)
# Temperatures tried: 2^-5 to 2^5 times the one to start from, two to an octave.
_STEPS, _EACH_WAY = 2, 10


@torch.no_grad()
def fit_temperature(
    student: SensePreTrainedModel,
    teacher: str | PreTrainedModel | Teacher,
    texts: Iterable[Text],
    *,
    criterion: Criterion = "states",
    max_length: int | None = None,
    batch_size: int = 32,
    disable_tqdm: bool | None = None,
) -> float:
    """Sets ``student.config.selection_temperature`` to what is best on held-out text, and returns it.

    With ``"states"`` the student's replaced states are nearest the teacher's states, in squared error. With ``"choices"`` the
    teacher's choice is likeliest under the student's distribution. The first asks for what a text's vector is made
    of, and is the default. Both are means over tokens that have two senses or more.

    Args:
        student: its ``metric``, and ``selection_temperature`` to start from, count; ``selection`` stays as it is.
        teacher: that of its dictionary.
        texts: some hundred that the student was not trained on. On its training texts it is surer than it should be.
        criterion: see above.
        max_length: texts are cut to so many tokens; the teacher's limit if not given.
        batch_size: texts read at once.
        disable_tqdm: ``True`` hides the progress bar.

    Raises:
        ValueError: if the criterion is unknown, teacher and student do not fit, or no token of the texts has two senses.
    """
    _check_criterion(criterion)
    teacher = load_teacher(teacher)
    check_teacher(teacher, student.to_dictionary())
    texts = list(teacher.form.joined(iterate_texts(texts), teacher.tokenizer))
    limit = teacher.max_length if max_length is None else min(max_length, teacher.max_length)
    corpus = encode_corpus(texts, teacher.tokenizer, limit, disable_tqdm=disable_tqdm)
    grid = TemperatureGrid(student)
    with tqdm(
        desc="Temperature", unit=" tokens", unit_scale=True, total=len(corpus.input_ids), disable=disable_tqdm
    ) as bar:
        for rows in corpus.batches(batch_size):
            inputs = corpus.padded(rows, teacher.tokenizer.pad_token_id or 0)
            grid.add(inputs, teacher.hidden_states(**inputs), criterion)
            bar.update(int(corpus.lengths[rows].sum()))
    return grid.set_lowest()


def fit_on_batches(
    student: SensePreTrainedModel, batches: Iterable[dict[str, torch.Tensor]], teacher: Teacher | None, accelerator: Any
) -> float:
    """As ``fit_temperature`` for a trainer's batches, each process bringing its own.

    Args:
        student: likewise.
        batches: of ``SenseDataCollator``.
        teacher: if ``None``, the choices stored in the batches count instead of states.
        accelerator: sums over processes.

    Raises:
        ValueError: if no token of the batches has two senses.
    """
    grid = TemperatureGrid(student)
    for batch in batches:
        given = {name: batch[name] for name in INPUTS if batch.get(name) is not None}
        if teacher is None:
            grid.add(given, None, "choices", batch["sense_labels"])
        else:
            grid.add(given, teacher.hidden_states(**given), "states")
    # Not every device has float64, and a sum of at most millions of tokens needs no more than float32.
    sums = torch.cat([grid.totals, grid.count]).to(accelerator.device, torch.float32)
    sums = accelerator.reduce(sums, "sum").cpu().double()
    grid.totals, grid.count = sums[:-1], sums[-1:]
    return grid.set_lowest()


class TemperatureGrid:
    """What a student's soft selection loses at each of several temperatures, summed over the batches that are added.

    Args:
        student: runs in evaluation mode while a batch is added.

    Attributes:
        temperatures: float64 ``(tried,)``, ascending.
        totals: float64 ``(tried,)``, the losses' sums.
        count: float64, tokens of two senses or more.
    """

    def __init__(self, student: SensePreTrainedModel) -> None:
        self.student = student
        powers = torch.arange(-_EACH_WAY, _EACH_WAY + 1, dtype=torch.float64) / _STEPS
        self.temperatures = student.config.selection_temperature * 2**powers
        self.totals = torch.zeros(len(powers), dtype=torch.float64)
        self.count = torch.zeros(1, dtype=torch.float64)

    @torch.no_grad()
    def add(
        self,
        inputs: dict[str, torch.Tensor],
        teacher_hidden: torch.Tensor | None,
        criterion: Criterion,
        targets: torch.Tensor | None = None,
    ) -> None:
        """Adds a batch.

        Args:
            inputs: ``input_ids`` and ``attention_mask`` ``(batch, sequence)``, and what else the backbone takes.
            teacher_hidden: ``(batch, sequence, dim)``; with ``"choices"`` not needed if there are targets.
            criterion: as of ``fit_temperature``.
            targets: the teacher's choices, global sense ids ``(batch, sequence)``, if they are at hand.
        """
        _check_criterion(criterion)
        student, table = self.student, self.student.sense_table
        device = student.device
        given = {name: tensor.to(device) for name, tensor in inputs.items()}
        training = student.training
        student.eval()
        try:
            states = student(**given, output_contextual=True).contextual_hidden_state
        finally:
            student.train(training)
        ids, mask = given["input_ids"].reshape(-1), given["attention_mask"].reshape(-1)
        several = table.offsets[ids + 1] - table.offsets[ids] > 1
        places = (several & mask.bool()).nonzero().squeeze(-1)
        if len(places) == 0:
            return
        senses, tokens, global_ids = table.lying(ids, places)
        codes = table.residual_codes
        index, rows, own_ids = senses.of(tokens[places])
        hidden = states.reshape(-1, states.shape[-1])[places]
        scores = sense_scores(hidden, index, rows, table.metric)
        if criterion == "choices" and targets is not None:
            wanted = targets.reshape(-1).to(device)[places]
            for numbers in (global_ids, own_ids):
                wanted = wanted if numbers is None else torch.searchsorted(numbers, wanted)
        else:
            if teacher_hidden is None:
                raise ValueError("The teacher's hidden states are needed, or targets with criterion='choices'.")
            goal = teacher_hidden.reshape(-1, teacher_hidden.shape[-1]).to(device)[places].to(scores.dtype)
            wanted = best_sense(sense_scores(goal, index, rows, table.metric), index)
        for at, temperature in enumerate(self.temperatures.tolist()):
            if criterion == "choices":
                lost = sense_cross_entropy(scores / temperature, index, wanted).sum()
            else:
                shares = sense_log_probabilities(scores / temperature, index).exp()
                replaced = expected_sense(shares, index, rows, goal)
                if codes is not None:
                    replaced = replaced + codes.expected(hidden - replaced, temperature)
                lost = (replaced - goal).square().mean(-1).sum()
            self.totals[at] += float(lost)
        self.count += len(places)

    def set_lowest(self) -> float:
        """Sets the student's temperature to where the loss is least, between those tried by a parabola; and returns it.

        Raises:
            ValueError: if no token was added.
        """
        if not self.count:
            raise ValueError(
                "No token of the texts has two senses or more in the student's dictionary: there is nothing to weigh. Give "
                "more texts, or texts of the dictionary's kind."
            )
        losses = self.totals / self.count
        best = int(losses.argmin())
        power = torch.tensor(0.0)
        if 0 < best < len(losses) - 1:
            before, here, after = losses[best - 1 : best + 2]
            power = ((before - after) / (2 * (before - 2 * here + after)).clamp_min(1e-300)).clamp(-0.5, 0.5)
        else:
            logger.warning(
                "The loss is least at an end of the temperatures tried, %.3g to %.3g times the one to start from: fit again, "
                "and the search goes on from there.", 2 ** (-_EACH_WAY / _STEPS), 2 ** (_EACH_WAY / _STEPS),
            )  # fmt: skip
        found = float(self.temperatures[best] * 2 ** (power / _STEPS))
        self.student.config.selection_temperature = found
        return found


def _check_criterion(criterion: Any) -> None:
    if criterion not in CRITERIA:
        raise ValueError(f"criterion must be one of {', '.join(CRITERIA)}, but is {criterion!r}.")
