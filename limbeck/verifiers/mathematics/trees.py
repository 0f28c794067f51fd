"""Mathematical answers read into trees, by a grammar of what final answers look like.

A tree is a tuple, its kind first: `("number", 3/4)`, `("name", "x_1")`, `("sum", a, b, …)`,
`("product", a, b, …)`, `("quotient", a, b)`, `("power", a, b)`, `("call", "sin", a, …)`,
`("either", sign, a)` for ±a, `("text", words)`, `("unit", a, words)`, `("round", a, …)`,
`("square", …)`, `("set", …)`, `("list", …)`, `("ratio", …)`, `("union", …)`, `("without", a, b)`,
`("interval", low, high, "(]")`, `("relation", a, "<", b, …)`, `("matrix", ("row", …), …)`,
`("based", digits, base)`.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from limbeck.verifiers.mathematics.atoms import OPENING, Tree, negative, read_atom
from limbeck.verifiers.mathematics.tokens import DEGREE, PERCENT, Token, Unreadable, plainer, tokens

MAX_DEPTH = 30
RELATIONS = {"=", "<", ">", "<=", ">=", "!=", "in", "notin", "~"}
HEDGES = re.compile(
    r"\b(?:or|not|no|maybe|perhaps|possibly|than|least|most|wrong|incorrect|if|unless|except|but"
    r"|either|between|guess|unsure|sure|cannot|mod|more|fewer|less|squared|cubed|factorial|times"
    r"|below|minus|negative"
    r"|half|halves|thirds?|fourths?|fifths?|sixths?|sevenths?|eighths?|ninths?|tenths?"
    r"|hundredths?|thousandths?|millionths?)\b",
    re.IGNORECASE,
)


@lru_cache(maxsize=1 << 14)
def read(text: str) -> Tree:
    """The tree of an answer; raises Unreadable."""
    reader = Reader(tokens(plainer(text)))
    tree = reader.listed()
    if reader.next:
        raise Unreadable(f"stray {reader.next.value!r}")
    return tree


class Reader:
    """Recursive descent, one method for each rule, loosest first."""

    def __init__(self, found: list[Token]):
        self.tokens, self.at, self.depth, self.bars = found, 0, 0, 0

    @property
    def next(self) -> Token | None:
        return self.tokens[self.at] if self.at < len(self.tokens) else None

    def sign(self, *values: str) -> str | None:
        """The next token if it is one of these signs, which is then behind us."""
        token = self.next
        if token and token.kind == "sign" and token.value in values:
            self.at += 1
            return token.value
        return None

    def need(self, value: str) -> None:
        if not self.sign(value):
            raise Unreadable(f"no {value}")

    def listed(self) -> Tree:
        """`a, b; c and d`, or only `a`."""
        items = [self.relation()]
        while self.separator():
            items.append(self.relation())
        return items[0] if len(items) == 1 else ("list", *items)

    def separator(self) -> bool:
        found = False
        while True:
            token = self.next
            words = token.value.strip(" ,").casefold() if token and token.kind == "text" else None
            if words in ("and", "or", "") or self._is_comma(token):
                self.at += 1
                found = True
            else:
                return found and token is not None

    def _is_comma(self, token: Token | None) -> bool:
        return bool(token and token.kind == "sign" and token.value in (",", ";"))

    def relation(self) -> Tree:
        """`a`, `a = b` or `a < b < c`; `≈ a` is a."""
        self.sign("~")
        parts: list[Any] = [self.united()]
        while sign := self.sign(*RELATIONS):
            parts += [sign, self.united()]
        return parts[0] if len(parts) == 1 else ("relation", *parts)

    def united(self) -> Tree:
        """`a ∪ b`, `a ∖ b`."""
        left = self.ratio()
        while sign := self.sign("∪", "∖"):
            right = self.ratio()
            if sign == "∖":
                left = ("without", left, right)
            else:
                left = (*left, right) if left[0] == "union" else ("union", left, right)
        return left

    def ratio(self) -> Tree:
        """`a : b`."""
        parts = [self.measured()]
        while self.sign(":"):
            parts.append(self.measured())
        return parts[0] if len(parts) == 1 else ("ratio", *parts)

    def measured(self) -> Tree:
        """A sum, and the words behind it."""
        tree = self.sum()
        words: list[str] = []
        while self.next and self.next.kind == "text" and not self._joins(self.next):
            words.append(self.next.value)
            self.at += 1
            if self.sign("^"):
                self.argument()
            self.sign("/", "*")
        if HEDGES.search(" ".join(words)):
            raise Unreadable("a hedge")
        return ("unit", tree, " ".join(words)) if words else tree

    def _joins(self, token: Token) -> bool:
        return token.value.strip(" ,").casefold() in ("and", "or", "")

    def sum(self) -> Tree:
        """`a + b - c ± d`."""
        terms = [self._term(self.sign("+", "-", "±", "∓") or "+")]
        while sign := self.sign("+", "-", "±", "∓"):
            terms.append(self._term(sign))
        return terms[0] if len(terms) == 1 else ("sum", *terms)

    def _term(self, sign: str) -> Tree:
        tree = self.product()
        if sign in ("±", "∓"):
            return ("either", sign, tree)
        return negative(tree) if sign == "-" else tree

    def product(self) -> Tree:
        """`a * b / c d`, from left to right."""
        tree = self.power()
        while True:
            if self.sign("*"):
                tree = ("product", tree, self.signed())
            elif self.sign("/"):
                tree = ("quotient", tree, self.signed())
            elif self._goes_on():
                tree = self._beside(tree)
            else:
                return tree

    def signed(self) -> Tree:
        """A factor with a sign of its own."""
        sign = self.sign("+", "-", "±")
        tree = self.power()
        if sign == "±":
            return ("either", "±", tree)
        return negative(tree) if sign == "-" else tree

    def _goes_on(self) -> bool:
        """Whether a factor follows without a sign."""
        token = self.next
        if token is None or token.kind == "text":
            return False
        if token.kind == "sign":
            return token.value in OPENING and not (token.value == "|" and self.bars)
        return not (token.kind == "command" and token.value == "end")

    def _beside(self, left: Tree) -> Tree:
        """`2x`; `1 4/5` and `1\\frac45` are sums; two numbers side by side are nothing."""
        token, before = self.next, self.tokens[self.at - 1]
        assert token
        right = self.power()
        whole = left[0] == "number" and left[1].denominator == 1
        if token.kind == before.kind == "number":
            slash = self.next and self.next.kind == "sign" and self.next.value == "/"
            if not (whole and slash and right[0] == "number"):
                raise Unreadable("two numbers side by side")
            self.at += 1
            return self._mixed(left, right, self.power())
        part, words = (right[1], right[2:]) if right[0] == "unit" else (right, ())
        if token.kind == "command" and token.value == "frac" and whole and part[0] == "quotient":
            mixed = self._mixed(left, part[1], part[2])
            return ("unit", mixed, *words) if words else mixed
        return ("product", left, right)

    def _mixed(self, whole: Tree, above: Tree, below: Tree) -> Tree:
        if below[0] == "unit":
            return ("unit", self._mixed(whole, above, below[1]), below[2])
        part = ("quotient", above, below)
        if above[0] == below[0] == "number" and 0 < above[1] < below[1]:
            return ("sum", whole, part)
        if above[0] == below[0] == "number":
            raise Unreadable("two numbers side by side")
        return ("product", whole, part)

    def power(self) -> Tree:
        """`a^b`, with what stands behind a: `a!`, `a'`, `a°`, `a%`."""
        base = self._behind(self.atom())
        while self.sign("^"):
            base = self._behind(("power", base, self.argument()))
        return base

    def _behind(self, tree: Tree) -> Tree:
        while sign := self.sign("!", DEGREE, PERCENT, "'"):
            if sign == "!":
                tree = ("call", "factorial", tree)
            elif sign == "'":
                if tree[0] != "name":
                    raise Unreadable("a prime")
                tree = ("name", tree[1] + "'")
            else:
                tree = ("unit", tree, "degrees" if sign == DEGREE else "%")
        return tree

    def argument(self) -> Tree:
        """What stands above or below: `{a}`, `-2`, `2` or `x`."""
        sign = self.sign("-", "+")
        tree = self.atom()
        return negative(tree) if sign == "-" else tree

    def atom(self) -> Tree:
        """A number, a name, a call, a fraction, or anything in brackets."""
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unreadable("too deep")
        tree = read_atom(self)
        self.depth -= 1
        return tree
