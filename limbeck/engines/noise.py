"""Whose hand writes a worked solution: somebody's who slips now and then, or checks his steps.

Solutions of this kind stand for what a base model was pretrained on. A slip is the same wherever
the same step is worked, as a person's is, and later steps go on from what it left: it can be
learned, and so can working without it.
"""

from __future__ import annotations

import random
import re
from typing import TypeVar

Value = TypeVar("Value", int, str)

CHECK_WORDS = ("wait", "check", "verify")  # three of those that DeepSeek-R1's figures count
ENGLISH = {"+": " plus ", "-": " minus ", "x": " times ", "=": " is "}
CHINESE = {"+": "加", "-": "减", "x": "乘", "=": "等于"}
CHINESE |= {"tens": "十位", "ones": "个位", "wait": "等等", "check": "检查", "verify": "验证"}
OPERATOR = re.compile(r"(?<=\d)[-+x=]|[a-z]{2,}")  # a minus without a number before it is a sign


class Hand:
    """The steps of one solution as somebody writes them down.

    A step is wrong with probability `slips`. With probability `checks` it is somebody careful, who
    checks each of his steps and mends the slips. Steps are symbols where `chinese` is None, else
    words: Chinese with that probability and English otherwise. Without knobs nothing is ever wrong.
    """

    def __init__(
        self, seed: int = 0, slips: float = 0.0, checks: float = 0.0, chinese: float | None = None
    ) -> None:
        self.random = random.Random(seed)
        self.slips, self.chinese = slips, chinese
        self.is_careful = self.random.random() < checks
        self.written = ""

    def note(self, text: str) -> None:
        """Writes down something that can be neither right nor wrong."""
        self.written += self._worded(text)

    def work(self, step: str, right: Value, wrong: Value, again: str | None = None) -> Value:
        """Writes a step and its result and checks it or not; gives what the next goes on from.

        A check says the step once more, as `again` where its first form goes on from the one before
        it, and is right.
        """
        result = wrong if self.random.random() < self.slips else right
        text = f"{step}{result}"
        if self.is_careful:
            text += f" {self.random.choice(CHECK_WORDS)} {step if again is None else again}{right}"
            result = right
        self.written += self._worded(text)
        return result

    def _worded(self, text: str) -> str:
        """One step, in one language; what was written last tells a minus from a sign."""
        if self.chinese is None:
            return text
        words = CHINESE if self.random.random() < self.chinese else ENGLISH
        before = self.written[-1:]
        whole = OPERATOR.sub(lambda found: words.get(found[0], found[0]), before + text)
        return whole.removeprefix(before)
