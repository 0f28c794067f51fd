"""How large the parts of a loss are, so that a mix is never silently one-sided."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from limbeck import sharding
from limbeck.train.batch import TokenBatch
from limbeck.train.distillation import loss_scales
from limbeck.train.head import TokenLoss, TokenModel
from limbeck.train.hidden import HiddenMatch
from limbeck.train.step import Columns

ONE_SIDED = 0.02  # with a smaller share of the gradient a part teaches next to nothing
AGREE = 0.001  # an alpha nearer to 0 or 1 balances nothing: one part has next to no gradient
WHOSE = {"soft": "the teacher's", "hard": "the hard labels'", "hidden": "the hidden states'"}

Parts = Mapping[str, TokenLoss]
Found = dict[str, tuple[float, float]]
Scales = dict[str, dict[str, float]]
"""Of each part its `loss` (nats a token), the norm of its `gradient` and its `share` of these."""


def weigh(
    model: TokenModel,
    batch: TokenBatch,
    columns: Columns,
    parts: Parts,
    hidden: HiddenMatch | None,
) -> Scales:
    """The scales of a loss's parts on a batch; gradients are those at the last hidden states.

    Without dropout, so that the training's own random numbers stay what they are.
    """
    was_training = model.training
    model.eval()
    batch = replace(batch, columns=columns(batch))
    with hidden.left_out() if hidden else nullcontext():
        measure = _of_shares if sharding.is_sharded(model) else _of_whole
        states, found = measure(model, batch, parts)
    if hidden is not None:
        found["hidden"] = hidden.scale(states, batch)
    model.train(was_training)
    whole = sum(gradient for _, gradient in found.values()) or 1.0
    return {
        name: {"loss": loss, "gradient": gradient, "share": gradient / whole}
        for name, (loss, gradient) in found.items()
    }


def _of_whole(model: TokenModel, batch: TokenBatch, parts: Parts) -> tuple[Tensor, Found]:
    """The last hidden states (N, C), and each part's value and gradient there."""
    with torch.no_grad():
        states = model.hidden(batch)
    return states, loss_scales(model, batch, parts)


def _of_shares(model: TokenModel, batch: TokenBatch, parts: Parts) -> tuple[Tensor, Found]:
    """The same of a model that several processes hold: its weights are whole in its forward alone.

    All of them call this, with the same batch.
    """
    states: list[Tensor] = []
    hook = model.model.base_model.register_forward_hook(
        lambda module, inputs, output: states.append(output.last_hidden_state)
    )
    found = {}
    for name, part in parts.items():
        loss = model(batch, part) / batch.total_weight
        (grad,) = torch.autograd.grad(loss, states[-1])
        found[name] = (loss.item(), grad.float().norm().item())
    hook.remove()
    return states[-1][0], found


def told(scales: Scales) -> str:
    """'soft 0.15 (62 % of the gradient), hard 1.84 (38 % of the gradient)'."""
    return ", ".join(
        f"{name} {part['loss']:.3g} ({part['share']:.1%} of the gradient)"
        for name, part in scales.items()
    )


def one_sided(scales: Scales, alpha: float, hidden_weight: float | None) -> Iterator[str]:
    """A warning in plain words for each part that the others drown, and what would balance it."""
    for name, part in scales.items():
        if part["share"] >= ONE_SIDED or len(scales) < 2:
            continue
        largest = max(scales, key=lambda other: scales[other]["gradient"])
        if hidden_weight is not None and "hidden" in (name, largest):
            knob, value = "hidden.weight", hidden_weight
            aim = hidden_weight * _mean_of_others(scales) / (scales["hidden"]["gradient"] or 1.0)
        else:
            knob, value = "alpha", alpha
            aim = _balanced(scales, alpha)
        what = f"{part['share']:.1%} of the gradient is {WHOSE.get(name, name)}"
        if knob == "alpha" and not AGREE <= aim <= 1 - AGREE:
            yield f"{what}, and would be at any alpha: there is hardly anything to learn from it"
            continue
        yield f"{knob} {value:g} is one-sided: {what}; set {knob}: {aim:.3g} for equal shares"


def _balanced(scales: Scales, alpha: float) -> float:
    """The alpha at which both parts pull equally: each is its share of the mix times its own."""
    soft = scales["soft"]["gradient"] / alpha
    hard = scales["hard"]["gradient"] / (1 - alpha)
    return hard / ((soft + hard) or 1.0)


def _mean_of_others(scales: Scales) -> float:
    others = [part["gradient"] for name, part in scales.items() if name != "hidden"]
    return sum(others) / len(others)
