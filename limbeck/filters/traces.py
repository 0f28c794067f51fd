"""Filters of one trace: `keep_row(trace, verdict, *, knobs) -> str | None`."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from typing import Annotated

from pydantic import Field, NonNegativeInt, PositiveInt

from limbeck.types import Trace, Verdict

Share = Annotated[float, Field(ge=0, le=1)]


def correct(trace: Trace, verdict: Verdict) -> str | None:
    """Keeps what was judged correct; the word is the verdict's own reason."""
    return None if verdict.correct else verdict.reason


def finished(trace: Trace, verdict: Verdict) -> str | None:
    """Keeps what its author ended himself."""
    return {"stop": None, "length": "truncated", "error": "error"}[trace.finish]


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

    Either more than `max_share` of their runs of `words` words were there before, or their last
    `loop_chars` characters repeat one piece that is at most a quarter as long.
    """
    if _repeated_share(trace.text.split(), words) > max_share:
        return "repetitive"
    return "repetitive" if _ends_in_loop(trace.text.rstrip(), loop_chars) else None


def _repeated_share(tokens: Sequence[str], run: int) -> float:
    """The share of the runs of `run` tokens that occurred before; 0 for fewer than 2 runs."""
    runs = [tuple(tokens[i : i + run]) for i in range(len(tokens) - run + 1)]
    return 1 - len(set(runs)) / len(runs) if len(runs) > 1 else 0.0


def _ends_in_loop(text: str, length: int) -> bool:
    """Whether the last `length` characters have a period of at most `length / 4`."""
    tail = text[-length:]
    if len(tail) < length:
        return False
    return any(tail[period:] == tail[:-period] for period in range(1, length // 4 + 1))


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


def one_language(trace: Trace, verdict: Verdict, *, min_share: Share = 0.9) -> str | None:
    """Keeps texts whose commonest script has at least `min_share` of the letters.

    Scripts, not languages: French in an English text passes, Chinese does not.
    """
    scripts = Counter(_script(char) for char in trace.text if char.isalpha())
    letters = scripts.total()
    if letters and max(scripts.values()) < min_share * letters:
        return "mixed_language"
    return None


@lru_cache(maxsize=65536)
def _script(letter: str) -> str:
    """The first word of its Unicode name; Japanese mixes three scripts and is one language."""
    name = unicodedata.name(letter, "UNKNOWN").split()[0]
    return "CJK" if name in ("HIRAGANA", "KATAKANA") else name
