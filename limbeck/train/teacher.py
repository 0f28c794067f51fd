"""A teacher's distribution at the tokens that are learned, small enough to be kept on disk."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from limbeck import store
from limbeck.errors import UserError
from limbeck.journal import Journal
from limbeck.train.batch import Example, TokenBatch, Tokens, collate, pack
from limbeck.train.head import TokenModel
from limbeck.types import Scored, Scorer

Distribution = dict[str, Tensor]
"""`ids` (R, k) and `logprobs` (R, k) with `tails` (R, T) or `entropies` (R,), of R tokens."""
Keep = Callable[[Tensor, Tokens], Distribution]
"""What is kept of a tile's logits (N, V)."""
Advance = Callable[[int], object]

NOTHING = float(torch.finfo(torch.float16).min)  # the log of 0: its exp is 0, and it is finite
STORED = {
    "ids": torch.int32,
    "logprobs": torch.float16,  # off by 1 part in 2,048 at most
    "tails": torch.float32,
    "entropies": torch.float32,
}


def top_k(logits: Tensor, k: int, temperatures: Sequence[float], num_tokens: int) -> Distribution:
    """The k most probable of the first `num_tokens` tokens, most probable first.

    logits (N, V). `logprobs` are those at temperature 1; `tails` the log of the mass of all others
    at each temperature, which cannot be told from the k alone. Rows of the head that stand for no
    token are among the others.
    """
    top = logits[:, :num_tokens].topk(k)
    shifted = logits - logits.amax(1, keepdim=True)
    tails = []
    for temperature in temperatures:
        mass = (shifted / temperature).exp_()
        of_top = mass.gather(1, top.indices).sum(1)
        of_others = mass.scatter_(1, top.indices, 0.0).sum(1)
        tails.append((of_others / (of_top + of_others)).log())
    logprobs = top.values - logits.logsumexp(1, keepdim=True)
    return {"ids": top.indices, "logprobs": logprobs, "tails": torch.stack(tails, 1)}


def sample(logits: Tensor, chances: Tensor, temperature: float, num_tokens: int) -> Distribution:
    """Tokens drawn from p, the teacher at the temperature; a share is unbiased for its token's p.

    The random sampling of 2503.16870, which draws from p itself. logits (N, V); `chances` (N, n)
    are uniform in [0, 1), one for each draw. `logprobs` are the logs of the shares of distinct
    tokens; `entropies` are those of p, in nats.
    """
    scaled = logits[:, :num_tokens] / temperature
    shifted = (scaled - scaled.amax(1, keepdim=True)).clamp_min(NOTHING)
    mass = shifted.exp()
    steps = mass.cumsum(1, dtype=torch.float64)  # in float32 rare tokens would fall between them
    whole = steps[:, -1:]
    drawn = torch.searchsorted(steps, chances * whole, right=True).clamp_max(num_tokens - 1)
    ids, logprobs = shares(drawn)
    entropies = whole.log()[:, 0] - (mass * shifted).sum(1) / whole[:, 0]
    return {"ids": ids, "logprobs": logprobs, "entropies": entropies}


def shares(drawn: Tensor) -> tuple[Tensor, Tensor]:
    """(distinct ids, log of their shares) of each row of draws, both (N, n) as `drawn` is.

    A row of fewer distinct ids is filled up with id 0 of no share.
    """
    ordered = drawn.sort(-1).values
    is_new = torch.ones_like(ordered)
    is_new[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    place = is_new.cumsum(-1) - 1  # of each draw among the distinct ones
    counts = torch.zeros_like(ordered).scatter_add(1, place, torch.ones_like(ordered))
    ids = torch.zeros_like(ordered).scatter(1, place, ordered)
    return ids, (counts / drawn.shape[1]).log()


def num_learned(example: Example) -> int:
    """Tokens of a row that are learned; the first one follows nothing, so it never is."""
    return sum(example.loss_mask[1:])


@dataclass(frozen=True)
class ModelTeacher:
    """A model here, read in batches of at most `max_tokens`; its head is made tile by tile.

    `k` tokens are kept by `method`, of a vocabulary of `num_tokens`; every row has its own draws,
    derived from `seed`. `name` is what errors call it by.
    """

    model: TokenModel
    name: str
    method: Literal["top_k", "sample"]
    k: int
    temperatures: Sequence[float]
    num_tokens: int
    seed: int
    max_tokens: int
    device: str

    def tell(self, examples: Sequence[Example], advance: Advance) -> Distribution:
        """The distribution at the learned tokens of rows, in their order.

        `advance` hears of the tokens. UserError if a number is not finite.
        """
        found: dict[str, Distribution] = {}
        for chosen in pack([len(example.ids) for example in examples], self.max_tokens):
            packed = [examples[i] for i in chosen]
            told = look(self.model, self._batch(packed), self._keep)
            refuse_not_finite(told, [example.name for example in packed], self.name)
            pieces = {key: t.split([*map(num_learned, packed)]) for key, t in told.items()}
            for place, example in enumerate(packed):
                found[example.name] = {key: piece[place] for key, piece in pieces.items()}
                advance(len(example.ids))
        return join(found[example.name] for example in examples)

    def _batch(self, packed: Sequence[Example]) -> TokenBatch:
        batch = collate(packed, self.device)
        if self.method == "top_k":
            return batch
        drawn_with = torch.cat([chances(self.seed, self.k, example) for example in packed])
        column = torch.zeros(batch.num_tokens, self.k, dtype=torch.float64, device=self.device)
        column[batch.loss_positions] = drawn_with.to(column.device)
        return replace(batch, columns={"chances": column})

    def _keep(self, logits: Tensor, tok: Tokens) -> Distribution:
        if self.method == "top_k":
            return top_k(logits, self.k, self.temperatures, self.num_tokens)
        return sample(logits, tok.columns["chances"], self.temperatures[0], self.num_tokens)


@dataclass(frozen=True)
class EngineTeacher:
    """An engine that tells the log-probabilities of given tokens.

    What it answers may have been paid for: it is in the `journal` before it counts, and what is
    there is not asked for again.
    """

    engine: Scorer
    name: str
    k: int
    num_tokens: int
    journal: Journal
    point: str

    def tell(self, examples: Sequence[Example], advance: Advance) -> Distribution:
        """The distribution at the learned tokens of rows, in their order; as of `ModelTeacher`."""
        told = {record["row"]: record["told"] for record in self.journal.records}
        missing = [example for example in examples if example.name not in told]
        advance(sum(len(example.ids) for example in examples if example.name in told))
        answers = self.engine.score([example.ids for example in missing], self.k)
        for example, scored in zip(missing, answers, strict=True):
            found = heard(scored, example, self.k, self.num_tokens)
            refuse_not_finite(found, [example.name], self.name)
            told[example.name] = base64.b64encode(save(found)).decode()
            self.journal.append({"row": example.name, "told": told[example.name]})
            store.failpoint(f"{self.point}.journal-{len(self.journal.records)}")
            advance(len(example.ids))
        return join(load(base64.b64decode(told[example.name])) for example in examples)


def chances(seed: int, num_draws: int, example: Example) -> Tensor:
    """Uniform numbers (R, n) for the draws at a row's learned tokens, whatever shares its batch."""
    rng = np.random.default_rng(store.seed_of(seed, example.name))
    return torch.from_numpy(rng.random((num_learned(example), num_draws)))


def join(found: Iterable[Distribution]) -> Distribution:
    """Distributions one behind the other, as they are stored."""
    pieces = list(found)
    return {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}


@torch.inference_mode()
def look(teacher: TokenModel, batch: TokenBatch, keep: Keep) -> Distribution:
    """What is kept of the teacher's logits at a packed batch's M learned tokens, in their order.

    The logits are made tile by tile, as for a loss.
    """
    tiles: list[Distribution] = []

    def look_on(logits: Tensor, tok: Tokens) -> Tensor:
        tiles.append(stored(keep(logits, tok)))
        return logits.new_zeros(logits.shape[0])

    teacher(batch, look_on)
    return join(tiles)


def stored(found: Distribution) -> Distribution:
    """As a part holds it; the log of nothing is `NOTHING`."""
    kept = {}
    for name, tensor in found.items():
        bounded = tensor if name == "ids" else tensor.clamp_min(NOTHING)
        kept[name] = bounded.to("cpu", STORED[name]).contiguous()
    return kept


def heard(scored: Scored, example: Example, k: int, num_tokens: int) -> Distribution:
    """What an engine said of a row's learned tokens, as `top_k` gives it at temperature 1.

    The tail is what the k leave of 1, hence no better than the rounding of what it said.
    """
    places = [place for place, kept in enumerate(example.loss_mask) if kept and place]
    ids = torch.tensor([scored.top_ids[place][:k] for place in places])  # (R, k)
    logprobs = torch.tensor([scored.top_logprobs[place][:k] for place in places]).double()
    ids, logprobs = _without_padding(ids, logprobs, num_tokens)
    rest = (1 - logprobs.exp().sum(1, keepdim=True)).clamp_min(0)
    found = {"ids": ids, "logprobs": logprobs, "tails": rest.log()}
    return stored(found)


def _without_padding(ids: Tensor, logprobs: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Rows of the head that no token has give way to tokens that were not named, of no mass."""
    for row in (ids >= num_tokens).any(1).nonzero()[:, 0]:
        padding = ids[row] >= num_tokens
        named = set(ids[row].tolist())
        free = [id for id in range(len(named) + ids.shape[1]) if id not in named]
        ids[row, padding] = torch.tensor(free[: int(padding.sum())])
        logprobs[row, padding] = NOTHING
    return ids, logprobs


def refuse_not_finite(found: Distribution, names: Sequence[str], teacher: str) -> None:
    """UserError unless all of it is finite; `names` are the rows that it is of."""
    if not all(bool(torch.isfinite(tensor).all()) for tensor in found.values()):
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        what = f"is not finite on rows {', '.join(names[:8])}{more}"
        raise UserError(f"teacher {teacher}", what, "take another dtype or other weights")
