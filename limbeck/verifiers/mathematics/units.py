"""Units and words."""

from __future__ import annotations

import math
import re
from fractions import Fraction

from limbeck.verifiers.mathematics.trees import Tree
from limbeck.verifiers.mathematics.values import is_at_least_one
from limbeck.verifiers.mathematics.words import SCALES, SYNONYMS

UNITS = {*SYNONYMS.values()}


def bare(tree: Tree) -> Tree:
    """A tree without the words behind it."""
    while tree[0] == "unit":
        tree = tree[1]
    return tree


def scaled(tree: Tree) -> Tree:
    """A tree without the words behind it, but for those that are a number: 2 million is 2000000."""
    times = math.prod(SCALES.get(word, 1) for word in _unit(tree))
    return bare(tree) if times == 1 else ("product", bare(tree), ("number", Fraction(times)))


def without_degrees(tree: Tree) -> Tree:
    """180 - x of 180° - x; an angle that a function is of keeps its sign."""
    if tree[0] == "call":
        return tree
    if tree[0] == "unit" and tree[2] == "degrees":
        return without_degrees(tree[1])
    return tuple(without_degrees(part) if isinstance(part, tuple) else part for part in tree)


def _unit(tree: Tree) -> set[str]:
    """The units that are known, each in its short form."""
    found: set[str] = set()
    while tree[0] == "unit":
        for word in re.findall(r"%|[^\W\d_]+", tree[2].replace(".", "")):
            short = word.casefold().removesuffix("es" if word.endswith("ches") else "s") or "s"
            found |= {SYNONYMS.get(short, short)} & UNITS
        tree = tree[1]
    return found


def units_agree(gold: Tree, answer: Tree) -> bool:
    """One side may leave its unit out, but 5 cm are not 5 m, nor is 0.5 % 0.5."""
    mine, other = _unit(gold) - SCALES.keys(), _unit(answer) - SCALES.keys()
    if "%" in other - mine and not is_at_least_one(bare(answer)):
        return False
    return not (mine and other) or bool(mine & other)


def words(tree: Tree) -> str | None:
    """The letters of a text or of a short product of names, in lower case if there are several."""
    if tree[0] == "text":
        written = " ".join(re.findall(r"[^\W_]+", tree[1]))
    elif tree[0] == "unit":
        written = f"{words(tree[1])} {words(('text', tree[2]))}"
    elif tree[0] == "product":
        written = "".join(words(part) or "?" for part in tree[1:])
    elif tree[0] == "name":
        written = tree[1]
    else:
        return None
    return (written.casefold() if len(written) > 1 else written) or None
