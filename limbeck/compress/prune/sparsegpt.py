"""SparseGPT (arXiv:2301.00774): prunes column by column, and what is left makes up for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field, PositiveInt

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.compress.masks import Pattern
    from limbeck.compress.walk import Stats

NEEDS_TEXTS = True
NEEDS_GRAM = True

Damping = Annotated[float, Field(gt=0)]


def prune_weight(
    weight: Tensor,
    stats: Stats,
    sparsity: float,
    pattern: Pattern | None,
    *,
    damping: Damping = 0.01,
    block_size: PositiveInt = 128,
) -> Tensor:
    """The weight (out, in) pruned and corrected so that its outputs change little.

    Each `block_size` columns are pruned to the sparsity, whatever each row keeps; what their
    errors ask of later columns is added once per block. `damping` raises the gram's diagonal by
    this share of its mean.
    """
    from limbeck.compress.hessian import inverse_factor

    factor = inverse_factor(stats, damping)
    columns = weight.float().T.contiguous()  # (in, out): a column lies together
    columns[stats.squares == 0] = 0  # what nothing comes into does nothing
    if pattern:
        block_size = max(1, block_size // pattern[1]) * pattern[1]
    for start in range(0, len(columns), block_size):
        end = start + block_size
        own = factor[start:end, start:end]
        errors = _prune_block(columns[start:end], own, sparsity, pattern)
        columns[end:].addmm_(factor[start:end, end:].T, errors, alpha=-1)
    return columns.T.to(weight.dtype)


def _prune_block(
    columns: Tensor, factor: Tensor, sparsity: float, pattern: Pattern | None
) -> Tensor:
    """Prunes columns (B, out) in place, by their part of the factor (B, B); gives their errors.

    Of a pattern, columns are chosen once all before them have been corrected for.
    """
    import torch

    from limbeck.compress import masks

    scale = factor.diagonal()[:, None]
    width = pattern[1] if pattern else len(columns)
    errors = torch.empty_like(columns)
    for index in range(len(columns)):
        if index % width == 0:
            scores = (columns[index : index + width] / scale[index : index + width]).square()
            if pattern:
                goes = masks.least_of_each(scores.T, pattern).T
            else:
                goes = masks.least_of_matrix(scores, sparsity)
        gone = goes[index % width]
        errors[index] = columns[index] * gone / scale[index]
        columns[index].masked_fill_(gone, 0)
        columns[index + 1 :].addr_(factor[index, index + 1 :], errors[index], alpha=-1)
    return errors


def importance(weight: Tensor, stats: Stats, *, damping: Damping = 0.01, **_: object) -> Tensor:
    """w² / U_jj², (out, in): the error that pruning it leaves, once columns before it are fixed."""
    from limbeck.compress.hessian import inverse_factor

    scale = inverse_factor(stats, damping).diagonal()
    return (weight.float() / scale).square() * (stats.squares > 0)
