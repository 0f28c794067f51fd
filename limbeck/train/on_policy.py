"""The loss on texts that the student wrote itself, and which tokens those are."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from torch import Tensor

from limbeck.train.batch import TokenBatch, Tokens
from limbeck.train.distillation import Mix, View, in_blocks
from limbeck.train.divergences import reverse_kl
from limbeck.train.head import TokenLoss
from limbeck.train.sums import Sums


class OwnTexts:
    """A loss that also notes the reverse KL, in nats a token, of what the student wrote itself.

    `loss_of` a view is the loss: a Mix, or `rewarded`. Column `hard` (N,) is 0 where the student
    wrote the token.
    """

    def __init__(self, view: View, loss_of: Callable[[View], TokenLoss]) -> None:
        self.tile, self.rows = view.tile, View(view.rows)  # a tile's dear columns are made once
        self.loss = loss_of(self.rows)
        self.sums: list[Tensor] = []

    def __call__(self, logits: Tensor, tok: Tokens) -> Tensor:
        tok = self.tile(tok)
        with torch.no_grad():
            own = tok.weights * (1 - tok.columns["hard"])
            gap = in_blocks(self._gap, logits, tok)
            self.sums.append(torch.stack([(gap * own).sum(), own.sum()]))
        return self.loss(logits, tok)

    def _gap(self, logits: Tensor, tok: Tokens) -> Tensor:
        return reverse_kl(*self.rows(logits, tok, 1.0))

    def take(self) -> Sums:
        """Sums of the loss's parts and of "reverse_kl" since the last call."""
        parts = self.loss.take() if isinstance(self.loss, Mix) else {}
        gap, weight = torch.stack(self.sums).sum(0).tolist() if self.sums else (0.0, 0.0)
        self.sums = []
        return {**parts, "reverse_kl": (gap, weight)}


def rewarded(view: View, bucket_of: Callable[[Tensor], Tensor]) -> TokenLoss:
    """The policy gradient with the reward log p - log q for each token x drawn from q.

    `bucket_of` tells which of the view's buckets a token is.

    p is the teacher's, q the student's probability of x at temperature 1; [] stands outside the
    gradient. The loss [log q - log p] (1 + log q - [log q]) has the value of the reverse KL's
    estimate and, over texts drawn from q, the gradient of the reverse KL at each token (MiniLLM,
    arXiv:2306.08543, where a token answers for itself alone).
    """

    def token_loss(logits: Tensor, tok: Tokens) -> Tensor:
        student, teacher = view(logits, tok, 1.0)
        targets = bucket_of(tok.targets)[:, None]
        logp = student.gather(1, targets)[:, 0]
        gap = logp.detach() - teacher.gather(1, targets)[:, 0]
        return gap * (1 + logp - logp.detach())

    return token_loss


def hard_labels(batch: TokenBatch, written: Collection[str]) -> Tensor:
    """(N,) float32: 0 in the documents of these names, which the student wrote, 1 in others."""
    is_hard = torch.tensor([float(name not in written) for name in batch.document_names])
    lengths = torch.tensor(batch.document_lengths)
    return is_hard.repeat_interleave(lengths).to(batch.ids.device)


def num_written(share: float, step: int, num: int) -> int:
    """How many of a step's `num` examples the student writes: over the steps, exactly the share."""
    return int((step + 1) * num * share) - int(step * num * share)
