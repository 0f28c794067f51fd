"""Equations, and the labels before a value: `x` in `x = 5`."""

from __future__ import annotations

from limbeck.verifiers.mathematics.arithmetic import Arithmetic, NoValue, Point
from limbeck.verifiers.mathematics.trees import Tree, negative
from limbeck.verifiers.mathematics.values import DIGITS, equal, points, variables


def is_equation(tree: Tree) -> bool:
    """Whether it is `a = b`."""
    return tree[0] == "relation" and tree[2::2] == ("=",)


def same_equation(gold: Tree, answer: Tree) -> bool:
    """Whether `a = b` and `c = d` say the same: a - b is a multiple of c - d."""
    left, right = (("sum", tree[1], negative(tree[3])) for tree in (gold, answer))
    return is_multiple(left, right)


def is_multiple(left: Tree, right: Tree, positive: bool = False) -> bool:
    """Whether one is the other times a number that is not 0, wherever they have a value."""
    names = variables(left)
    if not names or names != variables(right):
        return False
    first, *others = (("quotient", _at(left, point), _at(right, point)) for point in points(names))
    try:
        return _allowed(first, positive) and all(equal(first, other) for other in others)
    except (NoValue, ZeroDivisionError):
        return False


def _at(tree: Tree, point: Point) -> Tree:
    if tree[0] == "name":
        return ("number", point[tree[1]]) if tree[1] in point else tree
    return tuple(_at(part, point) if isinstance(part, tuple) else part for part in tree)


def _allowed(ratio: Tree, positive: bool) -> bool:
    value = Arithmetic({}, 0, DIGITS).value_or_none(ratio)
    return value is not None and value != 0 and (not positive or value.real > 0)


def is_label(tree: Tree) -> bool:
    """Whether it only says what is meant: `x`, `f^{-1}(x)`, `|AB|`, `(p, q)`, `NO/BO`, words."""
    if tree[0] in ("name", "text"):
        return True
    if tree[0] == "unit":
        return is_label(tree[1])
    if tree[0] == "power" and tree[2] == ("number", -1):
        return is_label(tree[1])
    if tree[0] in ("product", "quotient", "ratio", "round"):
        return all(is_label(part) for part in tree[1:])
    if tree[0] == "call" and tree[1] in ("abs", "max", "min", *"PV"):
        return all(is_label(part) for part in tree[2:])
    return False


def _label(tree: Tree) -> Tree | None:
    if tree[0] == "relation" and tree[2] in ("=", "in", "~") and is_label(tree[1]):
        return tree[1]
    return None


def labels_agree(gold: Tree, answer: Tree) -> bool:
    """`x = 5` is not `y = 5`, but `x_max = 5`, `Area = 5` and `f(x) = 5` may well be."""
    names = {_initials(label) for label in map(_label, (gold, answer)) if label}
    return len(names - {""}) < 2


def _initials(label: Tree) -> str:
    """`x` of `x_max`, `xy` of `(x, y)`; nothing of other labels."""
    if label[0] == "name":
        return str(label[1][0])
    return "".join(map(_initials, label[1:])) if label[0] == "round" else ""
