"""uvicorn with time limits: what bare uvicorn lets hang for ever is closed here.

A connection may be without a request for `IDLE_S`, whether it is new, between two requests or in
the middle of their headers, and may leave what was sent unread for `UNREAD_S`.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_S = 8.0
UNREAD_S = 30.0
DRAIN_S = 30.0
MAX_CONNECTIONS = 1000
MAX_HEADERS = 32 << 10  # bytes


class Connection(H11Protocol):
    """One client's connection."""

    idle_since = 0.0
    timer: asyncio.TimerHandle | None = None
    unread: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._expect_request()
        if len(self.connections) > MAX_CONNECTIONS:
            idle = [c for c in self.connections if isinstance(c, Connection) and c.is_idle]
            min(idle, key=lambda c: c.idle_since).transport.abort()  # the new one is among them

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        for timer in (self.timer, self.unread):
            if timer:
                timer.cancel()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._expect_request()

    def pause_writing(self) -> None:
        super().pause_writing()
        self.unread = self.loop.call_later(UNREAD_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.unread:
            self.unread.cancel()

    @property
    def is_idle(self) -> bool:
        """Whether no request is in work: its headers are not whole, or it is answered."""
        return self.cycle is None or self.cycle.response_complete

    def _expect_request(self) -> None:
        self.idle_since = self.loop.time()
        if self.timer:
            self.timer.cancel()
        self.timer = self.loop.call_later(IDLE_S, self._close_if_idle)

    def _close_if_idle(self) -> None:
        if self.is_idle:
            self.transport.abort()


class Server(uvicorn.Server):
    """Ends in good order: on SIGTERM no new connections, then up to `DRAIN_S` for the answers in
    work, then `end_all` for the rest. A second signal ends at once."""

    def __init__(
        self, config: uvicorn.Config, ready: Callable[[], None], end_all: Callable[[], None]
    ):
        super().__init__(config)
        self.ready, self.end_all = ready, end_all

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().call_later(DRAIN_S, self.end_all)
        await super().shutdown(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True


def configure(app: Any) -> uvicorn.Config:
    """Quiet, HTTP/1.1 only, and with what uvicorn has of limits."""
    return uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEADERS,
        timeout_keep_alive=int(IDLE_S),
        timeout_graceful_shutdown=int(DRAIN_S) + 5,
    )
