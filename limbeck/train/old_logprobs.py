"""What the trainer itself gives to tokens that an engine drew, and what makes up the difference.

Engine and trainer compute the same model in other ways, and never quite agree. Of two log-probs
only those of the same distribution may be compared: an engine's is that of what it drew from, after
temperature and filters; so the trainer's is taken after the same temperature and filters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from limbeck import processes
from limbeck.train.batch import TokenBatch, Tokens
from limbeck.train.head import TokenModel
from limbeck.train.step import deal
from limbeck.train.truncation import is_truncated, log_mass
from limbeck.types import Sampling


@dataclass(frozen=True)
class Own:
    """The trainer's log-probabilities of an output's tokens, in nats, after temperature.

    `whole` are those of all tokens' distribution, of which the ratio pi / pi_old is made; `drawn`
    those of what the filters leave of it, -inf for what they would not have left: these alone may
    be held against the engine's.
    """

    whole: list[float]
    drawn: list[float]


@torch.no_grad()
def own_logprobs(
    model: TokenModel,
    batches: Sequence[TokenBatch],
    sampling: Sampling,
    autocast: torch.dtype | None = None,
) -> dict[str, Own]:
    """By the outputs' names; `output` k of a batch is its document k.

    To the bit what a step begins with that is given the same batches. Of several processes each is
    given all batches, computes its share and returns all.
    """
    model.eval()
    found: dict[str, list[list[float]]] = {}
    for index, batch in deal(batches, processes.rank(), processes.num()):
        logprobs = of_tokens(model, batch, sampling, autocast)
        if index is not None:
            found |= _by_output(batch, logprobs)
    everything = [item for part in processes.gather(found) for item in part.items()]
    return {name: Own(*rows) for name, rows in everything}


def needs_own(sampling: Sampling, correction: float | None) -> bool:
    """Whether pi_old is to be the trainer's own: where the engine's is of another distribution,
    or is corrected for what it differs."""
    return is_truncated(sampling) or correction is not None


def corrections(own: Own, sampler: Sequence[float], cap: float) -> list[float]:
    """min(pi_trainer / pi_sampler, cap) of each token: truncated importance sampling.

    Weighted so, tokens that the sampler drew stand for those that the trainer would have drawn, by
    the same rule of sampling (Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training"). 0 for what the trainer's filters would not have left.
    """
    pairs = zip(own.drawn, sampler, strict=True)
    return [math.exp(min(ours - theirs, math.log(cap))) for ours, theirs in pairs]


@torch.no_grad()
def of_tokens(
    model: TokenModel, batch: TokenBatch, sampling: Sampling, autocast: torch.dtype | None = None
) -> Tensor:
    """`whole` and `drawn` of every token that is learned: (2, M), in nats."""
    tiles: list[Tensor] = []

    def note(logits: Tensor, tok: Tokens) -> Tensor:
        """A loss that is none: it writes down log-probabilities, tile by tile."""
        logp = logits.div_(sampling.temperature or 1.0).log_softmax(-1)  # (N, V)
        whole = drawn = logp.gather(1, tok.targets[:, None])[:, 0]
        if is_truncated(sampling):
            drawn = whole - log_mass(logp, tok.targets, sampling)
        tiles.append(torch.stack([whole, drawn]))
        return torch.zeros_like(whole)

    with torch.autocast(batch.ids.device.type, autocast) if autocast else nullcontext():
        model(batch, note)
    return torch.cat(tiles, 1)


def _by_output(batch: TokenBatch, logprobs: Tensor) -> dict[str, list[list[float]]]:
    """name -> [whole, drawn] of each of the batch's outputs; logprobs (2, M)."""
    lengths = batch.loss_tokens().columns["output"].bincount().tolist()
    names = batch.document_names[: len(lengths)]
    parts = logprobs.split(lengths, 1)
    return {name: part.tolist() for name, part in zip(names, parts, strict=True)}
