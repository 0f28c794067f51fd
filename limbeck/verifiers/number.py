"""The answer is the gold number: exact rational arithmetic, no floats and no tolerance."""

from __future__ import annotations

import re
from collections import deque
from fractions import Fraction
from typing import NamedTuple

from limbeck.types import Problem, Trace, Verdict
from limbeck.verifiers import (
    AnswerIn,
    answer_text,
    compatible,
    judged,
    last_boxed,
    no_answer,
    without_hidden,
)

MAX_DIGITS = 400  # 1e999999999 is a short string and a number that fills the memory
MAX_LETTERS = 4096  # around a number; nothing further away has a say
MAX_LEAD = 24  # letters before a number that say whether it stands for itself

SCALES = {"hundred": 2, "thousand": 3, "lakh": 5, "million": 6, "crore": 7, "bn": 9}
SCALES |= {"billion": 9, "trillion": 12, "tenth": -1, "hundredth": -2, "thousandth": -3}
SCALES |= {"万": 4, "萬": 4, "亿": 8, "億": 8}
UNITS = (
    "mm|cm|dm|km|mg|kg|m[lL]|lbs?|oz|ft|in|yd|mi|mins?|hrs?|secs?|mph|(?:m|ft)/s|(?:km|mi)/hr?"
    r"|am|pm|a\.m\.|p\.m\.|st|nd|rd|th|USD|units?|inches|feet|[\u3040-\u30ff\u4e00-\u9fff]+"
)
GROUPING = str.maketrans("", "", ", ")
NO_UNIT = "and|plus|minus|over|squared|cubed|factorial|divided|root|sqrt|sin|cos|tan|log|mod"
NO_UNIT += "|dozen|hundred|thousand|million|billion|trillion"

_SCALE = "|".join(sorted(SCALES, key=len, reverse=True))
_GROUPS = r"\d{1,3}(?:,\d{3})+(?!\d)|(?:\d{1,2}(?:\ \d{3})+|\d{3}(?:\ \d{3})*\ 000)(?!\d|\ \d)"
_PLAIN = rf"(?:{_GROUPS}|\d+)(?:\.\d+)?|\.\d+"  # 12 345 is one number, 100 200 are two
_NUMBER = re.compile(
    rf"""(?P<sign>[+-]\ ?)?
    (?:(?P<whole>\d{{1,9}})\ ?(?:and\ )?(?=\\[dt]?frac|(?<=\ )\d+\ ?/\ ?\d))?
    (?: \\[dt]?frac\ ?
        (?: \{{\ ?(?P<upper>-?(?:{_PLAIN}))\ ?\}}\ ?\{{\ ?(?P<lower>-?(?:{_PLAIN}))\ ?\}}
          | (?P<upper_digit>\d)\ ?(?P<lower_digit>\d))
      | (?P<number>{_PLAIN})
        (?: [eE](?P<exponent>[+-]?\d+)
          | \ ?\^\ ?(?P<brace>\{{\ ?)?(?P<power>[+-]?\d+)(?(brace)\ ?\}}))?
        (?:\ ?/\ ?(?P<divisor>{_PLAIN}))?
    )
    (?:\s?(?P<scale>{_SCALE})s?(?![A-Za-z]))?
    (?:\s?(?P<percent>%|per\ ?cent\b))?""",
    re.VERBOSE,
)
_WORDS = rf"(?:\s?(?:{UNITS})|\s[mgshlLCF]|\s(?!(?:{NO_UNIT})\b)[^\W\d_]{{3,}})(?![A-Za-z])\.?"
_ALONE = re.compile(  # `x = 5`, `18 dollars per hour.`
    rf"(?:[^\W\d_]+\s?=\s?)?{_NUMBER.pattern}"
    rf"(?P<unit>{_WORDS}(?:[\s/](?!(?:or|{NO_UNIT})\b)(?:a|[^\W\d_]{{2,}})\.?){{0,3}})?\s?\.?",
    re.VERBOSE,
)
_PART = re.compile(  # what stands before a number that is only a part of something
    r"""(?: [A-Za-z\d_.)\]}] | \d[,:'′] | [+-]{2}\ ?                       # x2, 3:45, --3
        | (?:[\^_√]|\\?sqrt|\\(?!approx|to\b|implies|rightarrow|therefore|displaystyle)[a-z]+)
          \ ?[({]?\ ?[+-]?\ ?                                              # 2^3, \sqrt{2}
        | [A-Za-z\d)\]}](?:[*/×·÷+]|\ [*/×·÷+]\ )-? | \dx                  # 2 * 3, a+3
        | \d\ (?:x|over|times|plus|minus)\                                 # 2 x 3, 2 plus 3
        | [A-Za-z\d)\]}^][({\[]\ ?[+-]?                                    # f(2), (2)(3)
        | (?:(?<![A-Za-z])[A-Za-z]|[)\]}])(?:-|\ -\ )                      # x - 3
    | (?:(?<![A-Za-z])(?:or|[Nn]ot|between\ \S{1,9}\ and)|n't)\ -?        # 2 or 3, not 3
    )\Z""",
    re.VERBOSE,
)
_DASH = re.compile(r"(?:[A-Za-z\d%]-|[A-Za-z] - |[\d%] - ?|\n- )\Z")  # no sign: 3-5, 3 - 5
_GOES_ON = re.compile(  # what follows one
    rf"""(?!(?:{UNITS})(?![A-Za-z]))[A-Za-zα-ω] | \ ?[\^_√] | \(            # 5x, 5^n, 5(
    | \ ?\\(?!end\b|\\|\}}|[a-z]*square|checkmark|approx)                   # 5 \pi
    | (?:[*/×·÷+-]|\ [*/×·÷+-]\ )(?:[A-Za-z](?![A-Za-z])|[(\\{{])           # 5 * x
    | \ (?:or\ )?[b-fi-knp-rt-z](?![A-Za-z'.])                              # 5 x, 5 or x
    | \ (?:squared|cubed|factorial|pi)\b""",
    re.VERBOSE,
)
_REWRITES = [
    (r"\\(?:text|mathrm|mbox|textbf|mathbf)\s*\{([^{}]*)\}", r" \1 "),
    (r"\\\\(?:\[\d[^\]\n]*\])?", r"\n"),
    (r"[\u2010-\u2015\u2212]", "-"),
    (r"\{,\}|,\\!", ","),
    (r"\\!|\\(?:left|right)\b", ""),
    (r"\^\s*(?:\\circ|∘|\{\s*(?:\\circ|∘)\s*\})|[°~]|\\(?:[,;: ()\[\]]|q?quad\b)", " "),
    (r"(-?)\s?\\?[$£€¥]", r" \1"),
    (r"\\%", "%"),
    (r"(?<=\d)\*\*(?=\d)|(?<=\d) \*\* (?=\d)", "^"),
    (r"\*\*", " "),
    (r"[^\S\n]+", " "),
    (r" ?\n[ \n]*", "\n"),
    (r"(?<=\d) ?(?:\\times|\\cdot|[×·*x]) ?10 ?\^ ?(?:\{ ?([+-]?\d+) ?\}|([+-]?\d+))", r"e\1\2"),
    (rf"(\d\s?(?:{UNITS})|\d m) ?\^ ?(?:[23](?!\d)|\{{[23]\}})", r"\1"),
]
_PLAINER = [(re.compile(pattern), written) for pattern, written in _REWRITES]


class Number(NamedTuple):
    """A value and whether it was written with a percent sign (`value` is what stood before it)."""

    value: Fraction
    percent: bool

    def __str__(self) -> str:
        return f"{self.value}{'%' if self.percent else ''}"


def verify(problem: Problem, trace: Trace, *, answer_in: AnswerIn = "after_thinking") -> Verdict:
    """Equal as rational numbers: `1,200.0` is `1 200`, `2 3/4` is `2.75` and `2\\frac{3}{4}`.

    Read is the last `\\boxed{…}`, else what follows the last `####`, else the last number of the
    final answer. A percent sign on one side only may be a unit or a hundredth: both are accepted.
    """
    gold = read_number(problem.answer)
    if gold is None:
        return Verdict(trace.id, None, None, "bad_gold")
    answer, reason = answer_text(trace, answer_in)
    if answer is None:
        return no_answer(trace, reason or "unparsed")
    found = answer_number(answer)
    if found is None:
        return no_answer(trace, "unparsed")
    return judged(trace, equal(gold, found), str(found))


def answer_number(answer: str) -> Number | None:
    """The number that a final answer gives; a boxed one must be nothing else than a number."""
    answer = without_hidden(answer)
    boxed = last_boxed(answer)
    if boxed is not None:
        return read_number(boxed)
    if "####" in answer:
        answer = answer.rpartition("####")[2].strip().partition("\n")[0]
    return read_number(answer) or last_number(answer)


def read_number(text: str) -> Number | None:
    """A number that stands alone: with a currency sign before it or a unit after it, no more."""
    return read_quantity(text)[0]


def read_quantity(text: str) -> tuple[Number | None, str]:
    """A number that stands alone, and the words behind it; a `x =` before it counts as a word."""
    plain = _plain(text) if len(text) <= MAX_LETTERS else ""
    match = _ALONE.fullmatch(plain)
    if match is None:
        return None, ""
    name, equals, _ = plain.rpartition("=")
    return _value(match), f"{name}{equals}{match['unit'] or ''}".strip(" .")


def last_number(text: str) -> Number | None:
    """The last number of a text, None where it is a part of something: `x2`, `5x`, `2 * 3`.

    A minus behind a digit or a word is a dash.
    """
    at = next((at for at in reversed(range(len(text))) if text[at].isnumeric()), 0)
    plain = _plain(text[max(0, at - MAX_LETTERS) : at + MAX_LETTERS])
    last = next(iter(deque(_NUMBER.finditer(plain), maxlen=1)), None)
    if last is None:
        return None
    lead = plain[max(0, last.start() - MAX_LEAD) : last.start()] + (last["sign"] or "")
    half = last["divisor"] and re.search(r"\d[ -]\Z", lead)  # 2-1/2: which of the two is meant?
    if half or _PART.search(lead) or _GOES_ON.match(plain, last.end()):
        return None
    found = _value(last)
    return found._replace(value=-found.value) if found and _DASH.search(lead) else found


def equal(a: Number, b: Number) -> bool:
    """Equal values; where one has a percent sign, it is a unit or a hundredth."""
    if a.percent == b.percent:
        return a.value == b.value
    percent, plain = (a, b) if a.percent else (b, a)
    return plain.value in (percent.value, percent.value / 100)


def _plain(text: str) -> str:
    """Without currency signs, LaTeX frames and spacing; white space is one space or one newline."""
    text = compatible(text)
    for pattern, written in _PLAINER:
        text = pattern.sub(written, text)
    return text.strip()


def _value(match: re.Match[str]) -> Number | None:
    """None where it has no value (a division by zero) or is too long to be worth one."""
    upper = match["upper"] or match["upper_digit"] or match["number"]
    lower = match["lower"] or match["lower_digit"] or match["divisor"] or "1"
    exponent, power = match["exponent"] or "0", match["power"] or "1"
    if max(len(exponent), len(power)) > 5 or abs(int(exponent)) > MAX_DIGITS:
        return None
    if len(upper) * max(1, abs(int(power))) + len(lower) > MAX_DIGITS:
        return None
    base, divisor = (Fraction(digits.translate(GROUPING)) for digits in (upper, lower))
    if divisor == 0 or (base == 0 and int(power) < 1):
        return None
    value = base ** int(power) / divisor
    if match["whole"]:
        if not 0 < value < 1:
            return None
        value += int(match["whole"])
    if zeros := int(exponent) + SCALES.get(match["scale"] or "", 0):
        value *= Fraction(10) ** zeros
    minus = (match["sign"] or "").startswith("-")
    return Number(-value if minus else value, bool(match["percent"]))
