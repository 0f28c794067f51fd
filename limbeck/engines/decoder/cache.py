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

    Values lie as (slots, K, capacity, E). Keys lie so, too, or, with a `block`, as the compiled
    kernel reads them: (slots, K, capacity / block, E, block), in bfloat16 with neighbours of E
    side by side, (slots, K, capacity / block, E / 2, block, 2).
    """

    keys: Tensor
    values: Tensor
    block: int

    @classmethod
    def empty(cls, num: int, capacity: int, layer: Layer, block: int, like: Tensor) -> Slots:
        """Zeros, as what is not written yet must be numbers; the kernel does not look at it."""
        capacity = -(-capacity // 16) * 16
        shape = (num, layer.key_heads, capacity, layer.width)
        if not block:
            return cls(like.new_zeros(shape), like.new_zeros(shape), 0)
        pair = 4 // like.element_size()
        blocks = (num, layer.key_heads, capacity // block, layer.width // pair, block)
        keys = like.new_empty(blocks if pair == 1 else (*blocks, pair))
        return cls(keys, like.new_empty(shape), block)

    @property
    def capacity(self) -> int:
        return self.values.shape[2]

    def write(self, slots: Tensor, columns: Tensor, key: Tensor, value: Tensor) -> None:
        """Puts key and value (N, K, E) in the columns (N,) of these slots (N,)."""
        key = key.to(self.keys.dtype)
        if self.block:
            pairs = key.view(*key.shape[:2], self.keys.shape[3], *self.keys.shape[5:])
            self.keys[slots, :, columns // self.block, :, columns % self.block] = pairs
        else:
            self.keys[slots, :, columns] = key
        self.values[slots, :, columns] = value.to(self.values.dtype)

    def take(self, slots: Tensor, length: int) -> Slots:
        """A copy of some slots' first columns; not of blocked ones."""
        assert not self.block
        return Slots(self.keys[slots, :, :length], self.values[slots, :, :length], 0)


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
    device: torch.device

    @cached_property
    def tensors(self) -> list[Tensor]:
        """Positions, prompts, prompted, slots and ranks on the device, int64."""
        parts = (self.positions, self.prompts, self.prompted, self.slots, self.ranks)
        return [torch.from_numpy(part).to(self.device, torch.long) for part in parts]

    @property
    def seats(self) -> tuple[int, int]:
        """(prompt slots up to the last in use, the most rows that look at one)."""
        return int(self.prompts.max()) + 1, int(self.ranks.max()) + 1

    @property
    def longest(self) -> tuple[int, int]:
        """(the longest prompt, the longest own text with the new token)."""
        return int(self.prompted.max()), int((self.positions - self.prompted).max()) + 1

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
