"""Scores of whole texts: what a reward model learns from pairs, or from texts with a label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from limbeck.train.attention import PACKED_ATTENTION
from limbeck.train.batch import Example, TokenBatch, Tokens, collate, pack
from limbeck.train.head import TokenModel


@dataclass(frozen=True)
class Judged:
    """A better text and a worse one, or a single text with its label, 1 or 0; each as tokens."""

    texts: tuple[list[int], ...]
    name: str
    label: float = 1.0

    @property
    def num_tokens(self) -> int:
        """Of all its texts."""
        return sum(map(len, self.texts))


class ScoreModel(TokenModel):
    """A model with a scalar head as a function of a packed batch: a score for each document.

    It is read at the document's last token, the only one that has a weight.
    """

    def __init__(self, model: PreTrainedModel):
        nn.Module.__init__(self)  # the head of a language model is not asked for
        model.set_attn_implementation(PACKED_ATTENTION)
        self.model = model

    def forward(self, batch: TokenBatch, token_loss: Any) -> Tensor:
        """Sum of weight * loss over the batch's documents, or, without a loss, their scores (D,).

        `token_loss` is given the scores (D,) in the place of logits.
        """
        last = batch.loss_positions + 1  # weights stand where the token before is read
        hidden = self.hidden(batch).index_select(0, last)  # (D, C)
        head: Any = self.model.score
        scores = head(hidden)[:, 0].float()  # (D,)
        if token_loss is None:
            return scores
        tok = batch.loss_tokens()
        return (token_loss(scores, tok) * tok.weights).sum()


def pairwise(scores: Tensor, tok: Tokens) -> Tensor:
    """-log sigmoid(r_better - r_worse) (Bradley and Terry 1952; arXiv:2203.02155, eq. 1).

    scores (D,), a better text before its worse one -> (D,): each bears its pair's loss.
    """
    return -F.logsigmoid(scores[::2] - scores[1::2]).repeat_interleave(2)


def pointwise(scores: Tensor, tok: Tokens) -> Tensor:
    """-log sigmoid(r) where the label is 1, -log sigmoid(-r) where it is 0: (D,) -> (D,)."""
    return F.binary_cross_entropy_with_logits(scores, tok.columns["label"], reduction="none")


def pack_judged(judged: Sequence[Judged], max_tokens: int, device: str) -> list[TokenBatch]:
    """Rows of at most `max_tokens` tokens; a pair is never parted, and weighs as much as a text."""
    bins = pack([each.num_tokens for each in judged], max_tokens)
    return [_collate([judged[index] for index in chosen], device) for chosen in bins]


def _collate(judged: Sequence[Judged], device: str) -> TokenBatch:
    examples = [
        Example(ids, [0] * (len(ids) - 1) + [1], 1 / len(each.texts), each.name)
        for each in judged
        for ids in each.texts
    ]
    batch = collate(examples, device)
    labels = torch.tensor([each.label for each in judged for _ in each.texts], device=device)
    lengths = torch.tensor(batch.document_lengths, device=device)
    return replace(batch, columns={"label": labels.repeat_interleave(lengths)})


@torch.no_grad()
def score_judged(
    model: Callable[[TokenBatch, None], Tensor],
    judged: Sequence[Judged],
    max_tokens: int,
    device: str,
) -> list[list[float]]:
    """The scores of each one's texts. Their names must differ."""
    found: dict[str, list[float]] = {each.name: [] for each in judged}
    for batch in pack_judged(judged, max_tokens, device):
        for name, score in zip(batch.document_names, model(batch, None).tolist(), strict=True):
            found[name].append(score)
    return list(found.values())


def is_right(judged: Judged, scores: Sequence[float]) -> float:
    """1 where the better text has more, or the sign of the only one is its label's; ties 1/2."""
    margin = scores[0] - scores[1] if len(scores) == 2 else scores[0]
    return 0.5 if margin == 0 else float((margin > 0) == (judged.label == 1))


def right_by_length(judged: Sequence[Judged]) -> list[float]:
    """What one is right about who knows lengths alone, and the best way to use them on these rows.

    Of pairs that is always the longer or always the shorter, of labelled texts a limit.
    """
    lengths = [[float(len(text)) for text in each.texts] for each in judged]
    limits = {0.0} if len(lengths[0]) == 2 else {length for of in lengths for length in of}
    best: list[float] = []
    for limit in limits:
        shifted = [of if len(of) == 2 else [of[0] - limit - 0.5] for of in lengths]
        longer = [is_right(each, of) for each, of in zip(judged, shifted, strict=True)]
        best = max(best, longer, [1 - right for right in longer], key=sum)
    return best
