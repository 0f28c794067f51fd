"""What a worker process does for the math verifier: long answers, and all that needs sympy."""

from __future__ import annotations

from typing import Any

import sympy
from math_verify import parse, verify

from limbeck.types import Reason
from limbeck.verifiers.math import decide

DIGITS = 50
POINTS = [sympy.Rational(*point) for point in ((1097, 811), (1733, 2003), (877, 359))]


def answer(question: dict[str, str]) -> Reason:
    """The judgement on `{"gold": …, "answer": …}`, both without anything around them."""
    known = decide(question["gold"], question["answer"])
    return known or _by_math_verify(question["gold"], question["answer"])


def _by_math_verify(gold: str, other: str) -> Reason:
    """math-verify's judgement where it holds in either direction and to many digits."""
    mine, theirs = _parsed(gold), _parsed(other)
    if mine is None:
        return "bad_gold"
    if theirs is None:
        return "unparsed"
    both_ways = _accepts(mine, theirs) and _accepts(theirs, mine)
    return "correct" if both_ways and _confirmed(mine, theirs) else "wrong"


def _parsed(text: str) -> Any:
    """sympy's object, None where there is only a string."""
    try:
        found = parse(f"\\boxed{{{text}}}", parsing_timeout=None, raise_on_error=True)
    except Exception:  # whatever sympy trips over: not an expression that it knows
        return None
    return next((one for one in found if not isinstance(one, str)), None)


def _accepts(gold: Any, other: Any) -> bool:
    try:
        return bool(verify([gold], [other], timeout_seconds=None))
    except Exception:
        return False


def _confirmed(gold: Any, other: Any) -> bool:
    """Whether two expressions agree at several points to 50 digits; other things in their form."""
    if not (isinstance(gold, sympy.Expr) and isinstance(other, sympy.Expr)):
        return isinstance(gold, sympy.Expr) == isinstance(other, sympy.Expr) and (
            type(gold) is type(other)
        )
    names = sorted(gold.free_symbols | other.free_symbols, key=str)
    for turn in range(len(POINTS) if names else 1):
        point = {name: POINTS[(at + turn) % len(POINTS)] + at for at, name in enumerate(names)}
        first, second = (sympy.N(side.subs(point), DIGITS) for side in (gold, other))
        if not (first.is_number and second.is_number):
            return False
        gap = abs(first - second)
        if not gap <= sympy.Float(10) ** (8 - DIGITS) * max(abs(first), abs(second)):
            return gap == 0
    return True


_by_math_verify(r"\sqrt{2}", r"\int_0^1 x\,dx")  # a first time takes a second: before any question
