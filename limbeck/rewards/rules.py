"""Rewards by rule: what a text looks like and what its verdict says. No model is asked."""

from __future__ import annotations

import math
import re
from typing import Annotated

from pydantic import Field, PositiveInt

from limbeck.chat import CLOSE, OPEN, split_think
from limbeck.languages import language_of, words_by_language
from limbeck.types import Problem, Trace, Verdict

Language = Annotated[str, Field(pattern="^[a-z]{2,3}$")]

TAG = re.compile(r"<[\s/]*(think(?:ing)?|answer)[\s/]*>", re.IGNORECASE)
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
TURN = re.compile(  # a turn that the model writes for somebody else, or for itself once more
    r"(?:^|(?<=[.!?>]))[ \t]*(?:User|Assistant|Human)[ \t]*:|<[|｜][\w▁]{3,40}[|｜]>",
    re.MULTILINE,
)
FENCE = "```"
QUOTED = ("reasoning process here", "answer here")  # what stands between the tags of the template
WORD = re.compile(r"[\u3041-\u30ff\u3400-\u9fff]|[^\s\u3041-\u30ff\u3400-\u9fff]+")


def correct(problem: Problem, trace: Trace, verdict: Verdict) -> float:
    """1 for a right answer, else 0; so does one that could not be judged."""
    return float(verdict.correct is True)


def format(problem: Problem, trace: Trace, verdict: Verdict, *, answer_tags: bool = False) -> float:
    """1 for `<think>…</think>answer`: opened once, closed once, something in both, ended; else 0.

    A trace's text has the opening tag even where the template wrote it, so one that the model
    writes again is a second. `<answer>…</answer>`, as R1-Zero's template asks for, may stand around
    the answer, and has to where `answer_tags` says so. What only looks the part gets 0: tags in
    code, further turns, the template's own words.
    """
    text = trace.text.strip()
    tags = TAG.findall(text.lower())
    if trace.finish != "stop" or tags.count("think") != 2 or "thinking" in tags:
        return 0.0
    if not text.startswith(OPEN) or text.count(CLOSE) != 1 or TURN.search(text):
        return 0.0
    thinking, _, answer = text.removeprefix(OPEN).partition(CLOSE)
    answer = answer.strip()
    if answer_tags or "answer" in tags:
        if tags.count("answer") != 2 or ANSWER_OPEN in thinking or not _is_tagged(answer):
            return 0.0
        answer = answer.removeprefix(ANSWER_OPEN).removesuffix(ANSWER_CLOSE)
    says_something = _says_something(thinking) and _says_something(answer)
    return float(says_something and not _ends_in_code(thinking))


def _is_tagged(answer: str) -> bool:
    return answer.startswith(ANSWER_OPEN) and answer.endswith(ANSWER_CLOSE)


def _says_something(text: str) -> bool:
    return any(map(str.isalnum, text)) and text.strip().lower() not in QUOTED


def _ends_in_code(thinking: str) -> bool:
    """Whether the tag that closes the thinking is a quotation: in a code block or in backticks."""
    last_line = thinking.rpartition("\n")[2].replace(FENCE, "")
    return thinking.count(FENCE) % 2 == 1 or last_line.count("`") % 2 == 1


def language(
    problem: Problem, trace: Trace, verdict: Verdict, *, language: Language | None = None
) -> float:
    """Words of the thinking in the target language / its words (DeepSeek-R1, eq. 7).

    The target is `language` (ISO 639-1: en, zh), else the question's. Thinking without words, of
    digits and signs alone, is in no wrong language: 1. No thinking at all gets 0, or giving up
    thinking would be the shortest way to this reward.
    """
    thinking = split_think(trace.text).thinking or ""
    if not thinking.strip():
        return 0.0
    target = language or language_of(problem.question)
    words = words_by_language(thinking, expected=target)
    if not words:
        return 1.0
    return (words[target] if target else max(words.values())) / words.total()


def length(
    problem: Problem,
    trace: Trace,
    verdict: Verdict,
    *,
    max_tokens: PositiveInt,
    right_short: float = 2.0,
    right_long: float = 1.0,
    wrong_short: float = -10.0,
    wrong_long: float = 0.0,
    exceeded: float = -10.0,
) -> float:
    """The cosine reward (arXiv:2502.03373): right answers better be short, wrong ones long.

    From `*_short` at no token to `*_long` at `max_tokens`, along half a cosine; `exceeded` from
    there on. It holds whether an answer is right, and so stands in the place of `correct`.
    """
    if trace.completion_tokens >= max_tokens:
        return exceeded
    right = verdict.correct is True
    short, long = (right_short, right_long) if right else (wrong_short, wrong_long)
    return (
        long + (short - long) * (1 + math.cos(math.pi * trace.completion_tokens / max_tokens)) / 2
    )


def overlong(
    problem: Problem,
    trace: Trace,
    verdict: Verdict,
    *,
    max_tokens: PositiveInt,
    margin_tokens: PositiveInt,
) -> float:
    """DAPO's soft punishment (arXiv:2503.14476, eq. 13): 0 up to `max_tokens` - `margin_tokens`.

    Within the margin it falls to -1, where it stays.
    """
    over = trace.completion_tokens - (max_tokens - margin_tokens)
    return -min(1.0, max(0.0, over / margin_tokens))


def repetition(
    problem: Problem, trace: Trace, verdict: Verdict, *, words: PositiveInt = 8
) -> float:
    """Minus the share of its runs of `words` words that were there before (arXiv:2502.03373).

    Of scripts that put no space between words, each letter is one.
    """
    found = WORD.findall(trace.text)
    num = len(found) - words + 1
    if num < 2:
        return 0.0
    return len(set(zip(*(found[i : num + i] for i in range(words)), strict=True))) / num - 1.0
