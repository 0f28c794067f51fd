"""A teacher behind an OpenAI-compatible server: one chat completion for every request.

The official client sends. What counts as an answer and what is worth asking again is decided here:
the client takes `choices: []` and `content: null` for success and trips over HTML with status 200.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from ipaddress import ip_address
from queue import SimpleQueue
from time import time
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from limbeck.chat import CLOSE, OPEN
from limbeck.config import HowRun
from limbeck.errors import UserError
from limbeck.types import Finish, Generator, Request, Sampling, Trace

if TYPE_CHECKING:
    from openai import AsyncOpenAI

logger = logging.getLogger(__name__)
jitter = random.Random()  # its own, so that waiting moves nobody's seeded numbers

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
NO_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")
THINKING = ("reasoning", "reasoning_content", "thinking")
FINISHES: Mapping[str, Finish] = {
    "stop": "stop",
    "eos": "stop",  # Together
    "length": "length",
    "model_length": "length",  # Mistral
    "content_filter": "error",
}


def _plain_address(url: str) -> str:
    """An address with a key in it would be copied into the run folder."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is no address; write it like http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query:
        raise ValueError("holds more than an address; take out user, key and query")
    return url


def check(*, base_url: str, key_variable: str, **_: Any) -> None:
    """Raises UserError if the package or the key is missing."""
    if find_spec("openai") is None:
        way_out = "pip install 'limbeck[openai]'"
        raise UserError("engine openai", "the package openai is not installed", way_out)
    read_key(key_variable, base_url)


def connect(
    *,
    model: str,
    base_url: Annotated[str, AfterValidator(_plain_address)] = "https://api.openai.com/v1",
    key_variable: Annotated[str, Field(pattern="^[A-Z][A-Z0-9_]*$")] = "OPENAI_API_KEY",
    concurrency: HowRun[PositiveInt] = 64,
    timeout_s: HowRun[PositiveFloat] = 600.0,
    max_attempts: HowRun[PositiveInt] = 6,
) -> Generator:
    """`model` of the server at `base_url`, with at most `concurrency` requests in flight.

    The key is in the environment variable `key_variable`; a server on this machine or its network
    may do without. Each of a request's `max_attempts` has `timeout_s`, from connect to last byte.
    """
    check(base_url=base_url, key_variable=key_variable)
    key = read_key(key_variable, base_url)
    return OpenAIEngine(model, base_url, key_variable, key, concurrency, timeout_s, max_attempts)


@dataclass
class OpenAIEngine:
    """Writes with the model called `name`; made by `connect`, whose knobs it keeps."""

    name: str
    base_url: str
    key_variable: str
    key: str | None = field(repr=False)
    concurrency: int
    timeout_s: float
    max_attempts: int
    num_parameters: int | None = None
    costs_money: bool = True
    num_answers: int = 0
    num_failures: int = 0

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        """Traces as they finish; a request that gets no answer becomes an empty one, 'error'.

        What is asked and not yet taken and kept is never more than `concurrency`: a kill loses no
        more answers than that.
        Raises UserError where no request can succeed, and sends nothing more.
        """
        from anyio.from_thread import start_blocking_portal

        traces: SimpleQueue[Trace | None] = SimpleQueue()
        # A thread for the event loop, as a notebook already runs one in this thread. Left early,
        # the portal cancels what is in flight.
        slots = asyncio.Semaphore(self.concurrency)
        with start_blocking_portal() as portal:
            writing = portal.start_task_soon(self._write, requests, sampling, traces.put, slots)
            writing.add_done_callback(lambda _: traces.put(None))
            for trace in iter(traces.get, None):
                yield trace
                portal.start_task_soon(slots.release)
            writing.result()

    async def _write(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        put: Callable[[Trace], None],
        slots: asyncio.Semaphore,
    ) -> None:
        """Puts a trace for every request; the first exception ends them all."""
        import openai

        waiting = iter(requests)

        async def work() -> None:
            for request in waiting:  # shared: whoever is free takes the next
                await slots.acquire()
                put(await self._trace(client, request, sampling))

        async with openai.AsyncOpenAI(
            base_url=self.base_url,
            api_key=self.key or "none",
            timeout=openai.Timeout(None, connect=10.0),  # the rest is limited where it is asked
            max_retries=0,
        ) as client:
            try:
                async with asyncio.TaskGroup() as workers:
                    for _ in range(min(self.concurrency, len(requests))):
                        workers.create_task(work())
            except ExceptionGroup as ended:
                raise ended.exceptions[0] from None

    async def _trace(self, client: AsyncOpenAI, request: Request, sampling: Sampling) -> Trace:
        """Asks until there is an answer, or no sense in asking again."""
        from openai import OpenAIError

        empty = Trace(request.id, request.problem.id, request.index, "", "error", self.name)
        for attempt in range(1, self.max_attempts + 1):
            try:
                trace = filled(empty, await self._ask(client, request, sampling))
                self.num_answers += 1
                return trace
            except (OpenAIError, TimeoutError, ValueError) as error:
                fault, reason = error, one_line(error, self.key)
            if stops_all(fault):
                raise self._stop(reason)
            if attempt == self.max_attempts or not may_pass(fault):
                break
            seconds = wait_s(attempt, fault)
            logger.info("%s: %s; asking again in %.1f s", request.id, reason, seconds)
            await asyncio.sleep(seconds)
        logger.warning("%s: no answer in %d attempts: %s", request.id, attempt, reason)
        self.num_failures += 1
        if self.num_failures >= self.concurrency and not self.num_answers:
            raise self._stop(f"none of {self.num_failures} requests got an answer: {reason}")
        return empty

    async def _ask(self, client: AsyncOpenAI, request: Request, sampling: Sampling) -> Any:
        """The body of one attempt's answer. Raises ValueError where it is not JSON."""
        messages: Any = [{"role": m.role, "content": m.content} for m in request.problem.messages]
        async with asyncio.timeout(self.timeout_s):
            response = await client.chat.completions.with_raw_response.create(
                model=self.name,
                messages=messages,
                temperature=sampling.temperature,
                top_p=sampling.top_p,
                max_tokens=sampling.max_tokens,
                seed=request.seed % 2**31,
            )
        is_secret = len(self.key or "") >= 16  # a shorter one may be a word that texts contain
        return json.loads(without(response.text, self.key if is_secret else None))

    def _stop(self, what: str) -> UserError:
        where = f"{self.name} at {urlsplit(self.base_url).hostname}"
        way_out = f"check model, base_url, and the key in {self.key_variable} with its quota"
        return UserError(where, what, way_out)


def filled(empty: Trace, body: Any) -> Trace:
    """The trace with a chat completion's answer. Raises ValueError where the body has none."""
    match body:
        case {"choices": [{"message": {**message}, "finish_reason": str(reason)}, *_]}:
            if (finish := FINISHES.get(reason)) is None:
                raise ValueError(f"the answer was cut off by {reason!r}")
        case _:
            raise ValueError("the body has no choice with a message and a finish_reason")
    match body.get("usage"):
        case {"prompt_tokens": int(asked), "completion_tokens": int(written)}:
            counted = replace(empty, prompt_tokens=asked, completion_tokens=written)
        case _:
            counted = empty
    if finish == "error":
        return counted
    text = whole_text(message, finish).encode(errors="replace")  # half surrogates fit in no table
    return replace(counted, text=text.decode(), finish=finish)


def whole_text(message: Mapping[Any, Any], finish: Finish) -> str:
    """`<think>…</think>answer`, whichever field holds the thinking. ValueError for no text."""
    content = message.get("content")
    fields = (message.get(name) for name in THINKING)
    thinking = next((said for said in fields if isinstance(said, str) and said), "")
    if not isinstance(content, str) and (content is not None or not thinking):
        raise ValueError("the message has no text")
    answer = content or ""
    if thinking and not answer.lstrip().startswith(OPEN):  # some servers tell it twice
        is_unfinished = finish == "length" and not answer
        return OPEN + thinking + ("" if is_unfinished else CLOSE + answer)
    opened_by_template = CLOSE in answer and OPEN not in answer
    return OPEN + answer if opened_by_template else answer


def stops_all(error: Exception) -> bool:
    """Whether every other request would meet it too: key, permission, model or quota."""
    told = (getattr(error, "code", None), getattr(error, "type", None))
    return status_of(error) in (401, 402, 403, 404) or any(code in NO_QUOTA for code in told)


def may_pass(error: Exception) -> bool:
    """Whether asking again can help: busy or broken servers and lines, and bodies cut short."""
    status = status_of(error)
    return status is None or status in (408, 409, 429) or status >= 500


def status_of(error: Exception) -> int | None:
    """The server's status code, where it was the server who objected."""
    return getattr(error, "status_code", None)


def wait_s(attempt: int, error: Exception) -> float:
    """What the server wishes, and a growing time that scatters those it turned away together."""
    growing = min(FIRST_WAIT_S * 2.0 ** min(attempt - 1, 10), LONGEST_WAIT_S)
    headers = error.response.headers if hasattr(error, "response") else {}
    return wished_s(headers.get("retry-after", "")) + growing * jitter.uniform(0.5, 1.0)


def wished_s(retry_after: str) -> float:
    """A Retry-After header, seconds or a date, as seconds from 0 to 60; nonsense is 0."""
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(retry_after).timestamp() - time()
        except (ValueError, OverflowError):
            return 0.0
    return min(max(0.0, seconds), LONGEST_WAIT_S)


def one_line(error: Exception, key: str | None) -> str:
    """What went wrong, for people, without the key that a server may echo."""
    said = without(f"{type(error).__name__}: {error}", key)
    return " ".join(said.split())[:300].rstrip(": ")


def without(text: str, key: str | None) -> str:
    """The text with nothing to be seen of the key."""
    return text.replace(key, "[key]") if key else text


def read_key(variable: str, base_url: str) -> str | None:
    """The key in the environment, or None where there is none and the server is near."""
    host = urlsplit(base_url).hostname
    if host is None:
        way_out = "write it like http://localhost:8000/v1"
        raise UserError("engine openai", f"base_url {base_url!r} is no address", way_out)
    key, where = os.environ.get(variable, "").strip(), f"environment variable {variable}"
    if not key and not is_near(host):
        raise UserError(where, f"holds no key for {host}", f"export {variable}=...")
    if not key.isascii() or any(c.isspace() or not c.isprintable() for c in key):
        raise UserError(where, "holds characters that no key has", "export the key alone")
    return key or None


def is_near(host: str) -> bool:
    """Whether it is this machine or on its network: a private address or a name without dots."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host
