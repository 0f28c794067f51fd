"""Which token comes next: exact draws by the inverse of the distribution function."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.types import Sampling

COLDEST = 1e-6  # nothing but the likeliest is left; float32 could not divide by much less
LIKELIEST = 64  # among so many a nucleus is looked for first, which mostly spares a whole sort


@dataclass(frozen=True)
class Knobs:
    """How each row draws, (B,) each."""

    temperature: Tensor
    top_p: Tensor
    top_k: Tensor  # V for all
    min_p: Tensor

    @classmethod
    def of(cls, samplings: Sequence[Sampling], vocabulary: int, device: torch.device) -> Knobs:
        """Those of each row's Sampling."""
        rows = [
            (
                s.temperature and max(s.temperature, COLDEST),
                s.top_p,
                min(s.top_k or vocabulary, vocabulary),
                s.min_p,
            )
            for s in samplings
        ]
        temperature, top_p, top_k, min_p = torch.tensor(rows, dtype=torch.float64).T.contiguous()
        return cls(
            temperature.float().to(device),
            top_p.to(device),
            top_k.long().to(device),
            min_p.float().to(device),
        )

    def take(self, rows: Tensor | slice) -> Knobs:
        """Those of some rows."""
        return Knobs(self.temperature[rows], self.top_p[rows], self.top_k[rows], self.min_p[rows])


def draw(logits: Tensor, uniforms: Tensor, knobs: Knobs) -> tuple[Tensor, Tensor]:
    """(tokens (B,), their log-probabilities (B,)) from float32 `logits` (B, V).

    By the inverse of the distribution function at `uniforms` (B,) in [0, 1). The log-probability is
    that under the distribution drawn from, after temperature and filters; at temperature 0, where
    that is a point, the model's own.
    """
    greedy = knobs.temperature == 0
    tokens = logits.argmax(-1)
    logprobs = _pick(logits, tokens) - logits.logsumexp(-1)
    if bool(greedy.all()):
        return tokens, logprobs
    vocabulary = logits.shape[-1]
    filtered = (knobs.top_p < 1) | (knobs.top_k < vocabulary) | (knobs.min_p > 0)
    for rows, method in ((~greedy & ~filtered, _draw_all), (~greedy & filtered, _draw_filtered)):
        if bool(rows.all()):
            return method(logits, uniforms, knobs)
        if bool(rows.any()):
            tokens[rows], logprobs[rows] = method(logits[rows], uniforms[rows], knobs.take(rows))
    return tokens, logprobs


def _draw_all(logits: Tensor, uniforms: Tensor, knobs: Knobs) -> tuple[Tensor, Tensor]:
    probabilities = (logits / knobs.temperature[:, None]).softmax(-1)
    tokens = _invert(probabilities.cumsum(-1, dtype=torch.float64), uniforms)
    return tokens, _pick(probabilities, tokens).log()


def _draw_filtered(logits: Tensor, uniforms: Tensor, knobs: Knobs) -> tuple[Tensor, Tensor]:
    """Among the few likeliest where they hold what the filters keep; the other rows sort all."""
    probabilities = (logits / knobs.temperature[:, None]).softmax(-1)
    tokens = torch.empty(len(logits), dtype=torch.long, device=logits.device)
    logprobs = torch.empty(len(logits), device=logits.device)
    open_rows = torch.arange(len(logits), device=logits.device)
    size = probabilities.shape[-1]
    for num in (min(LIKELIEST, size), size):
        mine = knobs.take(open_rows)
        top, order = probabilities[open_rows].topk(num)
        stays, done = kept(top, mine, size)
        ids, places = order.sort(-1)  # drawn in the order of tokens, as everywhere
        weights = torch.where(stays, top, 0.0).gather(-1, places)
        sums = weights.cumsum(-1, dtype=torch.float64)
        ranks = _invert(sums, uniforms[open_rows])
        shares = (_pick(weights, ranks) / sums[:, -1]).log().float()
        rows = open_rows[done]
        tokens[rows], logprobs[rows] = _pick(ids, ranks)[done], shares[done]
        open_rows = open_rows[~done]
        if not len(open_rows):
            break
    return tokens, logprobs


def kept(top: Tensor, knobs: Knobs, vocabulary: int) -> tuple[Tensor, Tensor]:
    """(what the filters keep of `top` (B, n), which rows that settles (B,)).

    `top` are the likeliest probabilities, most likely first. Top-k, then the nucleus of what
    remains (Holtzman et al. 2020, 1904.09751), then min-p (Nguyen et al. 2024, 2407.01082). A row
    is settled if no token outside `top` can be kept.
    """
    num = top.shape[-1]
    inside = torch.arange(num, device=top.device) < knobs.top_k[:, None]
    sums = torch.where(inside, top, 0.0).cumsum(-1, dtype=torch.float64)
    has_all = knobs.top_k <= num
    mass = torch.where(has_all, sums[:, -1], 1.0)  # what the nucleus is a share of
    before = sums - torch.where(inside, top, 0.0)
    is_off = knobs.top_p >= 1
    in_nucleus = (before < (knobs.top_p * mass)[:, None]) | is_off[:, None]
    stays = inside & in_nucleus & (top >= knobs.min_p[:, None] * top[:, :1])
    stays[:, 0] = True
    # Where top-k reaches behind `top`, the mass that it leaves to the nucleus is not known.
    is_known = is_off | (knobs.top_k >= vocabulary)
    return stays, has_all | (~stays[:, -1] & is_known)


def _invert(sums: Tensor, uniforms: Tensor) -> Tensor:
    """The first place (B,) whose running sum (B, V) exceeds the uniform share of the whole."""
    target = uniforms[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, target, right=True)[:, 0].clamp(max=sums.shape[-1] - 1)


def _pick(table: Tensor, places: Tensor) -> Tensor:
    return table.gather(-1, places[:, None])[:, 0]


def uniform(seeds: NDArray[np.uint64], steps: NDArray[np.integer] | int) -> NDArray[np.float64]:
    """One number in [0, 1) per seed, a hash of (seed, step): splitmix64 twice (Steele et al. 2014).

    The inner one scatters the seeds, so that neighbours do not meet a step later.
    """
    mixed = splitmix64(splitmix64(seeds) + np.asarray(steps, dtype=np.uint64))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def splitmix64(counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The generator's output for the state `counter`; wraps at 2^64, as it should."""
    z = counter + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
