"""What a program printed or returned against what is right, compared by us and never by it."""

from __future__ import annotations

import math
from typing import Any

from limbeck.verifiers.sandbox.wire import CONSTANTS, Reader

RELATIVE, ABSOLUTE = 1e-6, 1e-9  # how far a float may be off, where a float is expected


def same_output(expected: str, written: bytes) -> bool:
    """The same lines, all of them: white space at their ends and empty lines at the end of all are
    forgiven, nothing else."""
    try:
        return _lines(expected) == _lines(written.decode())
    except UnicodeDecodeError:
        return False


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().split("\n")]


def same_value(expected: Any, data: bytes) -> bool:
    """Whether the bytes of a plain value say what JSON can say of it.

    The type of what is expected decides. An int is an int and no float, a bool is no int; a float
    is a float or an int within a millionth of it, or within 1e-9; NaN equals nothing. A list is a
    list or a tuple, as JSON has no tuples, and its items in order; a dict has the same keys, which
    are strings. Nothing is built of what a program sends.
    """
    reader = Reader(data)
    try:
        return _same(expected, reader) and reader.at == len(data)
    except (ValueError, OverflowError):
        return False


def _same(expected: Any, reader: Reader) -> bool:
    tag = reader.tag()
    if expected is None or expected is True or expected is False:
        return tag in CONSTANTS and CONSTANTS[tag] is expected
    if isinstance(expected, list):
        if tag not in b"lt" or reader.count() != len(expected):
            return False
        return all(_same(item, reader) for item in expected)
    if isinstance(expected, dict):
        if tag != ord("m") or reader.count() != len(expected):
            return False
        return _same_items(dict(expected), reader)
    if isinstance(expected, float):
        return tag in b"di" and _near(expected, reader.scalar(tag))
    wanted = ord("i") if isinstance(expected, int) else ord("s")
    return tag == wanted and reader.scalar(tag) == expected


def _same_items(expected: dict[str, Any], reader: Reader) -> bool:
    """Each key once, in any order; `expected` is used up."""
    while expected:
        tag = reader.tag()
        key = reader.scalar(tag) if tag == ord("s") else None
        if key not in expected or not _same(expected.pop(key), reader):
            return False
    return True


def _near(expected: float, found: float) -> bool:
    return math.isclose(expected, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE)
