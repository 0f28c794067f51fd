"""Keys and values of what has been read and written, and the rows of one step.

Each row sees two slots: its prompt's, which is filled once and which all samples of the prompt
look at, and its own, which grows by one position a step. Nothing in a slot is ever moved.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.engines.decoder.weights import Decoder, Layer


@dataclass
class Slots:
    """One layer's keys and values, `capacity` positions a slot.

    Values lie as (slots, K, capacity, E). Keys lie so, too, or, with a `block`, as
    (slots, K, capacity / block, E, block), which is what the compiled kernel reads.
    """

    keys: Tensor
    values: Tensor
    block: int

    @classmethod
    def empty(cls, num: int, capacity: int, layer: Layer, block: int, like: Tensor) -> Slots:
        """Zeros: what is not written yet must be numbers. A CPU lends such pages when touched."""
        capacity = -(-capacity // 16) * 16
        shape = (num, layer.key_heads, capacity, layer.width)
        blocked = (*shape[:2], capacity // block, layer.width, block) if block else shape
        return cls(like.new_zeros(blocked), like.new_zeros(shape), block)

    @property
    def capacity(self) -> int:
        return self.values.shape[2]

    def write(self, slots: Tensor, columns: Tensor, key: Tensor, value: Tensor) -> None:
        """Puts key and value (N, K, E) in the columns (N,) of these slots (N,)."""
        if self.block:
            self.keys[slots, :, columns // self.block, :, columns % self.block] = key.to(
                self.keys.dtype
            )
        else:
            self.keys[slots, :, columns] = key.to(self.keys.dtype)
        self.values[slots, :, columns] = value.to(self.values.dtype)


@dataclass
class Cache:
    """`prompts` and `owns` by layer, and the angles of every position they can hold."""

    prompts: list[Slots]
    owns: list[Slots]
    angles: tuple[Tensor, Tensor] | None

    @classmethod
    def empty(
        cls,
        decoder: Decoder,
        *,
        num_prompts: int,
        longest_prompt: int,
        num_owns: int,
        longest_own: int,
        block: int,
        dtype: torch.dtype,
    ) -> Cache:
        like = torch.empty(0, dtype=dtype, device=decoder.device)
        return cls(
            [Slots.empty(num_prompts, longest_prompt, x, block, like) for x in decoder.layers],
            [Slots.empty(num_owns, longest_own, x, block, like) for x in decoder.layers],
            decoder.angles(longest_prompt + longest_own),
        )


@dataclass
class Rows:
    """What one step writes, row by row (B,), on the host: int32."""

    positions: NDArray[np.int32]  # of the new token, prompt included
    prompts: NDArray[np.int32]  # slot of the prompt
    prompted: NDArray[np.int32]  # the prompt's length
    slots: NDArray[np.int32]  # slot of the row's own

    @cached_property
    def ranks(self) -> NDArray[np.int64]:
        """The how manieth a row is among those of its prompt."""
        order = np.argsort(self.prompts, kind="stable")
        ordered = self.prompts[order]
        starts = np.r_[True, ordered[1:] != ordered[:-1]]
        firsts = np.maximum.accumulate(np.where(starts, np.arange(len(ordered)), 0))
        ranks = np.empty(len(ordered), dtype=np.int64)
        ranks[order] = np.arange(len(ordered)) - firsts
        return ranks
