"""What is true: one judge a file, `verify(problem, trace, *, knobs) -> Verdict`.

Curation, reinforcement learning and evaluation all ask the same judge. Here is what the judges
share: which part of a trace is its final answer, and which characters are the same.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Literal

from limbeck.chat import split_think
from limbeck.types import Reason, Trace, Verdict

AnswerIn = Literal["after_thinking", "anywhere"]
"""Where the answer may stand: behind the last `</think>`, or anywhere, even in a text cut off."""

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
FIGURES = re.compile("([⁺⁻⁰¹²³⁴-⁹]+)|([₀-₋]+)|([¼-¾⅐-⅞↉])|([①-⒛])")
MAX_BOXES = 8  # looked at from the end; a text that loops may open thousands


def answer_text(
    trace: Trace, answer_in: AnswerIn = "after_thinking"
) -> tuple[str, None] | tuple[None, Reason]:
    """(what follows the last `</think>`, None), or (None, why there is nothing).

    Nothing before counts, so that a number met on the way is never taken for the answer; unless
    it may stand `anywhere`.
    """
    if trace.finish == "error":
        return None, "error"
    if trace.finish == "length" and answer_in == "after_thinking":
        return None, "truncated"
    answer = trace.text if answer_in == "anywhere" else split_think(trace.text).answer
    if answer is None:
        return None, "truncated"
    return (answer, None) if answer.strip() else (None, "unparsed")


def final_answer(
    trace: Trace, answer_in: AnswerIn = "after_thinking"
) -> tuple[str, None] | tuple[None, Reason]:
    """`answer_text`, or what its last `\\boxed{…}` holds if it has one."""
    answer, reason = answer_text(trace, answer_in)
    if answer is None:
        return None, reason or "unparsed"
    boxed = last_boxed(answer)
    answer = answer if boxed is None else boxed
    return (answer, None) if answer.strip() else (None, "unparsed")


def last_boxed(text: str) -> str | None:
    """What the last `\\boxed{…}` (or `\\fbox{…}`) with balanced braces holds; None without one."""
    for mark in reversed(list(BOX.finditer(text))[-MAX_BOXES:]):
        end = _closing_brace(text, mark.end())
        if end is not None:
            return text[mark.end() : end]
    return None


def _closing_brace(text: str, start: int) -> int | None:
    """Where the brace that was opened just before `start` closes; `\\{` and `\\}` are letters."""
    depth, at = 1, start
    while at < len(text):
        if text[at] == "\\":
            at += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return at
        at += 1
    return None


def compatible(text: str) -> str:
    """NFKC that changes no value: 10² is `10^{2}` and not 102, 2½ is `2 1/2` and not 21/2."""
    text = FIGURES.sub(_figure, text)
    return unicodedata.normalize("NFKC", text).replace("\u2044", "/")


def _figure(match: re.Match[str]) -> str:
    frames = ("^{%s}", "_{%s}", " %s", "(%s)")  # above, below, a fraction, in a circle
    return frames[(match.lastindex or 1) - 1] % match[0]


def no_answer(trace: Trace, reason: Reason) -> Verdict:
    """A trace without an answer is wrong, and says why; one that failed cannot be judged."""
    return Verdict(trace.id, None if reason == "error" else False, None, reason)


def judged(trace: Trace, correct: bool, extracted: str) -> Verdict:
    """Right or wrong."""
    return Verdict(trace.id, correct, extracted, "correct" if correct else "wrong")
