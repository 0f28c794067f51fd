"""Which token comes next: exact draws by the inverse of the distribution function."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.types import Sampling


def draw(logits: Tensor, uniforms: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """(tokens (B,), their log-probabilities (B,)) from float32 `logits` (B, V).

    By the inverse of the distribution function at `uniforms` (B,) in [0, 1). The log-probability is
    that under the distribution drawn from, after temperature and nucleus; at temperature 0, where
    that is a point, the model's own.
    """
    if sampling.temperature == 0:
        tokens = logits.argmax(-1)
        return tokens, _pick(logits, tokens) - logits.logsumexp(-1)
    probabilities = (logits / sampling.temperature).softmax(-1)
    if sampling.top_p >= 1:
        tokens = _invert(probabilities.cumsum(-1, dtype=torch.float64), uniforms)
        return tokens, _pick(probabilities, tokens).log()
    sums, order = nucleus(probabilities, sampling.top_p)
    ranks = _invert(sums, uniforms)
    tokens = _pick(order, ranks)
    return tokens, (_pick(probabilities, tokens) / sums[:, -1]).log().float()


def nucleus(probabilities: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """The fewest most probable tokens with a mass of `top_p` (Holtzman et al. 2020, 1904.09751).

    (running sums (B, n) that stay level behind a row's nucleus, token ids (B, n)). The n most
    probable are looked for among 64 first, which is mostly enough and spares a whole sort.
    """
    size = probabilities.shape[-1]
    for n in (min(64, size), size):
        top, order = probabilities.topk(n)
        sums = top.cumsum(-1, dtype=torch.float64)
        if n == size or bool((sums[:, -1] >= top_p).all()):
            break
    inside = sums - top < top_p  # a token is in when those before it do not suffice
    inside[:, 0] = True
    return torch.where(inside, top, 0.0).cumsum(-1, dtype=torch.float64), order


def _invert(sums: Tensor, uniforms: Tensor) -> Tensor:
    """The first place (B,) whose running sum (B, V) exceeds the uniform share of the whole."""
    target = uniforms[:, None] * sums[:, -1:]
    return torch.searchsorted(sums, target, right=True)[:, 0].clamp(max=sums.shape[-1] - 1)


def _pick(table: Tensor, places: Tensor) -> Tensor:
    return table.gather(-1, places[:, None])[:, 0]


def uniform(seeds: NDArray[np.uint64], step: int) -> NDArray[np.float64]:
    """One number in [0, 1) per seed, a hash of (seed, step): splitmix64 twice (Steele et al. 2014).

    The inner one scatters the seeds, so that neighbours do not meet a step later.
    """
    mixed = splitmix64(splitmix64(seeds) + np.uint64(step))
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def splitmix64(counter: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The generator's output for the state `counter`; wraps at 2^64, as it should."""
    z = counter + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
