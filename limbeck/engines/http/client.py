"""The official client over connections enough for all, and over bodies that cannot fill memory."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from httpx2 import AsyncByteStream, Response
    from openai import AsyncOpenAI

POOL = 8  # connections
MOST_BODY_BYTES = 16 * 2**20  # 100,000 tokens with their log-probabilities


class TooLong(ValueError):
    """A body is larger than any answer."""


@asynccontextmanager
async def open_clients(
    base_url: str, key: str | None, concurrency: int
) -> AsyncIterator[list[AsyncOpenAI]]:
    """Clients with `concurrency` connections or more between them, for each asker to keep to one.

    A pool looks at all of its connections for every request: one of 512 takes twice as long as
    many small ones. The clients ask once, since asking again is ours to decide, and through the
    proxy that the environment names: HTTPS_PROXY, HTTP_PROXY or ALL_PROXY, but not to the hosts in
    NO_PROXY.
    """
    import httpx2
    import openai

    secure = httpx2.create_ssl_context()  # 20 ms
    async with AsyncExitStack() as opened:
        clients = [
            openai.AsyncOpenAI(
                base_url=base_url,
                api_key=key or "none",
                timeout=openai.Timeout(None, connect=10.0),  # the rest is limited by who asks
                max_retries=0,
                default_headers={"Accept-Encoding": "identity"},  # a small body may unpack to a lot
                http_client=openai.DefaultAsyncHttpxClient(
                    verify=secure,
                    limits=httpx2.Limits(max_connections=POOL, max_keepalive_connections=POOL),
                    event_hooks={"response": [_limit]},
                ),
            )
            for _ in range(-(-concurrency // POOL))
        ]
        for client in clients:
            await opened.enter_async_context(client)
        yield clients


async def _limit(response: Response) -> None:
    """Lets no body grow beyond the limit, whatever its status."""
    import httpx2

    packed = response.headers.get("content-encoding", "identity").strip().lower()
    if packed != "identity":
        raise httpx2.DecodingError(f"the body is packed as {packed[:20]}, which nobody asked for")
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    response.stream = _limited(response.stream)


def _limited(stream: AsyncByteStream) -> AsyncByteStream:
    import httpx2

    class Limited(httpx2.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            size = 0
            async for piece in stream:
                size += len(piece)
                if size > MOST_BODY_BYTES:
                    raise TooLong(f"the body is longer than {MOST_BODY_BYTES / 2**20:.3g} MiB")
                yield piece

        async def aclose(self) -> None:
            await stream.aclose()

    return Limited()
