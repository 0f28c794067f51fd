"""Losses of a tile of logits: `(logits, tok, *, knobs) -> (N,)`, one number for every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.train.batch import Tokens


def cross_entropy(logits: Tensor, tok: Tokens) -> Tensor:
    """-log p(target), in nats. logits (N, V) float32 -> (N,)."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits, tok.targets, reduction="none")
