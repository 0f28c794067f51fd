"""The thread that owns the model. Routes, on the event loop, hand it drafts and read along."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from limbeck.serve.refusal import Refusal
from limbeck.types import Finish, Sampling, Scored

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

TELL_EVERY_S = 0.05  # how often a stream hears of new tokens; what came between goes out together
FAILED = "the model could not write this text"


class Draft(Protocol):
    """A text in the making: what a row of the pool writes."""

    prompt: tuple[int, ...]
    sampling: Sampling
    ids: list[int]
    logprobs: list[float]
    tops: list[list[tuple[int, float]]]
    finish: Finish | None
    text_end: int | None


class Pool(Protocol):
    """Rows that write at once; a row that finishes is refilled from the queue."""

    @property
    def num_waiting(self) -> int: ...
    @property
    def num_writing(self) -> int: ...

    def add(self, draft: Any) -> None: ...
    def drop(self, draft: Any) -> None: ...
    def step(self) -> Sequence[Any]: ...


class Engine(Protocol):
    """A model on this machine, which one thread at a time may use."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    context: int
    stops: tuple[int, ...]

    def pool(self, num_rows: int | None = None) -> Pool: ...
    def score(self, sequences: Sequence[Sequence[int]], num_top: int = 0) -> Iterator[Scored]: ...
    def text(self, ids: Sequence[int]) -> str: ...


@dataclass(eq=False)
class Job:
    """A draft, and how much of it the event loop may read by now.

    `moved` is set when there is more. A stream is told as it grows, the others at the end.
    `begun_at` is the time of its first token.
    """

    draft: Draft
    moved: asyncio.Event
    is_streamed: bool
    num_written: int = 0
    finish: Finish | None = None
    failure: str = ""
    begun_at: float = 0.0
    told_at: float = 0.0


@dataclass
class Scoring:
    """A sequence to be scored, and where its scores go."""

    ids: Sequence[int]
    num_top: int
    answer: asyncio.Future[Scored]


class Writer:
    """Writes all that is asked, `num_rows` texts at once; `num_waiting` more may wait."""

    def __init__(self, engine: Engine, num_rows: int, num_waiting: int):
        self.engine, self.num_rows, self.num_places = engine, num_rows, num_rows + num_waiting
        self.pool = engine.pool(num_rows)
        self.num_open = 0  # texts and scores that clients wait for
        self.num_tokens = 0
        self._jobs: dict[Draft, Job] = {}
        self._scorings: deque[Scoring] = deque()
        self._orders: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._is_over = False
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._loop: asyncio.AbstractEventLoop

    def start(self) -> None:
        """Begins to work for the event loop that runs."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def num_writing(self) -> int:
        """Rows that write now; none while the pool is made anew."""
        return self.pool.num_writing if hasattr(self, "pool") else 0

    @property
    def num_waiting(self) -> int:
        """Texts that wait for a row."""
        return self.pool.num_waiting if hasattr(self, "pool") else 0

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Room for so many texts; Refusal when too many wait already."""
        if count > self.num_places:
            raise Refusal(400, f"a request has at most {self.num_places} texts here")
        if not self.is_alive:
            raise Refusal(503, "the model's thread has ended; start the server again")
        if self.num_open + count > self.num_places:
            raise Refusal(429, f"{self.num_open} texts are in work already", retry_s=1)
        self.num_open += count
        try:
            yield
        finally:
            self.num_open -= count

    @contextmanager
    def writing(self, jobs: Sequence[Job]) -> Iterator[None]:
        """Has the jobs in work until this is left; what is then unfinished is dropped."""
        with self.places(len(jobs)):
            self._orders.put(partial(self._add, jobs))
            try:
                yield
            finally:
                self._orders.put(partial(self._drop, jobs))

    async def score(self, sequences: Sequence[Sequence[int]], num_top: int) -> list[Scored]:
        """How likely the model finds each sequence's tokens; one sequence between two steps."""
        with self.places(len(sequences)):
            answers: list[asyncio.Future[Scored]] = []
            for ids in sequences:
                answers.append(self._loop.create_future())
                scoring = Scoring(ids, num_top, answers[-1])
                self._orders.put(partial(self._scorings.append, scoring))
            return await asyncio.gather(*answers)  # cancels them when it is cancelled

    def end_all(self, why: str) -> None:
        """Ends whatever is in work; its clients are told why."""
        self._orders.put(partial(self._fail, why))

    def stop(self) -> None:
        """Ends the thread."""
        self._orders.put(self._end)

    # What follows runs in the thread.

    def _work(self) -> None:
        while not self._is_over:
            self._obey()
            if self._jobs:
                self._step()
            if self._scorings:
                self._score(self._scorings.popleft())

    def _obey(self) -> None:
        """Follows all orders; waits for one when there is nothing else to do."""
        while not self._orders.empty() or not (self._jobs or self._scorings or self._is_over):
            self._orders.get()()

    def _end(self) -> None:
        self._is_over = True

    def _add(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            self._jobs[job.draft] = job
            self.pool.add(job.draft)

    def _drop(self, jobs: Iterable[Job]) -> None:
        for job in jobs:
            if self._jobs.pop(job.draft, None):
                self.pool.drop(job.draft)

    def _step(self) -> None:
        try:
            moved = self.pool.step()
        except Exception as error:
            logger.exception("the model failed")
            if broken := getattr(error, "drafts", None):  # the others go on
                self._fail_some(broken)
            else:
                self._fail(FAILED)
        else:
            self._tell(moved)

    def _fail_some(self, drafts: Sequence[Draft]) -> None:
        jobs = [self._jobs[draft] for draft in drafts]
        self._drop(jobs)
        for job in jobs:
            job.failure, job.finish = FAILED, "error"
        self._wake(jobs)

    def _tell(self, moved: Sequence[Draft]) -> None:
        """Lets the event loop know what has grown, but no stream too often."""
        now = time.monotonic()
        told = []
        for draft in moved:
            job = self._jobs[draft]
            job.begun_at = job.begun_at or now
            self.num_tokens += len(draft.ids) - job.num_written
            job.num_written, job.finish = len(draft.ids), draft.finish
            is_due = job.is_streamed and now - job.told_at >= TELL_EVERY_S
            if job.finish or is_due:
                job.told_at = now
                told.append(job)
            if job.finish:
                del self._jobs[draft]
        self._wake(told)

    def _score(self, scoring: Scoring) -> None:
        if scoring.answer.cancelled():
            return
        result: Scored | Refusal
        try:
            (result,) = self.engine.score([scoring.ids], scoring.num_top)
        except Exception:
            logger.exception("the model failed")
            result = Refusal(500, FAILED)
        self._call(_resolve, scoring.answer, result)

    def _fail(self, why: str) -> None:
        """Ends all jobs; the pool is a new one, whatever became of the old."""
        jobs, scorings = list(self._jobs.values()), list(self._scorings)
        self._jobs.clear()
        self._scorings.clear()
        for job in jobs:
            job.failure, job.finish = why, "error"
        self._wake(jobs)
        for scoring in scorings:
            self._call(_resolve, scoring.answer, Refusal(503, why))
        try:
            del self.pool  # gives its memory to the next
            self.pool = self.engine.pool(self.num_rows)
        except Exception:
            logger.exception("there is no going on")
            self._is_over = True

    def _wake(self, jobs: Sequence[Job]) -> None:
        if jobs:
            self._call(_set, jobs)

    def _call(self, told: Callable[..., None], *args: Any) -> None:
        with suppress(RuntimeError):  # the event loop is closed, nobody waits any more
            self._loop.call_soon_threadsafe(told, *args)


def _set(jobs: Sequence[Job]) -> None:
    for job in jobs:
        job.moved.set()


def _resolve(answer: asyncio.Future[Scored], result: Scored | Refusal) -> None:
    if answer.done():
        return
    if isinstance(result, Refusal):
        answer.set_exception(result)
    else:
        answer.set_result(result)
