"""Worked solutions as an engine: the teacher is a plain function per reasoning_gym family.

It writes `<think>STEPS</think>ANSWER` for questions whose steps can be written down by rule: a
teacher that costs nothing and never errs, for miniature recipes and for tests.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

from limbeck.errors import UserError
from limbeck.types import Generator, Problem, Request, Sampling, Trace


def connect() -> Generator:
    """The engine; it has no knobs."""
    return WorkedSolutions()


class WorkedSolutions:
    """Writes the same text for every sample of a problem, whatever the sampling."""

    name: str = "worked"
    num_parameters: int | None = None

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
    """`12 + 3 - 4`: the running sum after every term."""
    terms = [int(t.replace(" ", "")) for t in re.findall(r"(?:[+-] )?\d+", question)]
    sums = [sum(terms[: i + 1]) for i in range(len(terms))]
    steps = [f"{a}{b - a:+d}={b}" for a, b in pairwise(sums)]
    return " ".join(steps), str(sums[-1])


def leg_counting(question: str) -> tuple[str, str]:
    """`2 dogs, 3 spiders`: each animal's legs, and the running sum."""
    from reasoning_gym.arithmetic.leg_counting import ANIMALS

    total = 0
    steps = []
    for count, animals in re.findall(r"(\d+) ([a-z ]+)", question):
        animal = animals if count == "1" else animals.removesuffix("s")
        legs = int(count) * ANIMALS[animal]
        steps.append(f"{count}x{ANIMALS[animal]}={legs}")
        if total:
            steps.append(f"{total}+{legs}={total + legs}")
        total += legs
    return " ".join(steps), str(total)


def spell_backward(question: str) -> tuple[str, str]:
    """`sun`: spelled with its places, then from the last place to the first."""
    word = question.split()[-1]
    letters = [f"{place}{letter}" for place, letter in enumerate(word, 1)]
    return "".join(letters) + " " + "".join(reversed(letters)), word[::-1]


SOLUTIONS: dict[str, Callable[[str], tuple[str, str]]] = {
    "chain_sum": chain_sum,
    "leg_counting": leg_counting,
    "spell_backward": spell_backward,
}
