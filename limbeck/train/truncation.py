"""What filters leave of a distribution: the rule of `limbeck.types.Sampling`, for given tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from limbeck.types import Sampling


def is_truncated(sampling: Sampling) -> bool:
    """Whether filters kept some tokens from being drawn; a greedy choice is no draw."""
    filters = sampling.top_p < 1 or sampling.top_k is not None or sampling.min_p > 0
    return filters and sampling.temperature > 0


def log_mass(logp: Tensor, targets: Tensor, sampling: Sampling) -> Tensor:
    """(N,): log of the mass of the tokens that stay, where the target is one of them; else inf.

    logp (N, V) are log-probabilities after temperature, targets (N,). What stays is renormalised,
    so a target's log-probability under the rule is its own less this. Tokens that are equally
    likely at the border stay by their order in the vocabulary.
    """
    likeliest, order = logp.exp().sort(dim=-1, descending=True, stable=True)
    stays = _stays(likeliest, sampling)
    has_target = (stays & (order == targets[:, None])).any(-1)
    mass = likeliest.where(stays, 0.0).sum(-1, dtype=torch.float64)
    return mass.log().to(logp.dtype).where(has_target, torch.inf)


def _stays(likeliest: Tensor, sampling: Sampling) -> Tensor:
    """Which of the probabilities (N, V), most likely first, stay: top-k, of these the nucleus
    (arXiv:1904.09751), of these min-p (arXiv:2407.01082)."""
    stays = torch.ones_like(likeliest, dtype=torch.bool)
    if sampling.top_k is not None:
        stays[:, sampling.top_k :] = False
    if sampling.top_p < 1:
        inside = likeliest.where(stays, 0.0)
        sums = inside.cumsum(-1, dtype=torch.float64)
        stays &= sums - inside < sampling.top_p * sums[:, -1:]
    stays &= likeliest >= sampling.min_p * likeliest[:, :1]
    stays[:, 0] = True
    return stays
