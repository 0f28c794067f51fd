"""How the documents of a packed row fall into blocks that can be attended to at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

# Up to this length matrix products beat the CPU's flash kernel, forward and backward: at 100
# tokens 4.5 times in bfloat16 and 1.3 times in float32, at 1,024 still 2 and 1.2 times (torch
# 2.13, one core). Beyond it the probabilities that they keep outgrow all other activations.
LONGEST_FOR_PRODUCTS = 1024
# A document joins a group when it is at least this fraction of the group's longest: less padding
# against fewer kernel calls.
SHORTEST_IN_GROUP = 0.75


@dataclass(frozen=True)
class Gather:
    """Takes rows by `index`; where that is past the end (`has_holes` says whether) comes zero."""

    index: Tensor
    has_holes: bool

    def __call__(self, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """rows (R, W) -> (len(index), W), in `dtype`."""
        if self.has_holes:
            padded = rows.new_empty(rows.shape[0] + 1, rows.shape[1], dtype=dtype)
            padded[:-1] = rows
            padded[-1] = 0
            rows = padded
        return rows.index_select(0, self.index).to(dtype or rows.dtype)


@dataclass(frozen=True)
class Blocks:
    """Some documents of a packed row of N tokens, in blocks of D documents of about L tokens.

    `shapes` holds the (D, L) of every block. Lying one after another the blocks have
    P = sum(D * L) rows: `padded` takes N tokens to P rows, zeros where a document is shorter than
    its block; `flat` takes P rows to N tokens, zeros where they are another document's.
    """

    shapes: tuple[tuple[int, int], ...]
    padded: Gather
    flat: Gather
    by_heads: dict[int, tuple[Gather, Gather]] = field(default_factory=dict, repr=False)

    def by_head(self, num_heads: int) -> tuple[Gather, Gather]:
        """`padded` and `flat` where every row is one of the K heads of a token.

        Tokens' rows are ordered (N, K), a block's (D, K, L), as batched products want them. Made
        once for a batch, used by every layer.
        """
        if num_heads not in self.by_heads:
            head = torch.arange(num_heads, device=self.padded.index.device)[:, None]  # (K, 1)
            parts = self.padded.index.split([count * length for count, length in self.shapes])
            rows = [
                (part.view(count, 1, length) * num_heads + head).reshape(-1)  # (D * K * L,)
                for part, (count, length) in zip(parts, self.shapes, strict=True)
            ]
            self.by_heads[num_heads] = _there_and_back(
                torch.cat(rows), self.flat.index.shape[0] * num_heads
            )
        return self.by_heads[num_heads]


@dataclass(frozen=True)
class DocumentLayout:
    """The documents of a packed row: those for matrix products, and those for torch's kernel."""

    short: Blocks | None
    long: Blocks | None
    longest: int


def lay_out(lengths: Sequence[int], device: torch.device | str = "cpu") -> DocumentLayout:
    """The layout of documents that lie one after another with these lengths (each at least 1)."""
    assert min(lengths, default=0) > 0, "a packed row needs documents, and no empty ones"
    most = LONGEST_FOR_PRODUCTS if torch.device(device).type == "cpu" else 0
    short = [index for index, length in enumerate(lengths) if length <= most]
    long = [index for index, length in enumerate(lengths) if length > most]
    return DocumentLayout(
        _blocks(lengths, short, device) if short else None,
        _blocks(lengths, long, device) if long else None,
        max(lengths),
    )


def group_by_length(lengths: Sequence[int], documents: Sequence[int]) -> list[list[int]]:
    """These documents in groups of similar length, longest first."""
    groups: list[list[int]] = []
    for index in sorted(documents, key=lambda i: (-lengths[i], i)):
        if groups and lengths[index] >= SHORTEST_IN_GROUP * lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def _blocks(lengths: Sequence[int], documents: Sequence[int], device: torch.device | str) -> Blocks:
    length = torch.tensor(lengths)
    start = length.cumsum(0) - length
    num_tokens = int(length.sum())
    shapes, rows = [], []
    for group in group_by_length(lengths, documents):
        longest = lengths[group[0]]
        column = torch.arange(longest)  # (L,)
        token = start[group][:, None] + column  # (D, L)
        rows.append(token.where(column < length[group][:, None], num_tokens).reshape(-1))
        shapes.append((len(group), longest))
    padded, flat = _there_and_back(torch.cat(rows).to(device), num_tokens)
    return Blocks(tuple(shapes), padded, flat)


def _there_and_back(index: Tensor, size: int) -> tuple[Gather, Gather]:
    """The gather of `size` rows by `index`, and its inverse; from `size` on nothing is meant."""
    is_row = index < size
    back = index.new_full((size,), index.shape[0])
    back[index[is_row]] = is_row.nonzero()[:, 0]
    num_taken = int(is_row.sum())
    there = Gather(index.clamp(max=size), num_taken < index.shape[0])
    return there, Gather(back, num_taken < size)
