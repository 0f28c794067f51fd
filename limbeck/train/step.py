"""One optimizer step, its optimizer and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from limbeck.train.batch import TokenBatch
from limbeck.train.head import TokenLoss

Columns = Callable[[TokenBatch], Mapping[str, Tensor]]


class NotFinite(ArithmeticError):
    """`what` is not finite in these `batches` of a step: the model is not to be saved."""

    def __init__(self, what: str, batches: tuple[int, ...]):
        super().__init__(f"{what} is not finite in batch {', '.join(map(str, batches))}")
        self.what, self.batches = what, batches


@dataclass(frozen=True)
class StepResult:
    """What one step did.

    `loss` is the weighted mean over the step's tokens, `grad_norm` the norm before clipping,
    `weight` the sum of the tokens' weights.
    """

    loss: float
    grad_norm: float
    num_loss_tokens: int
    num_tokens: int
    weight: float


def make_optimizer(
    model: nn.Module,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.95),
    weight_decay: float = 0.0,
) -> AdamW:
    """AdamW (arXiv:1711.05101), fused; matrices decay, embeddings too; norms and biases do not."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return AdamW(groups, lr=lr, betas=betas, fused=True)


def cosine_lr(
    step: float, num_steps: int, peak: float, warmup_steps: int = 0, final_ratio: float = 0.0
) -> float:
    """The learning rate of step 0 <= step < num_steps.

    Linear from peak / warmup_steps to peak in `warmup_steps` steps, then half a cosine down to
    final_ratio * peak, which is reached at `num_steps`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * (final_ratio + (1 - final_ratio) * cosine)


def train_step(
    model: nn.Module,
    batches: Sequence[TokenBatch],
    optimizer: Optimizer,
    *,
    lr: float,
    clip: float | None,
    token_loss: TokenLoss,
    columns: Columns | None = None,
    autocast: torch.dtype | None = None,
) -> StepResult:
    """One update from all batches together; how they were split changes nothing.

    `model` is a TokenModel or anything that wraps one. The loss is
    sum(weight * loss) / sum(weight) over the whole step. `autocast=torch.bfloat16` computes in
    bfloat16 and keeps the weights and their gradients in float32. A loss or gradient that is not
    finite raises NotFinite before anything is updated, a weight directly behind it. `columns` gives
    what else the loss needs of a batch, each (N, ...), when the batch's turn comes.
    """
    total_weight = sum(batch.total_weight for batch in batches)
    assert total_weight > 0, "a step needs tokens to learn"
    model.train()
    optimizer.zero_grad(set_to_none=True)
    losses = []
    for batch in batches:
        device = batch.ids.device.type
        if columns is not None:
            batch = replace(batch, columns=columns(batch))
        with torch.autocast(device, autocast) if autocast else nullcontext():
            loss = model(batch, token_loss) / total_weight
        loss.backward()
        losses.append(loss.detach())
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = torch.nn.utils.get_total_norm(p.grad for p in parameters if p.grad is not None)
    _check_finite(torch.stack(losses).tolist(), norm.item())
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    if not math.isfinite(torch.nn.utils.get_total_norm(parameters).item()):
        raise NotFinite("a weight", tuple(range(len(batches))))
    return StepResult(
        loss=torch.stack(losses).sum().item(),
        grad_norm=norm.item(),
        num_loss_tokens=sum(batch.num_loss_tokens for batch in batches),
        num_tokens=sum(batch.num_tokens for batch in batches),
        weight=total_weight,
    )


def _check_finite(losses: list[float], norm: float) -> None:
    bad = tuple(index for index, loss in enumerate(losses) if not math.isfinite(loss))
    if bad or not math.isfinite(norm):
        raise NotFinite("the loss" if bad else "the gradient", bad or tuple(range(len(losses))))
