"""GPTQ (arXiv:2210.17323): rounds column by column, and those to come make up for what is lost.

What counts is the error of what comes out, |W X - Q X|², so H = X Xᵀ. When w of column j became q,
the rest of its row moves by -(w - q) / [H⁻¹]_jj times row j of H⁻¹, where H is that of the columns
not yet rounded; one triangular factor holds all of these inverses (`hessian.inverse_factor`).
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.compress.quantize.grid import Grid
    from limbeck.compress.walk import Stats
    from limbeck.packed import Codes

NEEDS_TEXTS = True
NEEDS_GRAM = True
BLOCK = 128  # columns that are rounded before all the others are told, as in the paper


def quantize_weight(
    weight: Tensor,
    stats: Stats,
    grid: Grid,
    *,
    damping: Annotated[float, Field(gt=0)] = 0.01,
) -> Codes:
    """Codes of a weight (out, in), made for what came into it.

    `damping` raises the diagonal of H by this share of its mean. A group's scales are found when
    its first column is reached. What is exactly 0, since somebody pruned it, stays 0.
    """
    import torch

    from limbeck.compress.hessian import inverse_factor

    factor = inverse_factor(stats, damping)
    columns = weight.T.float().clone(memory_format=torch.contiguous_format)  # (in, out)
    kept, codes, grids = columns != 0, torch.empty_like(columns), []
    width = grid.width(len(columns))
    for start, end in _blocks(len(columns), width):
        lost = torch.empty_like(columns[start:end])
        for j in range(start, end):
            if j % width == 0:
                grids.append(grid.fit((columns[j : j + width] * kept[j : j + width]).T))
                scale, zero = (part[:, 0] for part in grids[-1])
            codes[j] = grid.snap(columns[j] * kept[j], scale, zero)
            lost[j - start] = (columns[j] - (codes[j] - zero) * scale) / factor[j, j]
            columns[j + 1 : end].addr_(factor[j, j + 1 : end], lost[j - start], alpha=-1)
        columns[end:].addmm_(factor[start:end, end:].T, lost, alpha=-1)
    scales, zeros = (torch.cat(part, dim=1) for part in zip(*grids, strict=True))
    return grid.codes(codes.T, scales, zeros)


def _blocks(num: int, width: int) -> list[tuple[int, int]]:
    """Where each block of columns starts and ends: whole groups, or parts of one group."""
    whole = max(1, BLOCK // width) * width
    firsts = range(0, num, whole)
    starts = [start for first in firsts for start in range(first, min(first + whole, num), BLOCK)]
    return list(pairwise([*starts, num]))
