"""Mathematical text taken apart: LaTeX, or the plain notation that models write, into tokens."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any, NamedTuple

from limbeck.verifiers import compatible
from limbeck.verifiers.mathematics.words import (
    CHARACTERS,
    FUNCTIONS,
    HATS,
    HEAVY,
    LETTERS,
    NAMES,
    NUMBERS,
    SIGNS,
    TEXTS,
    UNITS,
    UPRIGHT,
)

MAX_LETTERS = 4096
MAX_TOKENS = 1200
MAX_DIGITS = 3000
JOIN, DEGREE, PERCENT = "\ufdd1", "\ufdd2", "\ufdd3"  # Unicode promises: never characters

_REWRITES = [
    (r"\\\\\s*\[\s*-?[\d.]+\s*(?:pt|em|ex|mm|cm|in)\s*\]", r"\\\\ "),
    (r"\\\$|[$€£¥]|(?<!\\)\\[()\[\]]", " "),
    (r"\^\s*\{?\s*(?:\\[a-z]+\s*\{\s*)?(?:st|nd|rd|th)(?![A-Za-z])\s*\}{0,2}", r" \\text{th} "),
    (r"\\(?:left|right)\s*\.|\\[hv]?phantom\s*(?:\{[^{}]*\}|(?=\S))", " "),
    (r"\\(?:left|right|[bB]igg?[lrm]?|displaystyle|textstyle|limits|q?quad)(?![A-Za-z])", " "),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\[dt]binom(?![A-Za-z])", r"\\binom"),
    (r"\{([^{}]{1,40})\\choose(?![A-Za-z])([^{}]{1,40})\}", r"\\binom{\1}{\2}"),
    (r"(?<=\d)(?:\{,\}|,\s*\\!|\\,|\\;|\\:|\\ |~)\s*(?=\d{3}(?!\d))", JOIN),
    (r"(?<!\\)\\[,;:! ]|~", " "),
    (r"\^\s*\{?\s*\\(?:circ|degree)(?![A-Za-z])\s*\}?|\\degree(?![A-Za-z])", DEGREE),
    (r"\^\s*\{?\s*\\prime(?![A-Za-z])\s*\}?", "'"),
    (r"\b([ap])\. ?m\b\.?", r"\1m"),
    (r"\bsq\.", "sq"),
    (r"\*\*", "^"),
    (r"\\%|%", PERCENT),
    (r"\s+", " "),
]
_PLAINER = [(re.compile(pattern), written) for pattern, written in _REWRITES]
_GROUPS = re.compile(  # 12 345 is one number, 100 200 are two
    r"(?<![\d.,])(?<!\d )"
    r"(?:[1-9]\d{0,2}(?:,\d{3})+|[1-9]\d?(?: \d{3})+|\d{3}(?: \d{3})* 000)(?![\d,]| \d)"
)
_TOKEN = re.compile(
    rf"""(?P<fixed>\d*\.\d*)\\overline\s*\{{(?P<period>\d{{1,40}})\}}
    | (?P<number>(?:\d{{1,3}}(?:{JOIN}\d{{3}})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)
      (?P<exponent>[eE][+-]?\d{{1,4}}(?![\d.]))?
    | \\(?P<command>[A-Za-z]+)
    | (?P<escaped>\\[^A-Za-z])
    | (?P<word>[A-Za-z]+)
    | (?P<sign><=|>=|!=|\S)""",
    re.VERBOSE | re.ASCII,
)
_LISTED = re.compile(r"[A-Z0-9](?: ?, ?[A-Z0-9])+|[0-9]+:[0-9]+.*")  # in \text
_FRAME = re.compile(
    r"\s*\{((?:[^{}\\]|\\[^A-Za-z]|\\[A-Za-z]+|\{[^{}]{0,80}\})*)\}|\s*([A-Za-z\d])"
)
_SIGNS = set("+-*/^_!=<>()[]{},;:|&'") | {DEGREE, PERCENT}


class Unreadable(Exception):
    """Not an answer in this grammar; `heavy` if it may be mathematics nevertheless."""

    def __init__(self, what: str, heavy: bool = False):
        super().__init__(what)
        self.heavy = heavy


class Token(NamedTuple):
    """`kind` is number, name, function, command, text or sign; `spaced`: a space goes before."""

    kind: str
    value: Any
    spaced: bool


def plainer(text: str) -> str:
    """LaTeX without frames, spacing, sizes and what nobody sees."""
    if len(text) > MAX_LETTERS:
        raise Unreadable("too long")
    text = compatible(text)
    if not text.isascii():
        text = text.translate(CHARACTERS)
    if r"\begin" not in text:  # outside of matrices, \\frac is \frac that was escaped once more
        text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)
    for pattern, written in _PLAINER:
        text = pattern.sub(written, text)
    text = text.strip(" ,").removesuffix(".").rstrip("\\ ")
    if text.endswith("."):
        raise Unreadable("it goes on")
    if re.search(r"[({\[]", text):  # (1,234) are two numbers, 1,234 is one
        return text
    return _GROUPS.sub(lambda match: re.sub("[, ]", JOIN, match[0]), text)


def tokens(text: str) -> list[Token]:
    """The tokens of a plainer text."""
    found: list[Token] = []
    at = 0
    while match := _TOKEN.search(text, at):
        spaced, at = match.start() > at, match.end()
        command = match["command"]
        if command in TEXTS or command in HATS:
            frame = _FRAME.match(text, at)
            if frame is None:
                raise Unreadable(f"\\{command} of nothing")
            at = frame.end()
            inside = (frame[1] or frame[2] or "").strip()
            listed = _LISTED.fullmatch(inside)
            unit = command in UPRIGHT and inside in LETTERS and _measures(found)
            framed = Token("text", inside, spaced) if unit else _framed(command, inside, spaced)
            found.extend(tokens(inside) if listed else [framed])
        else:
            found.extend(_plain(match, spaced, found[-1] if found else None))
        if len(found) > MAX_TOKENS:
            raise Unreadable("too long")
    return found


def _measures(found: list[Token]) -> bool:
    """Whether a letter in `\\text` that comes next is a unit: behind a number or among units."""
    before = found[-1] if found else None
    if before is None or (before.kind == "sign" and before.value in ("/", "*")):
        return any(token.kind == "text" for token in found)
    return before.kind in ("number", "text") or before.value in ("}", PERCENT, DEGREE)


def _framed(command: str, inside: str, spaced: bool) -> Token:
    if command in HATS:
        return Token("name", f"{command} {''.join(inside.split())}", spaced)
    while frame := re.fullmatch(r"\\(?:text|mathrm|textbf|mathbf)\s*\{([^{}]*)\}", inside):
        inside = frame[1].strip()
    if command == "mathbb":
        return Token("name", f"mathbb {inside}", spaced)
    if inside in FUNCTIONS and command in ("operatorname", "mathrm", "mathop"):
        return Token("function", inside, spaced)
    if re.fullmatch(r"[A-Za-z]", inside):
        return Token("name", inside, spaced)
    if inside.casefold() in NUMBERS:
        return Token("number", Fraction(NUMBERS[inside.casefold()]), spaced)
    if re.fullmatch(r"[0-9]+(?:\.[0-9]+)?", inside):
        return Token("number", _number(inside, None), spaced)
    return Token("text", inside, spaced)


def _plain(match: re.Match[str], spaced: bool, before: Token | None) -> list[Token]:
    if match["number"]:
        return [Token("number", _number(match["number"], match["exponent"]), spaced)]
    if match["period"]:
        return [Token("number", _recurring(match["fixed"], match["period"]), spaced)]
    if match["command"]:
        return _command(match["command"], spaced)
    if match["escaped"]:
        if match["escaped"] in (r"\{", r"\}", r"\\", r"\|", r"\#", r"\&", r"\_"):
            return [Token("sign", match["escaped"], spaced)]
        raise Unreadable(match["escaped"])
    if match["word"]:
        return _word(match["word"], spaced, before)
    if match["sign"] not in _SIGNS and match["sign"] not in ("<=", ">=", "!="):
        raise Unreadable(match["sign"])
    return [Token("sign", match["sign"], spaced)]


def _command(name: str, spaced: bool) -> list[Token]:
    if name == "sqrt" or name in ("frac", "binom", "begin", "end", "boxed", "fbox"):
        return [Token("command", name, spaced)]
    if name in FUNCTIONS:
        return [Token("function", name, spaced)]
    if name in NAMES:
        return [
            Token("name", {"infinity": "infty", "varnothing": "emptyset"}.get(name, name), spaced)
        ]
    if name in SIGNS:
        return [Token("sign", SIGNS[name], spaced)]
    if name in HEAVY:
        raise Unreadable(f"\\{name}", heavy=True)
    for length in range(len(name) - 1, 1, -1):  # \cotx
        if name[:length] in FUNCTIONS | NAMES | set(SIGNS) and len(name) - length == 1:
            return [*_command(name[:length], spaced), Token("name", name[length:], False)]
    raise Unreadable(f"\\{name}")


def _word(word: str, spaced: bool, before: Token | None) -> list[Token]:
    """A function, a Greek letter, a product of at most three letters, a unit, or text."""
    if word in FUNCTIONS:
        return [Token("function", word, spaced)]
    if word.casefold() in NUMBERS:
        return [Token("number", Fraction(NUMBERS[word.casefold()]), spaced)]
    if word in ("infty", "infinity", "inf", "oo", "Infinity"):
        return [Token("name", "infty", spaced)]
    if word in NAMES:
        return [Token("name", word, spaced)]
    if word == "U" and before and before.value in (")", "]"):
        return [Token("sign", "∪", spaced)]
    if joined := re.fullmatch(r"(?:and|or)([A-Z]?)", word):
        return [Token("sign", ",", spaced)] + [Token("name", name, False) for name in joined[1]]
    if word in ("C", "F") and before and before.value == DEGREE:
        return [Token("text", word, spaced)]
    behind = before and (before.kind == "number" or before.value in ("}", PERCENT, DEGREE))
    if len(word) > 3 or (behind and word in UNITS) or (before and before.kind == "text"):
        return [Token("text", word, spaced)]
    return [Token("name", letter, spaced and not at) for at, letter in enumerate(word)]


def _number(digits: str, exponent: str | None) -> Fraction:
    digits = digits.replace(JOIN, "")
    if len(digits) > MAX_DIGITS:
        raise Unreadable("too many digits")
    try:
        value = Fraction(digits)
    except ValueError:
        raise Unreadable(digits) from None
    return value * Fraction(10) ** int(exponent[1:]) if exponent else value


def _recurring(fixed: str, period: str) -> Fraction:
    whole, _, places = fixed.partition(".")
    scale = 10 ** len(places)
    start = Fraction(int((whole + places) or "0"), scale)
    return start + Fraction(int(period), scale * (10 ** len(period) - 1))
