"""An engine behind OpenAI's HTTP interface, with continuous batching. See `run`."""

from __future__ import annotations

import os
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from limbeck import progress
from limbeck.errors import UserError

if TYPE_CHECKING:
    from limbeck.serve.loop import Engine

NUM_FILES = 4096
MIN_KEY = 16  # characters; a shorter key can be guessed, and is no secret to `secrets.hidden`


@dataclass(frozen=True)
class Limits:
    """`num_rows` texts are written at once, `num_waiting` may wait; a request may take `time_s`."""

    num_rows: int = 64
    num_waiting: int = 256
    time_s: float = 600.0


def check(host: str, key_variable: str) -> str | None:
    """The key that clients must show, or None. UserError where a package or a key is missing."""
    if find_spec("fastapi") is None or find_spec("uvicorn") is None:
        what = "the packages fastapi and uvicorn are not installed"
        raise UserError("limbeck serve", what, "pip install 'limbeck[serve]'")
    key, where = os.environ.get(key_variable, "").strip(), f"environment variable {key_variable}"
    if not key and not is_loopback(host):
        what = f"holds no key, and {host} can be reached by others"
        raise UserError(where, what, f"export {key_variable}=..., or serve on 127.0.0.1")
    if key and len(key) < MIN_KEY:
        raise UserError(where, "holds a key that can be guessed", f"take {MIN_KEY} characters")
    if not key.isascii() or any(c.isspace() or not c.isprintable() for c in key):
        raise UserError(where, "holds characters that no key has", "export the key alone")
    return key or None


def bind(host: str, port: int) -> socket.socket:
    """A socket at this address. UserError where that cannot be had."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # Only a socket that says TCP is told by asyncio not to wait for a full packet.
        bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()  # a second server on this port hears it now
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        what = f"cannot be listened at ({reason})"
        raise UserError(f"{host} port {port}", what, "choose another --host or --port") from error
    return bound


def run(
    engine: Engine,
    make_draft: Callable[..., Any],
    bound: socket.socket,
    key: str | None,
    limits: Limits,
    *,
    tells_logprobs: bool = True,
) -> None:
    """Serves the engine at a bound socket until SIGTERM or Ctrl-C, then drains.

    `make_draft(prompt, seed, sampling, num_top)` makes what the engine's pool writes; `key` is
    what clients must show. Without `tells_logprobs` those are refused.
    """
    from limbeck.serve.app import Service, create
    from limbeck.serve.limits import HERE, Guard
    from limbeck.serve.loop import Writer
    from limbeck.serve.sockets import Server, configure

    _open_many_files()
    host, port = bound.getsockname()[:2]
    writer = Writer(engine, limits.num_rows, limits.num_waiting)
    service = Service(engine, make_draft, writer, limits.time_s, tells_logprobs)
    hosts = frozenset((*HERE, host)) if is_loopback(host) else None
    guarded = Guard(create(service), key, hosts, service.metrics)
    url = f"http://[{host}]:{port}/v1" if ":" in host else f"http://{host}:{port}/v1"
    server = Server(
        configure(guarded),
        ready=lambda: progress.say(f"{engine.name} is served at {url}; Ctrl-C ends it"),
        end_all=lambda: writer.end_all("the server is shutting down"),
    )
    server.run(sockets=[bound])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _open_many_files() -> None:
    """A connection is an open file, of which a process is allowed few at first."""
    few, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = NUM_FILES if most == resource.RLIM_INFINITY else min(NUM_FILES, most)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(few, wanted), most))
