"""Zeros that stay: a pruned student learns with what is left of it."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from transformers import PreTrainedModel

MANY = 0.1
"""The share of zeros from which somebody pruned it: no training makes so many."""


def share(student: PreTrainedModel) -> float:
    """The share of exact zeros in a student's matrices, embeddings and head left out."""
    weights = [_own(weight) for weight in _matrices(student)]
    num = sum(weight.numel() for weight in weights)
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / max(1, num)


def keep(student: PreTrainedModel, optimizer: Optimizer) -> None:
    """From now on, what is zero in a student's matrices stays zero whatever the optimizer does.

    It has no gradient either, so that clipping goes by what can learn.
    """
    masks: dict[Tensor, Tensor] = {weight: _own(weight) == 0 for weight in _matrices(student)}

    def blank_gradient(weight: Tensor) -> None:
        assert weight.grad is not None
        _own(weight.grad).masked_fill_(masks[weight], 0)

    def blank_weights(*_: object) -> None:
        for weight, mask in masks.items():
            _own(weight).masked_fill_(mask, 0)

    for weight in masks:
        weight.register_post_accumulate_grad_hook(blank_gradient)
    optimizer.register_step_post_hook(blank_weights)


def _matrices(student: PreTrainedModel) -> Iterator[nn.Parameter]:
    around = [student.get_input_embeddings(), student.get_output_embeddings()]
    vocabulary = {id(module.weight) for module in around if module is not None}
    for weight in student.parameters():
        if weight.ndim == 2 and id(weight) not in vocabulary:
            yield weight


def _own(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that several share; the same memory."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
