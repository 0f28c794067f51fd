"""What went wrong: whether asking again can help, after how long, and one line for people."""

from __future__ import annotations

import random
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

from limbeck.engines.http.client import TooLong

jitter = random.Random()  # its own, so that waiting moves nobody's seeded numbers

FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0
NO_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")


def stops_all(fault: Exception) -> bool:
    """Whether every other request would meet it too: key, permission, model or quota."""
    told = (getattr(fault, "code", None), getattr(fault, "type", None))
    return status_of(fault) in (401, 402, 403, 404) or any(code in NO_QUOTA for code in told)


def may_pass(fault: Exception) -> bool:
    """Whether asking again can help: busy or broken servers and lines, and bodies cut short."""
    if any(isinstance(error, TooLong) for error in _causes(fault)):
        return False
    status = status_of(fault)
    return status is None or status in (408, 409) or is_busy(fault)


def is_busy(fault: Exception) -> bool:
    """Whether the server says that it has too much to do, or stumbles."""
    status = status_of(fault)
    return status is not None and (status == 429 or status >= 500)


def status_of(fault: Exception) -> int | None:
    """The server's status code, where it was the server who objected."""
    return getattr(fault, "status_code", None)


def wait_s(attempt: int, fault: Exception) -> float:
    """What the server wishes, and a growing time that scatters those it turned away together."""
    growing = min(FIRST_WAIT_S * 2.0 ** min(attempt - 1, 10), LONGEST_WAIT_S)
    headers = fault.response.headers if hasattr(fault, "response") else {}
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


def one_line(fault: Exception, key: str | None) -> str:
    """What went wrong, for people, without the key that a server may echo."""
    causes = [f"{type(error).__name__}: {error}".rstrip(": ") for error in _causes(fault)]
    told = " from ".join(dict.fromkeys(causes))
    return " ".join(without(told, key).split())[:300]


def _causes(fault: BaseException) -> Iterator[BaseException]:
    """The fault and what is behind it: the client says no more than 'Connection error.'"""
    error: BaseException | None = fault
    while error is not None:
        yield error
        error = error.__cause__


def scrubbed(answer: Any, key: str) -> Any:
    """A JSON value with nothing to be seen of the key in its texts, however they were escaped."""
    if isinstance(answer, str):
        return without(answer, key)
    if isinstance(answer, list):
        return [scrubbed(part, key) for part in answer]
    if isinstance(answer, dict):
        return {scrubbed(name, key): scrubbed(part, key) for name, part in answer.items()}
    return answer


def without(text: str, key: str | None) -> str:
    """The text with nothing to be seen of the key."""
    return text.replace(key, "[key]") if key else text
