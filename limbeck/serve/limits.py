"""What stands before every route: who may ask, from where, and how large a body may be.

A web page that its visitor's browser shows must not reach a server on loopback: pages that rebind
their name to 127.0.0.1 are known by their Host, pages that send across origins by their Origin.
"""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from limbeck.serve.metrics import Metrics
from limbeck.serve.refusal import Refusal

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_BODY = 4 << 20  # bytes
MAX_BODIES = 64 << 20  # of all requests together, as long as they are read
BODY_S = 10.0
HERE = ("localhost", "127.0.0.1", "::1")
OPEN_ROUTES = ("/health",)
ROUTES = ("/health", "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")


class Guard:
    """Lets a request through to `app` once it is whole and allowed; tells `metrics` its status.

    `key` is what clients must show (None: nothing); `hosts` the names that they may have called us
    by (None: any).
    """

    def __init__(self, app: App, key: str | None, hosts: frozenset[str] | None, metrics: Metrics):
        self.app, self.key, self.hosts, self.metrics = app, key, hosts, metrics
        self.num_held = 0  # bytes of bodies that are being read

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                route = scope["path"] if scope["path"] in ROUTES else "other"
                self.metrics.requests[route, message["status"]] += 1
            await send(message)

        try:
            check_headers(scope, self.hosts, self.key)
            body = await self._body(scope, receive)
        except Refusal as refusal:
            await refuse(refusal, counted)
        else:
            await self.app(scope, replayed(body, receive), counted)

    async def _body(self, scope: Message, receive: Receive) -> bytes:
        """The whole body, read within its limits; what is too much is read too, but not kept, so
        that a client that is still sending hears why."""
        announced = int(header(scope, b"content-length") or 0)
        body, size = bytearray(), announced
        try:
            async with asyncio.timeout(BODY_S):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the body ended early")
                    piece = message.get("body", b"")
                    size = max(size, len(body) + len(piece))
                    if size <= MAX_BODY:
                        body += piece
                        self.num_held += len(piece)
                    if not message.get("more_body"):
                        break
                    if self.num_held > MAX_BODIES:
                        raise Refusal(429, "too many large requests at once", retry_s=1)
        except TimeoutError:
            raise Refusal(408, f"the body took longer than {BODY_S:g} s") from None
        finally:
            self.num_held -= len(body)
        if size > MAX_BODY:
            raise Refusal(413, f"a body has at most {MAX_BODY} bytes")
        return bytes(body)


def check_headers(scope: Message, hosts: frozenset[str] | None, key: str | None) -> None:
    """Raises Refusal for a request that its headers give away."""
    host, origin = header(scope, b"host"), header(scope, b"origin")
    if hosts is not None and (host is None or hostname(f"//{host}") not in hosts):
        raise Refusal(403, "the Host header names another server than this")
    if hosts is not None and origin is not None and hostname(origin) not in hosts:
        raise Refusal(403, "pages of other origins are not served")
    if key and scope["path"] not in OPEN_ROUTES:
        scheme, _, shown = (header(scope, b"authorization") or "").partition(" ")
        is_right = hmac.compare_digest(shown.encode(), key.encode())
        if scheme.lower() != "bearer" or not is_right:
            raise Refusal(401, "send the server's key as `Authorization: Bearer KEY`")
    if scope["query_string"]:
        raise Refusal(400, "no route takes a query; a key belongs in the Authorization header")
    if header(scope, b"transfer-encoding") and header(scope, b"content-length"):
        raise Refusal(400, "a body has either a length or chunks")
    if scope["method"] == "POST":
        kind = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refusal(415, "the body is JSON; say so by `Content-Type: application/json`")


def header(scope: Message, name: bytes) -> str | None:
    """A header's value; None where it is missing. Refusal where it stands twice."""
    values = [value for key, value in scope["headers"] if key == name]
    if len(values) > 1:
        raise Refusal(400, f"the header {name.decode()} stands there {len(values)} times")
    return values[0].decode("latin-1") if values else None


def hostname(url: str) -> str:
    """The name in an address, or what no host is called."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def replayed(body: bytes, receive: Receive) -> Receive:
    """A body that was read as its reader would have got it; then whatever comes behind it."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return waiting.pop() if waiting else await receive()

    return again


async def refuse(refusal: Refusal, send: Send) -> None:
    """The refusal as a response, after which the connection is closed."""
    content = json.dumps(refusal.body).encode()
    headers = {
        "content-type": "application/json",
        "content-length": str(len(content)),
        "connection": "close",
        **refusal.headers,
    }
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": content})
