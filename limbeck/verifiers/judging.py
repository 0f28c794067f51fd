"""One verdict for one trace, by the verifier that its problem names."""

from __future__ import annotations

import functools
import json

from pydantic_core import PydanticCustomError

from limbeck.config import Plugin
from limbeck.errors import UserError
from limbeck.plugins import Kind
from limbeck.types import Problem, Trace, Verdict

VERIFIERS = Kind("verifier", "limbeck.verifiers", "verify")


def verifier_of(problem: Problem) -> Plugin:
    """The verifier that a problem names; UserError where there is none of that name or knobs."""
    try:
        return _verifier(json.dumps(problem.verifier, sort_keys=True))
    except PydanticCustomError as error:
        mistakes = (error.context or {})["mistakes"]
        what = ", ".join(f"{'.'.join(map(str, key))}: {mistake}" for key, mistake in mistakes)
    except ValueError as error:
        what = str(error)
    what, _, way_out = what.rpartition("; ")
    raise UserError(f"problem {problem.id}", f"verifier {problem.verifier!r}: {what}", way_out)


@functools.cache
def _verifier(written: str) -> Plugin:
    return VERIFIERS.parse(json.loads(written))


def judge(problem: Problem, trace: Trace) -> Verdict:
    """The verdict; a verifier that raises gives `error`, never a silent False."""
    verifier = verifier_of(problem)
    try:
        return verifier(problem, trace)
    except Exception as error:  # a verifier reads hostile text: whatever it throws is an answer
        return Verdict(trace.id, None, f"{type(error).__name__}: {error}"[:200], "error")


def gradable(problem: Problem) -> Verdict:
    """What a problem's verifier says to its own gold answer, given plainly and in a box.

    Anything but `correct` means that no student could ever be right. UserError when the problem
    names no verifier that there is.
    """
    plain = judge(problem, _gold(problem, problem.answer))
    return (
        plain if plain.correct else judge(problem, _gold(problem, f"\\boxed{{{problem.answer}}}"))
    )


def _gold(problem: Problem, text: str) -> Trace:
    return Trace("gold", problem.id, 0, text, "stop", "gold")
