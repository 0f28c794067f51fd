"""Hidden states to learn from, beside a distribution."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from limbeck.errors import UserError
from limbeck.train.batch import TokenBatch
from limbeck.train.distillation import hidden_cosine, hidden_mse
from limbeck.train.head import TokenModel
from limbeck.train.sums import Sums

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": hidden_mse,
    "cosine": hidden_cosine,
}


class HiddenMatch:
    """Adds to a model's loss how far its last hidden states are from the teacher's.

    That is weight * distance at each learned token of a batch with the column `teacher_hidden`
    (N, C). It stands in the model's own forward, so that whatever wraps the model sees one loss.
    UserError unless the student's are `width` wide; 0 stands for a teacher of other tokens.
    """

    def __init__(self, model: TokenModel, width: int, weight: float, distance: str) -> None:
        own = model.model.config.hidden_size
        if own != width:
            theirs = f"{width} wide" if width else "of other tokens"
            what = f"the student's hidden states are {own} wide, the teacher's {theirs}"
            raise UserError("hidden", what, "take models of one width and tokenizer, or drop it")
        self.weight, self.distance = weight, DISTANCES[distance]
        self.sums: list[Tensor] = []
        self.hidden: Tensor | None = None
        self.is_on = True
        model.model.base_model.register_forward_hook(self._remember)
        model.register_forward_hook(self._add)

    def take(self) -> Sums:
        """The sum of "hidden" since the last call."""
        total, weight = torch.stack(self.sums).sum(0).tolist()
        self.sums = []
        return {"hidden": (total, weight)}

    def scale(self, states: Tensor, batch: TokenBatch) -> tuple[float, float]:
        """(weighted mean, norm of its gradient at these last hidden states (N, C))."""
        states = states.detach().requires_grad_()
        loss = self._loss(states, batch) / batch.total_weight
        (grad,) = torch.autograd.grad(loss, states)
        return loss.item(), grad.float().norm().item()

    @contextmanager
    def left_out(self) -> Iterator[None]:
        """The model's loss without it."""
        self.is_on = False
        yield
        self.is_on = True

    def _remember(self, module: Any, args: Any, output: Any) -> None:
        self.hidden = output.last_hidden_state[0]

    def _add(self, module: Any, args: Any, loss: Any) -> Any:
        batch, hidden = args[0], self.hidden
        self.hidden = None
        if hidden is None or not self.is_on or "teacher_hidden" not in batch.columns:
            return loss
        more = self._loss(hidden, batch)
        weight = more.new_tensor(batch.total_weight)
        self.sums.append(torch.stack([more.detach(), weight]))
        return loss + more

    def _loss(self, hidden: Tensor, batch: TokenBatch) -> Tensor:
        learned = batch.loss_positions
        teacher = batch.columns["teacher_hidden"][learned].float()  # (M, C)
        distance = self.distance(hidden[learned].float(), teacher)
        return self.weight * (distance * batch.weights[learned]).sum()
