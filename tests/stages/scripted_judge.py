"""A model that judges as told: right about answers that are the reference, but for every n-th."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from limbeck.types import Request, Sampling, Trace

SECTION = re.compile(r"=== (\w+) (\w{16}) ===\n(.*?)\n=== end of \1 \2 ===", re.DOTALL)


@dataclass
class ScriptedJudge:
    """`asked` are the questions' texts, in order."""

    errs_every: int | None = None
    says: str | None = None
    costs_money: bool = False
    name: str = "scripted"
    num_parameters: int | None = None
    asked: list[str] = field(default_factory=list)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        for request in requests:
            self.asked.append(request.problem.question)
            text = self.says or self.judgement(request.problem.question)
            yield Trace(request.id, request.problem.id, request.index, text, "stop", self.name)

    def judgement(self, question: str) -> str:
        texts = {name: text for name, _, text in SECTION.findall(question)}
        right = texts["answer"].split()[-1] == texts["reference"]
        if self.errs_every and len(self.asked) % self.errs_every == 0:
            right = not right
        verdict = {"analysis": "It is \\(x\\).", "verdict": "correct" if right else "incorrect"}
        return f"<think>Both state {texts['answer']}.</think>\n{json.dumps(verdict)}"


def connect(*, errs_every: int | None = None, says: str | None = None) -> ScriptedJudge:
    return ScriptedJudge(errs_every, says)
