"""Whether two answers are the same: values, lists, sets, tuples, intervals, equations, words.

The gold answer's form decides. A bare list has no order, and stands for a set or, in its order,
for a tuple; a tuple is no set; `(1, 2)` may be an interval if the other one is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from limbeck.verifiers.mathematics.arithmetic import NoValue, TooBig
from limbeck.verifiers.mathematics.equations import (
    is_equation,
    is_label,
    is_multiple,
    labels_agree,
    same_equation,
)
from limbeck.verifiers.mathematics.regions import FLIPPED, infinite, is_interval, region
from limbeck.verifiers.mathematics.trees import Tree, negative
from limbeck.verifiers.mathematics.units import bare, scaled, units_agree, without_degrees, words
from limbeck.verifiers.mathematics.values import equal, is_near, variables

MAX_ITEMS = 64
LISTS = {"list", "set", "braces"}


def same(gold: Tree, answer: Tree) -> bool:
    """Whether an answer is the gold answer; raises TooBig where that is too much to compute."""
    if gold == answer:
        return True
    if is_equation(gold) and is_equation(answer) and same_equation(gold, answer):
        return True
    return labels_agree(gold, answer) and _same_meaning(_meaning(gold), _meaning(answer))


def _same_meaning(gold: Tree, answer: Tree) -> bool:
    if "text" in (bare(gold)[0], bare(answer)[0]):
        return words(gold) is not None and words(gold) == words(answer)
    if gold[0] == "unit" or answer[0] == "unit":
        return units_agree(gold, answer) and same(scaled(gold), scaled(answer))
    if "relation" in (gold[0], answer[0]) or is_interval(gold) or is_interval(answer):
        return _same_region(gold, answer)
    gold, answer = _spread(gold), _spread(answer)
    if "matrix" in (gold[0], answer[0]):
        return _same_matrix(gold, answer)
    if _items(gold) is not None or _items(answer) is not None:
        return _same_items(gold, answer)
    if gold[0] in ("based", "ratio") or answer[0] in ("based", "ratio"):
        return gold[0] == answer[0] and _pairwise(gold[1:], answer[1:])
    return _same_value(gold, answer)


def _same_value(gold: Tree, answer: Tree) -> bool:
    if infinite(gold) or infinite(answer):
        return infinite(gold) == infinite(answer)
    plain = without_degrees(gold), without_degrees(answer)
    return _equal(gold, answer) or (plain != (gold, answer) and _equal(*plain))


def _equal(gold: Tree, answer: Tree) -> bool:
    try:
        return equal(gold, answer)
    except NoValue:
        return False


def _meaning(tree: Tree) -> Tree:
    """What is said of a label: 5 in `x = 5`; 4 in `2 + 2 = 4`; the set in `x ∈ [0, 1]`."""
    if tree[0] != "relation" or not set(tree[2::2]) <= {"=", "in", "~"}:
        return tree
    sides, signs = list(tree[1::2]), list(tree[2::2])
    while len(sides) > 1 and is_label(sides[0]):
        del sides[0], signs[0]
    if signs[-1:] == ["~"] and is_near(sides[-2], sides[-1]):
        sides, signs = sides[:-1], signs[:-1]  # what stands before is exact
    if {"in", "~"} & set(signs):
        return tree
    if len(sides) > 2 or (len(sides) == 2 and not variables(sides[0]) | variables(sides[1])):
        return sides[-1] if _pairwise(sides[1:], sides[:-1]) else tree
    return sides[0] if len(sides) == 1 else tree


def _items(tree: Tree) -> Sequence[Tree] | None:
    return tree[1:] if tree[0] in LISTS or tree[0] in ("round", "square") else None


def _spread(tree: Tree) -> Tree:
    """±a is the list a, -a; in a list, both are its items."""
    if tree[0] in LISTS:
        spread = [item for part in tree[1:] for item in _signs(part)]
        return (tree[0], *spread)
    both = _signs(tree)
    return both[0] if len(both) == 1 else ("list", *both)


def _signs(tree: Tree) -> list[Tree]:
    if not _has_either(tree):
        return [tree]
    return [_with_sign(tree, sign) for sign in "+-"]


def _has_either(tree: Tree) -> bool:
    return tree[0] == "either" or any(
        _has_either(part) for part in tree[1:] if isinstance(part, tuple)
    )


def _with_sign(tree: Tree, sign: str) -> Tree:
    if tree[0] == "either":
        inside = _with_sign(tree[2], sign)
        return inside if (tree[1] == "±") == (sign == "+") else negative(inside)
    return tuple(_with_sign(part, sign) if isinstance(part, tuple) else part for part in tree)


def _same_items(gold: Tree, answer: Tree) -> bool:
    mine, other = _items(gold), _items(answer)
    if mine is None or other is None:  # {5} is 5, and so is 5, 10/2
        several, single = (gold, answer) if other is None else (answer, gold)
        return several[0] in LISTS and all(same(single, item) for item in several[1:])
    kinds = {gold[0], answer[0]}
    if "square" in kinds and len(mine) == 2:
        return gold[0] == answer[0] and _pairwise(mine, other)
    if kinds & {"round", "square"}:
        if kinds & {"set", "braces"}:
            return False
        return _pairwise(mine, other)
    return _matched(mine, other, same)


def _pairwise(mine: Sequence[Tree], other: Sequence[Tree]) -> bool:
    if len(mine) != len(other):
        return False
    return all(
        same(a, b) if isinstance(a, tuple) and isinstance(b, tuple) else a == b
        for a, b in zip(mine, other, strict=True)
    )


def _matched(
    mine: Sequence[Tree], other: Sequence[Tree], alike: Callable[[Tree, Tree], bool]
) -> bool:
    """Whether the two hold the same, in any order and however often."""
    if max(len(mine), len(other)) > MAX_ITEMS:
        raise TooBig
    return all(any(alike(a, b) for b in other) for a in mine) and all(
        any(alike(a, b) for a in mine) for b in other
    )


def _same_matrix(gold: Tree, answer: Tree) -> bool:
    """Row by row; a single row or column is also a tuple."""
    if gold[0] == answer[0]:
        return len(gold) == len(answer) and all(
            _pairwise(a[1:], b[1:]) for a, b in zip(gold[1:], answer[1:], strict=True)
        )
    matrix, other = (gold, answer) if gold[0] == "matrix" else (answer, gold)
    if other[0] != "round" or not (len(matrix) == 2 or all(len(row) == 2 for row in matrix[1:])):
        return False
    return _pairwise([cell for row in matrix[1:] for cell in row[1:]], other[1:])


def _same_region(gold: Tree, answer: Tree) -> bool:
    mine, other = region(gold), region(answer)
    if mine is not None and other is not None:
        return _matched(mine, other, _same_part)
    if gold[0] == answer[0] == "relation" and len(gold) == len(answer) == 4:
        return _same_inequality(gold, answer)
    return False


def _same_part(a: Tree, b: Tree) -> bool:
    return a[2] == b[2] and same(a[0], b[0]) and same(a[1], b[1])


def _same_inequality(gold: Tree, answer: Tree) -> bool:
    if {gold[2], answer[2]} & {"=", "~", "in", "notin"}:
        return gold[2] == answer[2] and _pairwise(gold[1::2], answer[1::2])
    if gold[2] != answer[2]:
        answer = ("relation", answer[3], FLIPPED[answer[2]], answer[1])
    left, right = (("sum", tree[1], negative(tree[3])) for tree in (gold, answer))
    return gold[2] == answer[2] and is_multiple(left, right, positive=True)
