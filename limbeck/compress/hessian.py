"""What changing a weight costs: the layer's squared error is a quadratic of the inputs' gram."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.compress.walk import Stats
from limbeck.errors import UserError

STRIP = 256
"""Columns of a factor that are inverted at once."""


def inverse_factor(stats: Stats, damping: float) -> Tensor:
    """U, upper triangular, with UᵀU the inverse of gram + damping * its mean diagonal.

    The square of U's j-th diagonal element is that of the inverse once the columns before j are
    eliminated: one factor serves every step of SparseGPT and GPTQ. An input that was never seen
    counts as one that only damping holds. Kept in `stats`, as q, k and v share it.
    """
    if damping not in stats.factors:
        assert stats.gram is not None, "see NEEDS_GRAM"
        stats.factors[damping] = _inverse_factor(damped(stats.gram, damping))
    return stats.factors[damping]


def damped(gram: Tensor, damping: float) -> Tensor:
    """The gram with its diagonal raised by a share of the diagonal's mean; 1 where it is empty."""
    raised = gram.clone()
    diagonal = raised.diagonal()
    mean = diagonal.mean()
    diagonal[diagonal == 0] = 1
    diagonal += damping * mean
    return raised


def _inverse_factor(hessian: Tensor) -> Tensor:
    """With F the reversal of rows and columns and L the Cholesky factor of FHF: F inv(L) F.

    Two thirds of the work of inverting H and factoring that.
    """
    lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if failed:
        way_out = "raise damping, or take more texts"
        raise UserError("damping", "is too small for what these texts bring to a matrix", way_out)
    inverse = torch.zeros_like(lower)
    for start in range(0, len(lower), STRIP):  # left of what is zero above
        left = lower[start:, start:]
        ones = torch.eye(len(left), min(STRIP, len(left)), device=left.device, dtype=left.dtype)
        strip = torch.linalg.solve_triangular(left, ones, upper=False)
        inverse[start:, start : start + STRIP] = strip
    return inverse.flip(0, 1)
