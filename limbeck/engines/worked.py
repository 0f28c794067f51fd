"""Worked solutions as an engine: the teacher is a plain function per reasoning_gym family.

It writes `<think>STEPS</think>ANSWER` for questions whose steps can be written down by rule: a
teacher that costs nothing and never errs, for miniature recipes and for tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

from limbeck.errors import UserError
from limbeck.types import Generator, Problem, Request, Sampling, Trace


def connect() -> Generator:
    """The engine; it has no knobs."""
    return WorkedSolutions()


class WorkedSolutions:
    """Writes the same text for every sample of a problem, whatever the sampling."""

    name: str = "worked"
    num_parameters: int | None = None
    costs_money: bool = False

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        """One trace a request, in order. Raises UserError for a family without a function."""
        for request in requests:
            yield Trace(
                id=request.id,
                problem_id=request.problem.id,
                index=request.index,
                text=worked_solution(request.problem),
                finish="stop",
                model=self.name,
            )


def worked_solution(problem: Problem) -> str:
    """`<think>STEPS</think>ANSWER` by the function of the problem's family."""
    family = problem.meta.get("family", "")
    if family not in SOLUTIONS:
        known = ", ".join(SOLUTIONS)
        raise UserError(
            f"problem {problem.id}",
            f"no worked solutions for the family {family!r}",
            f"use one of {known}, or write a function in limbeck/engines/worked.py",
        )
    steps, answer = SOLUTIONS[family](problem.question)
    return f"<think>{steps}</think>{answer}"


def chain_sum(question: str) -> tuple[str, str]:
    """`12 + 3 - 4`: `tens 1+0=1-0=1 ones 2+3=5-4=1 10+1=11`.

    Two short sums of small numbers, the tens (with whatever stands before them) and the ones,
    which at the end make the answer; a sum of digits needs only the one.
    """
    signs, sizes = [], []
    for operator, minus, digits in re.findall(r"([+-] )?(-?)(\d+)", question):
        signs.append(-1 if (operator == "- ") != (minus == "-") else 1)
        sizes.append(int(digits))
    if max(sizes) < 10:
        steps, total = _running_sum(signs, sizes)
        return steps, str(total)
    tens_steps, tens = _running_sum(signs, [size // 10 for size in sizes])
    ones_steps, ones = _running_sum(signs, [size % 10 for size in sizes])
    total = 10 * tens + ones
    return f"tens {tens_steps} ones {ones_steps} {tens}0{ones:+d}={total}", str(total)


def _running_sum(signs: Sequence[int], sizes: Sequence[int]) -> tuple[str, int]:
    """(`2+3=5-0=5`, 5); every term keeps the sign that it has in the question, even a zero."""
    total = signs[0] * sizes[0]
    steps = f"{total}"
    for sign, size in zip(signs[1:], sizes[1:], strict=True):
        total += sign * size
        steps += f"{'+' if sign > 0 else '-'}{size}={total}"
    return steps, total


def leg_counting(question: str) -> tuple[str, str]:
    """`2 dogs, 3 spiders`: `2x4=8 3x8=24 8+24=32`, each animal's legs and the running sum."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    total = 0
    steps: list[str] = []
    for count, animals in re.findall(r"(\d+) ([a-z ]+)", question):
        each = ANIMALS[animals if count == "1" else animals.removesuffix("s")]
        legs = int(count) * each
        running = f" {total}+{legs}={total + legs}" if steps else ""
        steps.append(f"{count}x{each}={legs}{running}")
        total += legs
    return " ".join(steps), str(total)


def spell_backward(question: str) -> tuple[str, str]:
    """`sun`: `1s2u3n 3n2u1s`, spelled with its places, then from the last place to the first."""
    word = question.split()[-1]
    letters = [f"{place}{letter}" for place, letter in enumerate(word, 1)]
    return "".join(letters) + " " + "".join(reversed(letters)), word[::-1]


SOLUTIONS: dict[str, Callable[[str], tuple[str, str]]] = {
    "chain_sum": chain_sum,
    "leg_counting": leg_counting,
    "spell_backward": spell_backward,
}
