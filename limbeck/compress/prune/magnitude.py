"""Magnitude pruning: the smallest weights of a matrix go, whatever comes in; needs no texts."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.compress.masks import Pattern
    from limbeck.compress.walk import Stats

NEEDS_TEXTS = False
NEEDS_GRAM = False


def prune_weight(
    weight: Tensor, stats: Stats | None, sparsity: float, pattern: Pattern | None
) -> Tensor:
    """The weight (out, in) without its smallest elements: of the whole matrix, or of a pattern."""
    from limbeck.compress import masks

    scores = importance(weight, stats)
    if pattern:
        return weight.masked_fill(masks.least_of_each(scores, pattern), 0)
    return weight.masked_fill(masks.least_of_matrix(scores, sparsity), 0)


def importance(weight: Tensor, stats: Stats | None) -> Tensor:
    """|w|, (out, in)."""
    return weight.float().abs()
