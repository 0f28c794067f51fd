"""Which of a matrix's weights go, by how important they are."""

from __future__ import annotations

import torch
from torch import Tensor

Pattern = tuple[int, int]
"""(2, 4): of each 4 neighbours in a row 2 stay."""


def least(importance: Tensor, sparsity: float) -> Tensor:
    """Which of the last dimension's elements are the least important: this share, to the unit.

    True is pruned. Of equal ones any may be.
    """
    num = round(sparsity * importance.shape[-1])
    chosen = importance.topk(num, dim=-1, largest=False, sorted=False).indices
    return torch.zeros_like(importance, dtype=torch.bool).scatter_(-1, chosen, True)


def least_of_matrix(importance: Tensor, sparsity: float) -> Tensor:
    """The same over a whole matrix, whatever each row keeps."""
    return least(importance.flatten(), sparsity).view_as(importance)


def least_of_each(importance: Tensor, pattern: Pattern) -> Tensor:
    """The same among each `pattern[1]` neighbours of a row, of which `pattern[0]` stay."""
    stay, width = pattern
    return least(importance.unflatten(-1, (-1, width)), 1 - stay / width).flatten(-2)
