"""The answer is the gold answer, by value: numbers, expressions, sets, intervals, equations.

Plain numbers are compared at once, everything else that a grammar of final answers can read by
exact and many-digit arithmetic, within bounds. What is left (integrals, sums, long lists) is asked
of `math-verify` or computed in a worker process, which is killed when it is late.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import lru_cache

from pydantic import PositiveFloat

from limbeck.types import Problem, Reason, Trace, Verdict
from limbeck.verifiers import (
    AnswerIn,
    answer_text,
    last_boxed,
    no_answer,
    without_hidden,
    workers,
)
from limbeck.verifiers.mathematics.arithmetic import TooBig
from limbeck.verifiers.mathematics.forms import same
from limbeck.verifiers.mathematics.statements import stated
from limbeck.verifiers.mathematics.tokens import MAX_LETTERS, Unreadable
from limbeck.verifiers.mathematics.trees import read
from limbeck.verifiers.mathematics.values import is_too_big

WORKER = "limbeck.verifiers.math_worker:answer"
SHORT = 400  # letters of both, which take milliseconds; with more, a worker computes
CORRECT: dict[Reason, bool] = {"correct": True, "wrong": False, "unparsed": False}
_PLAIN = re.compile(
    r"(-?)([0-9]{1,15}|[1-9][0-9]{0,2}(?:,[0-9]{3}){1,4})(\.[0-9]{1,15})?(?:/([0-9]{1,15}))?"
)
_ONE_BOX = re.compile(r"\\boxed\{([-0-9.,/]+)\}")


def verify(
    problem: Problem,
    trace: Trace,
    *,
    timeout_s: PositiveFloat = 2.0,
    answer_in: AnswerIn = "after_thinking",
) -> Verdict:
    """Equal in value and of the same form as the gold answer; no tolerance.

    Where it takes longer than `timeout_s`, `correct` is None and the reason `timeout`. A percent
    sign or a unit may be missing on one side. Works on any thread.
    """
    if not problem.answer.strip():
        return Verdict(trace.id, None, None, "bad_gold")
    text, reason = answer_text(trace, answer_in)
    if text is None:
        return no_answer(trace, reason or "unparsed")
    gold = _boxed(problem.answer) or problem.answer
    answer = _boxed(text)
    if answer is None:
        answer = stated(without_hidden(text))
    if not answer or not answer.strip():
        return no_answer(trace, "unparsed")
    judgement = judge(gold, answer, timeout_s)
    return Verdict(trace.id, CORRECT.get(judgement), answer[:200], judgement)


def _boxed(text: str) -> str | None:
    """What is boxed; at once where that is a number in the only box."""
    if "box" not in text:
        return None
    if text.count("box") == 1 and (match := _ONE_BOX.search(text)):
        return match[1]
    return last_boxed(without_hidden(text))


def judge(gold: str, answer: str, timeout_s: float = 2.0) -> Reason:
    """What an answer without anything around it is worth."""
    mine = _plain(gold)
    other = mine if gold == answer else _plain(answer)
    if mine is not None and other is not None:
        return "correct" if mine == other else "wrong"
    try:
        return _judge(gold, answer, timeout_s)
    except workers.Late:
        return "timeout"
    except (workers.Died, workers.Failed):
        return "error"


@lru_cache(maxsize=1 << 14)
def _plain(text: str) -> int | Fraction | None:
    """A number as most answers are: `42`, `-1,200`, `0.5`, `3/4`."""
    match = _PLAIN.fullmatch(text.strip())
    if match is None:
        return None
    sign, whole, places, divisor = match.groups()
    digits = sign + whole.replace(",", "")
    if places is None and divisor is None:
        return int(digits)
    if divisor and not int(divisor):
        return None
    return Fraction(digits + (places or "")) / int(divisor or 1)


@lru_cache(maxsize=1 << 16)  # the samples of a problem repeat each other's answers
def _judge(gold: str, answer: str, timeout_s: float) -> Reason:
    wanted = _words(gold)
    if normalise(gold) == normalise(answer) or (wanted and wanted == _words(answer)):
        return "correct"
    if len(answer) > MAX_LETTERS:
        return "unparsed"
    if len(gold) + len(answer) <= SHORT:
        known = decide(gold, answer)
        if known:
            return known
    return workers.ask(WORKER, {"gold": gold, "answer": answer}, timeout_s)


def decide(gold: str, answer: str) -> Reason | None:
    """The judgement, or None where it takes more mathematics than the grammar has."""
    try:
        wanted = read(gold)
    except Unreadable as error:
        return None if error.heavy else "bad_gold"
    try:
        return "correct" if same(wanted, read(answer)) else "wrong"
    except Unreadable as error:
        return None if error.heavy else "unparsed"
    except TooBig:
        return "bad_gold" if is_too_big(wanted) else "wrong"


def _words(latex: str) -> str | None:
    """The words of an answer of at least two; None where there is more, or a variable."""
    plain = re.sub(r"\\(?:text|textbf|textit|mbox|mathrm)(?![A-Za-z])|[{}$.,!]", " ", latex)
    words = plain.casefold().split()
    if len(words) < 2 or not any(map(str.isalpha, words)):
        return None
    fine = all(word.isdecimal() or (word.isalpha() and len(word) > 1) for word in words)
    return " ".join(words) if fine else None


def normalise(latex: str) -> str:
    """LaTeX without what does not change its value: dollars, spacing, sizes, a final period."""
    latex = latex.strip().removesuffix(".").strip("$").removesuffix(".")
    latex = re.sub(r"\\(?:left|right|displaystyle)\b|\\!|\\[()\[\]]", "", latex)
    latex = re.sub(r"\\[dt]frac\b", r"\\frac", latex)
    latex = re.sub(r"\\[,;: ]|\s+", " ", latex)
    return re.sub(r"(?<!\d) +| +(?!\d)", "", latex)
