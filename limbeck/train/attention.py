"""Causal attention inside each document of a flat packed row, for any Hugging Face decoder.

A document may go on from another: then it sees all of that one's tokens, too.

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
    values (D * K, Q + L, E), Q of them of the documents that its own go on from. The
    probabilities P are kept, and the backward is dV = P^T dO, dS = P * (dO V^T - rowsum(dO * O)),
    dQ = dS K, dK = dS^T Q (arXiv:2205.14135, appendix B). Who continues a document has a copy of
    its keys and values; what the copies' gradients add up to is that document's.
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
        queries, keys = blocks.queries.by_head(num_keys), blocks.keys.by_head(num_keys)
        q = queries.padded(query.reshape(num_tokens * num_keys, -1), dtype)  # (P * K, G * E)
        k, v = (
            keys.padded(x.reshape(num_tokens * num_keys, -1), dtype) for x in (key, value)
        )  # (P' * K, E)
        q *= scaling
        group = query.shape[1] // num_keys
        out = q.new_empty(q.shape[0], group * v.shape[1])
        kept: list[Tensor] = []
        with torch.autocast(device, enabled=False):
            for hidden, *block in zip(
                blocks.hidden,
                *map(queries.blocks, (q, out)),
                *map(keys.blocks, (k, v)),
                strict=True,
            ):
                kept += _attend(group, hidden, *block)
        ctx.save_for_backward(q, out, k, v, *kept)
        ctx.queries, ctx.keys, ctx.scaling, ctx.group = queries, keys, scaling, group
        return queries.flat(out).view(num_tokens, query.shape[1], -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, out, k, v, *kept = ctx.saved_tensors
        queries, keys = ctx.queries, ctx.keys
        num_tokens, num_heads = grads[0].shape[:2]
        num_keys = num_heads // ctx.group
        grad_out = queries.padded(grads[0].reshape(num_tokens * num_keys, -1), out.dtype)
        grad_q, grad_k, grad_v = (torch.empty_like(x) for x in (q, k, v))
        probabilities = iter(kept)
        for block in zip(
            *map(queries.blocks, (q, out, grad_out, grad_q)),
            *map(keys.blocks, (k, v, grad_k, grad_v)),
            strict=True,
        ):
            _attend_backward(ctx.group, probabilities, *block)
        grad_q *= ctx.scaling
        return (
            queries.flat(grad_q).view(num_tokens, num_heads, -1),
            keys.flat(grad_k).view(num_tokens, num_keys, -1),
            keys.flat(grad_v).view(num_tokens, num_keys, -1),
            None,
            None,
        )


def _attend(
    group: int, hidden: Tensor | None, q: Tensor, out: Tensor, k: Tensor, v: Tensor
) -> list[Tensor]:
    """Fills `out` (B, L, G * E); gives the probabilities, (B, n * G, keys) for n queries each."""
    batch, width = k.shape[0], k.shape[2]
    earlier = k.shape[1] - q.shape[1]
    kept = []
    for queries, seen in _tiles(q.shape[1], earlier):
        scores = torch.bmm(q[:, queries].reshape(batch, -1, width), k[:, :seen].transpose(1, 2))
        own = slice(earlier + queries.start, seen)
        scores[:, :, own] += _no_later_key(own.stop - own.start, group, q.dtype)
        if hidden is not None:
            by_document = scores[:, :, :earlier].unflatten(0, (hidden.shape[0], -1))
            by_document += hidden[:, None, None].to(q.dtype)
        probabilities = torch.softmax(scores, -1, out=scores)
        part = torch.bmm(probabilities, v[:, :seen])
        out[:, queries] = part.view(batch, -1, out.shape[-1])
        kept.append(probabilities)
    return kept


def _attend_backward(
    group: int,
    kept: Iterator[Tensor],
    q: Tensor,
    out: Tensor,
    grad_out: Tensor,
    grad_q: Tensor,
    k: Tensor,
    v: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
) -> None:
    """Fills `grad_q`, `grad_k` and `grad_v` from what `_attend` kept."""
    batch, length, width = q.shape[0], q.shape[1], k.shape[2]
    total = (grad_out.float() * out).view(batch, length * group, -1).sum(-1, keepdim=True)
    total = total.to(q.dtype)  # (B, L * G, 1)
    known = 0
    for queries, seen in _tiles(length, k.shape[1] - length):
        rows = slice(queries.start * group, queries.stop * group)
        probabilities = next(kept)
        above = grad_out[:, queries].reshape(batch, -1, v.shape[-1])
        grad_scores = torch.bmm(above, v[:, :seen].transpose(1, 2))
        grad_scores.sub_(total[:, rows]).mul_(probabilities)
        part = torch.bmm(grad_scores, k[:, :seen])
        grad_q[:, queries] = part.view(batch, -1, q.shape[-1])
        part = q[:, queries].reshape(batch, -1, width)
        _add(grad_k, torch.bmm(grad_scores.transpose(1, 2), part), known)
        _add(grad_v, torch.bmm(probabilities.transpose(1, 2), above), known)
        known = seen


def _add(total: Tensor, part: Tensor, known: int) -> None:
    """What some queries add to the gradient of the keys that they see: the first are `known`."""
    total[:, :known] += part[:, :known]
    total[:, known : part.shape[1]] = part[:, known:]


def _tiles(length: int, earlier: int) -> Iterator[tuple[slice, int]]:
    """(queries, number of keys that they see), from the first query to the last."""
    for begin in range(0, length, QUERIES_AT_ONCE):
        end = min(begin + QUERIES_AT_ONCE, length)
        yield slice(begin, end), earlier + end


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
    of = (blocks.queries, blocks.keys, blocks.keys)
    rows = (
        rows.blocks(_Move.apply(x.reshape(x.shape[0], -1), rows.padded, rows.flat))
        for rows, x in zip(of, (query, key, value), strict=True)
    )
    parts = []
    for hidden, *block in zip(blocks.hidden, *rows, strict=True):
        q, k, v = (
            x.unflatten(2, (heads, -1)).transpose(1, 2)
            for x, heads in zip(block, (num_heads, num_keys, num_keys), strict=True)
        )  # (D, H or K, L, E)
        is_whole = q.shape[2] == k.shape[2]
        out = F.scaled_dot_product_attention(
            q,
            k,
            v,
            attn_mask=None if is_whole else _seen(q.shape[2], k.shape[2], hidden),
            dropout_p=dropout,
            is_causal=is_whole,
            scale=scaling,
            enable_gqa=num_heads != num_keys,
        )
        parts.append(out.transpose(1, 2).flatten(0, 1).flatten(1))
    flat = _Move.apply(torch.cat(parts), blocks.queries.flat, blocks.queries.padded)  # (N, H * E)
    return flat.view(flat.shape[0], num_heads, -1)


def _seen(num_queries: int, num_keys: int, hidden: Tensor | None) -> Tensor:
    """Which keys the last `num_queries` of them see, (D or 1, 1, queries, keys)."""
    seen = torch.ones(1, 1, num_queries, num_keys, dtype=torch.bool)
    seen = seen.tril(num_keys - num_queries)
    if hidden is None:
        return seen
    is_there = F.pad(hidden == 0, (0, num_queries), value=True)
    return seen & is_there[:, None, None]


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
