"""Thinking before an answer that is there already: what an engine is asked, and what is usable."""

from __future__ import annotations

import re

from limbeck.chat import split_think
from limbeck.types import Trace

PROMPT = """\
Here is a question, and the answer that is going to be given to it. Write down the reasoning that \
comes before this answer: in the first person, in the language of the question, in plain and \
readable paragraphs, as it goes through the head of somebody who does not know yet what the answer \
will be. Work out what is asked, what is known and what a good answer needs, and check it. Do not \
speak of an answer that you have been shown, and do not write the answer itself: the reasoning \
alone.

<question>
{question}
</question>

<answer>
{answer}
</answer>"""

FAILED = "engine failed"
SHOWN = re.compile(  # words of somebody who has been shown the answer
    r"\b(?:reference|(?:given|provided|supplied|expected|target|shown)) (?:answer|response|reply)"
    r"\b(?! (?:options?|choices?))"
    r"|\b(?:answer|response|reply) (?:that )?(?:(?:was|is|has been|have been|I was|I am) )+"
    r"(?:already )?(?:given|provided|supplied|shown)\b"
    r"|参考答案|给定的?答案|给出的答案|提供的答案",
    re.IGNORECASE,
)


def asked(prompt: str, question: str, answer: str) -> str:
    """The prompt with both in their places."""
    texts = {"{question}": question, "{answer}": answer}
    # In one go, and not str.format: a question may speak of {answer}, a prompt of \boxed{}.
    return re.sub(r"\{question\}|\{answer\}", lambda mark: texts[mark[0]], prompt)


def thought(trace: Trace) -> str:
    """What the engine answers is the thinking; what it thought on the way to it does not count."""
    return (split_think(trace.text).answer or "").strip()


def unreadable(trace: Trace) -> str | None:
    """Why what an engine wrote cannot stand before the answer; None if it can."""
    if trace.finish == "error":
        return FAILED
    if trace.finish != "stop":
        return "thinking unfinished"
    if not thought(trace):
        return "no thinking"
    return "thinking speaks of the answer it was shown" if SHOWN.search(thought(trace)) else None
