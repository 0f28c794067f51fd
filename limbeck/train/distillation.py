"""Losses that compare a student's distribution with a teacher's, tile by tile."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from limbeck.errors import UserError
from limbeck.train.batch import TokenBatch, Tokens
from limbeck.train.divergences import EMPTY, forward_kl
from limbeck.train.head import TokenLoss, TokenModel, chunked_loss
from limbeck.train.losses import cross_entropy
from limbeck.train.sums import Sums

if TYPE_CHECKING:
    from limbeck.train.alignment import Vocabulary

Divergence = Callable[[Tensor, Tensor], Tensor]
Buckets = tuple[Tensor, Tensor]  # log-probabilities (N, B) of the student and of the teacher

# So much of the logits at once stays in a processor's cache, with what a loss makes of them.
BLOCK_BYTES = 2 * 2**20


@dataclass(frozen=True)
class View:
    """How a loss sees student and teacher side by side, as log-probabilities of the same buckets.

    `tile` adds once for a tile the columns that are dear to make; `rows` takes some of the tile's
    rows: (logits (N, V), tok, temperature) -> student and teacher, (N, B) each.
    """

    rows: Callable[[Tensor, Tokens, float], Buckets]
    tile: Callable[[Tokens], Tokens] = lambda tok: tok

    def __call__(self, logits: Tensor, tok: Tokens, temperature: float) -> Buckets:
        return self.rows(logits, self.tile(tok), temperature)


def whole(teacher_head_weight: Tensor, vocabulary: Vocabulary | None = None) -> View:
    """All of the teacher's distribution, from its last hidden states.

    Column `teacher_hidden` (N, C); `teacher_head_weight` (V, C). With a vocabulary the buckets are
    the tokens that both sides share; those that only one side has are one more, or, where the other
    side then has none for it, left out.
    """

    def tile(tok: Tokens) -> Tokens:
        hidden = tok.columns["teacher_hidden"].to(teacher_head_weight.dtype)
        with torch.no_grad():
            teacher = hidden @ teacher_head_weight.T  # (N, V)
        return replace(tok, columns={**tok.columns, "teacher_logits": teacher})

    def rows(logits: Tensor, tok: Tokens, temperature: float) -> Buckets:
        student = logits / temperature
        teacher = tok.columns["teacher_logits"].to(logits.dtype) / temperature
        if vocabulary is not None:
            student, teacher = _on_shared(student, teacher, vocabulary)
        return student.log_softmax(-1), teacher.log_softmax(-1)

    return View(rows, tile)


def _on_shared(student: Tensor, teacher: Tensor, vocabulary: Vocabulary) -> Buckets:
    """Logits of the shared tokens, (N, S), or with the rest (N, S + 1), if both sides have one."""
    num_shared = len(vocabulary.student_ids)
    has_rest = min(student.shape[1], teacher.shape[1]) > num_shared
    sides = (student, vocabulary.student_ids), (teacher, vocabulary.teacher_ids)
    found = []
    for logits, ids in sides:
        if vocabulary.is_prefix:
            shared, others = logits[:, :num_shared], logits[:, num_shared:]
        else:
            ids = ids.to(logits.device)
            shared = logits.index_select(1, ids)
            others = logits.index_fill(1, ids, float("-inf")) if has_rest else logits
        if has_rest:
            shared = torch.cat([shared, others.logsumexp(-1, keepdim=True)], 1)
        found.append(shared)
    return found[0], found[1]


def top_k() -> View:
    """The teacher's k likeliest tokens and the rest, as they were cached.

    Columns `top_ids` (N, k), `top_logprobs` (N, k) at temperature 1, and `tails` (N,), the log of
    the mass of all other tokens at the temperature in use.
    """

    def rows(logits: Tensor, tok: Tokens, temperature: float) -> Buckets:
        tails = tok.columns["tails"][:, None]
        top = (tok.columns["top_logprobs"] / temperature).log_softmax(-1)
        student = bucket_logp(logits, tok.columns["top_ids"].long(), temperature)
        if top.shape[1] == logits.shape[1]:
            return student[:, :-1], top  # it has no others: the teacher's are left out
        return student, torch.cat([top + torch.log1p(-tails.exp()), tails], 1)

    return View(rows)


def sampled() -> View:
    """Tokens that were drawn from the teacher: the forward KL without bias (arXiv:2503.16870).

    Columns `top_ids` (N, k), `top_logprobs` (N, k), the log of their shares w in the draws, and
    `entropies` (N,), the teacher's, all at the temperature in use. The estimate is
    sum w (-log q) - entropy; forward_kl gives sum w (log w - log q), so log q is moved by what
    makes one of the other. No other divergence can be had of draws.
    """

    def rows(logits: Tensor, tok: Tokens, temperature: float) -> Buckets:
        teacher = tok.columns["top_logprobs"]
        share = teacher.exp()
        of_draws = torch.special.entr(share).sum(-1)
        move = (tok.columns["entropies"] - of_draws) / share.sum(-1)
        student = (logits / temperature).log_softmax(-1).gather(1, tok.columns["top_ids"].long())
        return student + move[:, None], teacher

    return View(rows)


def bucket_logp(logits: Tensor, ids: Tensor, temperature: float = 1.0) -> Tensor:
    """log softmax(logits / temperature) of the tokens `ids`, and of all others as one.

    logits (N, V), ids (N, k), different ones in each row -> (N, k + 1). Finite where there are no
    others, too.
    """
    logp = _BucketLogits.apply(logits, ids, temperature).log_softmax(-1)
    return logp.nan_to_num(nan=float("nan"), neginf=EMPTY)


class _BucketLogits(torch.autograd.Function):
    """With z = logits / T: z of the k tokens, and r = log sum exp(z) over the others, (N, k + 1).

    dz / dlogits = 1 / T on the k, dr / dlogits = exp(z - r) / T on the others: backward is one
    pass over (N, V). The mass of the others is summed up, not what the k leave of 1, which would
    be lost in rounding where they have nearly all of it.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, ids: Tensor, temperature: float) -> Tensor:
        others = logits / temperature
        top = others.gather(1, ids)
        others.scatter_(1, ids, float("-inf"))
        largest = others.amax(-1, keepdim=True)
        largest.masked_fill_(largest.isneginf(), 0.0)  # where there are no others
        powers = others.sub_(largest).exp_()
        total = powers.sum(-1, keepdim=True)  # at least 1, where there are others
        ctx.save_for_backward(powers, total.clamp_min(1.0), ids)
        ctx.temperature = temperature
        return torch.cat([top, largest + total.log()], 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        powers, total, ids = ctx.saved_tensors
        grad = grads[0] / ctx.temperature
        grad_logits = powers * (grad[:, -1:] / total)
        return grad_logits.scatter_(1, ids, grad[:, :-1]), None, None


class Mix:
    """Hinton's loss: alpha T^2 D(student, teacher at T) + (1 - alpha) cross-entropy, a TokenLoss.

    arXiv:1503.02531. T^2 keeps the soft part's gradients as large as they are at 1. A column
    `hard` (N,) multiplies the cross-entropy: 0 where the student wrote the token itself.
    """

    def __init__(
        self,
        view: View,
        divergence: Divergence = forward_kl,
        temperature: float = 1.0,
        alpha: float = 1.0,
    ) -> None:
        self.view, self.divergence = view, divergence
        self.temperature, self.alpha = temperature, alpha
        self._sums = torch.zeros(3)  # soft, hard, weight

    def __call__(self, logits: Tensor, tok: Tokens) -> Tensor:
        return in_blocks(self._of_rows, logits, self.view.tile(tok))

    def take(self) -> Sums:
        """Sums of "soft" and "hard" since the last call, whose means add to the loss."""
        soft, hard, weight = self._sums.tolist()
        self._sums = torch.zeros(3)
        return {"soft": (soft, weight), "hard": (hard, weight)}

    def parts(self) -> dict[str, TokenLoss]:
        """Each part that weighs anything as a loss of its own, as large as it is in the mix."""

        def soft(logits: Tensor, tok: Tokens) -> Tensor:
            return in_blocks(self._soft, logits, self.view.tile(tok))

        parts = {"soft": (soft, self.alpha), "hard": (self._hard, 1 - self.alpha)}
        return {name: part for name, (part, weight) in parts.items() if weight}

    def _of_rows(self, logits: Tensor, tok: Tokens) -> Tensor:
        soft, hard = self._soft(logits, tok), self._hard(logits, tok)
        with torch.no_grad():
            parts = torch.stack([soft, hard, torch.ones_like(soft)])  # (3, N)
            self._sums = self._sums.to(logits.device) + parts @ tok.weights
        return soft + hard

    def _soft(self, logits: Tensor, tok: Tokens) -> Tensor:
        if self.alpha == 0:
            return logits.new_zeros(logits.shape[0])
        student, teacher = self.view.rows(logits, tok, self.temperature)
        found = self.divergence(student, teacher)
        if found.shape != student.shape[:1]:
            what = f"gives {[*found.shape]} for log-probabilities {[*student.shape]}"
            raise UserError("divergence", what, "give one number for each row: sum over the last")
        return self.alpha * self.temperature**2 * found

    def _hard(self, logits: Tensor, tok: Tokens) -> Tensor:
        if self.alpha == 1:
            return logits.new_zeros(logits.shape[0])
        hard = (1 - self.alpha) * cross_entropy(logits, tok)
        return hard * tok.columns["hard"] if "hard" in tok.columns else hard


def in_blocks(loss: TokenLoss, logits: Tensor, tok: Tokens) -> Tensor:
    """loss(logits, tok), made and differentiated by blocks of rows that fit a processor's cache.

    What a loss needs beside the logits is then neither written to memory nor held there. Goes
    backward once.
    """
    if logits.device.type != "cpu":
        return loss(logits, tok)
    return _Blocks.apply(logits, tok, loss, torch.is_grad_enabled() and logits.requires_grad)


class _Blocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, tok: Tokens, loss: TokenLoss, needs_grad: bool) -> Tensor:
        num_rows = max(1, BLOCK_BYTES // (4 * logits.shape[1]))
        losses = logits.new_empty(logits.shape[0])
        ctx.grad = torch.empty_like(logits) if needs_grad else None
        for start in range(0, logits.shape[0], num_rows):
            block = slice(start, start + num_rows)
            with torch.set_grad_enabled(needs_grad):
                rows = logits[block].detach().requires_grad_(needs_grad)
                found = loss(rows, tok[block])
            losses[block] = found
            if needs_grad:
                (ctx.grad[block],) = torch.autograd.grad(found, rows, torch.ones_like(found))
        return losses

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        assert ctx.grad is not None, "a loss in blocks goes backward once"
        grad, ctx.grad = ctx.grad, None
        return grad.mul_(grads[0][:, None]), None, None, None


def loss_scales(
    model: TokenModel, batch: TokenBatch, parts: Mapping[str, TokenLoss]
) -> dict[str, tuple[float, float]]:
    """How large each part of a loss is on a batch, and how hard it pulls.

    name -> (weighted mean, norm of its gradient with respect to the last hidden states).
    """
    with torch.no_grad():
        hidden = model.hidden(batch)[batch.loss_positions]  # (M, C)
        weight = model.model.get_output_embeddings().weight
    hidden.requires_grad_()
    scales = {}
    for name, part in parts.items():
        loss = chunked_loss(hidden, weight.detach(), batch.loss_tokens(), part)
        loss = loss / batch.total_weight
        (grad,) = torch.autograd.grad(loss, hidden)
        scales[name] = (loss.item(), grad.float().norm().item())
    return scales


def hidden_mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance of hidden states, (N, C) twice -> (N,). FitNets, arXiv:1412.6550."""
    return F.mse_loss(student, teacher, reduction="none").mean(-1)


def hidden_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of hidden states, (N, C) twice -> (N,). DistilBERT, arXiv:1910.01108."""
    return 1 - F.cosine_similarity(student, teacher, dim=-1)
