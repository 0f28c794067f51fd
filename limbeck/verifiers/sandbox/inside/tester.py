"""Holds the tests, in another process than the program; calls its functions over the wire."""

from __future__ import annotations

import builtins
import os
import sys
from types import CodeType, ModuleType

from limbeck.verifiers.sandbox import wire
from limbeck.verifiers.sandbox.inside.program import execute, silence

TYPE_CHECKING = False  # typing takes longer to import than all the rest
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

FUTURE_ANNOTATIONS = 0x1000000  # compile's flag: annotations are not evaluated
ONLY_SYNTAX_TREE = 0x400
RUN_TEXT = {"eval", "exec"}  # which names more than the test does


class Ends(BaseException):
    """The verdict is found; no `except Exception` of a test may catch it."""

    def __init__(self, kind: bytes, why: str = ""):
        self.kind, self.why = kind, why


class Test:
    """What a test asked of the program so far; where `entry` is set it may ask for nothing else."""

    def __init__(self, channel: int, entry: str | None = None):
        self.channel, self.entry, self.num_calls = channel, entry, 0
        self.end: Ends | None = None

    def ends(self, kind: bytes, why: str = "") -> Ends:
        """The verdict, kept for a test that catches everything."""
        self.end = self.end or Ends(kind, why)
        return self.end

    def call(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What the program's function returns; raises what it raises."""
        if self.end:
            raise self.end
        if self.entry not in (None, name):  # a helper from the program could say what it likes
            raise self.ends(wire.FORGEABLE, f"the test calls {name}, which is not its own")
        try:
            asked = wire.dumps((name, list(args), kwargs))
        except wire.NotPlain as error:
            raise self.ends(wire.FORGEABLE, f"{name} is given what cannot pass: {error}") from None
        self.num_calls += 1
        wire.send(self.channel, wire.CALL, asked)
        kind, payload = wire.receive(self.channel)
        if kind == wire.VALUE:
            return wire.loads(payload)
        if kind == wire.RAISED:
            raise _exception(*wire.loads(payload))
        raise self.ends(wire.NOT_PLAIN, payload.decode(errors="replace"))


class Function:
    """Stands in a test for a function of the program."""

    def __init__(self, test: Test, name: str):
        self._test, self._name = test, name

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._test.call(self._name, args, kwargs)

    def __getattr__(self, attribute: str) -> Any:
        raise self._test.ends(wire.FORGEABLE, f"the test looks at {self._name}.{attribute}")


def run(channel: int, kind: bytes, **asked: Any) -> None:
    """Sends PASSED, FAILED, FORGEABLE or MALFORMED, and no more."""
    silence(0, 1, 2)
    test = Test(channel, asked.get("entry"))
    judge: dict[bytes, Callable[..., None]]
    judge = {wire.ASSERTS: asserts, wire.PUZZLE: puzzle, wire.TOGETHER: together}
    try:
        try:
            judge[kind](test, **asked)
        finally:
            if test.end:
                raise test.end
        raise Ends(wire.PASSED)
    except Ends as end:
        wire.send(channel, end.kind, end.why.encode("utf-8", "replace"))
    except BaseException as error:
        wire.send(channel, wire.FAILED, type(error).__name__.encode("utf-8", "replace"))
    os._exit(0)


def asserts(test: Test, source: str, setup: str, prefix: str, entry: str | None) -> None:
    """Runs a test's statements; names that neither it nor the prefix defines are the program's.

    The language's own names are not, unless there is no name but one, which must be what is tested:
    beside others, a program's `all` could say that all is well.
    """
    module = sys.modules["tests"] = ModuleType("tests")
    found = module.__dict__
    found["__builtins__"] = builtins
    try:
        prepared = compile(setup, "setup.py", "exec", dont_inherit=True)
        tested = compile(source, "tests.py", "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as error:
        raise Ends(wire.MALFORMED, str(error)) from None
    _run_prefix(prefix, found)
    named = {*_names(prepared), *_names(tested)} - found.keys()
    given = named - vars(builtins).keys() | ({entry} if entry else set())
    if not given and len(named) == 1:  # `sum` of `assert sum(10, 15) == 6` is the program's own
        given = named - RUN_TEXT
    found |= {name: Function(test, name) for name in given}
    _refuse_dropped(source, given | {"candidate"})
    try:
        exec(prepared, found)
    except Exception as error:
        if test.num_calls:
            raise
        raise Ends(wire.MALFORMED, f"its setup raises {type(error).__name__}") from None
    exec(tested, found)
    if entry and callable(found.get("check")) and not isinstance(found["check"], Function):
        found["check"](found[entry])
    if not test.num_calls:
        raise test.ends(wire.MALFORMED, "it calls no function of the program")


def _run_prefix(prefix: str, found: dict[str, Any]) -> None:
    """The source before the program's: its imports and helpers are a test's, too.

    A function that it leaves open gets a body; what cannot run is left out.
    """
    for written in (prefix, prefix.rstrip() + "\n    pass\n"):
        try:
            exec(compile(written, "prefix.py", "exec", dont_inherit=True), found)
        except Exception:
            continue
        return


def _names(code: CodeType) -> Iterator[str]:
    """Every name that code may look up among its globals."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def _refuse_dropped(source: str, called: set[str]) -> None:
    """A call of the program whose value is dropped is meant to change its arguments.

    They are copies, so such a test cannot pass; in a `try` it is meant to raise.
    """
    for node in _nodes(compile(source, "tests.py", "exec", ONLY_SYNTAX_TREE, True)):
        if type(node).__name__ == "Expr" and type(node.value).__name__ == "Call":
            name = getattr(node.value.func, "id", None)
            if name in called:
                raise Ends(wire.FORGEABLE, f"what {name} returns is not looked at")


def _nodes(node: Any) -> Iterator[Any]:
    """A syntax tree's nodes outside of `try`; the module ast takes longer to import than a test."""
    yield node
    if type(node).__name__ == "Try":
        return
    for name in node._fields:
        inner = getattr(node, name, None)
        for child in inner if isinstance(inner, list) else [inner]:
            if hasattr(child, "_fields"):
                yield from _nodes(child)


def puzzle(test: Test, source: str, value: bytes) -> None:
    """A puzzle is solved when its `sat` returns True for a value of the type that it names."""
    found: dict[str, Any] = {}
    try:
        flags = FUTURE_ANNOTATIONS
        exec(compile(source, "puzzle.py", "exec", flags, dont_inherit=True), found)
        sat = found["sat"]
        names = sat.__code__.co_varnames
        wanted = sat.__annotations__.get(names[0], "")
    except Exception as error:
        raise Ends(wire.MALFORMED, f"{type(error).__name__}: {error}") from None
    given = wire.loads(value)
    if not is_of(given, wanted) or sat(given) is not True:
        raise Ends(wire.FAILED)


def is_of(value: Any, wanted: str) -> bool:
    """Whether a value is exactly of a type as written: `int`, `List[List[str]]`; other words let
    everything pass."""
    outer, _, inner = wanted.replace(" ", "").partition("[")
    if outer in ("List", "list"):
        return type(value) is list and all(is_of(item, inner[:-1]) for item in value)
    kinds: dict[str, type] = {"int": int, "float": float, "bool": bool, "str": str}
    return outer not in kinds or type(value) is kinds[outer]


def together(test: Test, program: str, source: str, setup: str, entry: str | None) -> None:
    """Program and test in one process: the program could make any test pass."""
    found = execute(program, "program")
    exec(compile(setup, "setup.py", "exec", dont_inherit=True), found)
    exec(compile(source, "tests.py", "exec", dont_inherit=True), found)
    if entry and callable(found.get("check")):
        found["check"](found[entry])


def _exception(name: str, message: str) -> Exception:
    """The exception that a program raised; one of its own, or a stranger's, is an Exception.

    So is StopIteration: `map` in a test would take it for the end of what there is to check.
    """
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception) and kind is not StopIteration:
        try:
            return kind(message)
        except Exception:
            pass
    return Exception(f"{name}: {message}")
