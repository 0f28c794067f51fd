"""One verdict for one trace, by the verifier that its problem names."""

from __future__ import annotations

import functools
import json

from limbeck.config import Plugin
from limbeck.plugins import Kind
from limbeck.types import Problem, Trace, Verdict

VERIFIERS = Kind("verifier", "limbeck.verifiers", "verify")


@functools.cache
def _verifier(written: str) -> Plugin:
    return VERIFIERS.parse(json.loads(written))


def judge(problem: Problem, trace: Trace) -> Verdict:
    """The verdict; a verifier that raises gives `error`, never a silent False."""
    verifier = _verifier(json.dumps(problem.verifier, sort_keys=True))
    try:
        return verifier(problem, trace)
    except Exception as error:  # a verifier reads hostile text: whatever it throws is an answer
        return Verdict(trace.id, None, f"{type(error).__name__}: {error}"[:200], "error")


def gradable(problem: Problem) -> Verdict:
    """What a problem's verifier says to its own gold answer, given plainly and in a box.

    Anything but `correct` means that no student could ever be right.
    """
    plain = judge(problem, _gold(problem, problem.answer))
    return (
        plain if plain.correct else judge(problem, _gold(problem, f"\\boxed{{{problem.answer}}}"))
    )


def _gold(problem: Problem, text: str) -> Trace:
    return Trace("gold", problem.id, 0, text, "stop", "gold")
