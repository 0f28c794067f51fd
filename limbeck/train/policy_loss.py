"""The loss of a policy that learns from its own outputs: an objective, a KL, and what they tell."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from limbeck import processes
from limbeck.errors import UserError
from limbeck.train.batch import Tokens
from limbeck.train.kl import k3
from limbeck.train.sums import Sums

LARGEST = 700.0  # what a float's exponent holds

OfLogp = Callable[[Tensor, Tokens], Tensor]
"""(logp (N,), tok) -> (N,): an objective, or an estimate of a KL."""


class PolicyLoss:
    """objective * correction + kl * kl_estimate, of every token: `(logp, entropy, tok) -> (N,)`.

    `logp` and `entropy`, (N,) in nats, are those of softmax(logits / temperature). Columns of
    `tok`, (N,) each, beside what the objective wants: `old_logp`; `ref_logp` where `kl` > 0, the
    reference's; and, where there are any, `correction`, which multiplies the objective and not the
    KL, `sampler_logp`, what the engine that wrote the token gave it, and `own_logp`, what the
    trainer gave it before the round's first step, under the same rule of sampling. Without that
    one, `logp` stands in its place: a mismatch then holds what the round's steps have moved. A
    `temperature` of 0 counts as 1, as it does in an engine's log-probabilities.
    """

    def __init__(
        self,
        objective: OfLogp,
        kl: float = 0.0,
        kl_estimate: OfLogp = k3,
        temperature: float = 1.0,
    ) -> None:
        self.objective, self.kl, self.kl_estimate = objective, kl, kl_estimate
        self.temperature = temperature or 1.0
        self._sums: dict[str, tuple[Tensor, Tensor]] = {}
        self._maxima: dict[str, Tensor] = {}

    def __call__(self, logp: Tensor, entropy: Tensor, tok: Tokens) -> Tensor:
        loss = self.objective(logp, tok)
        if not isinstance(loss, Tensor) or loss.shape != logp.shape:
            given = [*loss.shape] if isinstance(loss, Tensor) else repr(loss)
            what = f"gives {given} for log-probabilities {[*logp.shape]}"
            raise UserError("objective", what, "give one number for each token")
        if logp.requires_grad and not loss.requires_grad:
            raise UserError("objective", "has no gradient: it does not read logp", "let it read it")
        if "correction" in tok.columns:
            loss = loss * tok.columns["correction"]
        self._note("entropy", entropy, tok)
        if self.kl:
            distance = self.kl_estimate(logp, tok)
            self._note("kl", distance.detach(), tok)
            loss = loss + self.kl * distance
        with torch.no_grad():
            self._note_clipping(logp, tok)
            if "sampler_logp" in tok.columns:
                self._note_mismatch(logp, tok)
        return loss

    def take(self) -> Sums:
        """Sums over tokens since the last call of "entropy", "clip_share", "kl", "mismatch_kl".

        clip_share: of all tokens, those that have an advantage and no gradient from the objective.
        mismatch_kl: KL(sampler || trainer), in nats a token.
        """
        sums = {name: (a.item(), b.item()) for name, (a, b) in self._sums.items()}
        self._sums = {}
        return sums

    def maxima(self) -> dict[str, float]:
        """The largest ratios since the last call, of all processes, which all call this.

        "ratio_max" of pi / pi_old, "mismatch_max" of sampler and trainer, either way.
        """
        mine = {name: math.exp(min(x.item(), LARGEST)) for name, x in self._maxima.items()}
        self._maxima = {}
        found = processes.gather(mine)
        names = {name: None for one in found for name in one}
        return {name: max(one[name] for one in found if name in one) for name in names}

    def _note_clipping(self, logp: Tensor, tok: Tokens) -> None:
        with torch.enable_grad():
            own = logp.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.objective(own, tok).sum(), own)
        is_clipped = (slope == 0) & (tok.columns["advantages"] != 0)
        self._note("clip_share", is_clipped.float(), tok)
        self._note_largest("ratio_max", logp - tok.columns["old_logp"], tok)

    def _note_mismatch(self, logp: Tensor, tok: Tokens) -> None:
        """What the trainer would never have drawn, its own filters being like the sampler's, has
        no finite KL; it is left out."""
        gap = tok.columns.get("own_logp", logp) - tok.columns["sampler_logp"]
        is_finite = gap.isfinite()
        gap = gap.where(is_finite, 0.0).double()
        self._note("mismatch_kl", gap.expm1() - gap, tok, is_finite)
        self._note_largest("mismatch_max", gap.abs(), tok)

    def _note(self, name: str, values: Tensor, tok: Tokens, counts: Tensor | None = None) -> None:
        """Adds values (N,) of the tokens that count and have a weight in this step."""
        mask = tok.weights != 0 if counts is None else (tok.weights != 0) & counts
        total, weight = self._sums.get(name, (0.0, 0.0))
        self._sums[name] = (
            total + values.where(mask, 0.0).sum(dtype=torch.float64),
            weight + mask.sum(),
        )

    def _note_largest(self, name: str, log_ratio: Tensor, tok: Tokens) -> None:
        mask = tok.weights != 0
        largest = log_ratio.detach().where(mask, -torch.inf).amax()
        self._maxima[name] = torch.maximum(self._maxima.get(name, largest), largest)
