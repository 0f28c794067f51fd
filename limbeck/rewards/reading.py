"""Which part of an answer is read by whoever judges it, and what is found there."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import AfterValidator

from limbeck import chat
from limbeck.types import Message, Problem, Trace, Verdict

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Reads = Literal["summary", "whole"]
"""What follows the thinking, or all of it: DeepSeek-R1's helpfulness is judged by the one, its
harmlessness by the other (2501.12948v2, eq. 10)."""


def reading(text: str, reads: Reads) -> str:
    """The part that is read; empty where thinking that was never finished has no summary."""
    return text if reads == "whole" else (chat.split_think(text).answer or "").strip()


def encode(
    tokenizer: PreTrainedTokenizerBase, asked: Iterable[tuple[Sequence[Message], str]], reads: Reads
) -> list[list[int]]:
    """A question and the part of an answer that is read, as tokens; the last ends the turn."""
    pairs = [(messages, reading(text, reads)) for messages, text in asked]
    return [ids for ids, _ in chat.encode_examples(tokenizer, pairs)]


def _compiles(expression: str) -> str:
    try:
        re.compile(expression)
    except re.error as error:
        raise ValueError(f"{expression!r} is no regular expression ({error}); mend it") from None
    return expression


Expression = Annotated[str, AfterValidator(_compiles)]


def pattern(
    problem: Problem, trace: Trace, verdict: Verdict, *, find: Expression, reads: Reads = "whole"
) -> float:
    """1 where the regular expression `find` is found in what is read, else 0."""
    return float(re.search(find, reading(trace.text, reads)) is not None)
