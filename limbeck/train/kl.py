"""How far a policy has gone from its reference: `(logp, tok) -> (N,)`, estimates of a KL.

`logp` (N,) is the policy's log-probability of tokens that it drew, in nats; columns of `tok`, (N,)
each: `ref_logp`, the reference's, `old_logp`, that of the policy that drew the token, and `output`,
the number of the output that it is of.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from limbeck.train.outputs import sum_of_output

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.train.batch import Tokens


def k3(logp: Tensor, tok: Tokens) -> Tensor:
    """r - log r - 1 with r = pi_ref / pi: never negative, and KL(pi || pi_ref) in the mean.

    DeepSeekMath, arXiv:2402.03300, eq. 4, after Schulman, Approximating KL Divergence (2020). Its
    value is unbiased for draws of pi itself; its gradient is that of KL(pi_ref || pi) there.
    """
    return _k3(tok.columns["ref_logp"] - logp)


def unbiased_k3(logp: Tensor, tok: Tokens) -> Tensor:
    """(pi / pi_old) k3: value and gradient are those of KL(pi || pi_ref), for draws of pi_old.

    DeepSeek-V3.2, arXiv:2512.02556. The gradient goes through the ratio, too.
    """
    return (logp - tok.columns["old_logp"]).exp() * k3(logp, tok)


def output_k3(logp: Tensor, tok: Tokens) -> Tensor:
    """k3 of whole outputs, r = pi_ref(o) / pi(o), as DeepSeek-R1, arXiv:2501.12948, eq. 2, has it.

    Each token has its output's: their mean is that again. Of long outputs it knows no measure: r
    is a product of thousands of ratios.
    """
    return _k3(sum_of_output(tok.columns["ref_logp"] - logp, tok.columns["output"]))


def _k3(log_ratio: Tensor) -> Tensor:
    return log_ratio.expm1() - log_ratio
