"""Causal attention inside each document of a flat packed row, for any Hugging Face decoder.

Importing this file registers it with transformers as `limbeck_packed`. transformers makes no mask
for a name that has no mask function, so a dense (N, N) mask never exists.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from limbeck.errors import UserError

PACKED_ATTENTION = "limbeck_packed"

# Up to this length two matrix products beat the CPU's flash kernel, forward and backward
# (torch 2.13, one core: 32 tokens in bfloat16 8 times; 128 tokens in float32 half as fast).
LONGEST_FOR_MATMUL = {torch.float32: 48, torch.bfloat16: 448}
# A document joins a group when it is at least this fraction of the group's longest: less padding
# against fewer kernel calls.
SHORTEST_IN_GROUP = 0.75


@dataclass(frozen=True)
class DocumentLayout:
    """How the N tokens of a packed row fall into blocks of documents of similar length.

    `shapes` holds the (D, L) of every block. Lying one after another the blocks have
    P = sum(D * L) rows: `padded` (P,) names each row's token, N where there is none;
    `flat` (N,) names each token's row. Made once for a batch, used by every layer.
    """

    shapes: tuple[tuple[int, int], ...]
    padded: Tensor
    flat: Tensor

    @property
    def longest(self) -> int:
        """The length of the longest document."""
        return max(length for _, length in self.shapes)


def group_by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Indices of documents in groups of similar length, longest first."""
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if groups and lengths[index] >= SHORTEST_IN_GROUP * lengths[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups


def lay_out(lengths: Sequence[int], device: torch.device | str = "cpu") -> DocumentLayout:
    """The layout of documents that lie one after another with these lengths (each at least 1)."""
    assert min(lengths, default=0) > 0, "a packed row needs documents, and no empty ones"
    length = torch.tensor(lengths)  # (D,)
    start = length.cumsum(0) - length  # (D,)
    num_tokens = int(length.sum())
    shapes, blocks = [], []
    for group in group_by_length(lengths):
        longest = lengths[group[0]]
        column = torch.arange(longest)  # (L,)
        token = start[group][:, None] + column  # (D, L)
        blocks.append(token.where(column < length[group][:, None], num_tokens).reshape(-1))
        shapes.append((len(group), longest))
    padded = torch.cat(blocks)  # (P,)
    is_token = padded < num_tokens
    flat = torch.empty(num_tokens, dtype=torch.long)
    flat[padded[is_token]] = is_token.nonzero()[:, 0]
    return DocumentLayout(tuple(shapes), padded.to(device), flat.to(device))


class _Move(torch.autograd.Function):
    """Rows of x at `index`, zeros where it points past the end; `back` is the inverse index.

    Both directions gather: autograd's own backward of a gather would scatter with additions.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(index, back)
        return _take(x, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        _, back = ctx.saved_tensors
        return _take(grads[0], back), None, None


def _take(x: Tensor, index: Tensor) -> Tensor:
    if index.shape[0] > x.shape[0]:
        x = F.pad(x, (0, 0, 0, 1))  # the row of zeros that padding points to
    return x.index_select(0, index)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    document_layout: DocumentLayout | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """softmax(scaling * Q K^T, causal inside each document) V, as transformers calls attention.

    query (1, H, N, E), key and value (1, K, N, E), H a multiple of K -> (1, N, H, E).
    """
    assert document_layout is not None, (
        "packed attention got no document layout: call the model through TokenModel, "
        "or set_attn_implementation('sdpa') to use it otherwise"
    )
    assert query.shape[0] == 1
    assert attention_mask is None
    if sliding_window is not None and sliding_window < document_layout.longest:
        raise UserError(
            type(module).__name__,
            f"its sliding window of {sliding_window} tokens is shorter than the longest example "
            f"({document_layout.longest})",
            "packed attention has no window: shorten the examples or take another model",
        )
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    layout = document_layout
    blocks = zip(*(_blocks(x, layout) for x in (query, key, value)), strict=True)
    parts = [_attend(q, k, v, scaling, dropout) for q, k, v in blocks]
    out = torch.cat(parts)  # (P, H * E)
    out = _Move.apply(out, layout.flat, layout.padded)  # (N, H * E)
    return out.view(1, out.shape[0], query.shape[1], -1), None


def _blocks(x: Tensor, layout: DocumentLayout) -> list[Tensor]:
    """(1, H, N, E) -> for every block (D, L, H, E)."""
    _, num_heads, num_tokens, _ = x.shape
    rows = x.transpose(1, 2).reshape(num_tokens, -1)  # (N, H * E)
    rows = _Move.apply(rows, layout.padded, layout.flat)  # (P, H * E)
    parts = rows.split([count * length for count, length in layout.shapes])
    return [
        part.view(count, length, num_heads, -1)
        for part, (count, length) in zip(parts, layout.shapes, strict=True)
    ]


def _attend(query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float) -> Tensor:
    """Causal attention of one block: (D, L, H, E), twice (D, L, K, E) -> (D * L, H * E)."""
    count, length, num_heads, _ = query.shape
    if query.device.type == "cpu" and length <= LONGEST_FOR_MATMUL.get(query.dtype, 0):
        out = _attend_matmul(query, key, value, scaling, dropout)
    else:
        out = F.scaled_dot_product_attention(
            query.transpose(1, 2),
            key.transpose(1, 2),
            value.transpose(1, 2),
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=num_heads != key.shape[2],
        ).transpose(1, 2)  # (D, L, H, E)
    return out.reshape(count * length, -1)


def _attend_matmul(
    query: Tensor, key: Tensor, value: Tensor, scaling: float, dropout: float
) -> Tensor:
    """The same by two matrix products; query heads that share a key head are stacked as rows."""
    count, length, num_heads, width = query.shape
    num_keys = key.shape[2]
    group = num_heads // num_keys
    query = query.view(count, length, num_keys, group, width).permute(0, 2, 3, 1, 4)
    query = query.reshape(count * num_keys, group * length, width)  # (D * K, G * L, E)
    key = key.permute(0, 2, 3, 1).reshape(count * num_keys, width, length)  # (D * K, E, L)
    value = value.transpose(1, 2).reshape(count * num_keys, length, -1)  # (D * K, L, E)
    mask = query.new_full((length, length), float("-inf")).triu(1).repeat(group, 1)  # (G * L, L)
    scores = torch.baddbmm(mask, query, key, alpha=scaling)  # (D * K, G * L, L)
    probabilities = F.dropout(scores.softmax(-1), dropout)
    out = torch.bmm(probabilities.to(value.dtype), value)  # (D * K, G * L, E)
    out = out.view(count, num_keys, group, length, -1).permute(0, 3, 1, 2, 4)
    return out.reshape(count, length, num_heads, -1)


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
