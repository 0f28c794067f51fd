"""The answer is the gold number: exact rational arithmetic, no floats and no tolerance."""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from fractions import Fraction
from typing import NamedTuple

from limbeck.types import Problem, Trace, Verdict
from limbeck.verifiers import answer_text, judged, last_boxed, no_answer

MAX_DIGITS = 400  # 1e999999999 is a short string and a number that fills the memory

_PLAIN = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+"
_NUMBER = re.compile(
    rf"""(?:(?P<sign>[+-])\s*)?
    (?: \\[dt]?frac\s*(?:\{{\s*(?P<upper>{_PLAIN})\s*\}}\s*\{{\s*(?P<lower>{_PLAIN})\s*\}}
                       |(?P<upper_digit>\d)\s*(?P<lower_digit>\d))
      | (?P<number>{_PLAIN})(?:[eE](?P<exponent>[+-]?\d+))?
        (?:\s*/\s*(?P<divisor>{_PLAIN}))?
    )
    \s*(?P<percent>%?)""",
    re.VERBOSE,
)
_WORD = r"[^\W\d_]+\.?"
_ALONE = re.compile(  # `x = 5`, `18 dollars per hour.`
    rf"(?:[^\W\d_]+\s*=\s*)?{_NUMBER.pattern}\s*(?:{_WORD}(?:\s+{_WORD}){{0,3}})?\s*\.?",
    re.VERBOSE,
)
_FRAME = re.compile(r"\\\$|\\[!,;: ()]|\\(?:left|right)\b|\^\s*\{?\\circ\}?|\*\*|[°$£€¥]")
_TEXT = re.compile(r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}")


class Number(NamedTuple):
    """A value and whether it was written with a percent sign (`value` is what stood before it)."""

    value: Fraction
    percent: bool

    def __str__(self) -> str:
        return f"{self.value}{'%' if self.percent else ''}"


def verify(problem: Problem, trace: Trace) -> Verdict:
    """Equal as rational numbers: `1,200.0` is `1200`, `3/4` is `0.75` and `\\frac{3}{4}`.

    Read is the last `\\boxed{…}`, else what follows the last `####`, else the last number of the
    final answer. A percent sign on one side only may be a unit or a hundredth: both are accepted.
    """
    gold = read_number(problem.answer)
    if gold is None:
        return Verdict(trace.id, None, None, "bad_gold")
    answer, reason = answer_text(trace)
    if answer is None:
        return no_answer(trace, reason or "unparsed")
    found = answer_number(answer)
    if found is None:
        return no_answer(trace, "unparsed")
    return judged(trace, equal(gold, found), str(found))


def answer_number(answer: str) -> Number | None:
    """The number that a final answer gives; a boxed one must be nothing else than a number."""
    boxed = last_boxed(answer)
    if boxed is not None:
        return read_number(boxed)
    if "####" in answer:
        answer = answer.rpartition("####")[2].strip().partition("\n")[0]
    return read_number(answer) or last_number(answer)


def read_number(text: str) -> Number | None:
    """A number that stands alone: with a currency sign before it or a unit after it, no more."""
    match = _ALONE.fullmatch(_plain(text))
    return _value(match) if match else None


def last_number(text: str) -> Number | None:
    """The last number anywhere in a text; a minus after a letter or a digit is a dash."""
    plain = _plain(text)
    last = next(iter(deque(_NUMBER.finditer(plain), maxlen=1)), None)
    if last is None:
        return None
    found = _value(last)
    dash = last["sign"] == "-" and last.start() > 0 and plain[last.start() - 1].isalnum()
    return found._replace(value=-found.value) if found and dash else found


def equal(a: Number, b: Number) -> bool:
    """Equal values; where one has a percent sign, it is a unit or a hundredth."""
    if a.percent == b.percent:
        return a.value == b.value
    percent, plain = (a, b) if a.percent else (b, a)
    return plain.value in (percent.value, percent.value / 100)


def _plain(text: str) -> str:
    """Without currency signs, LaTeX frames and spacing; runs of white space are one space."""
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").replace("{,}", ",")
    text = _FRAME.sub("", _TEXT.sub(r" \1 ", text)).replace("\\%", "%")
    return " ".join(text.split())


def _value(match: re.Match[str]) -> Number | None:
    """None where it has no value (a division by zero) or is too long to be worth one."""
    upper = match["upper"] or match["upper_digit"] or match["number"]
    lower = match["lower"] or match["lower_digit"] or match["divisor"] or "1"
    exponent = match["exponent"] or "0"
    if len(upper) + len(lower) > MAX_DIGITS or len(exponent) > 5 or abs(int(exponent)) > MAX_DIGITS:
        return None
    divisor = Fraction(lower.replace(",", ""))
    if divisor == 0:
        return None
    value = Fraction(upper.replace(",", "")) * Fraction(10) ** int(exponent) / divisor
    return Number(-value if match["sign"] == "-" else value, bool(match["percent"]))
