"""round: each weight to the nearest number of its grid, whatever comes into the matrix."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.compress.quantize.grid import Grid
    from limbeck.compress.walk import Stats
    from limbeck.packed import Codes

NEEDS_TEXTS = False
NEEDS_GRAM = False


def quantize_weight(weight: Tensor, stats: Stats | None, grid: Grid) -> Codes:
    """The nearest codes of a weight (out, in)."""
    return grid.round(weight, *grid.fit(weight))
