"""Filters of one trace by what a reader can follow: its form, and a summary that is faithful."""

from __future__ import annotations

import re
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal

from pydantic import NonNegativeInt, PositiveInt

from limbeck.chat import split_think
from limbeck.types import Trace, Verdict

FENCE = "```"
FENCED = re.compile(r"```.{0,50000}?(?:```|\Z)", re.DOTALL)
PARAGRAPH_END = re.compile(  # a blank line, a list item, a formula on lines of its own
    r"\n[ \t]*(?:\n|[-*•][ \t]|[0-9]+[.)][ \t])|\\[\[\]]|\$\$"
)
PAIRS = ((r"\[", r"\]"), (r"\(", r"\)"), (r"\begin{", r"\end{"))
BOX = r"\boxed{"
BOX_CHARS = 300  # of a box that are read
STATED = re.compile(  # a plain number that is said to be the answer, and ends its sentence
    r"answer(?: is|:)[\s$*\\(\[]{0,8}(-?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?)"
    r"(?=[\s\\)\]$*]{0,6}(?:[.!?](?:\s|\Z)|\n|\Z))",
    re.IGNORECASE,
)
STATED_CHARS = 1000  # of a text's end where that counts; before, minds change
DRESS = re.compile(  # what an answer wears
    r"\\(?:text|mathrm|mathbf|textbf|left|right|displaystyle|[,!;: ])"
    r"|\^\{?\\circ\}?|\\?%|[\s$]|^\s*[a-zA-Z]\s*="
)
NUMBER = re.compile(r"[0-9]{1,40}(?:(?:,|\{,\}|\\,|\\!|,\\!)[0-9]{3}(?![0-9]))*(?:\.[0-9]{1,40})?")
# Not the process's own, which others set: reasoning_gym does, to six digits.
EXACT = Context(prec=MAX_PREC, Emax=MAX_EMAX, Emin=MIN_EMIN)
SYMBOL = re.compile(rf"[-−]?{NUMBER.pattern}|[^\W\d_]+")
LABEL = re.compile(  # numbers that only count: list items, steps, indices
    r"^[ \t#*]*[0-9]{1,2}[.):][ \t*]|\b(?:step|case|part|term|equation)\s+[0-9]+|_\{?[0-9]+",
    re.IGNORECASE | re.MULTILINE,
)


def readable(
    trace: Trace,
    verdict: Verdict,
    *,
    max_paragraph: PositiveInt | None = 1500,
    code_blocks: bool = False,
    max_new_numbers: NonNegativeInt | None = 0,
) -> str | None:
    """Keeps what a reader can follow, as DeepSeek-R1's rejection sampling did.

    Thinking without a paragraph of more than `max_paragraph` characters and, unless they are
    allowed (where programs are asked for), without code blocks; formulas that are closed; and a
    summary that is `faithful` to the thinking. A text without thinking is read as thinking.
    """
    thought = split_think(trace.text)
    thinking = trace.text if thought.thinking is None else thought.thinking
    if FENCE in thinking:
        if not code_blocks:
            return "code_block"
        thinking = FENCED.sub("\n\n", thinking)
    if max_paragraph is not None and _longest_paragraph(thinking, max_paragraph) > max_paragraph:
        return "long_paragraph"
    if _left_open(thinking) or _left_open(thought.answer or ""):
        return "broken_markup"
    return faithful(trace, verdict, max_new_numbers=max_new_numbers)


def faithful(
    trace: Trace, verdict: Verdict, *, max_new_numbers: NonNegativeInt | None = 0
) -> str | None:
    """Keeps summaries that follow from the thinking: its answer, and no numbers but its own.

    What both state last as their answer must agree, and at most `max_new_numbers` numbers of the
    summary may be missing in the thinking. Not new are single digits, labels (`Step 12`, `x_{10}`),
    rounded numbers, shares as percentages and what stands in programs. Where there is no thinking,
    nothing must follow.
    """
    thought = split_think(trace.text)
    thinking, summary = (thought.thinking or "").strip(), (thought.answer or "").strip()
    if not thinking or not summary:
        return None
    decided, told = _stated_answer(thinking), _stated_answer(summary)
    if decided is not None and told is not None and not _agree(decided, told):
        return "unfaithful"
    if max_new_numbers is not None and _num_new(summary, thinking) > max_new_numbers:
        return "unfaithful"
    return None


def _longest_paragraph(text: str, matters_from: int) -> int:
    """Characters of the longest paragraph; of a text that is short enough, its own."""
    if len(text) <= matters_from:
        return len(text)
    return max(map(len, PARAGRAPH_END.split(text)))


def _left_open(text: str) -> bool:
    """Whether over a tenth of its formulas lack their beginning or end: one slip may happen."""
    for begin, end in PAIRS:
        num_begins = text.count(begin) - text.count("\\" + begin)  # `\\[2pt]` ends a matrix's row
        num_ends = text.count(end)
        if 10 * abs(num_begins - num_ends) > max(num_begins, num_ends):
            return True
    return text.count("$$") % 2 == 1


def _stated_answer(text: str) -> str | None:
    """What the last box holds; without a box the last number that is said to be the answer."""
    begin = text.rfind(BOX)
    if begin >= 0:
        return _braced(text[begin + len(BOX) :][:BOX_CHARS])
    stated = STATED.findall(text[-STATED_CHARS:])
    return stated[-1] if stated else None


def _braced(text: str) -> str:
    """The text up to the brace that closes one opened before it; all of it where none does."""
    depth = 1
    for at, char in enumerate(text):
        depth += {"{": 1, "}": -1}.get(char, 0)
        if depth == 0:
            return text[:at]
    return text


def _agree(one: str, other: str) -> bool:
    """Whether two answers hold the same numbers and letters in the same order.

    That is lenient: what stands between them may differ, as in a/2 and `\\frac{a}{2}`.
    """
    return _symbols(one) == _symbols(other)


def _symbols(answer: str) -> list[str]:
    written = undressed(answer).replace(r"\frac", "")
    return [undressed(symbol) for symbol in SYMBOL.findall(written)]


def undressed(answer: str) -> str:
    """An answer as it is compared: without spaces, LaTeX's looks, a unit sign or `x=`.

    A plain number is written in one way: 1,234.50 as 1234.5. No algebra: 1/2 is not 0.5.
    """
    text = DRESS.sub("", answer).removesuffix(".").lower()
    text = text.replace(r"\dfrac", r"\frac").replace(r"\tfrac", r"\frac")
    sign, number = ("-", text[1:]) if text[:1] in ("-", "−") else ("", text)
    return f"{sign}{_value(number).normalize(EXACT):f}" if NUMBER.fullmatch(number) else text


def _num_new(summary: str, thinking: str) -> int:
    """How many numbers of a summary do not follow from those of its thinking."""
    summary = LABEL.sub(" ", FENCED.sub(" ", summary))
    told = {number for number in NUMBER.findall(summary) if len(number) > 1}
    if not told:
        return 0
    told -= (written := set(NUMBER.findall(thinking)))
    known = {_value(number) for number in written}
    return sum(not _follows(number, known) for number in told)


def _follows(written: str, known: set[Decimal]) -> bool:
    """Whether a number is known: as it is, rounded, as a percentage, or as a list of numbers."""
    number = _value(written)
    ways = (number, number.scaleb(2, EXACT), number.scaleb(-2, EXACT))
    if not known.isdisjoint(ways) or number == 100:
        return True
    if "." in written:
        places = len(written.rpartition(".")[2])
        return any(round(float(other), places) == float(number) for other in known)
    return "," in written and all(_value(part) in known for part in written.split(","))


def _value(written: str) -> Decimal:
    """12.5 of `12.50`, 1234 of `1{,}234`."""
    return Decimal(re.sub(r"[^0-9.]", "", written))
