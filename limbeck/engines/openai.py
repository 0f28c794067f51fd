"""A teacher behind an OpenAI-compatible server: one chat completion for every request.

The official client sends. What counts as an answer and what is worth asking again is decided in
`http/`: the client takes `choices: []` and `content: null` for success and trips over HTML with
status 200.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from limbeck import sealed
from limbeck.config import HowRun
from limbeck.engines.budget import Budget, Prices
from limbeck.engines.http import answers, questions
from limbeck.engines.http.address import plain_address, read_key
from limbeck.engines.http.client import open_clients
from limbeck.engines.http.faults import is_busy, may_pass, one_line, scrubbed, stops_all, wait_s
from limbeck.engines.http.pace import Pace
from limbeck.engines.http.reasoning import Reasoning
from limbeck.errors import UserError
from limbeck.types import Request, Sampling, Trace

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)

LONGEST_OUTAGE_S = 1800.0
FEW = 4  # requests; where fewer fail, they may be at fault themselves


def check(
    *,
    base_url: str,
    key_variable: str,
    max_cost: float | None = None,
    prices: Prices | None = None,
    **_: Any,
) -> None:
    """Raises UserError if the package, the key, or the prices of a budget are missing."""
    if find_spec("openai") is None:
        way_out = "pip install 'limbeck[openai]'"
        raise UserError("engine openai", "the package openai is not installed", way_out)
    if max_cost is not None and prices is None:
        way_out = "add prices: {input: ..., output: ...}, per million tokens"
        raise UserError("engine openai", "max_cost needs prices", way_out)
    read_key(key_variable, base_url)


def connect(
    *,
    model: str,
    base_url: Annotated[str, AfterValidator(plain_address)] = "https://api.openai.com/v1",
    key_variable: HowRun[Annotated[str, Field(pattern="^[A-Z][A-Z0-9_]*$")]] = "OPENAI_API_KEY",
    concurrency: HowRun[PositiveInt] = 64,
    timeout_s: HowRun[PositiveFloat] = 600.0,
    max_attempts: HowRun[PositiveInt] = 6,
    prices: HowRun[Prices | None] = None,
    max_cost: HowRun[PositiveFloat | None] = None,
    max_total_tokens: HowRun[PositiveInt | None] = None,
    longer_max_tokens: PositiveInt | None = None,
    reasons: bool = False,
    logprobs: bool = False,
) -> OpenAIEngine:
    """`model` of the server at `base_url`, with at most `concurrency` requests in flight.

    The key is in the environment variable `key_variable`; a server on this machine or its network
    may do without. A proxy is taken from the environment, too: HTTPS_PROXY, NO_PROXY. Each of a
    request's `max_attempts` has `timeout_s`, from connect to last byte.

    The stage stops once its answers have cost `max_cost`, by the `prices` of a million tokens, or
    hold `max_total_tokens`, both sides counted; raised, it goes on. An answer that meets the limit
    of tokens is asked for again, once, with `longer_max_tokens`. `reasons` says that every answer
    must show its reasoning: one without is an error, and more than 5 % of them stop the stage.
    `logprobs` asks for log-probabilities where they are those of what was drawn from: at
    temperature 1 and without top_p, top_k or min_p.
    """
    check(base_url=base_url, key_variable=key_variable, max_cost=max_cost, prices=prices)
    return OpenAIEngine(
        model,
        base_url,
        key_variable,
        read_key(key_variable, base_url),
        concurrency,
        timeout_s,
        max_attempts,
        budget=Budget(prices, max_cost, max_total_tokens),
        longer_max_tokens=longer_max_tokens,
        reasons=reasons,
        logprobs=logprobs,
    )


@dataclass
class OpenAIEngine:
    """Writes with the model called `name`; made by `connect`, whose knobs it keeps.

    `extra_body` is sent with every request.
    """

    name: str
    base_url: str
    key_variable: str
    key: str | None = field(repr=False)
    concurrency: int
    timeout_s: float
    max_attempts: int
    budget: Budget = field(default_factory=Budget)
    longer_max_tokens: int | None = None
    reasons: bool = False
    logprobs: bool = False
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    num_parameters: int | None = None
    costs_money: bool = True
    num_answers: int = 0
    num_failures: int = 0
    num_asked: int = 0
    refused: frozenset[str] = frozenset()
    """Parameters that the server does not know."""
    stopped: UserError | None = None
    """Why nothing more is asked."""

    def __post_init__(self) -> None:
        self.where = f"{self.name} at {urlsplit(self.base_url).netloc}"
        self.pace = Pace(self.concurrency, self.where)
        self.reasoning = Reasoning(self.where, self.reasons)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        """Traces as they finish; a request that gets no answer becomes an empty one, 'error'.

        With `longer_max_tokens`, a truncated one is followed by another of the same id.
        What is asked and not yet taken and kept is never more than `concurrency`: a kill loses no
        more answers than that.
        Raises UserError where no request can succeed, where the server stays away or where the
        budget is reached: nothing more is asked then, and what was asked is still given.
        """
        from anyio.from_thread import start_blocking_portal

        if self.logprobs and not questions.is_plain(sampling):
            what = "cannot give log-probs of what is drawn at another temperature or with filters"
            way_out = "set temperature to 1 and leave out top_p, top_k and min_p, or drop logprobs"
            raise UserError(self.where, what, way_out)
        self.stopped, self.num_asked = None, len(requests)
        traces: SimpleQueue[Trace | None] = SimpleQueue()
        slots = asyncio.Semaphore(self.concurrency)
        # A thread for the event loop, as a notebook already runs one in this thread. Left early,
        # the portal cancels what is in flight.
        with start_blocking_portal() as portal:
            writing = portal.start_task_soon(self._write, requests, sampling, traces.put, slots)
            writing.add_done_callback(lambda _: traces.put(None))
            for trace in iter(traces.get, None):
                yield trace
                portal.start_task_soon(slots.release)
            writing.result()
        if self.stopped and self.budget.is_reached:
            raise self.budget.stop(self.where)  # with what was in flight
        if self.stopped:
            raise self.stopped

    async def _write(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        put: Callable[[Trace], None],
        slots: asyncio.Semaphore,
    ) -> None:
        """Puts a trace for every request, or for those that were asked before it `stopped`."""
        waiting = iter(requests)

        async def work(client: AsyncOpenAI) -> None:
            for request in waiting:  # shared: whoever is free takes the next
                for drawn in self._rounds(sampling):
                    await slots.acquire()
                    if self.budget.is_reached and not self.stopped:
                        self.stopped = self.budget.stop(self.where)
                    trace = None if self.stopped else await self._trace(client, request, drawn)
                    if trace is None:
                        return
                    put(trace)
                    if trace.finish != "length":
                        break

        num_workers = min(self.concurrency, len(requests))
        async with open_clients(self.base_url, self.key, num_workers) as clients:
            try:
                async with asyncio.TaskGroup() as workers:
                    for number in range(num_workers):
                        workers.create_task(work(clients[number % len(clients)]))
            except ExceptionGroup as ended:
                raise ended.exceptions[0] from None

    def _rounds(self, sampling: Sampling) -> list[Sampling]:
        """How a request is asked, and how again once its answer is truncated."""
        longer = self.longer_max_tokens
        if longer is None or longer <= sampling.max_tokens:
            return [sampling]
        return [sampling, replace(sampling, max_tokens=longer)]

    async def _trace(
        self, client: AsyncOpenAI, request: Request, sampling: Sampling
    ) -> Trace | None:
        """Asks until there is an answer, or no sense in asking again; None where all stop."""
        from openai import OpenAIError

        empty = Trace(request.id, request.problem.id, request.index, "", "error", self.name)
        attempt = 0
        while True:
            async with self.pace.turn() as begun:
                if self.stopped:
                    return None
                refused = self.refused
                try:
                    body = await self._ask(client, request, sampling)
                    return self._received(empty, body, sampling)
                except (OpenAIError, TimeoutError, ValueError, RecursionError) as error:
                    fault, reason = error, one_line(error, self.key)
                    if sealed.MARK in request.problem.meta and not stops_all(error):
                        reason = type(error).__name__  # for what a server says may quote the exam
                name = questions.refused_parameter(fault, sampling)
                if name and name not in refused:
                    self.refused |= {name}
                    continue
                if not self._may_ask_again(fault, begun, reason):
                    return None if self.stopped else self._given_up(empty, attempt + 1, reason)
                is_out = self.pace.out_since is not None
                attempt += not is_out  # an outage is nobody's last attempt
                if attempt == self.max_attempts:
                    return self._given_up(empty, attempt, reason)
                seconds = wait_s(self.pace.probes + 1 if is_out else attempt, fault)
                if is_out:
                    await asyncio.sleep(seconds)  # and nobody else has a turn
                    continue
            logger.info("%s: %s; asking again in %.1f s", request.id, reason, seconds)
            await asyncio.sleep(seconds)

    async def _ask(self, client: AsyncOpenAI, request: Request, sampling: Sampling) -> Any:
        """The body of one attempt's answer. Raises ValueError where it is not JSON."""
        import httpx2

        asked = questions.body(self.name, request, sampling, self.logprobs, self.refused)
        asked |= self.extra_body
        async with asyncio.timeout(self.timeout_s):
            # Not `chat.completions.create`, which looks for files in it for half a millisecond.
            response = await client.post("/chat/completions", cast_to=httpx2.Response, body=asked)
        is_secret = len(self.key or "") >= 16  # a shorter one may be a word that texts contain
        answer = json.loads(response.content.decode(errors="replace"))
        return scrubbed(answer, self.key) if self.key and is_secret else answer

    def _received(self, empty: Trace, body: Any, sampling: Sampling) -> Trace:
        """The trace with the body's answer, paid for; ValueError for none."""
        usage = answers.usage(body)
        try:
            trace = answers.filled(empty, body, self.logprobs)
        except ValueError:
            if usage:  # billed, for nothing
                self.budget.waste(usage)
            raise
        self.budget.count(usage)
        self.pace.answered()
        self.num_answers += 1
        checked = self.reasoning.checked(trace, body)
        self.stopped = self.stopped or self.reasoning.stop()
        return checked

    def _may_ask_again(self, fault: Exception, begun: float, reason: str) -> bool:
        """Whether it makes sense for this request; stops all where it makes none for any."""
        if stops_all(fault):
            self.stopped = self.stopped or self._cannot(reason)
        elif not may_pass(fault):
            self.pace.answered()
        else:
            self.pace.failed(begun, is_busy(fault), reason)
            if self.pace.out_s > LONGEST_OUTAGE_S:
                what = f"has not answered for {self.pace.out_s / 60:.0f} minutes: {reason}"
                way_out = "go on when it is back; nothing that was paid for is lost"
                self.stopped = self.stopped or UserError(self.where, what, way_out)
            return self.stopped is None
        return False

    def _given_up(self, empty: Trace, attempts: int, reason: str) -> Trace | None:
        """The empty trace; None where nobody has got an answer, and nobody will."""
        times = "1 attempt" if attempts == 1 else f"{attempts} attempts"
        logger.warning("%s: no answer in %s: %s", empty.id, times, reason)
        self.num_failures += 1
        enough = min(self.concurrency, max(self.num_asked, FEW))
        if self.num_failures >= enough and not self.num_answers:
            none = f"none of {self.num_failures} requests got an answer: {reason}"
            self.stopped = self.stopped or self._cannot(none)
            return None
        return empty

    def _cannot(self, what: str) -> UserError:
        way_out = f"check model, base_url (it mostly ends in /v1), the key in {self.key_variable} "
        return UserError(self.where, what, way_out + "and its quota, and what the server says")
