"""The parts of an expression that stand for themselves: numbers, names, calls, brackets."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from limbeck.verifiers.mathematics.tokens import Token, Unreadable

if TYPE_CHECKING:
    from limbeck.verifiers.mathematics.trees import Reader

Tree = tuple[Any, ...]

CLOSING = {"(": ")", "[": "]", "\\{": "\\}", "{": "}", "⟨": "⟩", "⌊": "⌋", "⌈": "⌉"}
OPENING = {*CLOSING, "|"}


def negative(tree: Tree) -> Tree:
    """The tree times -1."""
    if tree[0] == "number":
        return ("number", -tree[1])
    return ("product", ("number", Fraction(-1)), tree)


def read_atom(reader: Reader) -> Tree:
    """A number, a name, a call, a fraction, or anything in brackets."""
    token = reader.next
    if token is None:
        raise Unreadable("something is missing")
    reader.at += 1
    if token.kind == "number":
        return _number(reader, token.value)
    if token.kind == "name":
        return _named(reader, token.value)
    if token.kind == "function":
        return _call(reader, token.value)
    if token.kind == "text":
        return ("text", token.value)
    if token.kind == "command":
        return _command(reader, token.value)
    if token.value in CLOSING:
        return _bracketed(reader, token.value)
    if token.value == "|":
        return _absolute(reader)
    raise Unreadable(f"stray {token.value!r}")


def _number(reader: Reader, value: Fraction) -> Tree:
    if not reader.sign("_"):
        return ("number", value)
    base = reader.argument()
    if base[0] != "number":
        raise Unreadable("a base")
    return ("based", value, base[1])


def _named(reader: Reader, name: str) -> Tree:
    if not reader.sign("_"):
        return ("name", name)
    return ("name", f"{name}_{_below(reader)}")


def _below(reader: Reader) -> str:
    """A subscript, letter for letter."""
    if not reader.sign("{"):
        token = reader.next
        reader.at += 1
        return str(token.value) if token else ""
    written, depth = "", 1
    while (token := reader.next) and depth:
        depth += {"{": 1, "}": -1}.get(token.value, 0) if token.kind == "sign" else 0
        written += str(token.value) if depth else ""
        reader.at += 1
    return written.replace("{", "").replace("}", "")


def _call(reader: Reader, name: str) -> Tree:
    if name == "sqrt":
        return ("call", "sqrt", reader.atom())
    base = reader.argument() if reader.sign("_") else None
    power = reader.argument() if reader.sign("^") else None
    inside = _operand(reader)
    tree = ("call", name, inside) if base is None else ("call", name, inside, base)
    if power is None:
        return tree
    if power == ("number", Fraction(-1)):
        return ("call", "arc" + name, inside)
    return ("power", tree, power)


def _in_square(reader: Reader) -> Tree:
    reader.need("[")
    tree = reader.sum()
    reader.need("]")
    return tree


def _operand(reader: Reader) -> Tree:
    """What a function without brackets is of: `sin 2x`, not `sin x cos x`, nor `sin x + 1`."""
    token = reader.next
    if token and token.kind == "sign" and token.value in OPENING:
        return reader.atom()
    sign = reader.sign("-")
    tree = reader.power()
    while reader.next and reader.next.kind in ("name", "number"):
        tree = ("product", tree, reader.power())
    return negative(tree) if sign else tree


def _digit_or_atom(reader: Reader) -> Tree:
    """`\\frac43` is 4/3, as LaTeX has it: the first digit alone."""
    token = reader.next
    digits = str(token.value) if token and token.kind == "number" else ""
    if len(digits) < 2 or not digits.isdecimal() or (token and token.spaced and len(digits) > 2):
        return reader.atom()
    rest = Token("number", Fraction(digits[1:]), False)
    reader.tokens[reader.at : reader.at + 1] = [Token("number", Fraction(digits[0]), False), rest]
    return reader.atom()


def _command(reader: Reader, name: str) -> Tree:
    if name == "frac":
        above = _digit_or_atom(reader)
        return ("quotient", above, _digit_or_atom(reader))
    if name == "binom":
        above = _digit_or_atom(reader)
        return ("call", "binomial", above, _digit_or_atom(reader))
    if name == "sqrt":
        degree = _in_square(reader) if reader.next and reader.next.value == "[" else None
        inside = _digit_or_atom(reader)
        return ("call", "root", inside, degree) if degree else ("call", "sqrt", inside)
    if name in ("boxed", "fbox"):
        return reader.atom()
    if name == "begin":
        return _matrix(reader)
    raise Unreadable(name)


def _matrix(reader: Reader) -> Tree:
    """`\\begin{pmatrix} a & b \\\\ c & d \\end{pmatrix}`."""
    kind = _environment(reader)
    if not re.fullmatch(r"[pbvBV]?matrix|array", kind):
        raise Unreadable(kind, heavy=True)
    if kind == "array" and reader.next and reader.next.value == "{":
        reader.argument()
    rows: list[list[Tree]] = [[reader.relation()]]
    while sign := reader.sign("&", "\\\\"):
        if reader.next and reader.next.kind == "command" and reader.next.value == "end":
            break
        if sign == "&":
            rows[-1].append(reader.relation())
        else:
            rows.append([reader.relation()])
    if not reader.next or reader.next.value != "end":
        raise Unreadable("a matrix without an end")
    reader.at += 1
    _environment(reader)
    if kind in ("vmatrix", "Vmatrix"):
        raise Unreadable("a determinant", heavy=True)
    return ("matrix", *(("row", *row) for row in rows))


def _environment(reader: Reader) -> str:
    reader.need("{")
    letters = ""
    while reader.next and reader.next.kind in ("name", "text"):
        letters += reader.next.value
        reader.at += 1
    reader.need("}")
    return letters


def _absolute(reader: Reader) -> Tree:
    reader.bars += 1
    tree = reader.sum()
    reader.need("|")
    reader.bars -= 1
    return ("call", "abs", tree)


def _bracketed(reader: Reader, opened: str) -> Tree:
    bars, reader.bars = reader.bars, 0
    if reader.sign(CLOSING[opened]):
        if opened == "\\{":
            return ("name", "emptyset")
        raise Unreadable("nothing in brackets")
    inside = reader.listed()
    reader.bars = bars
    closed = reader.sign(")", "]") if opened in "([" else reader.sign(CLOSING[opened])
    if not closed:
        raise Unreadable(f"{opened} without an end")
    items = inside[1:] if inside[0] == "list" else (inside,)
    return _in_brackets(opened, closed, inside, items)


def _in_brackets(opened: str, closed: str, inside: Tree, items: Tree) -> Tree:
    if opened in ("⌊", "⌈"):
        return ("call", "floor" if opened == "⌊" else "ceil", inside)
    if opened == "\\{":
        return ("set", *items)
    if opened == "{":
        return ("braces", *items) if len(items) > 1 else inside
    if opened == "⟨":
        return ("round", *items)
    if CLOSING[opened] != closed:
        if len(items) != 2:
            raise Unreadable("brackets that do not match")
        return ("interval", *items, opened + closed)
    if len(items) == 1:
        return inside  # brackets around one value say nothing
    return ("round" if opened == "(" else "square", *items)
