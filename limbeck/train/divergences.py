"""How far a student's distribution q is from a teacher's p: `(student, teacher, *, knobs) -> (N,)`.

Both are log-probabilities (N, B), in nats, of the same B buckets: a bucket is a token, or all the
others together. Gradients flow to the student alone, whose log-probabilities are finite; where the
teacher's are less than e^-87, the smallest that float32 holds, or -inf, they count as that, so that
every value is finite, too.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

if TYPE_CHECKING:
    from torch import Tensor

EMPTY = -87.0

Share = Annotated[float, Field(ge=0, le=1)]
Skew = Annotated[float, Field(ge=0, lt=1)]


def forward_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(p || q) = sum p (log p - log q): the student covers all that the teacher says.

    Hinton et al., arXiv:1503.02531.
    """
    teacher = _finite(teacher)
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse_kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(q || p) = sum q (log q - log p): the student keeps to what the teacher finds likely.

    MiniLLM, arXiv:2306.08543.
    """
    teacher = _finite(teacher)
    return (student.exp() * (student - teacher)).sum(-1)


def jsd(student: Tensor, teacher: Tensor, *, beta: Share = 0.5) -> Tensor:
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q.

    The generalized Jensen-Shannon divergence of GKD, arXiv:2306.13649. By definition, beta 0 is
    the forward and 1 the reverse KL: what it tends to when divided by beta or by 1 - beta.
    """
    if beta in (0, 1):
        return (reverse_kl if beta else forward_kl)(student, teacher)
    teacher = _finite(teacher)
    mixture = _mixture(student, teacher, beta)
    from_teacher = teacher.exp() * (teacher - mixture)
    from_student = student.exp() * (student - mixture)
    return (beta * from_teacher + (1 - beta) * from_student).sum(-1)


def skew_kl(student: Tensor, teacher: Tensor, *, skew: Skew = 0.1) -> Tensor:
    """KL(p || skew p + (1 - skew) q): a forward KL whose gradient is bounded.

    DistiLLM, arXiv:2402.03898.
    """
    teacher = _finite(teacher)
    return forward_kl(_mixture(student, teacher, skew), teacher)


def skew_reverse_kl(student: Tensor, teacher: Tensor, *, skew: Skew = 0.1) -> Tensor:
    """KL(q || (1 - skew) p + skew q): a reverse KL that is at most -log(skew).

    DistiLLM, arXiv:2402.03898.
    """
    return reverse_kl(student, _mixture(_finite(teacher), student, skew))


def total_variation(student: Tensor, teacher: Tensor) -> Tensor:
    """sum |p - q| / 2: the largest difference that the two can make to any event, 0 to 1.

    For distillation of sequences: f-distill, arXiv:2307.15190.
    """
    return (student.exp() - teacher.exp()).abs().sum(-1) / 2


def _mixture(logp: Tensor, other: Tensor, share: float) -> Tensor:
    """log((1 - share) exp(logp) + share exp(other))."""
    if share == 0:
        return logp
    return (logp + math.log1p(-share)).logaddexp(other + math.log(share))


def _finite(logp: Tensor) -> Tensor:
    return logp.clamp_min(EMPTY)
