"""One optimizer step, its optimizer and its learning rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import AdamW, Optimizer

from limbeck import processes, sharding
from limbeck.train.batch import TokenBatch
from limbeck.train.head import TokenLoss
from limbeck.train.policy_loss import PolicyLoss

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
    `weight` the sum of the tokens' weights, or what stood in its place.
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
    token_loss: TokenLoss | PolicyLoss,
    columns: Columns | None = None,
    autocast: torch.dtype | None = None,
    total_weight: float | None = None,
) -> StepResult:
    """One update from all batches together; how they were split changes nothing.

    `model` is a TokenModel or anything that wraps one. The loss is
    sum(weight * loss) / sum(weight) over the whole step, or over `total_weight` where that is
    another. `autocast=torch.bfloat16` computes in bfloat16 and keeps the weights and their
    gradients in float32. A loss or gradient that is not finite raises NotFinite before anything is
    updated, a weight directly behind it. `columns` gives what else the loss needs of a batch, each
    (N, ...), when the batch's turn comes.

    Of several processes each is given all of the step's batches, computes its own share of them
    and returns the same result.
    """
    if total_weight is None:
        total_weight = sum(batch.total_weight for batch in batches)
    assert total_weight > 0, "a step needs tokens to learn"
    rank, num = processes.rank(), processes.num()
    assert num == 1 or sharding.is_sharded(model), "sharding.shard comes before the optimizer"
    model.train()
    optimizer.zero_grad(set_to_none=True)
    losses = torch.zeros(len(batches), device=batches[0].ids.device)
    for index, batch in deal(batches, rank, num):
        device = batch.ids.device.type
        if columns is not None:
            batch = replace(batch, columns=columns(batch))
        with torch.autocast(device, autocast) if autocast else nullcontext():
            loss = model(batch, token_loss) / total_weight
        (loss * num).backward()  # sharding takes the mean of the processes' gradients
        if index is not None:
            losses[index] = loss.detach()
    if num > 1:
        torch.distributed.all_reduce(losses)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = _norm(p.grad for p in parameters if p.grad is not None)
    _check_finite(losses.tolist(), norm.item())
    if clip is not None:
        torch.nn.utils.clip_grads_with_norm_(parameters, clip, norm)
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.step()
    if not math.isfinite(_norm(parameters).item()):
        raise NotFinite("a weight", tuple(range(len(batches))))
    return StepResult(
        loss=losses.sum().item(),
        grad_norm=norm.item(),
        num_loss_tokens=sum(batch.num_loss_tokens for batch in batches),
        num_tokens=sum(batch.num_tokens for batch in batches),
        weight=total_weight,
    )


def deal(
    batches: Sequence[TokenBatch], rank: int, num: int
) -> Iterator[tuple[int | None, TokenBatch]]:
    """The batches of one process among `num`, each with its number.

    Gathering a layer's weights takes all processes, so each gets as many batches: who would go
    short gets the smallest once more, of no weight and without a number.
    """
    for first in range(0, len(batches), num):
        if first + rank < len(batches):
            yield first + rank, batches[first + rank]
        else:
            smallest = min(batches, key=lambda batch: batch.num_tokens)
            nothing = torch.zeros_like(smallest.weights)
            yield None, replace(smallest, weights=nothing, total_weight=0.0)


def _norm(tensors: Iterable[Tensor]) -> Tensor:
    """The norm of them all, whichever process holds them."""
    norm = torch.nn.utils.get_total_norm(tensors)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _check_finite(losses: list[float], norm: float) -> None:
    bad = tuple(index for index, loss in enumerate(losses) if not math.isfinite(loss))
    if bad or not math.isfinite(norm):
        raise NotFinite("the loss" if bad else "the gradient", bad or tuple(range(len(losses))))
