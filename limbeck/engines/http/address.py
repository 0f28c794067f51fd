"""Where a server is, and the key to it: from the environment only."""

from __future__ import annotations

import os
from ipaddress import ip_address
from urllib.parse import urlsplit

from limbeck.errors import UserError


def plain_address(url: str) -> str:
    """The address as it is; ValueError for one with a key in it, which a run folder would keep."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("is no address; write it like http://localhost:8000/v1")
    if "@" in parts.netloc or parts.query:
        raise ValueError("holds more than an address; take out user, key and query")
    return url


def host_of(url: str) -> str:
    """The name of the machine; UserError where the address has none."""
    host = urlsplit(url).hostname
    if host is None:
        way_out = "write it like http://localhost:8000/v1"
        raise UserError("engine openai", f"base_url {url!r} is no address", way_out)
    return host


def read_key(variable: str, base_url: str) -> str | None:
    """The key in the environment, or None where there is none and the server is near."""
    host = host_of(base_url)
    key, where = os.environ.get(variable, "").strip(), f"environment variable {variable}"
    if not key and not is_near(host):
        raise UserError(
            where,
            f"holds no key for {host}",
            f"export {variable}=..., or name another by key_variable",
        )
    if not key.isascii() or any(c.isspace() or not c.isprintable() for c in key):
        raise UserError(where, "holds characters that no key has", "export the key alone")
    return key or None


def is_near(host: str) -> bool:
    """Whether it is this machine or on its network: a private address or a name without dots."""
    try:
        return ip_address(host).is_private
    except ValueError:
        return "." not in host
