"""How many requests may be in flight: fewer while the server is busy, one while it is out.

Additive increase, multiplicative decrease, as in TCP (Chiu and Jain 1989): a 429 or 5xx halves the
limit, once for all requests that were sent before; every limit's worth of answers raises it by an
eighth of the most.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

logger = logging.getLogger(__name__)

GROWTH = 1 / 8  # of the most, for a limit's worth of answers
OUT_AFTER = 12  # faults in a row; more than a single request, which may be at fault, is asked


class Pace:
    """Turns to ask, given in the order in which they were wished for, at most `most` at a time.

    `where` names the server for people. It is out once it has answered before and then only
    failed, often in a row, whoever asked: then there is one turn, until it answers again.
    """

    def __init__(self, most: int, where: str = "the server") -> None:
        self.most, self.where = most, where
        self.limit = float(most)
        self.in_flight = 0
        self.has_answered = False
        self.faults_in_row = 0
        self.out_since: float | None = None
        self._cut = 0.0  # when the limit was last halved
        self._waiting: deque[asyncio.Future[None]] = deque()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[float]:
        """A turn, and when it began."""
        if self._waiting or self.in_flight >= int(self.limit):
            mine = asyncio.get_running_loop().create_future()
            self._waiting.append(mine)
            try:
                await mine  # who lets it in counts it
            except asyncio.CancelledError:
                self.in_flight -= mine.done() and not mine.cancelled()
                raise
        else:
            self.in_flight += 1
        try:
            yield monotonic()
        finally:
            self.in_flight -= 1
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self.in_flight < int(self.limit):
            waiting = self._waiting.popleft()
            if not waiting.done():  # it has been cancelled
                self.in_flight += 1
                waiting.set_result(None)

    @property
    def out_s(self) -> float:
        """For how long the server has been out, in seconds; 0 where it is not."""
        return 0.0 if self.out_since is None else monotonic() - self.out_since

    @property
    def probes(self) -> int:
        """How often it was asked in vain since it went out."""
        return max(0, self.faults_in_row - OUT_AFTER)

    def answered(self) -> None:
        """A request got its answer, or an objection that is its own: the server is there."""
        if self.out_since is not None:
            logger.warning("%s answers again, after %.0f s", self.where, self.out_s)
        self.has_answered, self.faults_in_row, self.out_since = True, 0, None
        self.limit = min(self.most, self.limit + self.most * GROWTH / self.limit)

    def failed(self, begun: float, is_busy: bool, reason: str) -> None:
        """A turn that began then came to nothing, for a reason that may pass."""
        self.faults_in_row += 1
        if is_busy and begun >= self._cut:
            self.limit, self._cut = max(1.0, self.limit / 2), monotonic()
        if self.out_since is None and self.has_answered and self.faults_in_row >= OUT_AFTER:
            self.out_since, self.limit = monotonic(), 1.0
            logger.warning(
                "%s is out (%s); waiting for it, with one request at a time", self.where, reason
            )
