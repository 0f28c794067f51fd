"""Worked solutions as an engine: the teacher is a plain function per reasoning_gym family.

It writes `<think>STEPS</think>ANSWER` for questions whose steps can be written down by rule: a
teacher that costs nothing and never errs, for miniature recipes and for tests. With its knobs it
errs as people do: what it writes then is what the miniatures' base models are pretrained on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

from pydantic import Field

from limbeck.chat import CLOSE, OPEN
from limbeck.engines.noise import Hand
from limbeck.errors import UserError
from limbeck.types import Generator, Problem, Request, Sampling, Trace

Share = Annotated[float, Field(ge=0, le=1)]


def connect(
    *,
    slips: Share = 0.0,
    checks: Share = 0.0,
    direct: Share = 0.0,
    malformed: Share = 0.0,
    chinese: Share | None = None,
    answer_tags: bool = False,
) -> Generator:
    """The engine. Of its knobs the first five are probabilities, drawn by each request's own seed.

    `slips`: a step is wrong; `checks`: an answer's steps are all checked, and slips mended;
    `direct`: an answer comes without its steps; `malformed`: a tag of the thinking is missing;
    `chinese`: a step is in Chinese words and otherwise in English ones, where None writes symbols.
    `answer_tags` writes `<think> STEPS </think> <answer> ANSWER </answer>`, as R1-Zero's prompt
    asks.
    """
    return WorkedSolutions(slips, checks, direct, malformed, chinese, answer_tags)


class WorkedSolutions:
    """Writes by the request's seed, whatever the sampling; without knobs always the same text."""

    name: str = "worked"
    num_parameters: int | None = None
    costs_money: bool = False

    def __init__(
        self,
        slips: float = 0.0,
        checks: float = 0.0,
        direct: float = 0.0,
        malformed: float = 0.0,
        chinese: float | None = None,
        answer_tags: bool = False,
    ) -> None:
        self.slips, self.checks, self.chinese = slips, checks, chinese
        self.direct, self.malformed, self.answer_tags = direct, malformed, answer_tags

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        """One trace a request, in order. Raises UserError for a family without a function."""
        for request in requests:
            yield Trace(
                id=request.id,
                problem_id=request.problem.id,
                index=request.index,
                text=self._write(request),
                finish="stop",
                model=self.name,
            )

    def _write(self, request: Request) -> str:
        hand = Hand(request.seed, self.slips, self.checks, self.chinese)
        steps, answer = solve(request.problem, hand)
        if hand.random.random() < self.direct:
            steps = ""
        text = f"{OPEN}{steps}{CLOSE}{answer}"
        if self.answer_tags:
            text = f"{OPEN} {steps} {CLOSE} <answer> {answer} </answer>"
        if hand.random.random() < self.malformed:
            text = text.replace(hand.random.choice((OPEN, CLOSE)), "").strip()
        return text


def worked_solution(problem: Problem) -> str:
    """`<think>STEPS</think>ANSWER` without a slip."""
    steps, answer = solve(problem, Hand())
    return f"{OPEN}{steps}{CLOSE}{answer}"


def solve(problem: Problem, hand: Hand) -> tuple[str, str]:
    """(steps, answer) by the function of the problem's family."""
    family = problem.meta.get("family", "")
    if family not in SOLUTIONS:
        known = ", ".join(SOLUTIONS)
        raise UserError(
            f"problem {problem.id}",
            f"no worked solutions for the family {family!r}",
            f"use one of {known}, or write a function in limbeck/engines/worked.py",
        )
    answer = SOLUTIONS[family](problem.question, hand)
    return hand.written, str(answer)


def chain_sum(question: str, hand: Hand) -> int:
    """`12 + 3 - 4`: `tens 1+0=1-0=1 ones 2+3=5-4=1 10+1=11`.

    Two short sums of small numbers, the tens (with whatever stands before them) and the ones,
    which at the end make the answer; a sum of digits needs only the one.
    """
    signs, sizes = [], []
    for operator, minus, digits in re.findall(r"([+-] )?(-?)(\d+)", question):
        signs.append(-1 if (operator == "- ") != (minus == "-") else 1)
        sizes.append(int(digits))
    if max(sizes) < 10:
        return _running_sum(signs, sizes, hand)
    hand.note("tens ")
    tens = _running_sum(signs, [size // 10 for size in sizes], hand)
    hand.note(" ones ")
    ones = _running_sum(signs, [size % 10 for size in sizes], hand)
    hand.note(" ")
    total = 10 * tens + ones
    return hand.work(f"{tens}0{ones:+d}=", total, _miscounted(total, ones))


def _running_sum(signs: Sequence[int], sizes: Sequence[int], hand: Hand) -> int:
    """`2+3=5-0=5`; every term keeps the sign that it has in the question, even a zero."""
    total = signs[0] * sizes[0]
    hand.note(f"{total}")
    for sign, size in zip(signs[1:], sizes[1:], strict=True):
        right = total + sign * size
        term = f"{'+' if sign > 0 else '-'}{size}="
        total = hand.work(term, right, _miscounted(right, sign * size), again=f"{total}{term}")
    return total


def _miscounted(right: int, added: int) -> int:
    """The sum of somebody who counts up or down and counts where he starts, too: 5+3=7, 5-3=3."""
    return right - (added > 0) + (added < 0)


def leg_counting(question: str, hand: Hand) -> int:
    """`2 dogs, 3 spiders`: `2x4=8 3x8=24 8+24=32`, each animal's legs and the running sum."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    total, is_first = 0, True
    for count, animals in re.findall(r"(\d+) ([a-z ]+)", question):
        each = ANIMALS[animals if count == "1" else animals.removesuffix("s")]
        one_less = (int(count) - 1) * each or int(count) + each
        if not is_first:
            hand.note(" ")
        legs = hand.work(f"{count}x{each}=", int(count) * each, one_less)
        if is_first:
            total, is_first = legs, False
            continue
        hand.note(" ")
        right = total + legs
        total = hand.work(f"{total}+{legs}=", right, _miscounted(right, legs))
    return total


def spell_backward(question: str, hand: Hand) -> str:
    """`sun`: `1s2u3n 3n2u1s`, spelled with its places, then from the last place to the first.

    Who slips writes the letter that he wrote last once more, or in the first place the one before.
    """
    word = question.split()[-1]
    hand.note("".join(f"{place}{letter}" for place, letter in enumerate(word, 1)) + " ")
    last = word[-2:-1]
    answer = ""
    for place, letter in reversed([*enumerate(word, 1)]):
        last = hand.work(str(place), letter, last)
        answer += last
    return answer


SOLUTIONS: dict[str, Callable[[str, Hand], int | str]] = {
    "chain_sum": chain_sum,
    "leg_counting": leg_counting,
    "spell_backward": spell_backward,
}
