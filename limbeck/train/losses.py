"""Losses of a tile of logits: `(logits, tok, *, knobs) -> (N,)`, one number for every token."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from limbeck.train.batch import Tokens


def cross_entropy(logits: Tensor, tok: Tokens) -> Tensor:
    """-log p(target), in nats. logits (N, V) float32 -> (N,)."""
    from torch.nn.functional import cross_entropy

    return cross_entropy(logits, tok.targets, reduction="none")


def reverse_kl_reward(logits: Tensor, tok: Tokens) -> Tensor:
    """The reverse KL to a teacher, learned from the student's own tokens as from a reward.

    ratio * (log q - log p) of the target, with q the student, p the teacher (column
    `teacher_logp`) and ratio = q / what the token was drawn with (column `sampler_logp`); the
    bracket is a reward and gets no gradient. Its expectation is KL(q || p), and so its gradient,
    however far the student has moved since it wrote. On-policy distillation (Thinking Machines
    Lab, 2025), after MiniLLM, arXiv:2306.08543.
    """
    logp = -cross_entropy(logits, tok)
    ratio = (logp - tok.columns["sampler_logp"]).exp()
    return ratio * (logp.detach() - tok.columns["teacher_logp"])
