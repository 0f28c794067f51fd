"""How a program is tried by each shape of test; nothing that it says is taken for a verdict."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from limbeck.types import Reason
from limbeck.verifiers import sandbox
from limbeck.verifiers.sandbox import wire
from limbeck.verifiers.sandbox.equal import same_output, same_value
from limbeck.verifiers.sandbox.limits import Limits
from limbeck.verifiers.sandbox.process import Ended, Late, Process
from limbeck.verifiers.sandbox.shapes import Asserts, Call, Puzzle, Script, Test

Outcome = tuple[Reason, str | None]
CORRECT: Outcome = ("correct", None)
WRONG: Outcome = ("wrong", None)
TIMEOUT: Outcome = ("timeout", None)


@dataclass(frozen=True)
class Task:
    """A program, and how it is judged; `prefix` is the part of it that was given."""

    program: str
    prefix: str
    reference: str
    time_s: float
    limits: Limits
    may_forge: bool


def judge(task: Task, tests: Sequence[Test]) -> Outcome:
    """The outcome of the first test that does not pass, or that all of them do."""
    return next((found for found in _outcomes(task, tests) if found != CORRECT), CORRECT)


def _outcomes(task: Task, tests: Sequence[Test]) -> Iterator[Outcome]:
    calls = [test for test in tests if isinstance(test, Call)]
    if calls:
        yield _called(task, calls)
    for test in tests:
        if isinstance(test, Script):
            yield _printed(task, test)
        elif isinstance(test, Asserts):
            yield _asserted(task, test)
        elif isinstance(test, Puzzle):
            yield _solved(task, test)


def _printed(task: Task, test: Script) -> Outcome:
    """A program that does not end with status 0 is wrong, whatever it printed."""
    try:
        written, status = sandbox.run(task.program, test.stdin, task.time_s, task.limits)
    except Late:
        return TIMEOUT
    except Ended:
        return WRONG
    return CORRECT if status == 0 and same_output(test.stdout, written) else WRONG


def _called(task: Task, tests: Sequence[Call]) -> Outcome:
    """All calls in one process; loading the program has a time limit of its own."""
    with sandbox.start(task.limits) as program:
        try:
            if not _load(program, task.program, time.monotonic() + task.time_s):
                return WRONG
            for test in tests:
                deadline = time.monotonic() + task.time_s
                program.send(wire.CALL, _call(test.call, test.args, test.kwargs), deadline)
                kind, value = program.receive(deadline)
                if kind != wire.VALUE or not same_value(test.returns, value):
                    return WRONG
        except Late:
            return TIMEOUT
        except Ended:
            return WRONG
    return CORRECT


def _asserted(task: Task, test: Asserts) -> Outcome:
    kind, why = _conversation(task, test)
    if kind == wire.NOT_PLAIN and not (
        task.reference and _wants_objects(replace(task, program=task.reference), test)
    ):
        return WRONG
    if kind in (wire.NOT_PLAIN, wire.FORGEABLE):
        return _together(task, test) if task.may_forge else ("error", f"forgeable: {why}")
    return _outcome(kind, why)


def _outcome(kind: bytes | None, why: str) -> Outcome:
    if kind == wire.MALFORMED:
        return "bad_gold", why
    if kind is None:
        return TIMEOUT
    return CORRECT if kind == wire.PASSED else WRONG


def _conversation(task: Task, test: Asserts) -> tuple[bytes | None, str]:
    """(how a test ended, why); None for late.

    The test runs in one sandbox and the program in another; each of its calls passes through here.
    """
    with sandbox.start(task.limits) as program, sandbox.start(task.limits) as tester:
        deadline = time.monotonic() + task.time_s
        try:
            if not _load(program, task.program, deadline):
                return wire.FAILED, ""
            asked = {"source": test.asserts, "setup": test.setup, "entry": test.entry}
            tester.ask(wire.ASSERTS, deadline, prefix=task.prefix, **asked)
            while True:
                kind, payload = tester.receive(deadline)
                if kind != wire.CALL:
                    return kind, payload.decode(errors="replace")
                program.send(wire.CALL, payload, deadline)
                tester.send(*program.receive(deadline), deadline)
        except Late:
            return None, ""
        except Ended:
            return wire.FAILED, ""


@functools.lru_cache(maxsize=1024)
def _wants_objects(task: Task, test: Asserts) -> bool:
    """Whether a right program, too, returns what is no plain value."""
    return _conversation(task, test)[0] == wire.NOT_PLAIN


def _together(task: Task, test: Asserts) -> Outcome:
    """Program and test in one process, whose word is taken."""
    with sandbox.start(task.limits) as process:
        deadline = time.monotonic() + task.time_s
        asked = {"source": test.asserts, "setup": test.setup, "entry": test.entry}
        try:
            process.ask(wire.TOGETHER, deadline, program=task.program, **asked)
            kind, why = process.receive(deadline)
        except Late:
            return TIMEOUT
        except Ended:
            return WRONG
    return _outcome(kind, why.decode(errors="replace"))


def _solved(task: Task, test: Puzzle) -> Outcome:
    try:
        with sandbox.start(task.limits) as program:
            deadline = time.monotonic() + task.time_s
            if not _load(program, task.program, deadline):
                return WRONG
            program.send(wire.CALL, _call("sol", [], {}), deadline)
            kind, value = program.receive(deadline)
        if kind != wire.VALUE:
            return WRONG
        with sandbox.start(task.limits) as tester:
            deadline = time.monotonic() + task.time_s
            tester.ask(wire.PUZZLE, deadline, source=test.sat, value=value)
            kind, why = tester.receive(deadline)
    except Late:
        return TIMEOUT
    except Ended:
        return WRONG
    return _outcome(kind, why.decode(errors="replace"))


def _load(program: Process, source: str, deadline: float) -> bool:
    """Whether a program runs to its end, so that its functions can be called."""
    program.ask(wire.FUNCTIONS, deadline, source=source)
    return program.receive(deadline)[0] == wire.VALUE


def _call(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    return wire.dumps((name, list(args), dict(kwargs)))
