"""Objectives of policy learning: `(logp, tok, *, knobs) -> (N,)`, the loss of every token.

`logp` (N,) is the policy's log-probability of each token, in nats, from which gradients flow.
Columns of `tok`, (N,) each: `old_logp`, what the policy that wrote the token gave it; `advantages`
A of the output that it is of; `output`, that output's number in the batch. With rho = pi / pi_old =
exp(logp - old_logp), what is maximised is J; a loss is -J, and a token's weight, which is no matter
of these functions, averages it (`prescribed` says how the paper does). An objective of whole
outputs gives each of an output's tokens the output's loss: their mean is that loss again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveFloat

from limbeck.train.outputs import length_of_output, sum_of_output
from limbeck.train.prescribed import prescribes

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.train.batch import Tokens

# An infinite ratio, as a long output may have, would make 0 * inf of a clipped token's gradient.
LARGEST = 80.0


@prescribes(average="output", advantage="z_score")
def grpo(
    logp: Tensor,
    tok: Tokens,
    *,
    clip: PositiveFloat = 10.0,
    ratio: Literal["token", "output"] = "token",
) -> Tensor:
    """J = min(rho A, clip(rho, 1 - e, 1 + e) A), the mean of an output's tokens, then of outputs.

    ratio "token": rho of each token (DeepSeekMath, arXiv:2402.03300, eq. 3). ratio "output": rho
    of the whole output, the product of its tokens' (DeepSeek-R1, arXiv:2501.12948, eq. 1; e = 10).
    """
    log_ratio = logp - tok.columns["old_logp"]
    if ratio == "output":
        log_ratio = sum_of_output(log_ratio, tok.columns["output"])
    return _clipped(log_ratio, tok, clip, clip)


@prescribes(average="length", advantage="mean_only")
def dr_grpo(logp: Tensor, tok: Tokens, *, clip: PositiveFloat = 0.2) -> Tensor:
    """J = min(rho A, clip(rho, 1 - e, 1 + e) A), summed over tokens, whatever an output's length.

    A is the reward less its group's mean (Liu et al., arXiv:2503.20783).
    """
    return _clipped(logp - tok.columns["old_logp"], tok, clip, clip)


@prescribes(average="token", advantage="z_score")
def dapo(
    logp: Tensor,
    tok: Tokens,
    *,
    clip_low: PositiveFloat = 0.2,
    clip_high: PositiveFloat = 0.28,
) -> Tensor:
    """J = min(rho A, clip(rho, 1 - e_low, 1 + e_high) A), the mean over the tokens of all outputs.

    Unlikely tokens have room to grow (Yu et al., arXiv:2503.14476, eq. 8).
    """
    return _clipped(logp - tok.columns["old_logp"], tok, clip_low, clip_high)


@prescribes(average="output", advantage="z_score")
def gspo(
    logp: Tensor,
    tok: Tokens,
    *,
    clip_low: PositiveFloat = 3e-4,
    clip_high: PositiveFloat = 4e-4,
) -> Tensor:
    """J = min(s A, clip(s, 1 - e_low, 1 + e_high) A), s = (pi(o) / pi_old(o))^(1 / |o|).

    The geometric mean of an output's ratios clips it as a whole (Zheng et al., arXiv:2507.18071,
    eq. 5).
    """
    output = tok.columns["output"]
    log_ratio = sum_of_output(logp - tok.columns["old_logp"], output) / length_of_output(output)
    return _clipped(log_ratio, tok, clip_low, clip_high)


@prescribes(average="token", advantage="z_score")
def cispo(logp: Tensor, tok: Tokens, *, clip_high: PositiveFloat = 5.0) -> Tensor:
    """J = [min(rho, e)] A log pi, the mean over all tokens; [] stands outside the gradient.

    No token loses its gradient, its weight alone is bounded (MiniMax-M1, arXiv:2506.13585, eq. 4,
    which writes e as 1 + e_high; ScaleRL, arXiv:2510.13786, found e of 4 to 8 alike).
    """
    weight = (logp.detach() - tok.columns["old_logp"]).exp().clamp_max(clip_high)
    return -weight * tok.columns["advantages"] * logp


def _clipped(log_ratio: Tensor, tok: Tokens, low: float, high: float) -> Tensor:
    """-min(rho A, clip(rho, 1 - low, 1 + high) A) of PPO, arXiv:1707.06347."""
    ratio, advantages = log_ratio.clamp_max(LARGEST).exp(), tok.columns["advantages"]
    return -(ratio * advantages).minimum(ratio.clamp(1 - low, 1 + high) * advantages)
