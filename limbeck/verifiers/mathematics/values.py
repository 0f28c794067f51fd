"""Whether two expressions have the same value, whatever the values of their variables.

Rational numbers are exact. What is irrational is computed to so many digits that no number in it
is too small to be seen. A variable stands for a few fixed numbers that nobody would choose.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from fractions import Fraction
from functools import lru_cache
from typing import Any

from limbeck.verifiers.mathematics.arithmetic import Arithmetic, NoValue, Point, TooBig
from limbeck.verifiers.mathematics.trees import Tree

MAX_DIGITS = 2000  # to which anything irrational is computed
DIGITS = 50  # to begin with
NEAR_POINTS = 2  # at which nothing may be too big
INTEGERS = set("jklmnN")  # by custom
CONSTANTS = {"pi", "e", "i", "infty", "emptyset"}


def equal(a: Tree, b: Tree) -> bool:
    """Equal at every point; raises TooBig, or NoValue where there is nothing to compare.

    `log` without a base is to base 10 or e, whichever makes them equal.
    """
    if a == b:
        return True
    bases = (10, 0) if _mentions_log(a) or _mentions_log(b) else (0,)
    return any(_equal(a, b, base) for base in bases)


def _equal(a: Tree, b: Tree, base: int) -> bool:
    verdicts = []
    names = variables(a) | variables(b)
    for turn, point in enumerate(_points(names, _steps(a) or _steps(b))):
        try:
            verdicts.append(_equal_at(a, b, point, base))
        except TooBig:
            if turn < NEAR_POINTS:
                raise
        if verdicts and verdicts[-1] is False:
            return False
    if True not in verdicts:
        raise NoValue
    return True


def _equal_at(a: Tree, b: Tree, point: Point, base: int) -> bool | None:
    """None where neither has a value, or, with something negative, not all is real on the way."""
    digits = DIGITS
    while True:
        arithmetic = Arithmetic(point, base, digits)
        x, y = arithmetic.value_or_none(a), arithmetic.value_or_none(b)
        anywhere = all(value > 0 for value in point.values())
        real = arithmetic.all_real and arithmetic.is_real(x) and arithmetic.is_real(y)
        if not anywhere and not real:
            return None
        if x is None or y is None:
            return None if x is y else False
        if isinstance(x, Fraction) and isinstance(y, Fraction):
            return x == y
        if not arithmetic.is_small(x - y if not isinstance(x, Fraction) else y - x):
            return False
        needed = 2 * arithmetic.reach + DIGITS
        if digits >= needed:
            return True
        if needed > MAX_DIGITS:
            raise TooBig
        digits = needed


@lru_cache(maxsize=1 << 12)
def variables(tree: Tree) -> frozenset[str]:
    """The names in a tree that are no constants."""
    if tree[0] == "name":
        return frozenset({tree[1]} - CONSTANTS)
    return frozenset().union(*(variables(part) for part in tree[1:] if isinstance(part, tuple)))


def _mentions_log(tree: Tree) -> bool:
    if tree[0] == "call" and tree[1] == "log" and len(tree) == 3:
        return True
    return any(_mentions_log(part) for part in tree[1:] if isinstance(part, tuple))


def points(names: frozenset[str]) -> Iterator[Point]:
    """Two of positive numbers, two far away, and for a few names one where it is negative."""
    yield {name: coordinate(name, 0) for name in names}
    if names:
        yield {name: coordinate(name, 1) for name in names}
        yield {name: coordinate(name, 3) * 17 for name in names}
        yield {name: coordinate(name, 4) * -17 for name in names}
    for negative in sorted(names)[:3]:
        yield {name: coordinate(name, 2) * (-1 if name == negative else 1) for name in names}


def _points(names: frozenset[str], with_steps: bool) -> Iterator[Point]:
    """Those of `points`; where there are steps whole ones, which are enough for n and its like."""
    if not (with_steps and {name[0] for name in names} <= INTEGERS):
        yield from points(names)
    if with_steps:
        yield from whole_points(names)


def whole_points(names: frozenset[str]) -> Iterator[Point]:
    """Where floor and ceil step: each name takes every rest that a small number can leave."""
    for turn in range(12 if names else 0):
        yield {name: Fraction(24 + turn + 17 * at) for at, name in enumerate(sorted(names))}


def _steps(tree: Tree) -> bool:
    if tree[0] == "call" and tree[1] in ("floor", "ceil"):
        return True
    return any(_steps(part) for part in tree[1:] if isinstance(part, tuple))


def coordinate(name: str, turn: int) -> Fraction:
    return Fraction(300 + zlib.crc32(f"{turn} {name}".encode()) % 2000, 997)


def is_near(a: Tree, b: Tree) -> bool:
    """Whether a rounded number may be meant for another: they differ by less than a hundredth."""
    size = _value(("quotient", a, b))
    return size is not None and abs(size - 1) < 0.01


def is_at_least_one(tree: Tree) -> bool:
    """Whether it is a number, at least 1 or at most -1."""
    value = _value(tree)
    return value is not None and abs(value) >= 1


def _value(tree: Tree) -> Any:
    if variables(tree):
        return None
    return Arithmetic({}, 0, DIGITS).value_or_none(tree)


def is_too_big(tree: Tree) -> bool:
    """Whether anything in an answer is too much to compute, whatever it is compared with."""
    point = {name: coordinate(name, 0) for name in variables(tree)}
    try:
        if Arithmetic(point, 0, DIGITS).value_or_none(tree) is not None:
            return False
    except TooBig:
        return True
    return any(is_too_big(part) for part in tree[1:] if isinstance(part, tuple))
