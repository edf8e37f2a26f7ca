"""AdamW for a model whose senses are trained: a sense that a batch does not hold stays where it is.

A dense optimizer moves every row of a table at every step, by momentum and by weight decay, though a batch holds the senses
of a few hundred tokens. Everything but the senses is left to PyTorch's AdamW.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

SENSES = "table.senses"


class RowAdamW(torch.optim.AdamW):
    """AdamW whose groups with ``by_row=True`` are updated row by row, where a row's gradient is not all zeros.

    A row's moments and the count of its steps, which corrects their bias (Kingma and Ba 2015, algorithm 1), stay too where it
    has no gradient. Those groups take no weight decay. ``torch.optim.SparseAdam`` is the sibling for sparse gradients; it
    corrects the bias by the steps of all, by which a rare row moves too far at first.

    Args:
        params: parameters or groups of them, as of every optimizer.
        **options: of ``torch.optim.AdamW``.

    Raises:
        ValueError: if ``amsgrad``, ``maximize`` or ``differentiable`` is asked for, which rows do not know.
    """

    param_groups: list[dict[str, Any]]

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        if wrong := [name for name in ("amsgrad", "maximize", "differentiable") if options.get(name)]:
            raise ValueError(f"RowAdamW does not know {', '.join(wrong)}. Leave it out.")
        super().__init__(params, **options)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step; ``closure`` computes the loss anew, as of every optimizer."""
        groups = self.param_groups
        self.param_groups = [group for group in groups if not group.get("by_row")]
        try:
            loss = super().step(closure)
        finally:
            self.param_groups = groups
        for group in groups:
            for table in group["params"] if group.get("by_row") else ():
                if table.grad is not None:
                    self._step_rows(table, group)
        return loss

    def _step_rows(self, table: Any, group: dict[str, Any]) -> None:
        state = self.state[table]
        if not state:
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(table), torch.zeros_like(table)
            state["step"] = torch.zeros(len(table), 1, dtype=torch.float32, device=table.device)
        at = table.grad.ne(0).any(1).nonzero().squeeze(-1)
        grad = table.grad[at]
        first, second = group["betas"]
        steps = state["step"][at] + 1
        mean = state["exp_avg"][at].lerp_(grad, 1 - first)
        square = state["exp_avg_sq"][at].mul_(second).addcmul_(grad, grad, value=1 - second)
        for name, values in (("step", steps), ("exp_avg", mean), ("exp_avg_sq", square)):
            state[name][at] = values
        unit = (square / (1 - second**steps)).sqrt_().add_(group["eps"])
        table.index_add_(0, at, mean / (1 - first**steps) / unit, alpha=-float(group["lr"]))


def row_optimizer(
    model: nn.Module,
    learning_rate: float = 1e-3,
    sense_learning_rate: float | None = None,
    weight_decay: float = 0.0,
    **options: Any,
) -> RowAdamW:
    """An optimizer for a model with ``config.learned_senses``: ``Trainer(..., optimizers=(row_optimizer(model), None))``.

    Weight decay is for matrices, as in ``Trainer``: neither for the senses, nor for biases and the weights of norms.

    Args:
        model: a sense model, or what holds one. Parameters that ask for no gradient are left out.
        learning_rate: of everything but the senses.
        sense_learning_rate: of the senses; ``learning_rate`` if not given.
        weight_decay: see above.
        **options: of ``torch.optim.AdamW``, such as ``betas``.

    Raises:
        ValueError: if nothing asks for a gradient.
    """
    groups: list[dict[str, Any]] = [
        {"params": [], "weight_decay": weight_decay},
        {"params": [], "weight_decay": 0.0},
        {"params": [], "weight_decay": 0.0, "by_row": True, "lr": sense_learning_rate or learning_rate},
    ]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            own = 2 if name.endswith(SENSES) else 0 if parameter.ndim > 1 else 1
            groups[own]["params"].append(parameter)
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("No parameter of the model asks for a gradient: there is nothing to train.")
    return RowAdamW(groups, lr=learning_rate, **options)


def optimizer_of(model: nn.Module, args: TrainingArguments) -> RowAdamW:
    """The optimizer that a trainer's arguments ask for; ``args.sense_learning_rate`` counts if there is one.

    Raises:
        ValueError: if ``args.optim`` is another one.
    """
    if not args.optim.startswith("adamw_torch"):
        raise ValueError(
            f'Learned senses are trained with optim="adamw_torch", but optim is "{args.optim}". Pass optimizers= to train them '
            "otherwise."
        )
    return row_optimizer(
        model, args.learning_rate, getattr(args, "sense_learning_rate", None), args.weight_decay,
        betas=(args.adam_beta1, args.adam_beta2), eps=args.adam_epsilon,
    )  # fmt: skip
