"""What passes between us and a sandbox: plain values as bytes, in frames of a kind and a length.

Both sides import it, so it needs nothing but the standard library's quickest modules. A plain value
is None, a bool, int, float, complex, str or bytes, or a list, tuple, dict, set or frozenset of
such: exactly these types, no subclass of them. Marshal and pickle would run what they read.
"""

from __future__ import annotations

import os
from struct import pack, unpack_from

TYPE_CHECKING = False  # typing takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any

MAX_DEPTH = 100  # of containers in containers
MAX_BYTES = 16 << 20  # of a frame; what is longer is refused

READY = b"r"  # the sandbox stands, nothing of a stranger's has run in it
SCRIPT = b"s"  # run a program with this standard input
FUNCTIONS = b"f"  # run a program and serve its functions
ASSERTS = b"a"  # run assert statements against functions that are called over this wire
PUZZLE = b"p"  # is sat(value) True?
TOGETHER = b"t"  # program and asserts in one process: it could forge what it says
CALL = b"c"  # (name, args, kwargs)
VALUE = b"v"  # what a function returned
RAISED = b"e"  # (name of the exception, its message)
NOT_PLAIN = b"n"  # why a value cannot pass
PASSED = b"+"
FAILED = b"-"
FORGEABLE = b"!"  # why a test cannot be run outside the program's process
MALFORMED = b"?"  # why a test is none

CONTAINERS: dict[type, bytes] = {list: b"l", tuple: b"t", set: b"e", frozenset: b"z"}
MAKERS = {ord(tag): make for make, tag in CONTAINERS.items()}
CONSTANTS = {ord("N"): None, ord("T"): True, ord("F"): False}


class NotPlain(Exception):
    """A value of another type, or one that holds itself, or nested too deep."""


def dumps(value: Any) -> bytes:
    """A plain value as bytes; raises NotPlain.

    The standard library's dictionaries (Counter, defaultdict, OrderedDict) pass as the plain one
    that they equal.
    """
    parts: list[bytes] = []
    _write(value, parts, 0)
    return b"".join(parts)


def _write(value: Any, parts: list[bytes], depth: int) -> None:
    kind = type(value)
    if depth > MAX_DEPTH:
        raise NotPlain(f"nested more than {MAX_DEPTH} deep")
    if value is None:
        parts.append(b"N")
    elif kind is bool:
        parts.append(b"T" if value else b"F")
    elif kind is int:
        data = value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)
        parts += b"i", pack(">I", len(data)), data
    elif kind is float:
        parts += b"d", pack(">d", value)
    elif kind is complex:
        parts += b"c", pack(">dd", value.real, value.imag)
    elif kind is str:
        data = value.encode("utf-8", "surrogatepass")
        parts += b"s", pack(">I", len(data)), data
    elif kind is bytes:
        parts += b"b", pack(">I", len(value)), value
    elif kind in CONTAINERS:
        parts += CONTAINERS[kind], pack(">I", len(value))
        for item in value:
            _write(item, parts, depth + 1)
    elif kind is dict or (issubclass(kind, dict) and kind.__module__ == "collections"):
        parts += b"m", pack(">I", dict.__len__(value))
        for key, item in dict.items(value):
            _write(key, parts, depth + 1)
            _write(item, parts, depth + 1)
    else:
        raise NotPlain(f"{kind.__name__} is no plain value")


class Reader:
    """Reads plain values one after the other; ValueError where the bytes are none."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self.at + count
        if end > len(self.data):
            raise ValueError("the bytes end too soon")
        piece, self.at = self.data[self.at : end], end
        return piece

    def tag(self) -> int:
        """The letter that says what comes next."""
        return self.take(1)[0]

    def count(self) -> int:
        """The length of what comes next; no more than there are bytes left."""
        (count,) = unpack_from(">I", self.take(4))
        if count > len(self.data) - self.at:
            raise ValueError("the bytes end too soon")
        return count

    def scalar(self, tag: int) -> Any:
        """The value behind the tag of anything but a container."""
        if tag in CONSTANTS:
            return CONSTANTS[tag]
        if tag == ord("i"):
            return int.from_bytes(self.take(self.count()), "big", signed=True)
        if tag == ord("d"):
            return unpack_from(">d", self.take(8))[0]
        if tag == ord("c"):
            return complex(*unpack_from(">dd", self.take(16)))
        if tag == ord("s"):
            return self.take(self.count()).decode("utf-8", "surrogatepass")
        if tag == ord("b"):
            return self.take(self.count())
        raise ValueError(f"no value begins with {tag}")

    def value(self, depth: int = 0) -> Any:
        """The next value, whatever it is. Only inside a sandbox: sets and dicts can be made to
        take hours."""
        tag = self.tag()
        if depth > MAX_DEPTH:
            raise ValueError("nested too deep")
        if tag in MAKERS:
            return MAKERS[tag]([self.value(depth + 1) for _ in range(self.count())])
        if tag == ord("m"):
            size = self.count()
            return {self.value(depth + 1): self.value(depth + 1) for _ in range(size)}
        return self.scalar(tag)


def loads(data: bytes) -> Any:
    """The plain value of `dumps`."""
    return Reader(data).value()


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    """A message: its kind, its length, what it says."""
    return kind + pack(">I", len(payload)) + payload


def send(channel: int, kind: bytes, payload: bytes = b"") -> None:
    """Writes a frame, from inside."""
    left = memoryview(frame(kind, payload))
    while left:
        left = left[os.write(channel, left) :]


def receive(channel: int) -> tuple[bytes, bytes]:
    """The next frame, inside; EOFError when we have hung up."""
    head = _read(channel, 5)
    return head[:1], _read(channel, unpack_from(">I", head, 1)[0])


def _read(channel: int, count: int) -> bytes:
    parts = []
    while count:
        part = os.read(channel, min(count, 1 << 20))
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
