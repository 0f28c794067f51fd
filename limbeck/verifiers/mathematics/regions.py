"""Intervals, unions of them, and the inequalities that say the same."""

from __future__ import annotations

from limbeck.verifiers.mathematics.equations import is_label
from limbeck.verifiers.mathematics.trees import Tree, negative

INFINITE: Tree = ("name", "infty")
REALS: Tree = ("name", "mathbb R")
BOUNDED = {"<", ">", "<=", ">=", "!="}
FLIPPED = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "!=": "!="}


def infinite(tree: Tree) -> int:
    """1, -1 or 0, which is finite."""
    if tree == INFINITE:
        return 1
    return -1 if tree == negative(INFINITE) else 0


def is_interval(tree: Tree) -> bool:
    """Whether it cannot be a tuple."""
    if tree == REALS or tree[0] in ("interval", "union", "without"):
        return True
    return tree[0] in ("round", "square") and any(map(infinite, tree[1:]))


def region(tree: Tree) -> list[Tree] | None:
    """(low, high, "[)") of each of its parts; None where it is none."""
    if tree[0] == "relation":
        return _bounds(tree)
    if tree == REALS:
        return [(negative(INFINITE), INFINITE, "()")]
    if tree[0] == "without" and tree[1] == REALS and tree[2][0] == "set" and len(tree[2]) == 2:
        return _half_line("!=", tree[2][1])
    if tree[0] in ("round", "square") and len(tree) == 3:
        return [(tree[1], tree[2], "()" if tree[0] == "round" else "[]")]
    if tree[0] == "interval":
        return [(tree[1], tree[2], tree[3])]
    if tree[0] == "set":
        return [(item, item, "[]") for item in tree[1:]]
    if tree[0] in ("union", "list"):
        parts = [region(part) for part in tree[1:]]
        return None if None in parts else [one for part in parts for one in part or []]
    return None


def _bounds(tree: Tree) -> list[Tree] | None:
    """`a < x ≤ b`, `x > a` and `x ≠ a`, with any one label for x."""
    sides, signs = tree[1::2], tree[2::2]
    if "in" in signs:
        return region(sides[-1]) if len(sides) == 2 and is_label(sides[0]) else None
    if not set(signs) <= BOUNDED:
        return None
    if len(sides) == 3 and not is_label(sides[1]):
        return None
    if len(sides) == 2 and is_label(sides[1]) and not is_label(sides[0]):
        sides, signs = sides[::-1], (FLIPPED[signs[0]],)
    if len(sides) == 2 and is_label(sides[0]):
        return _half_line(signs[0], sides[1])
    if len(sides) == 3 and signs[0][0] == signs[1][0] in ("<", ">"):
        low, high = (sides[0], sides[2]) if signs[0][0] == "<" else (sides[2], sides[0])
        first, last = signs if signs[0][0] == "<" else signs[::-1]
        return [(low, high, ("[" if "=" in first else "(") + ("]" if "=" in last else ")"))]
    return None


def _half_line(sign: str, bound: Tree) -> list[Tree]:
    below = (negative(INFINITE), bound, "(]" if "=" in sign else "()")
    above = (bound, INFINITE, "[)" if "=" in sign else "()")
    if sign == "!=":
        return [(*below[:2], "()"), (*above[:2], "()")]
    return [below if sign[0] == "<" else above]
