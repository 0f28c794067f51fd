"""The answer that a text states without a box."""

from __future__ import annotations

import re

from limbeck.verifiers.mathematics.tokens import Unreadable
from limbeck.verifiers.mathematics.trees import read
from limbeck.verifiers.number import last_number

MAX_LETTERS = 4096  # from the end; no conclusion is longer
SHORT = 80  # letters that may be an answer alone
_CUE = re.compile(
    r"(?:(?:^|\n)\s*A\s*:|\b(?:answer|solution|result)\W{0,6}(?:\b(?:is|are|equals|would\s+be)\b|[:=]))"
    r"[\s:*]*",
    re.IGNORECASE,
)
_MATHS = re.compile(r"\$\$?([^$]+)\$\$?|\\\((.+?)\\\)|\\\[(.+?)\\\]", re.DOTALL)
_SENTENCE = re.compile(r"(?<=[.!?。])\s+|\n\s*\n")
_HEDGES = re.compile(
    r"\b(?:or|either|neither|between|cannot|can't|can\s+not|not|maybe|perhaps|possibly|unsure|if"
    r"|sure|guess|might|could|may|don't|didn't|isn't|unclear|wrong|incorrect|unable|approximately)\b",
    re.IGNORECASE,
)


def stated(text: str) -> str | None:
    """What follows `####` or the last "answer is"; a short text whole; its last number or formula.

    A text that hedges in its last sentence states nothing.
    """
    text = text[-MAX_LETTERS:].strip().replace("**", "")
    if "####" in text:
        return text.rpartition("####")[2].strip().partition("\n")[0]
    cues = list(_CUE.finditer(text))
    if cues:
        return _stated_after(text[cues[-1].end() :])
    if len(text) <= SHORT and _is_readable(text) and not _holds_formula(text):
        return text
    return _concluded(text)


def _stated_after(rest: str) -> str | None:
    rest = rest.strip()
    if formula := _MATHS.match(rest):
        return next(part for part in formula.groups() if part)
    return re.split(r"\.(?:\s|$)|\n", rest, maxsplit=1)[0] or None


def _is_readable(text: str) -> bool:
    try:
        read(text)
    except Unreadable:
        return False
    return True


def _holds_formula(text: str) -> bool:
    """Whether there is a formula, and more."""
    formula = _MATHS.search(text)
    return formula is not None and formula[0] != text


def _concluded(text: str) -> str | None:
    """The last formula of the last sentence; the last number of the last with one."""
    sentences = [sentence for sentence in _SENTENCE.split(text) if sentence.strip()]
    last = sentences[-1] if sentences else ""
    if _HEDGES.search(last) or text.count("\\[") > text.count("\\]") or last.endswith(":"):
        return None
    formulas = _MATHS.findall(last)
    if formulas:
        return next(part for part in formulas[-1] if part)
    for sentence in reversed(sentences):
        if any(letter.isdigit() for letter in sentence):
            number = None if _HEDGES.search(sentence) else last_number(sentence)
            return str(number) if number else None
    return None
