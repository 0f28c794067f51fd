"""Wanda (arXiv:2306.11695): in each row the weights go that matter least with these inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.compress.masks import Pattern
    from limbeck.compress.walk import Stats

NEEDS_TEXTS = True
NEEDS_GRAM = False


def prune_weight(weight: Tensor, stats: Stats, sparsity: float, pattern: Pattern | None) -> Tensor:
    """The weight (out, in) without the least important elements of each row, or of a pattern."""
    from limbeck.compress import masks

    scores = importance(weight, stats)
    if pattern:
        return weight.masked_fill(masks.least_of_each(scores, pattern), 0)
    return weight.masked_fill(masks.least(scores, sparsity), 0)


def importance(weight: Tensor, stats: Stats) -> Tensor:
    """|w| times the norm of its input over all tokens, (out, in)."""
    return weight.float().abs() * stats.squares.sqrt()
