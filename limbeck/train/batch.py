"""Examples into bins, bins into flat packed batches."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from limbeck.train.layout import DocumentLayout, lay_out


@dataclass(frozen=True)
class Example:
    """One document to learn from.

    `loss_mask` is 1 on every token that is to be learned; `weight` multiplies them all; `name` is
    what an error calls it by.
    """

    ids: list[int]
    loss_mask: list[int]
    weight: float = 1.0
    name: str = ""


@dataclass(frozen=True)
class Tokens:
    """What a loss knows about the tokens that it sees: its `tok`.

    `targets` (N,) is the token that each row of logits should name, `weights` (N,) what its loss
    will be multiplied with afterwards, `columns` whatever else the loss needs, each (N, ...):
    a teacher's log-probabilities, for instance.
    """

    targets: Tensor
    weights: Tensor
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __getitem__(self, index: slice | Tensor) -> Tokens:
        columns = {name: column[index] for name, column in self.columns.items()}
        return Tokens(self.targets[index], self.weights[index], columns)


@dataclass(frozen=True)
class TokenBatch:
    """Documents that lie one after another in a single row.

    `ids`, `position_ids` (N,): positions begin at 0 in each document. `targets` (N,): the next
    token of the same document. `weights` (N,) float32: what that target's loss counts; 0 where
    nothing is to be learned, as in a prompt and at a document's end. `loss_positions` (M,): where
    they are not 0. `columns`: more about each token, (N, ...), for losses that need it.
    """

    ids: Tensor
    position_ids: Tensor
    targets: Tensor
    weights: Tensor
    loss_positions: Tensor
    document_lengths: tuple[int, ...]
    document_names: tuple[str, ...]
    layout: DocumentLayout
    total_weight: float
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def num_tokens(self) -> int:
        """All tokens, N."""
        return self.ids.shape[0]

    @property
    def num_loss_tokens(self) -> int:
        """Tokens that are learned, M."""
        return self.loss_positions.shape[0]

    @property
    def num_prompt_tokens(self) -> int:
        """Tokens that are only read."""
        return self.num_tokens - self.num_loss_tokens

    def loss_tokens(self) -> Tokens:
        """The tokens that are learned, as a loss sees them: (M,)."""
        return Tokens(self.targets, self.weights, self.columns)[self.loss_positions]


def pack(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Bins of indices whose lengths add up to at most `max_tokens`: best-fit decreasing.

    Deterministic; ties keep their order. What is longer than a bin gets one of its own, uncut.
    """
    bins: list[list[int]] = []
    free: list[tuple[int, int]] = []  # (room, bin), sorted
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        length = lengths[index]
        place = bisect_left(free, (length, -1))
        if place < len(free):
            room, bin_index = free.pop(place)
        else:
            room, bin_index = max_tokens, len(bins)
            bins.append([])
        bins[bin_index].append(index)
        if room > length:
            insort(free, (room - length, bin_index))
    return bins


def collate(examples: Sequence[Example], device: torch.device | str = "cpu") -> TokenBatch:
    """Examples into one packed batch, in their order."""
    assert all(len(example.ids) == len(example.loss_mask) for example in examples)
    lengths = tuple(len(example.ids) for example in examples)
    ids = np.fromiter(chain.from_iterable(e.ids for e in examples), np.int64)
    mask = np.fromiter(chain.from_iterable(e.loss_mask for e in examples), np.float32)
    ends = np.cumsum(lengths)
    example_weights = np.array([example.weight for example in examples], np.float32)
    weights = np.roll(mask, -1) * np.repeat(example_weights, lengths)
    weights[ends - 1] = 0.0  # the next token belongs to another document
    position_ids = np.arange(len(ids)) - np.repeat(ends - lengths, lengths)

    def to_device(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device)

    return TokenBatch(
        ids=to_device(ids),
        position_ids=to_device(position_ids),
        targets=to_device(np.roll(ids, -1)),
        weights=to_device(weights),
        loss_positions=to_device(weights.nonzero()[0]),
        document_lengths=lengths,
        document_names=tuple(example.name for example in examples),
        layout=lay_out(lengths, device),
        total_weight=float(weights.sum(dtype=np.float64)),
    )
