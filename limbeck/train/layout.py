"""How the documents of a packed row fall into blocks that can be attended to at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """Takes rows by `index`; where that is past the end (`has_holes` says whether) comes zero.

    `more` are pairs, as two tensors, of a row of the result and a row that is added to it.
    """

    index: Tensor
    has_holes: bool
    more: tuple[Tensor, Tensor] | None = None

    def __call__(self, rows: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """rows (R, W) -> (len(index), W), in `dtype`."""
        padded = rows
        if self.has_holes:
            padded = rows.new_empty(rows.shape[0] + 1, rows.shape[1], dtype=dtype)
            padded[:-1] = rows
            padded[-1] = 0
        taken = padded.index_select(0, self.index).to(dtype or rows.dtype)
        if self.more is not None:
            here, there = self.more
            taken.index_add_(0, here, rows.index_select(0, there).to(taken.dtype))
        return taken


@dataclass(frozen=True)
class Rows:
    """Tokens of a packed row in blocks (D, L), one block's rows after another's.

    `padded` takes the N tokens to their P = sum(D * L) rows, zeros where a block has no token.
    `flat` takes P rows to N tokens: zeros where a token has no row, the sum where it has several.
    """

    shapes: tuple[tuple[int, int], ...]
    padded: Gather
    flat: Gather
    by_heads: dict[int, Rows] = field(default_factory=dict, repr=False)

    def blocks(self, rows: Tensor) -> Iterator[Tensor]:
        """(P, W) -> each block's (D, L, W), views."""
        parts = rows.split([count * length for count, length in self.shapes])
        for part, shape in zip(parts, self.shapes, strict=True):
            yield part.view(*shape, -1)

    def by_head(self, num_heads: int) -> Rows:
        """The same where every row is one of the K heads of a token, a document one of D * K.

        Tokens' rows are ordered (N, K), a block's (D, K, L), as batched products want them. Made
        once for a batch, used by every layer.
        """
        if num_heads not in self.by_heads:
            size = self.flat.index.shape[0]
            head = torch.arange(num_heads, device=self.padded.index.device)[:, None]  # (K, 1)
            blocks = [
                (block.transpose(1, 2) * num_heads + head).flatten(0, 1)  # (D * K, L)
                for block in self.blocks(self.padded.index)
            ]
            self.by_heads[num_heads] = _rows(blocks, size * num_heads, head.device)
        return self.by_heads[num_heads]


@dataclass(frozen=True)
class Blocks:
    """Some documents of a packed row of N tokens, in blocks of D documents of about L tokens.

    `queries` are the documents' own tokens, (D, L) a block. `keys` are what these may see,
    (D, Q + L): first the Q tokens, or fewer, of the document that each continues, if it does,
    then its own. `hidden` has for each block (D, Q), -inf where such a document is shorter than
    Q, or None where none is.
    """

    queries: Rows
    keys: Rows
    hidden: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class DocumentLayout:
    """The documents of a packed row: those for matrix products, and those for torch's kernel.

    `longest` is the longest that any token can look back, itself included.
    """

    short: Blocks | None
    long: Blocks | None
    longest: int


def lay_out(
    lengths: Sequence[int],
    device: torch.device | str = "cpu",
    continued: Sequence[int | None] | None = None,
) -> DocumentLayout:
    """The layout of documents that lie one after another with these lengths (each at least 1).

    `continued` tells for each which document it goes on from, whose tokens all of its own see:
    so many can share a beginning. Documents that go on from none cannot see any other.
    """
    assert min(lengths, default=0) > 0, "a packed row needs documents, and no empty ones"
    before = [None] * len(lengths) if continued is None else list(continued)
    most = LONGEST_FOR_PRODUCTS if torch.device(device).type == "cpu" else 0
    everything = range(len(lengths))
    long = [index for index in everything if before[index] is None and lengths[index] > most]
    short = [index for index in everything if before[index] is not None or lengths[index] <= most]
    whole = [
        length + (0 if index is None else lengths[index])
        for length, index in zip(lengths, before, strict=True)
    ]
    return DocumentLayout(
        _blocks(lengths, before, short, device) if short else None,
        _blocks(lengths, before, long, device) if long else None,
        max(whole),
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


def _blocks(
    lengths: Sequence[int],
    before: Sequence[int | None],
    documents: Sequence[int],
    device: torch.device | str,
) -> Blocks:
    """These documents in blocks of which each has about one length, of both kinds of keys."""
    length = torch.tensor(lengths)
    start, size = length.cumsum(0) - length, sum(lengths)
    num_earlier = [0 if index is None else lengths[index] for index in before]
    own, earlier = [], []
    for alike in group_by_length(num_earlier, documents):
        for group in group_by_length(lengths, alike):
            own.append(_tokens(start[group], length[group], size))
            first = [group[0] if before[index] is None else before[index] for index in group]
            number = torch.tensor([num_earlier[index] for index in group])
            earlier.append(_tokens(start[first], number, size))
    queries = _rows(own, size, device)
    if not any(block.numel() for block in earlier):
        return Blocks(queries, queries, (None,) * len(own))
    keys = [torch.cat(both, 1) for both in zip(earlier, own, strict=True)]
    return Blocks(
        queries, _rows(keys, size, device), tuple(_hidden(block, size) for block in earlier)
    )


def _tokens(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(D, L): the tokens of D documents, `size` where one has no more."""
    column = torch.arange(int(length.max()))
    tokens = start[:, None] + column
    return tokens.where(column < length[:, None], size)


def _hidden(tokens: Tensor, size: int) -> Tensor | None:
    """-inf where there is no token, else 0: (D, Q)."""
    is_hole = tokens == size
    return torch.zeros(tokens.shape).masked_fill(is_hole, float("-inf")) if is_hole.any() else None


def _rows(blocks: Sequence[Tensor], size: int, device: torch.device | str) -> Rows:
    """Blocks (D, L) of tokens, of which there are `size`; from `size` on nothing is meant."""
    index = torch.cat([block.reshape(-1) for block in blocks])
    row = torch.arange(index.shape[0], device=index.device)
    is_row = index < size
    last = index.new_full((size,), -1)  # each token's last row
    last.scatter_reduce_(0, index[is_row], row[is_row], "amax")
    has_row = last >= 0
    is_other = is_row & (last[index.clamp(max=size - 1)] != row)
    more = (index[is_other].to(device), row[is_other].to(device)) if is_other.any() else None
    index, last = index.clamp(max=size), last.where(has_row, index.shape[0])
    return Rows(
        tuple((block.shape[0], block.shape[1]) for block in blocks),
        Gather(index.to(device), not bool(is_row.all())),
        Gather(last.to(device), not bool(has_row.all()), more),
    )
