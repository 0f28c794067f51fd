"""Looks at a student in training: what it says of held-out texts, and which look was the best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch

from limbeck.train.batch import TokenBatch
from limbeck.train.head import TokenModel
from limbeck.train.losses import cross_entropy


@torch.no_grad()
def heldout_loss(
    model: TokenModel, batches: Sequence[TokenBatch], autocast: torch.dtype | None
) -> float:
    """The mean loss of all tokens that are to be learned, weighted as in training, in nats."""
    was_training = model.training
    model.eval()
    total, weight = 0.0, 0.0
    for batch in batches:
        with torch.autocast(batch.ids.device.type, autocast) if autocast else nullcontext():
            total += float(model(batch, cross_entropy))
        weight += batch.total_weight
    model.train(was_training)
    return total / weight


Look = Mapping[str, Any]
"""`step`, and of `heldout_loss` and `pass_at_1` what was measured."""


def remember(seen: Mapping[str, Any] | None, look: Look) -> dict[str, Any]:
    """What to know after a look: the `best` one yet, the best `watched` number, looks `since`.

    The best has the highest pass@1, and among equals the lowest loss; of those that are equal in
    both it is the last, which has learned more. What is watched is the loss, or pass@1 where there
    is none.
    """
    watched = -look["heldout_loss"] if "heldout_loss" in look else look["pass_at_1"]
    if seen is None:
        return {"best": dict(look), "watched": watched, "since": 0}
    is_better = _rank(look) >= _rank(seen["best"])
    has_improved = watched > seen["watched"]
    return {
        "best": dict(look) if is_better else seen["best"],
        "watched": max(watched, seen["watched"]),
        "since": 0 if has_improved else seen["since"] + 1,
    }


def _rank(look: Look) -> tuple[float, float]:
    return look.get("pass_at_1", 0.0), -look.get("heldout_loss", 0.0)
