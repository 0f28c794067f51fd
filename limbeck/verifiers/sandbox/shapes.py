"""The shapes that a test of a program may have."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError


class Shape(BaseModel):
    """What every test is: plain JSON, with these keys and no others."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Script(Shape):
    """The program reads `stdin` and prints `stdout`; see `same_output`."""

    stdin: str
    stdout: str


class Call(Shape):
    """A function, or the method of a class Solution, returns this; see `same_value`."""

    call: str
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    returns: Any


class Asserts(Shape):
    """Statements that call the program's functions; with `entry`, `check(entry)` is called, too."""

    asserts: str
    entry: str | None = None
    setup: str = ""


class Puzzle(Shape):
    """`def sat(answer, …)`; the program's `sol()` must return what `sat` says True to."""

    sat: str


Test = Script | Call | Asserts | Puzzle
TESTS = TypeAdapter(list[Test])


def read_tests(written: object) -> list[Test] | None:
    """The tests of a problem; None where one of them has no known shape."""
    try:
        return TESTS.validate_python(written)
    except ValidationError:
        return None
