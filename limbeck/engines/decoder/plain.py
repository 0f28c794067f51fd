"""The operations of a decode step in torch's own terms: any device, and the kernel's reference."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers.activations import ACT2FN

from limbeck.engines.decoder.cache import Cache, Rows, Slots
from limbeck.engines.decoder.weights import Decoder, Layer, Norm
from limbeck.engines.draw import Knobs, draw

# How full a table of seats must be; in an emptier one a copy of what rows see costs less than
# products for nobody. A product with one row is slow, so a table of single seats must be fuller.
SHARED_FULL, ALONE_FULL = 0.1, 0.75


class Plain:
    """What stands between the matrix products of a forward pass."""

    block = 0

    def cache_dtype(self, decoder: Decoder) -> torch.dtype:
        """Of keys and values; on a CPU torch's products of bfloat16 with few rows are slow."""
        return torch.float32 if decoder.device.type == "cpu" else decoder.dtype

    def add_norm(
        self, hidden: Tensor, added: Tensor | None, norm: Norm, dtype: torch.dtype
    ) -> Tensor:
        """norm(hidden) in `dtype`, once `added` is added to hidden (N, C), float32, in place."""
        if added is not None:
            hidden += added
        shape = hidden.shape[-1:]
        if norm.bias is not None:
            out = functional.layer_norm(hidden, shape, norm.weight, norm.bias, norm.epsilon)
        else:
            out = functional.rms_norm(hidden, shape, norm.weight, norm.epsilon)
        return out.to(dtype)

    def activate(self, layer: Layer, raised: Tensor) -> Tensor:
        """(N, I) from the up projection: gated, or not."""
        activation = ACT2FN[layer.activation]
        if not layer.is_gated:
            return activation(raised)
        gates, ups = raised.chunk(2, -1)
        return activation(gates) * ups

    def attend(self, layer: Layer, qkv: Tensor, cache: Cache, rows: Rows) -> Tensor:
        """One new token a row, (B, (H + 2 K) E) to (B, H E): appended to the cache, and attending.

        Rows that share a prompt are the rows of one matrix against its keys (and heads that share
        a key head, too), so that keys are read once and never repeated.
        """
        positions, prompts, prompted, slots, ranks = rows.tensors
        query, key, value = split(layer, qkv, positions, cache.angles)
        ours, theirs = cache.owns[layer.index], cache.prompts[layer.index]
        ours.write(slots, positions - prompted, key, value)
        query = query.view(len(query), layer.key_heads, -1, layer.width) * layer.scale
        query = query.to(ours.keys.dtype)  # (B, K, H / K, E)
        most_prompted, most_own = rows.longest
        theirs, shared = seated(theirs, prompts, ranks, rows.seats, most_prompted, SHARED_FULL)
        alone_ranks, alone_seats = torch.zeros_like(slots), (int(rows.slots.max()) + 1, 1)
        ours, alone = seated(ours, slots, alone_ranks, alone_seats, most_own, ALONE_FULL)

        first = torch.zeros_like(positions)
        if layer.window is not None:
            first = (positions - layer.window + 1).clamp(min=0)
        scores = torch.cat(
            [
                _unseen(shared.scores(query, theirs, most_prompted), first, prompted),
                _unseen(
                    alone.scores(query, ours, most_own), first - prompted, positions - prompted + 1
                ),
            ],
            dim=-1,
        )
        shares = scores.float().softmax(-1).to(scores.dtype)
        out = shared.values(shares[..., :most_prompted], theirs)
        out += alone.values(shares[..., most_prompted:], ours)
        return out.reshape(len(out), -1).to(qkv.dtype)

    def draw(self, logits: Tensor, uniforms: Tensor, knobs: Knobs) -> tuple[Tensor, Tensor]:
        """(tokens, log-probabilities) (B,) from logits (B, V): `draw.draw`."""
        return draw(logits.float(), uniforms, knobs)


@dataclass
class Seats:
    """Rows seated in a table (slots, seats) so that each slot's keys are read by all who need them.

    `places` are (slot, seat) of each row, (B,) each.
    """

    shape: tuple[int, int]
    places: tuple[Tensor, Tensor]

    def scores(self, query: Tensor, slots: Slots, length: int) -> Tensor:
        """(B, K, G, length) of queries (B, K, G, E) against the slots' first keys."""
        keys = slots.keys[: self.shape[0], :, :length].flatten(0, 1)  # (slots K, length, E)
        return self._stand(torch.bmm(self._sit(query), keys.transpose(1, 2)), query.shape[1])

    def values(self, shares: Tensor, slots: Slots) -> Tensor:
        """(B, K, G, E): the slots' first values, weighted with shares (B, K, G, length)."""
        values = slots.values[: self.shape[0], :, : shares.shape[-1]].flatten(0, 1)
        return self._stand(torch.bmm(self._sit(shares), values), shares.shape[1])

    def _sit(self, rows: Tensor) -> Tensor:
        """(B, K, G, x) to (slots K, seats G, x), empty seats zero."""
        num_slots, num_seats = self.shape
        _, key_heads, group, last = rows.shape
        table = rows.new_zeros(num_slots, key_heads, num_seats, group, last)
        table[self.places[0], :, self.places[1]] = rows
        return table.view(num_slots * key_heads, num_seats * group, last)

    def _stand(self, table: Tensor, key_heads: int) -> Tensor:
        num_slots, num_seats = self.shape
        table = table.view(num_slots, key_heads, num_seats, -1, table.shape[-1])
        return table[self.places[0], :, self.places[1]]


def seated(
    slots: Slots, places: Tensor, ranks: Tensor, shape: tuple[int, int], length: int, full: float
) -> tuple[Slots, Seats]:
    """(what rows look at, where they sit): at the slots themselves, or each at a copy of its own.

    Rows (B,) look at the slots `places`, as the `ranks`-th that does; `shape` holds them all.
    """
    if len(places) >= full * shape[0] * shape[1]:
        return slots, Seats(shape, (places, ranks))
    each = torch.arange(len(places), device=places.device)
    return slots.take(places, length), Seats((len(places), 1), (each, torch.zeros_like(each)))


def _unseen(scores: Tensor, first: Tensor, end: Tensor) -> Tensor:
    """Scores (B, K, G, length) with -inf outside each row's columns [first, end)."""
    columns = torch.arange(scores.shape[-1], device=scores.device)
    unseen = (columns < first[:, None]) | (columns >= end[:, None])  # (B, length)
    return scores.masked_fill_(unseen[:, None, None], float("-inf"))


def split(
    layer: Layer, qkv: Tensor, positions: Tensor, angles: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Query (N, H, E), key and value (N, K, E), float32 where they were normalised or rotated."""
    heads, key_heads = layer.heads, layer.key_heads
    parts = qkv.view(len(qkv), heads + 2 * key_heads, layer.width)
    query, key, value = parts.split([heads, key_heads, key_heads], dim=1)
    if layer.query_norm is not None and layer.key_norm is not None:
        query, key = _head_norm(query, layer.query_norm), _head_norm(key, layer.key_norm)
    if angles is None:
        return query, key, value
    cosines, sines = (table[positions][:, None] for table in angles)  # (N, 1, E / 2)
    return _rotated(query, cosines, sines), _rotated(key, cosines, sines), value


def _head_norm(heads: Tensor, norm: Norm) -> Tensor:
    return functional.rms_norm(heads.float(), heads.shape[-1:], norm.weight, norm.epsilon)


def _rotated(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary embedding by halves, as Hugging Face lays them out (Su et al. 2021, 2104.09864)."""
    first, second = heads.float().chunk(2, -1)
    return torch.cat([first * cosines - second * sines, second * cosines + first * sines], dim=-1)


@dataclass
class Documents:
    """Whole texts side by side in one flat row of N tokens."""

    lengths: Sequence[int]
    device: torch.device

    def __post_init__(self) -> None:
        counts = np.asarray(self.lengths)
        rows = np.repeat(np.arange(len(counts)), counts)
        starts = np.r_[0, counts.cumsum()[:-1]]
        columns = np.arange(counts.sum()) - starts[rows]
        self.rows = torch.from_numpy(rows).to(self.device)  # (N,) which text
        self.columns = torch.from_numpy(columns).to(self.device)  # (N,) where in it

    def attend(self, layer: Layer, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Causal attention of each text to itself, (N, H, E) to (N, H E).

        Texts are padded at the end for torch's own attention; causal attention never looks there.
        """
        longest = max(self.lengths)
        mask = None
        if layer.window is not None and layer.window < longest:
            every = torch.arange(longest, device=query.device)
            behind = every[:, None] - every
            mask = (behind >= 0) & (behind < layer.window)
        out = functional.scaled_dot_product_attention(
            self._padded(query, longest),
            self._padded(key, longest),
            self._padded(value, longest),
            attn_mask=mask,
            is_causal=mask is None,
            scale=layer.scale,
            enable_gqa=layer.heads != layer.key_heads,
        )
        return out.transpose(1, 2)[self.rows, self.columns].flatten(1)

    def _padded(self, part: Tensor, longest: int) -> Tensor:
        padded = part.new_zeros(len(self.lengths), longest, *part.shape[1:])
        padded[self.rows, self.columns] = part
        return padded.transpose(1, 2)
