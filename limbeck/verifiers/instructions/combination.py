"""What a text has to be as a whole: the prompt repeated first, or two responses."""

from __future__ import annotations

DIVIDER = "******"


def repeat_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """It begins with the prompt, capitals and white space around it aside."""
    return text.strip().lower().startswith(prompt_to_repeat.strip().lower())


def two_responses(text: str) -> bool:
    """Two different responses with six asterisks between, and nothing else between asterisks."""
    first, *inner = text.split(DIVIDER)
    last = inner.pop() if inner else ""
    responses = [part.strip() for part in (first, *inner, last)]
    filled = [response for response in responses if response]
    return all(responses[1:-1]) and len(filled) == 2 and filled[0] != filled[1]
