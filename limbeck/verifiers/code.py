"""Python programs, judged by tests in a sandbox from which no verdict can be forged.

A program is given inputs alone; what is right never enters its sandbox. Printed and returned values
are compared out here, asserts run in another sandbox and call the program over a wire that carries
plain values, and the value that solves a puzzle is computed before anybody speaks of the puzzle.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import PositiveFloat, PositiveInt

from limbeck.types import Problem, Trace, Verdict
from limbeck.verifiers import AnswerIn, answer_text, no_answer, sandbox
from limbeck.verifiers.sandbox.limits import Limits
from limbeck.verifiers.sandbox.process import Trouble
from limbeck.verifiers.sandbox.shapes import read_tests
from limbeck.verifiers.sandbox.trials import Task, judge

FENCE = "```"
MAX_TOLD = 200  # letters of what a sandbox says: a program may have written them
PYTHON = {"python", "python3", "py"}


def check(**_: Any) -> None:
    """Raises UserError where there is no sandbox."""
    sandbox.backend()


def verify(
    problem: Problem,
    trace: Trace,
    *,
    time_s: PositiveFloat = 4.0,
    memory_mib: PositiveInt = 1024,
    forgeable: Literal["refuse", "run"] = "refuse",
    answer_in: AnswerIn = "after_thinking",
) -> Verdict:
    """Right when every one of the problem's `meta["tests"]` passes.

    The program is the answer's last block of Python, else all of it, behind `meta["prefix"]` if
    there is one. Each test has `time_s` (a program that takes longer is wrong, for that reason) and
    `memory_mib`; functions that are called one after the other live in one process and share what
    it remembers. What a test hands to the program is a copy.

    Asserts that look at more than what a function returns (classes, functions as arguments, what a
    call did to its arguments) can only run in the program's own process, where it could make any of
    them pass: they are not judged, or, where `forgeable` says `run`, run nevertheless.
    """
    tests = read_tests(problem.meta.get("tests"))
    if not tests:
        return Verdict(trace.id, None, None, "bad_gold")
    answer, reason = answer_text(trace, answer_in)
    program = "" if answer is None else extract_program(answer)
    if not program.strip():
        return no_answer(trace, reason or "unparsed")
    prefix = str(problem.meta.get("prefix") or "")
    limits = Limits(cpu_s=time_s * (len(tests) + 1), memory_bytes=memory_mib << 20)
    reference = prefix + problem.answer if problem.answer else ""
    task = Task(prefix + program, prefix, reference, time_s, limits, forgeable == "run")
    try:
        reason, told = judge(task, tests)
    except Trouble as error:
        reason, told = "error", f"sandbox: {error}"
    correct = None if reason in ("bad_gold", "error") else reason == "correct"
    return Verdict(trace.id, correct, told[:MAX_TOLD] if told else program, reason)


def extract_program(answer: str) -> str:
    """The last block that says it is Python, else the last that says nothing, else everything."""
    blocks = list(_blocks(answer))
    for languages in (PYTHON, {""}):
        for language, text in reversed(blocks):
            if language in languages:
                return text
    return answer


def _blocks(answer: str) -> Iterator[tuple[str, str]]:
    """(language, text) of each fenced block; one that is left open ends with the answer."""
    language, indent = None, 0
    lines: list[str] = []
    for line in answer.split("\n"):
        bare = line.strip()
        if language is None and bare.startswith(FENCE) and FENCE not in bare.strip("`"):
            words = bare.strip("`").split()
            language, lines = (words[0].lower() if words else ""), []
            indent = len(line) - len(line.lstrip())
        elif language is not None and bare.startswith(FENCE) and not bare.strip("`"):
            yield language, "\n".join(lines) + "\n"
            language = None
        elif language is not None:
            lines.append(line[indent:] if not line[:indent].strip() else line)
    if language is not None:
        yield language, "\n".join(lines) + "\n"
