"""One forward pass over a flat row of tokens; who attends to whom is the caller's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from limbeck.engines.decoder.cache import Cache, Rows
from limbeck.engines.decoder.plain import Documents, split
from limbeck.engines.decoder.weights import Decoder, Layer, Norm
from limbeck.engines.draw import Knobs

Attend = Callable[[Layer, Tensor], Tensor]


class Operations(Protocol):
    """What stands between the matrix products: `plain.Plain`, or the compiled `kernel.Kernel`."""

    @property
    def block(self) -> int: ...

    def cache_dtype(self, decoder: Decoder) -> torch.dtype: ...

    def add_norm(
        self, hidden: Tensor, added: Tensor | None, norm: Norm, dtype: torch.dtype
    ) -> Tensor: ...

    def activate(self, layer: Layer, raised: Tensor) -> Tensor: ...

    def attend(self, layer: Layer, qkv: Tensor, cache: Cache, rows: Rows) -> Tensor: ...

    def draw(self, logits: Tensor, uniforms: Tensor, knobs: Knobs) -> tuple[Tensor, Tensor]: ...


def forward(
    decoder: Decoder,
    ids: Tensor,
    positions: Tensor,
    attend: Attend,
    operations: Operations,
    wanted: Tensor | None = None,
) -> Tensor:
    """Hidden states (N, C) behind the tokens `ids` (N,) at `positions` (N,), ready for the head.

    `attend(layer, qkv)` gives (N, H E). What runs through the layers is float32, products are in
    the model's own type. Only the `wanted` tokens (W,) go on behind the last attention, (W, C).
    """
    dtype = decoder.dtype
    hidden = decoder.embedding[ids].float()
    if decoder.positions is not None:
        hidden += decoder.positions[positions]
    added: Tensor | None = None
    for layer in decoder.layers:
        attended = attend(layer, layer.qkv(operations.add_norm(hidden, added, layer.norm, dtype)))
        if wanted is not None and layer is decoder.layers[-1]:
            hidden, attended = hidden[wanted], attended[wanted]
        added = layer.out(attended)
        raised = layer.up(operations.add_norm(hidden, added, layer.feed_norm, dtype))
        added = layer.down(operations.activate(layer, raised))
    return operations.add_norm(hidden, added, decoder.norm, dtype)


def decode(
    decoder: Decoder, ids: Tensor, cache: Cache, rows: Rows, operations: Operations
) -> Tensor:
    """Hidden states (B, C) behind one new token for each row, which enters the cache."""

    def attend(layer: Layer, qkv: Tensor) -> Tensor:
        return operations.attend(layer, qkv, cache, rows)

    positions = torch.from_numpy(rows.positions).to(ids.device, torch.long)
    return forward(decoder, ids, positions, attend, operations)


def prefill(
    decoder: Decoder,
    prompts: Sequence[Sequence[int]],
    slots: Sequence[int],
    cache: Cache,
    operations: Operations,
) -> Tensor:
    """Hidden states (P, C) behind the last tokens of prompts, whose slots in the cache it fills."""
    documents = Documents([len(ids) for ids in prompts], decoder.device)
    into = torch.tensor(slots, device=decoder.device)[documents.rows]

    def attend(layer: Layer, qkv: Tensor) -> Tensor:
        query, key, value = _split(layer, qkv, documents, cache.angles)
        cache.prompts[layer.index].write(into, documents.columns, key, value)
        return documents.attend(layer, query, key, value)

    ids = torch.tensor([token for prompt in prompts for token in prompt], device=decoder.device)
    ends = torch.tensor(documents.lengths, device=decoder.device).cumsum(0) - 1
    return forward(decoder, ids, documents.columns, attend, operations, ends)


def read(
    decoder: Decoder, texts: Sequence[Sequence[int]], operations: Operations
) -> Iterator[Tensor]:
    """Hidden states (L, C) of each text's every token."""
    documents = Documents([len(ids) for ids in texts], decoder.device)
    angles = decoder.angles(max(documents.lengths))

    def attend(layer: Layer, qkv: Tensor) -> Tensor:
        return documents.attend(layer, *_split(layer, qkv, documents, angles))

    ids = torch.tensor([token for text in texts for token in text], device=decoder.device)
    hidden = forward(decoder, ids, documents.columns, attend, operations)
    yield from hidden.split(list(documents.lengths))


def _split(
    layer: Layer, qkv: Tensor, documents: Documents, angles: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = split(layer, qkv, documents.columns, angles)
    return query.to(qkv.dtype), key.to(qkv.dtype), value
