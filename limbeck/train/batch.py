"""Examples into bins, bins into flat packed batches."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from limbeck.train import layout
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
class Output:
    """What was written for a prompt, every token of it to be learned.

    `weight` is each token's, `columns` what a loss needs to know: a number for each token, or one
    for all of them. `name` is what an error calls it by.
    """

    ids: list[int]
    weight: float = 1.0
    name: str = ""
    columns: Mapping[str, float | Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Group:
    """A prompt, of at least one token, and the outputs that were written for it."""

    prompt: list[int]
    outputs: list[Output]


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

    `ids`, `position_ids` (N,): positions begin at 0 in each document, or, if it goes on from
    another, behind that one's last. `targets` (N,): the next token of the same document. `weights`
    (N,) float32: what that target's loss counts; 0 where nothing is to be learned, as in a prompt
    and at a document's end. `loss_positions` (M,): where they are not 0. `columns`: more about
    each token, (N, ...), for losses that need it.
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


def collate(
    examples: Sequence[Example],
    device: torch.device | str = "cpu",
    continued: Sequence[int | None] | None = None,
) -> TokenBatch:
    """Examples into one packed batch, in their order.

    `continued` tells of each which example it goes on from, if any: what it begins with.
    """
    assert all(len(example.ids) == len(example.loss_mask) for example in examples)
    lengths = tuple(len(example.ids) for example in examples)
    ids = np.fromiter(chain.from_iterable(e.ids for e in examples), np.int64)
    mask = np.fromiter(chain.from_iterable(e.loss_mask for e in examples), np.float32)
    ends = np.cumsum(lengths)
    example_weights = np.array([example.weight for example in examples], np.float32)
    weights = np.roll(mask, -1) * np.repeat(example_weights, lengths)
    weights[ends - 1] = 0.0  # the next token belongs to another document
    first = np.zeros(len(lengths), np.int64)  # each example's first position
    if continued is not None:
        first[:] = [0 if index is None else lengths[index] for index in continued]
    position_ids = np.arange(len(ids)) - np.repeat(ends - lengths - first, lengths)

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
        layout=lay_out(lengths, device, continued),
        total_weight=float(weights.sum(dtype=np.float64)),
    )


def pack_groups(
    groups: Sequence[Group],
    max_tokens: int,
    device: torch.device | str = "cpu",
    shares_prompts: bool = True,
) -> list[TokenBatch]:
    """Groups in batches of at most `max_tokens`; an output that is longer gets one of its own.

    A prompt is read once for all of a group's outputs that share a batch, where that is quicker;
    losses and gradients are those of every output behind a prompt of its own.
    Output k of a batch is its document k. The outputs' columns stand where their tokens' losses
    do, and beside them `output`, the k of each token, int64.
    """
    parts = [part for group in groups for part in _parts(group, max_tokens, device, shares_prompts)]
    bins = pack([_num_tokens(part) for part in parts], max_tokens)
    return [_collate_groups([parts[index] for index in sorted(one)], device) for one in bins]


def _parts(
    group: Group, max_tokens: int, device: torch.device | str, shares_prompts: bool
) -> list[Group]:
    """The group as smaller ones, those of several outputs share their prompt."""
    if shares_prompts and _is_quicker_shared(group, device):
        room = max_tokens - (len(group.prompt) - 1)
        bins = pack([1 + len(output.ids) for output in group.outputs], room)
    else:
        bins = [[index] for index in range(len(group.outputs))]
    return [Group(group.prompt, [group.outputs[index] for index in sorted(one)]) for one in bins]


def _is_quicker_shared(group: Group, device: torch.device | str) -> bool:
    """Where matrix products serve, which attention to a shared prompt takes.

    They keep no more probabilities of an output than they may of a document.
    """
    if torch.device(device).type != "cpu" or len(group.prompt) == 1:
        return False
    longest = 1 + max((len(output.ids) for output in group.outputs), default=0)
    return longest * (len(group.prompt) - 1 + longest) <= layout.LONGEST_FOR_PRODUCTS**2


def _num_tokens(part: Group) -> int:
    return len(part.prompt) - 1 + sum(1 + len(output.ids) for output in part.outputs)


def _collate_groups(parts: Sequence[Group], device: torch.device | str) -> TokenBatch:
    """Groups into one packed batch: all outputs, then the prompts that several of them share.

    A shared prompt lacks its last token, with which each of its outputs begins: so an output's
    targets are its next tokens, as in every document.
    """
    outputs = [output for part in parts for output in part.outputs]
    examples: list[Example] = []
    prompts: list[Example] = []
    continued: list[int | None] = []
    for part in parts:
        start, prompt = part.prompt, None
        if len(part.outputs) > 1:
            start, prompt = part.prompt[-1:], len(outputs) + len(prompts)
            ids, name = part.prompt[:-1], f"{part.outputs[0].name}, prompt"
            prompts.append(Example(ids, [0] * len(ids), name=name))
        for output in part.outputs:
            mask = [0] * len(start) + [1] * len(output.ids)
            examples.append(Example(start + output.ids, mask, output.weight, output.name))
            continued.append(prompt)
    continued += [None] * len(prompts)
    batch = collate(examples + prompts, device, continued)
    return replace(batch, columns=_columns(outputs, batch, device))


def _columns(
    outputs: Sequence[Output], batch: TokenBatch, device: torch.device | str
) -> dict[str, Tensor]:
    """What the outputs, the first documents of a batch, know of their tokens: (N,) each."""
    ends = np.cumsum(batch.document_lengths)
    columns = {name: np.zeros(batch.num_tokens, np.float32) for name in outputs[0].columns}
    number = np.zeros(batch.num_tokens, np.int64)
    for index, output in enumerate(outputs):
        last = ends[index] - 1  # which has no next token; what stands before it counts for it
        rows = slice(last - len(output.ids), last)
        number[rows] = index
        for name, values in output.columns.items():
            columns[name][rows] = values
    arrays = {"output": number, **columns}
    return {name: torch.from_numpy(array).to(device) for name, array in arrays.items()}
