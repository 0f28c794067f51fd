"""A grid of few numbers, and a weight's way onto it: scales, zero points, codes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd
from typing import TYPE_CHECKING, Literal

from limbeck.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from limbeck.packed import Codes

LARGEST = {"int4": 7, "int8": 127, "fp8": 448}


@dataclass(frozen=True)
class Grid:
    """Which numbers a matrix (out, in) may hold: codes times a scale for each row, or for each
    `group_size` inputs of a row; not `symmetric` ones have a zero point, too.

    Scales are rounded to `dtype`, in which they are kept, before anything is rounded to them. Zero
    is always one of the numbers: what is pruned stays pruned.
    """

    weights: Literal["int4", "int8", "fp8"]
    group_size: int | None = None
    symmetric: bool = True
    dtype: torch.dtype | None = None  # None is float32

    def width(self, columns: int) -> int:
        """How many inputs share a scale; UserError where groups do not come out even."""
        if self.group_size and (told := uneven(self.group_size, [columns])):
            raise UserError("group_size", *told)
        return self.group_size or columns

    @property
    def ends(self) -> tuple[int, int]:
        """The lowest code and the highest; -128 comes with zero points alone."""
        most = LARGEST[self.weights]
        is_even = self.symmetric and self.weights != "int4"
        return (-most if is_even else -most - 1), most

    def fit(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """(scales, zeros), each (out, groups), that reach from end to end of a weight (out, in).

        A symmetric grid's zeros are 0. In 4 bits its scales have either sign: what reaches furthest
        becomes -8, which would be left over else, as in llama.cpp's Q4_0. A group of nothing but
        zeros has scale 1. UserError for a weight that is not finite.
        """
        groups = weight.float().unflatten(1, (-1, self.width(weight.shape[1])))
        low, high = groups.amin(dim=-1).clamp(max=0), groups.amax(dim=-1).clamp(min=0)
        lowest, highest = self.ends
        if not self.symmetric:
            scales = self.kept((high - low) / (highest - lowest))
            return scales, (lowest - low / scales).round().clamp(lowest, highest)
        furthest = high.where(high > -low, low)
        scales = self.kept(
            furthest / lowest if self.weights == "int4" else furthest.abs() / highest
        )
        return scales, scales.new_zeros(scales.shape)

    def snap(self, weight: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
        """The nearest codes, in float32; scales and zeros broadcast against the weight."""
        values = weight.float() / scales + zeros
        if self.weights == "fp8":
            import torch

            return values.clamp_(*self.ends).to(torch.float8_e4m3fn).float()
        return values.round_().clamp_(*self.ends)

    def round(self, weight: Tensor, scales: Tensor, zeros: Tensor) -> Codes:
        """The nearest codes of a weight (out, in), scales and zeros (out, groups) being given."""
        groups = weight.unflatten(1, (scales.shape[1], -1))
        codes = self.snap(groups, scales[:, :, None], zeros[:, :, None])
        return self.codes(codes.flatten(1), scales, zeros)

    def codes(self, codes: Tensor, scales: Tensor, zeros: Tensor) -> Codes:
        """What was found, in the bytes that it is kept in."""
        import torch

        from limbeck.packed import Codes

        dtype = torch.float8_e4m3fn if self.weights == "fp8" else torch.int8
        kept = scales.to(self.dtype or torch.float32)
        return Codes(codes.to(dtype), kept, None if self.symmetric else zeros.to(torch.int8))

    def kept(self, scales: Tensor) -> Tensor:
        """Scales as they will be kept, in float32; 1 where there is nothing to scale."""
        kept = scales.to(self.dtype).float() if self.dtype else scales
        if not bool(kept.isfinite().all()):
            what = "has weights that are not finite, or too large to be scaled"
            raise UserError("model", what, "take other weights")
        return kept.masked_fill(kept == 0, 1)


def uneven(group_size: int, widths: Iterable[int]) -> tuple[str, str] | None:
    """(what, way out) where groups leave a rest of matrices with so many inputs."""
    sizes = sorted({*widths})
    if not any(size % group_size for size in sizes):
        return None
    fits = [str(size) for size in range(2, gcd(*sizes) + 1) if gcd(*sizes) % size == 0]
    what = f"{group_size} does not divide {' and '.join(map(str, sizes))} inputs"
    return what, f"take {' or '.join(fits) or 'null'}"
