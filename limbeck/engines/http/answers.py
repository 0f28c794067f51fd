"""Bodies become traces: what counts as an answer, and where its thinking and its tokens stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from limbeck.chat import CLOSE, OPEN
from limbeck.types import Finish, Trace

THINKING = ("reasoning", "reasoning_content", "thinking")
FINISHES: Mapping[str, Finish] = {
    "stop": "stop",
    "eos": "stop",  # Together
    "length": "length",
    "model_length": "length",  # Mistral
    "content_filter": "error",
}
MOST = 2**31  # of anything that is counted


def filled(empty: Trace, body: Any, has_logprobs: bool = False) -> Trace:
    """The trace with a chat completion's answer. Raises ValueError where the body has none.

    Log-probabilities are kept only where they are `has_logprobs`: those of what was drawn from.
    """
    match body:
        case {"choices": [{"message": {**message}, "finish_reason": str(reason), **more}, *_]}:
            if (finish := FINISHES.get(reason)) is None:
                raise ValueError(f"the answer was cut off by {reason!r}")
        case _:
            raise ValueError("the body has no choice with a message and a finish_reason")
    asked, written = usage(body) or (0, 0)
    counted = replace(empty, prompt_tokens=asked, completion_tokens=written)
    if finish == "error":
        return counted
    text = whole_text(message, finish).encode(errors="replace")  # half surrogates fit in no table
    ids = token_ids(more)
    return replace(
        counted,
        text=text.decode(),
        finish=finish,
        token_ids=ids,
        logprobs=logprobs(more, written if ids is None else len(ids)) if has_logprobs else None,
    )


def usage(body: Any) -> tuple[int, int] | None:
    """(tokens read, tokens written), or None where the server does not tell.

    Some count the thinking in the total alone.
    """
    match body:
        case {"usage": {"prompt_tokens": asked, "completion_tokens": written, **more}}:
            if type(asked) is not int or type(written) is not int:  # True is an int, too
                return None
            total = more.get("total_tokens")
            if type(total) is int and total < MOST:
                written = max(written, total - asked)
            return (asked, written) if 0 <= asked < MOST and 0 <= written < MOST else None
    return None


def whole_text(message: Mapping[Any, Any], finish: Finish) -> str:
    """`<think>…</think>answer`, whichever field holds the thinking. ValueError for no text."""
    content = message.get("content")
    fields = (message.get(name) for name in THINKING)
    thinking = next((said for said in fields if isinstance(said, str) and said), "")
    if not isinstance(content, str) and (content is not None or not thinking):
        raise ValueError("the message has no text")
    answer = content or ""
    if thinking and not answer.lstrip().startswith(OPEN):  # some servers tell it twice
        is_unfinished = finish == "length" and not answer
        return OPEN + thinking + ("" if is_unfinished else CLOSE + answer)
    opened_by_template = CLOSE in answer and OPEN not in answer
    return OPEN + answer if opened_by_template else answer


def has_thinking(text: str) -> bool:
    """Whether anything stands between the tags; an open end will do."""
    return bool(text.partition(OPEN)[2].partition(CLOSE)[0].strip())


def bills_thinking(body: Any) -> bool:
    """Whether thinking was billed, shown or not."""
    match body:
        case {"usage": {"completion_tokens_details": {"reasoning_tokens": int(tokens)}}}:
            return tokens > 0
    return False


def token_ids(choice: Mapping[Any, Any]) -> tuple[int, ...] | None:
    """The model's own tokens, where the server tells them."""
    ids = choice.get("token_ids")
    if not isinstance(ids, list) or not all(type(i) is int and 0 <= i < MOST for i in ids):
        return None
    return tuple(ids)


def logprobs(choice: Mapping[Any, Any], num_tokens: int) -> tuple[float, ...] | None:
    """The natural log-probability of every token, or None where one of them has none.

    Some servers leave out the thinking or the end of turn.
    """
    match choice.get("logprobs"):
        case {"content": [*entries]}:
            told = [entry.get("logprob") if isinstance(entry, dict) else None for entry in entries]
        case _:
            return None
    numbers = tuple(float(p) for p in told if isinstance(p, int | float) and abs(p) < MOST)
    return numbers if len(numbers) == num_tokens > 0 else None
