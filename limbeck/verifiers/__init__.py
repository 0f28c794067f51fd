"""What is true: one judge a file, `verify(problem, trace, *, knobs) -> Verdict`.

Curation, reinforcement learning and evaluation all ask the same judge. Here is what the judges
share: which part of a trace is its final answer, and which characters are the same.
"""

from __future__ import annotations

import re
import unicodedata
from collections import deque
from collections.abc import Iterator
from typing import Literal, NamedTuple

from limbeck.chat import split_think
from limbeck.types import Reason, Trace, Verdict

AnswerIn = Literal["after_thinking", "anywhere"]
"""Where the answer may stand: behind the last `</think>`, or anywhere, even in a text cut off."""

BOX = re.compile(  # `\boxed{…}`, `\boxed 5`, `\boxed B`; the mere word \boxed opens none
    r"\\(?:boxed|fbox)(?![A-Za-z])\s*(?:\{|([+-]?\d+(?:[.,/]\d+)*%?|[A-Z](?![A-Za-z])))"
)
BESIDE = re.compile(  # what stands between boxes that are one answer: no word, and a link
    r"(?=.*?(?:[,;&，、；]|\b(?:and|or)\b))"
    r"(?:[^\w\\]|\\(?:[^A-Za-z]|q?quad\b|text\s*\{\s*(?:and|or)\s*\})|(?:and|or)\b)*",
    re.DOTALL,
)
BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
FIGURES = re.compile("([⁺⁻⁰¹²³⁴-⁹]+)|([₀-₋]+)|([¼-¾⅐-⅞↉])|([①-⒛])")
HIDDEN = re.compile(  # Unicode's Default_Ignorable_Code_Point, but for the invisible operators
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060"
    "\u2065-\u206f\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3"
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]+"
)
OPERATORS = re.compile("[\u2061-\u2064]")  # between 2 and 3 an invisible times, plus or comma
OPENED, CLOSED = "<answer>", "</answer>"
MAX_APART = 200  # letters between two boxes that are one answer
MAX_BOXES = 8  # looked at from the end; a text that loops may open thousands
MAX_LETTERS = 1 << 14  # of a short answer; NFKC takes quadratic time over piled-up accents


def answer_text(
    trace: Trace, answer_in: AnswerIn = "after_thinking"
) -> tuple[str, None] | tuple[None, Reason]:
    """(what follows the last `</think>`, None), or (None, why there is nothing).

    Nothing before counts, so that a number met on the way is never taken for the answer; unless
    it may stand `anywhere`. Of a text that ends with `<answer>…</answer>`, as R1-Zero writes, what
    stands between these counts.
    """
    if trace.finish == "error":
        return None, "error"
    if trace.finish == "length" and answer_in == "after_thinking":
        return None, "truncated"
    answer = trace.text if answer_in == "anywhere" else split_think(trace.text).answer
    if answer is None:
        return None, "truncated"
    answer = _between_tags(answer)
    return (answer, None) if without_hidden(answer).strip() else (None, "unparsed")


def _between_tags(answer: str) -> str:
    ended = answer.rstrip()
    if not ended.endswith(CLOSED) or OPENED not in ended:
        return answer
    return ended.removesuffix(CLOSED).rpartition(OPENED)[2]


def final_answer(
    trace: Trace, answer_in: AnswerIn = "after_thinking"
) -> tuple[str, None] | tuple[None, Reason]:
    """`answer_text`, or what its last `\\boxed{…}` holds if it has one."""
    answer, reason = answer_text(trace, answer_in)
    if answer is None:
        return None, reason or "unparsed"
    answer = without_hidden(answer)
    boxed = last_boxed(answer)
    answer = answer if boxed is None else boxed
    return (answer, None) if answer.strip() else (None, "unparsed")


def last_boxed(text: str) -> str | None:
    """What the last `\\boxed{…}`, `\\fbox{…}` or `\\boxed 5` holds; None without one.

    It is empty where the last never closes: no earlier box stands for a word that was not finished.
    What stands around a box inside another belongs to the answer. Boxes that are strung together,
    by a comma, "and" or "or" and no other word, are one answer: `1, 2`.
    """
    boxes = [_box(text, mark) for mark in deque(BOX.finditer(text), maxlen=MAX_BOXES)]
    if not boxes:
        return None
    if boxes[-1] is None:
        return ""
    held: list[str] = []
    for box in _side_by_side(text, [box for box in boxes if box]):
        inside = BOX.sub(lambda mark: mark[1] or "{", text[box.begin : box.end])
        if not held and not inside.strip():
            return ""
        if inside.strip() and inside not in held:
            held = [inside, *held]
    return ", ".join(held)


class Box(NamedTuple):
    """Where a box starts and stops in its text, and where what it holds begins and ends."""

    start: int
    begin: int
    end: int
    stop: int


def _box(text: str, mark: re.Match[str]) -> Box | None:
    """None where no brace closes it in good time."""
    if mark[1]:
        return Box(mark.start(), *mark.span(1), mark.end())
    depth = 1
    for brace in BRACES.finditer(text, mark.end(), mark.end() + MAX_LETTERS):
        depth += {"{": 1, "}": -1}.get(brace[0], 0)
        if depth == 0:
            return Box(mark.start(), mark.end(), brace.start(), brace.end())
    return None


def _side_by_side(text: str, boxes: list[Box]) -> Iterator[Box]:
    """The last box, then those before it as long as no word stands between."""
    after = None
    for box in _outermost(text, boxes):
        apart = after.start - box.stop if after else 0
        if after and (apart > MAX_APART or not BESIDE.fullmatch(text, box.stop, after.start)):
            return
        yield box
        after = box


def _outermost(text: str, boxes: list[Box]) -> list[Box]:
    """Boxes from the last to the first; those inside another are a part of it."""
    found: list[Box] = []
    for box in reversed(boxes):
        inside = []
        while found and found[-1].stop <= box.stop:
            inside.append(found.pop())
        for inner in inside:
            around = text[box.begin : inner.start] + text[inner.stop : box.end]
            if not around.strip():
                box = Box(box.start, inner.begin, inner.end, box.stop)
        found.append(box)
    return found


def compatible(text: str) -> str:
    """NFKC that changes no value: 10² is `10^{2}` and not 102, 2½ is `2 1/2` and not 21/2.

    Hidden characters go; a text that is too long for an answer is left as it is.
    """
    text = without_hidden(text)
    if text.isascii() or len(text) > MAX_LETTERS:
        return text
    text = FIGURES.sub(_figure, text)
    return unicodedata.normalize("NFKC", text).replace("\u2044", "/")


def without_hidden(text: str) -> str:
    """The text without what nobody sees: zero-width and direction marks, soft hyphens and so on.

    An invisible operator leaves a space, or two numbers would become one.
    """
    return text if text.isascii() else OPERATORS.sub(" ", HIDDEN.sub("", text))


def _figure(match: re.Match[str]) -> str:
    frames = ("^{%s}", "_{%s}", " %s", "(%s)")  # above, below, a fraction, in a circle
    return frames[(match.lastindex or 1) - 1] % match[0]


def no_answer(trace: Trace, reason: Reason) -> Verdict:
    """A trace without an answer is wrong, and says why; one that failed cannot be judged."""
    return Verdict(trace.id, None if reason == "error" else False, None, reason)


def judged(trace: Trace, correct: bool, extracted: str) -> Verdict:
    """Right or wrong."""
    extracted = extracted[:MAX_LETTERS]
    return Verdict(trace.id, correct, extracted, "correct" if correct else "wrong")
