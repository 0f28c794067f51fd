"""One threshold for all matrices of a model: what a global budget leaves of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck.compress import MOST

EXACT = 1 << 16
"""Numbers of a matrix that are kept as they are; of a larger one as many quantiles."""


@dataclass(frozen=True)
class Sketch:
    """How important a matrix's weights are: sorted numbers, each of which stands for `weight`."""

    values: Tensor
    weight: float


def sketch(importance: Tensor) -> Sketch:
    """The numbers of a matrix; of one with more than EXACT every so many in their order."""
    values = importance.flatten().float().sort().values.cpu()
    num = min(EXACT, len(values))
    middles = ((torch.arange(num, dtype=torch.float64) + 0.5) * (len(values) / num)).long()
    return Sketch(values[middles], len(values) / num)


def sparsities(sketches: Sequence[Sketch], sparsity: float) -> list[float]:
    """What share of each matrix is below the threshold that prunes `sparsity` of them together.

    None loses more than MOST, however small its numbers are.
    """
    kept = [found.values[: round(MOST * len(found.values))] for found in sketches]
    weights = torch.cat([torch.full_like(v, s.weight) for v, s in zip(kept, sketches, strict=True)])
    order = torch.cat(kept).argsort(stable=True)
    total = sum(len(found.values) * found.weight for found in sketches)
    below = weights[order].double().cumsum(0) <= sparsity * total + 0.5
    owners = torch.cat([torch.full((len(v),), i) for i, v in enumerate(kept)])[order][below]
    counts = owners.bincount(minlength=len(sketches)).tolist()
    return [n / len(found.values) for n, found in zip(counts, sketches, strict=True)]
