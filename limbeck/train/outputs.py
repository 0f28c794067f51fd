"""What all tokens of an output have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def sum_of_output(values: Tensor, output: Tensor) -> Tensor:
    """(N,): for every token the sum of `values` (N,) over all tokens of its output.

    `output` (N,) is the number of the output that each token is of, in any order.
    """
    sums = values.new_zeros(len(output.bincount())).index_add(0, output, values)
    return sums[output]


def length_of_output(output: Tensor) -> Tensor:
    """(N,): for every token how many its output has."""
    return output.bincount()[output]
