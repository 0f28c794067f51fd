"""Texts that are written together: rows that refill as they finish (continuous batching).

Nothing here depends on who shares a step: every text draws with its own uniform numbers, a hash of
(its seed, its token's number), so it says the same in any company, up to rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limbeck.engines.decoder.cache import Cache, Rows
from limbeck.engines.decoder.forward import Operations, decode, prefill
from limbeck.engines.decoder.weights import Decoder
from limbeck.engines.drafts import Decode, Draft, NotFiniteError
from limbeck.engines.draw import Knobs, uniform

PREFILL_TOKENS = 2048  # read at once, padding included; bounds the memory of long prompts
DRAW_NUMBERS = 4_000_000  # logits looked at in one go; bounds the memory of large vocabularies

ROW = np.dtype(
    [
        ("slot", np.int32),  # where its keys and values grow
        ("prompt", np.int32),  # the slot of its prompt's
        ("prompted", np.int32),  # the prompt's tokens
        ("written", np.int32),  # its own tokens
        ("limit", np.int32),  # how many of them there may be
        ("seed", np.uint64),
    ]
)


@dataclass(eq=False)
class Read:
    """A prompt that has been read: its slot, the state behind it, and how many rows look at it."""

    slot: int
    hidden: Tensor  # (C,)
    num_rows: int = 0


class Pool:
    """At most `num_rows` texts at once, of at most `longest_own` tokens behind `longest_prompt`.

    `decode` makes text of tokens, for stop strings. Free rows wait until there are `refill` of
    them: reading a few prompts together is cheaper than one by one. One thread owns a pool.
    """

    def __init__(
        self,
        decoder: Decoder,
        operations: Operations,
        *,
        stops: Sequence[int],
        decode: Decode,
        num_rows: int,
        num_prompts: int,
        longest_prompt: int,
        longest_own: int,
        refill: int = 1,
    ) -> None:
        self.decoder, self.operations = decoder, operations
        self.stops, self.decode = frozenset(stops), decode
        self.num_rows, self.refill = num_rows, refill
        self.longest_prompt, self.longest_own = longest_prompt, longest_own
        self.cache = Cache.empty(
            decoder,
            num_prompts=num_prompts,
            longest_prompt=longest_prompt,
            num_owns=num_rows,
            longest_own=longest_own,
            block=operations.block,
            dtype=operations.cache_dtype(decoder),
        )
        self.queue: deque[Draft] = deque()
        self.prompts: dict[tuple[int, ...], Read] = {}
        self.free_prompts = list(range(num_prompts))[::-1]  # the lowest last, and taken first
        self.free_rows = list(range(num_rows))[::-1]
        self.drafts: list[Draft] = []  # those that write; what follows is theirs, row by row (B,)
        self.rows = np.empty(0, ROW)
        self.hidden = decoder.embedding.new_empty(0, decoder.embedding.shape[1])  # (B, C)
        self.knobs: Knobs | None = None  # None: the rows have changed

    @property
    def num_waiting(self) -> int:
        return len(self.queue)

    @property
    def num_writing(self) -> int:
        return len(self.drafts)

    def add(self, draft: Draft) -> None:
        """To the end of the queue."""
        assert 0 < len(draft.prompt) <= self.longest_prompt
        self.queue.append(draft)

    def drop(self, draft: Draft) -> None:
        """Out of the queue, or out of its row, which is free for another."""
        if draft in self.queue:
            self.queue.remove(draft)
        elif draft in self.drafts:
            self._keep(np.array([other is not draft for other in self.drafts]))

    @torch.inference_mode()
    def step(self) -> list[Draft]:
        """One more token for every draft that has a row; gives those, finished ones included."""
        self._admit()
        if not self.drafts:
            return []
        moved, tokens = self.drafts, self._draw()
        self.rows["written"] += 1
        goes_on = np.array([draft.finish is None for draft in moved])
        if not goes_on.all():
            self._keep(goes_on)
            tokens = tokens[goes_on]
        if self.drafts:
            self.hidden = self._decode(tokens)
        return moved

    def _decode(self, tokens: NDArray[np.int64]) -> Tensor:
        rows = Rows(
            positions=self.rows["prompted"] + self.rows["written"] - 1,
            prompts=self.rows["prompt"].copy(),
            prompted=self.rows["prompted"].copy(),
            slots=self.rows["slot"].copy(),
            device=self.decoder.device,
        )
        ids = torch.from_numpy(tokens).to(self.decoder.device)
        return decode(self.decoder, ids, self.cache, rows, self.operations)

    def _draw(self) -> NDArray[np.int64]:
        """Every row's next token, which its draft takes up."""
        device = self.decoder.device
        weight = self.decoder.head.weight
        if self.knobs is None:
            samplings = [draft.sampling for draft in self.drafts]
            self.knobs = Knobs.of(samplings, len(weight), device)
        uniforms = torch.from_numpy(uniform(self.rows["seed"], self.rows["written"])).to(device)
        step = max(1, DRAW_NUMBERS // len(weight))
        tokens, logprobs, tops = [], [], []
        for start in range(0, len(self.drafts), step):
            part = slice(start, start + step)
            logits = self.decoder.head(self.hidden[part])
            drawn, logp = self.operations.draw(logits, uniforms[part], self.knobs.take(part))
            tokens.append(drawn)
            logprobs.append(logp)
            for row, draft in enumerate(self.drafts[part]):
                if draft.num_top:
                    likeliest = logits[row].float().log_softmax(-1).topk(draft.num_top)
                    pairs = zip(likeliest.indices.tolist(), likeliest.values.tolist(), strict=True)
                    tops.append((draft, list(pairs)))
        taken, shares = torch.cat(tokens).cpu().numpy(), torch.cat(logprobs).cpu().numpy()
        if not np.isfinite(shares).all():
            broken = np.flatnonzero(~np.isfinite(shares))
            raise NotFiniteError([self.drafts[row] for row in broken])
        for draft, likely in tops:
            draft.tops.append(likely)
        limits = self.rows["limit"].tolist()
        rows = zip(self.drafts, taken.tolist(), shares.tolist(), limits, strict=True)
        for draft, token, logprob, limit in rows:
            draft.take(token, logprob, limit, self.stops, self.decode)
        return taken

    def _admit(self) -> None:
        """Gives free rows to those who wait, and reads the prompts that are new."""
        free = self.num_rows - len(self.drafts)
        if not self.queue or free < min(self.refill, self.num_rows):
            return
        admitted: list[Draft] = []
        unread: list[tuple[int, ...]] = []
        while self.queue and len(admitted) < free:
            ids = self.queue[0].prompt
            if ids not in self.prompts:
                if not self.free_prompts:
                    break
                slot = self.free_prompts.pop()
                self.prompts[ids] = Read(slot, self.hidden.new_empty(0))
                unread.append(ids)
            self.prompts[ids].num_rows += 1
            admitted.append(self.queue.popleft())
        for batch in batches(unread):
            slots = [self.prompts[ids].slot for ids in batch]
            behind = prefill(self.decoder, batch, slots, self.cache, self.operations)
            for ids, hidden in zip(batch, behind, strict=True):
                self.prompts[ids].hidden = hidden
        self._seat(admitted)

    def _seat(self, admitted: Sequence[Draft]) -> None:
        """A row for each; the first token of its text is drawn from behind its prompt."""
        seated = []
        for draft in admitted:
            length = len(draft.prompt)
            room = min(self.longest_own, self.decoder.context - length)
            limit = min(draft.sampling.max_tokens, room)
            slots = self.free_rows.pop(), self.prompts[draft.prompt].slot
            seated.append((*slots, length, 0, limit, draft.seed))
        self.drafts = [*self.drafts, *admitted]
        self.rows = np.concatenate([self.rows, np.array(seated, ROW)])
        behind = [self.prompts[draft.prompt].hidden[None] for draft in admitted]
        self.hidden = torch.cat([self.hidden, *behind])
        self.knobs = None

    def _keep(self, stays: NDArray[np.bool_]) -> None:
        """Frees all rows but these, and the prompts at which nobody looks any more."""
        for row in np.flatnonzero(~stays):
            self.free_rows.append(int(self.rows["slot"][row]))
            ids = self.drafts[row].prompt
            self.prompts[ids].num_rows -= 1
            if not self.prompts[ids].num_rows:
                self.free_prompts.append(self.prompts.pop(ids).slot)
        self.free_rows.sort(reverse=True)
        self.free_prompts.sort(reverse=True)
        self.drafts = [self.drafts[row] for row in np.flatnonzero(stays)]
        self.rows = self.rows[stays]
        self.hidden = self.hidden[torch.from_numpy(stays).to(self.hidden.device)]
        self.knobs = None


def batches(prompts: Sequence[tuple[int, ...]]) -> list[list[tuple[int, ...]]]:
    """Prompts of like length together, each batch at most PREFILL_TOKENS with its padding."""
    found: list[list[tuple[int, ...]]] = []
    for ids in sorted(prompts, key=len):
        if found and len(ids) * (len(found[-1]) + 1) <= PREFILL_TOKENS:
            found[-1].append(ids)
        else:
            found.append([ids])
    return found
