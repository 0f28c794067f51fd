"""Linear layers: of ordinary numbers, or of numbers of eight bits on both sides."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from limbeck.packed import Codes

logger = logging.getLogger(__name__)

Kind = Literal["int8", "fp8"]
NUMBERS = {"int8": torch.int8, "fp8": torch.float8_e4m3fn}
MOST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
LEAST_ROWS = 32  # cuBLAS multiplies int8 with more than 16 rows alone


class Product(Protocol):
    """A linear layer, x (N, in) to (N, out): `Linear`, `Rounded`, `kernel.Blocks`."""

    @property
    def num_inputs(self) -> int: ...

    def __call__(self, x: Tensor) -> Tensor: ...


@dataclass
class Linear:
    """x (N, in) to (N, out)."""

    weight: Tensor  # (out, in)
    bias: Tensor | None

    @property
    def num_inputs(self) -> int:
        return self.weight.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


@dataclass
class Rounded:
    """x (N, in) to (N, out), each row of x rounded to numbers of its own scale first.

    A row's numbers depend on that row alone, and sums of int8 are exact: what a text says does not
    depend on who shares its batch.
    """

    codes: Tensor  # (out, in) of `numbers`; the same as float32 where torch cannot multiply them
    scales: Tensor  # (out,), float32
    bias: Tensor | None
    numbers: torch.dtype

    @classmethod
    def of(cls, matrix: Codes, bias: Tensor | None, kind: Kind, device: torch.device) -> Rounded:
        numbers = NUMBERS[kind]
        codes = matrix.codes.to(device)
        if not can_multiply(numbers, device) or not _fits(codes, device):
            codes = codes.float()
        scales = matrix.scales[:, 0].to(device, torch.float32)
        return cls(codes, scales, None if bias is None else bias.to(device), numbers)

    @property
    def num_inputs(self) -> int:
        return self.codes.shape[1]

    def __call__(self, x: Tensor) -> Tensor:
        rows, row_scales = round_rows(x, self.numbers)
        if self.codes.dtype == self.numbers:
            sums = product(rows, self.codes).float()
        else:
            sums = functional.linear(rows.float(), self.codes)
        out = sums * row_scales * self.scales
        if self.bias is not None:
            out += self.bias
        return out.to(x.dtype)


def round_rows(x: Tensor, numbers: torch.dtype) -> tuple[Tensor, Tensor]:
    """(numbers (N, in), scales (N, 1) in float32) of x (N, in): absmax becomes the largest."""
    exact = x.float()
    most = exact.abs().amax(-1, keepdim=True)
    largest = most.new_tensor(MOST[numbers])  # by a plain number torch divides less exactly
    shrunk = exact * (largest / most.masked_fill(most == 0, 1))
    if numbers == torch.int8:
        shrunk = shrunk.round_()
    return shrunk.to(numbers), most / largest


def product(rows: Tensor, codes: Tensor) -> Tensor:
    """rows (N, in) by codes (out, in), both int8 or both fp8: (N, out), int32 or float32."""
    if rows.dtype == torch.int8:
        missing = LEAST_ROWS - len(rows) if rows.device.type == "cuda" else 0
        wide = functional.pad(rows, (0, 0, 0, max(0, missing)))
        return torch._int_mm(wide, codes.t())[: len(rows)]
    one = torch.ones((), device=rows.device)
    return torch._scaled_mm(
        rows, codes.t(), scale_a=one, scale_b=one, out_dtype=torch.float32, use_fast_accum=False
    )


@functools.cache
def can_multiply(numbers: torch.dtype, device: torch.device) -> bool:
    """Whether torch multiplies such numbers on a device, tried; a CPU's fp8 would only be slow."""
    if (numbers, device.type) == (torch.float8_e4m3fn, "cpu"):
        return False
    try:
        rows = torch.full((3, 32), 2.0).to(device, numbers)
        found = product(rows, rows.new_ones(16, 32)).float()
        works = bool((found == 64).all()) and found.shape == (3, 16)
    except (AttributeError, NotImplementedError, RuntimeError, TypeError) as error:
        logger.debug("%s on %s: %s", numbers, device, error)
        works = False
    if not works:
        told = "this torch does not multiply %s on %s: the same numbers are multiplied as floats"
        logger.warning(told, str(numbers).removeprefix("torch."), device)
    return works


def _fits(codes: Tensor, device: torch.device) -> bool:
    """cuBLAS takes rows of whole 16 bytes."""
    return device.type == "cpu" or all(size % 16 == 0 for size in codes.shape)
