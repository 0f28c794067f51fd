"""Causal attention inside each document of a flat packed row, for any Hugging Face decoder.

Importing this file registers it with transformers as `limbeck_packed`. transformers makes no mask
for a name that has no mask function, so a dense (N, N) mask never exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from limbeck.errors import UserError
from limbeck.train.layout import Blocks, DocumentLayout, Gather

PACKED_ATTENTION = "limbeck_packed"

# Queries of a document that are multiplied at a time: they see no later key, so that nearly half
# of a long document's products are never made.
QUERIES_AT_ONCE = 128


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
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))  # (N, H or K, E)
    short, long = document_layout.short, document_layout.long
    parts = []
    if short is not None and not dropout:
        parts.append(_Products.apply(query, key, value, short, scaling))
    elif short is not None:
        parts.append(_by_kernel(query, key, value, short, scaling, dropout))
    if long is not None:
        parts.append(_by_kernel(query, key, value, long, scaling, dropout))
    out = parts[0] if len(parts) == 1 else parts[0] + parts[1]  # each has zeros for the other's
    return out[None], None


class _Products(torch.autograd.Function):
    """Attention by matrix products: (N, H, E), twice (N, K, E) -> (N, H, E).

    A block's queries are (D * K, L * G, E), where G = H / K heads share a key head, its keys and
    values (D * K, L, E). The probabilities P are kept, and the backward is dV = P^T dO,
    dS = P * (dO V^T - rowsum(dO * O)), dQ = dS K, dK = dS^T Q (arXiv:2205.14135, appendix B).
    One node with everything in it: for small models it is their number that takes time. Under
    autocast it computes in its dtype.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float
    ) -> Tensor:
        device, dtype = query.device.type, query.dtype
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        num_tokens, num_keys = key.shape[:2]
        padded, flat = blocks.by_head(num_keys)
        q, k, v = (
            padded(x.reshape(num_tokens * num_keys, -1), dtype) for x in (query, key, value)
        )  # (P * K, G * E), (P * K, E) twice
        q *= scaling
        group = query.shape[1] // num_keys
        out = q.new_empty(q.shape[0], group * v.shape[1])
        kept: list[Tensor] = []
        with torch.autocast(device, enabled=False):
            for block in _by_block((q, k, v, out), blocks, num_keys):
                kept += _attend(group, *block)
        ctx.save_for_backward(q, k, v, out, *kept)
        ctx.blocks, ctx.scaling, ctx.group = blocks, scaling, group
        return flat(out).view(num_tokens, query.shape[1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, *kept = ctx.saved_tensors
        num_tokens, num_heads = grads[0].shape[:2]
        num_keys = num_heads // ctx.group
        padded, flat = ctx.blocks.by_head(num_keys)
        grad_out = padded(grads[0].reshape(num_tokens * num_keys, -1), out.dtype)
        found = [torch.empty_like(x) for x in (q, k, v)]
        probabilities = iter(kept)
        for block in _by_block((q, k, v, out, grad_out, *found), ctx.blocks, num_keys):
            _attend_backward(ctx.group, probabilities, *block)
        found[0] *= ctx.scaling
        heads = (num_heads, num_keys, num_keys)
        back = (flat(x).view(num_tokens, h, -1) for x, h in zip(found, heads, strict=True))
        return *back, None, None


def _by_block(
    rows: tuple[Tensor, ...], blocks: Blocks, num_keys: int
) -> Iterator[tuple[Tensor, ...]]:
    """Tensors of (P * K, ...) as their parts (D * K, L, ...), block by block."""
    begin = 0
    for count, length in blocks.shapes:
        end = begin + count * num_keys * length
        yield tuple(x[begin:end].view(count * num_keys, length, -1) for x in rows)
        begin = end


def _attend(group: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> list[Tensor]:
    """Fills `out` (B, L, G * E); gives the probabilities, (B, n * G, keys) for n queries each."""
    batch, length, width = k.shape
    kept = []
    for queries, keys in _tiles(length):
        scores = torch.bmm(q[:, queries].reshape(batch, -1, width), k[:, :keys].transpose(1, 2))
        scores[:, :, queries] += _no_later_key(queries.stop - queries.start, group, q.dtype)
        probabilities = torch.softmax(scores, -1, out=scores)
        part = torch.bmm(probabilities, v[:, :keys])
        out[:, queries] = part.view(batch, -1, out.shape[-1])
        kept.append(probabilities)
    return kept


def _attend_backward(
    group: int,
    kept: Iterator[Tensor],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    grad_out: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
) -> None:
    """Fills the last three, with the shapes of the first three, from what `_attend` kept."""
    batch, length, width = k.shape
    total = (grad_out.float() * out).view(batch, length * group, -1).sum(-1, keepdim=True)
    total = total.to(q.dtype)  # (B, L * G, 1)
    for queries, keys in _tiles(length):
        rows = slice(queries.start * group, queries.stop * group)
        probabilities = next(kept)
        above = grad_out[:, queries].reshape(batch, -1, v.shape[-1])
        grad_scores = torch.bmm(above, v[:, :keys].transpose(1, 2))
        grad_scores.sub_(total[:, rows]).mul_(probabilities)
        part = torch.bmm(grad_scores, k[:, :keys])
        grad_q[:, queries] = part.view(batch, -1, q.shape[-1])
        part = q[:, queries].reshape(batch, -1, width)
        _add(grad_k, torch.bmm(grad_scores.transpose(1, 2), part), queries)
        _add(grad_v, torch.bmm(probabilities.transpose(1, 2), above), queries)


def _add(total: Tensor, part: Tensor, queries: slice) -> None:
    """What these queries add to the gradient of all keys up to their own, which are new."""
    total[:, : queries.start] += part[:, : queries.start]
    total[:, queries] = part[:, queries]


def _tiles(length: int) -> Iterator[tuple[slice, int]]:
    """(queries, number of keys that they see), from the first query to the last."""
    for begin in range(0, length, QUERIES_AT_ONCE):
        end = min(begin + QUERIES_AT_ONCE, length)
        yield slice(begin, end), end


@lru_cache(maxsize=256)
def _no_later_key(num_queries: int, group: int, dtype: torch.dtype) -> Tensor:
    """-inf where a key comes after the query, (n * G, n)."""
    mask = torch.full((num_queries, num_queries), float("-inf"), dtype=dtype)
    return mask.triu(1).repeat_interleave(group, 0)


def _by_kernel(
    query: Tensor, key: Tensor, value: Tensor, blocks: Blocks, scaling: float, dropout: float
) -> Tensor:
    """Attention by torch's kernel, block by block: (N, H, E), twice (N, K, E) -> (N, H, E)."""
    num_heads, num_keys = query.shape[1], key.shape[1]
    sizes = [count * length for count, length in blocks.shapes]
    rows = (
        _Move.apply(x.reshape(x.shape[0], -1), blocks.padded, blocks.flat).split(sizes)
        for x in (query, key, value)
    )
    parts = []
    for (count, length), *block in zip(blocks.shapes, *rows, strict=True):
        q, k, v = (
            x.view(count, length, heads, -1).transpose(1, 2)
            for x, heads in zip(block, (num_heads, num_keys, num_keys), strict=True)
        )  # (D, H or K, L, E)
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=num_heads != num_keys,
        )
        parts.append(out.transpose(1, 2).reshape(count * length, -1))
    flat = _Move.apply(torch.cat(parts), blocks.flat, blocks.padded)  # (N, H * E)
    return flat.view(flat.shape[0], num_heads, -1)


class _Move(torch.autograd.Function):
    """Rows as `there` takes them; `back` is its inverse.

    Both directions gather: autograd's own backward of a gather would scatter with additions.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: Gather, back: Gather) -> Tensor:
        ctx.back = back
        return there(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return ctx.back(grads[0]), None, None


AttentionInterface.register(PACKED_ATTENTION, packed_attention)
