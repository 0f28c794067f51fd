"""Filters of one trace: `keep_row(trace, verdict, *, knobs) -> str | None`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from limbeck.chat import split_think
from limbeck.languages import words_by_language
from limbeck.types import Trace, Verdict

Share = Annotated[float, Field(ge=0, le=1)]
Language = Annotated[str, Field(pattern="^[a-z]{2,3}$")]

PERIOD_CHARS = 4000  # of the longest piece whose repetition is looked for,
LOOK_EVERY_CHARS = 500  # from the end of a text to its beginning


def correct(trace: Trace, verdict: Verdict) -> str | None:
    """Keeps what was judged correct; the word is the verdict's own reason."""
    return None if verdict.correct else verdict.reason or "wrong"


def finished(trace: Trace, verdict: Verdict) -> str | None:
    """Keeps what its author ended himself; an end of another name, elsewhere, is an error."""
    return {"stop": None, "length": "truncated"}.get(trace.finish, "error")


def well_formed(trace: Trace, verdict: Verdict) -> str | None:
    """Keeps `<think>…</think>answer`: one pair of tags, at the start, and an answer after it."""
    text = trace.text.strip()
    once = text.count("<think>") == 1 and text.count("</think>") == 1
    answered = text.startswith("<think>") and text.rpartition("</think>")[2].strip()
    return None if once and answered else "malformed"


def not_repetitive(
    trace: Trace,
    verdict: Verdict,
    *,
    words: PositiveInt = 8,
    max_share: Share = 0.5,
    loop_chars: PositiveInt = 200,
) -> str | None:
    """Drops texts that go round in circles.

    Either more than `max_share` of their runs of `words` words were there before, or they say one
    piece four times in a row, word for word, over at least `loop_chars` characters: at the end, or
    at one of the places before it, 500 characters apart. Pieces may have 4,000 characters.
    """
    text = trace.text.rstrip()
    if any(_loops(text, end, loop_chars) for end in range(len(text), 0, -LOOK_EVERY_CHARS)):
        return "repetitive"
    return "repetitive" if _repeats(text.split(), words, max_share) else None


def _loops(text: str, end: int, least: int) -> bool:
    """Whether the text before `end` is one piece four times over, and `least` characters long.

    Whoever says a piece again says its last characters again: they tell how long it may be.
    """
    last = text[max(0, end - max(1, least // 4)) : end]
    before = end - 1
    for _ in range(8):  # the same words may stand within a piece, too
        found = text.rfind(last, max(0, end - PERIOD_CHARS - len(last)), before)
        if found < 0:
            return False
        period = end - len(last) - found
        start = end - max(4 * period, least)
        if start >= 0 and text[start : end - period] == text[start + period : end]:
            return True
        before = found + len(last) - 1
    return False


def _repeats(tokens: Sequence[str], run: int, max_share: float) -> bool:
    """Whether more than `max_share` of the runs of `run` tokens occurred before.

    Runs that begin differently differ: where the first three tokens of each already do often
    enough, longer tuples need not be made.
    """
    num = len(tokens) - run + 1
    if num < 2:
        return False

    def share(length: int) -> float:
        return 1 - len(set(zip(*(tokens[i : num + i] for i in range(length)), strict=True))) / num

    return share(min(run, 3)) > max_share and share(run) > max_share


def length(
    trace: Trace,
    verdict: Verdict,
    *,
    min_tokens: NonNegativeInt = 1,
    max_tokens: PositiveInt | None = None,
) -> str | None:
    """Keeps `min_tokens` to `max_tokens` generated tokens."""
    if trace.completion_tokens < min_tokens:
        return "too_short"
    if max_tokens is not None and trace.completion_tokens > max_tokens:
        return "too_long"
    return None


def one_language(
    trace: Trace, verdict: Verdict, *, min_share: Share = 0.9, language: Language | None = None
) -> str | None:
    """Keeps what thinks in one language: words of the target language / words >= `min_share`.

    DeepSeek-R1's language consistency, over the thinking (the whole text where there is none).
    The target is `language` (ISO 639-1: en, zh), else the commonest of the text.
    """
    thinking = (split_think(trace.text).thinking or "").strip()
    words = words_by_language(thinking or trace.text, expected=language)
    most = words[language] if language else max(words.values(), default=0)
    return "mixed_language" if most < min_share * words.total() else None
