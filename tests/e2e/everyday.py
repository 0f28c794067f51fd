"""Stand-ins for models that answer, think and judge where no rule can: plain functions."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from limbeck.types import Request, Sampling, Trace

SECTION = re.compile(r"=== (answer \w) (\w{16}) ===\n(.*?)\n=== end of \1 \2 ===", re.DOTALL)


@dataclass
class StandIn:
    """Writes what `says` makes of a request."""

    says: Callable[[Request], str]
    name: str = "stand-in"
    num_parameters: int | None = None
    costs_money: bool = False

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        for request in requests:
            text = self.says(request)
            yield Trace(request.id, request.problem.id, request.index, text, "stop", self.name)


def answerer() -> StandIn:
    """Of two answers to a question the second is polite; lengths have nothing to do with it."""
    return StandIn(_answer)


def _answer(request: Request) -> str:
    words = ["so"] * (1 + request.seed % 7) + ["please"] * (request.index % 2)
    return f"<think>What is wanted here?</think>{' '.join(words)}"


def judge() -> StandIn:
    """Finds the polite answer much better, whichever stands in front."""
    return StandIn(_judgement)


def _judgement(request: Request) -> str:
    answers = {name: text for name, _, text in SECTION.findall(request.problem.question)}
    polite = ["please" in answers[name] for name in ("answer A", "answer B")]
    verdict = "A=B" if polite[0] == polite[1] else "A>>B" if polite[0] else "B>>A"
    return json.dumps({"own_answer": "", "analysis": "", "verdict": verdict})
