"""A rewriter that is a plain function: it makes raw worked solutions readable, for miniatures.

It reads the steps that the engine `worked` and its pupils write, in symbols, in English or in
Chinese, and says them in English sentences: a step that was checked is said once, a slip that was
mended in its mended form, and a summary stands behind them. Steps are taken as they are, wrong
ones, too. Of what it cannot read it says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from limbeck.engines.noise import CHECK_WORDS, CHINESE, ENGLISH, OPERATOR
from limbeck.errors import UserError
from limbeck.types import Generator, Request, Sampling, Trace

ENGLISH_OF = {chinese: english for english, chinese in CHINESE.items() if english.isalpha()}
SYMBOL_OF = {spoken.strip(): symbol for symbol, spoken in ENGLISH.items()}
SYMBOL_OF |= {chinese: symbol for symbol, chinese in CHINESE.items() if symbol in ENGLISH}
SPOKEN_SYMBOL = re.compile(rf" *({'|'.join(SYMBOL_OF)}) *")
CHINESE_WORD = re.compile("|".join(ENGLISH_OF))
CHECK = rf" (?:{'|'.join(CHECK_WORDS)}) "
CHECKED_SUM = re.compile(rf"(?<!\d)(-?\d+[-+x]\d+=)-?\d+{CHECK}\1")
CHECKED_LETTER = re.compile(rf"(?<!\d)(\d+)[A-Za-z]{CHECK}\1(?=[A-Za-z])")
CHAIN = re.compile(r"-?\d+(?:[-+x]\d+=-?\d+)+")  # each step goes on from the one before it
LAST_STEP = re.compile(r"-?\d+[-+x]\d+=(-?\d+)$")
LETTERS = re.compile(r"(?:\d{1,2}[A-Za-z])+")  # each behind its place in the word
HEADINGS = ("tens", "ones")
TAGGED = re.compile(r"<answer>(.*)</answer>", re.DOTALL)
UNREADABLE = "UNREADABLE"


def connect() -> Generator:
    """The engine; it has no knobs."""
    return Readable()


class Readable:
    """Answers what the stage `rewrite` asks, whatever the sampling."""

    name: str = "readable"
    num_parameters: int | None = None
    costs_money: bool = False

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        """One reply a request, in order. UserError for what no stage `rewrite` asks."""
        for request in requests:
            texts = request.problem.meta
            if not {"thinking", "answer"} <= texts.keys():
                what = "rewrites worked solutions, and answers no questions"
                raise UserError("engine readable", what, "name it in a stage `rewrite`")
            yield Trace(
                id=request.id,
                problem_id=request.problem.id,
                index=request.index,
                text=reply(texts["thinking"], texts["answer"]),
                finish="stop",
                model=self.name,
            )


def reply(thinking: str, answer: str) -> str:
    """Thinking and summary in the form that `rewrite` asks for; or that they cannot be read.

    The answer must be what the last step comes to.
    """
    sentences = without_checks(in_symbols(thinking))
    tagged = TAGGED.search(answer)
    answer = (tagged[1] if tagged else answer).strip()
    parts = re.sub(rf"\b({'|'.join(HEADINGS)}) ", r"\1:", sentences).split(" ")
    if not all(map(_is_readable, parts)) or _result(parts[-1]) != answer:
        return UNREADABLE
    thought = " ".join(f"{in_words(part)}." for part in parts)
    last = LAST_STEP.search(parts[-1])
    because = in_words(last[0]) if last else "read backward"
    summary = f"{because}: the answer is \\boxed{{{answer}}}."
    return f"<thinking>\n{thought}\n</thinking>\n<summary>\n{summary}\n</summary>"


def in_symbols(text: str) -> str:
    """`3 plus 5 is 8 等等 3加5等于8` as `3+5=8 wait 3+5=8`."""
    text = CHINESE_WORD.sub(lambda found: ENGLISH_OF[found[0]], text)
    text = SPOKEN_SYMBOL.sub(lambda found: SYMBOL_OF[found[1]], text)
    return " ".join(text.split())


def in_words(text: str) -> str:
    """`tens:3+5=8` as `tens 3 plus 5 is 8`."""
    return OPERATOR.sub(lambda found: ENGLISH.get(found[0], found[0]), text.replace(":", " "))


def without_checks(text: str) -> str:
    """`3+5=7 wait 3+5=8-2=6` as `3+5=8-2=6`; what was checked twice as well."""
    before = ""
    while text != before:
        before = text
        text = CHECKED_LETTER.sub(r"\1", CHECKED_SUM.sub(r"\1", text))
    return text


def _is_readable(part: str) -> bool:
    """Whether a part is a chain of steps, perhaps with a heading, or letters with their places."""
    heading, colon, steps = part.rpartition(":")
    if colon and heading not in HEADINGS:
        return False
    return bool(CHAIN.fullmatch(steps) or (not colon and LETTERS.fullmatch(steps)))


def _result(part: str) -> str:
    """The number that the last step gives, or the letters in their order."""
    last = LAST_STEP.search(part)
    return last[1] if last else "".join(re.findall("[A-Za-z]", part))
