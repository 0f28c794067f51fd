"""A request that is answered: what is new of its texts, as they grow."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from limbeck.serve.loop import Engine, Job
from limbeck.serve.reading import HALF, Reader, Splitter
from limbeck.serve.refusal import Refusal
from limbeck.types import Finish


@dataclass(frozen=True)
class Token:
    """A token with its log-probability and the likeliest alternatives (id, logprob).

    None is the log-probability of a text's first token, which nothing foretells.
    """

    id: int
    logprob: float | None
    top: Sequence[tuple[int, float]]


@dataclass(frozen=True)
class News:
    """What one of a request's texts has grown by; `finish` in the last."""

    index: int
    thinking: str
    text: str
    tokens: Sequence[Token]
    finish: Finish | None


@dataclass
class Choice:
    """One of a request's texts, and how far it was told.

    Its `splitter`, if any, takes the thinking apart. `begun` is what of the text stands in the
    prompt already.
    """

    index: int
    job: Job
    engine: Engine
    keeps_tokens: bool
    begun: str = ""
    splitter: Splitter | None = None
    is_over: bool = False
    reader: Reader = field(init=False)
    num_told: int = 0

    def __post_init__(self) -> None:
        self.reader = Reader(self.engine.text, self.job.draft.sampling.stop)

    def news(self) -> News | None:
        """What has come since the last call. Raises Refusal where the text failed."""
        finish, num = self.job.finish, self.job.num_written  # in this order: both only grow
        is_due = finish or (num and self.job.is_streamed)  # what is not streamed is told whole
        if self.is_over or not is_due:
            return None
        if finish == "error":
            raise Refusal(503, self.job.failure or "the model's numbers are not finite")
        draft = self.job.draft
        written = draft.ids[:num]
        said = written[:-1] if written and written[-1] in self.engine.stops else written
        piece = self.begun + self.reader.read(said, finish, draft.text_end)
        self.begun = ""
        thinking, text = self.splitter.split(piece, bool(finish)) if self.splitter else ("", piece)
        self.is_over = bool(finish)
        tokens = self._tokens(written if finish else said, finish)
        if not (thinking or text or tokens or finish):
            return None
        return News(self.index, thinking, text, tokens, finish)

    def _tokens(self, written: Sequence[int], finish: Finish | None) -> list[Token]:
        """The tokens that are new, once nothing of their text is held back; the end of turn too."""
        if not self.keeps_tokens or (not finish and self.reader.is_behind(written)):
            return []
        draft, begin = self.job.draft, self.num_told
        end = len(written)
        if draft.text_end is not None:
            end = num_within(self.engine.text, written, draft.text_end)
        self.num_told = max(begin, end)
        tops = draft.tops or [[]] * end
        return [Token(written[i], draft.logprobs[i], tops[i]) for i in range(begin, end)]


def num_within(decode: Callable[[Sequence[int]], str], ids: Sequence[int], end: int) -> int:
    """How many of the ids are needed to write the first `end` characters of their text."""
    num = len(ids)
    while num and len(decode(ids[: num - 1]).removesuffix(HALF)) >= end:
        num -= 1
    return num


async def news(choices: Sequence[Choice], deadline: float) -> AsyncIterator[list[News]]:
    """What is new of any text, until all have finished.

    Raises Refusal when a text fails, or at `deadline`, a time of the event loop.
    """
    while not all(choice.is_over for choice in choices):
        moved = choices[0].job.moved
        try:
            async with asyncio.timeout_at(deadline):
                await moved.wait()
        except TimeoutError:
            raise too_late() from None
        moved.clear()
        if fresh := [told for choice in choices if (told := choice.news())]:
            yield fresh


def too_late() -> Refusal:
    return Refusal(503, "this took longer than the server allows")
