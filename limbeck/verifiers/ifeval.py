"""Instructions that a rule can check, were they followed: IFEval.

Zhou et al. 2023, https://arxiv.org/abs/2311.07911; the rules are in `instructions/`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import TypeAdapter

from limbeck.chat import CLOSE
from limbeck.types import Problem, Trace, Verdict
from limbeck.verifiers import AnswerIn, answer_text, judged, no_answer
from limbeck.verifiers.instructions import is_followed
from limbeck.verifiers.instructions.language import detectors


@dataclass(frozen=True)
class Instruction:
    """One of the instructions in a prompt: IFEval's id for it, and its arguments."""

    id: str
    kwargs: dict[str, Any] | None = None

    def is_followed(self, text: str) -> bool:
        return is_followed(text, self.id, self.kwargs or {})


INSTRUCTIONS = TypeAdapter(list[Instruction])


def check(**_: Any) -> None:
    """Raises UserError where the package that tells languages is missing."""
    detectors()


def verify(problem: Problem, trace: Trace, *, answer_in: AnswerIn = "after_thinking") -> Verdict:
    """Right if all of `meta["instructions"]` (`id`, `kwargs`) are followed, taken strictly.

    `score` is the share of them that is. No answer follows none.
    """
    try:
        instructions = read_instructions(problem)
    except ValueError:
        return Verdict(trace.id, None, None, "bad_gold")
    answer, reason = answer_text(trace, answer_in)
    if answer is None:
        verdict = no_answer(trace, reason or "unparsed")
        return verdict if verdict.correct is None else replace(verdict, score=0.0)
    found = _followed(instructions, [_begun(trace.text, answer)])
    missed = [each.id for each, kept in zip(instructions, found, strict=True) if not kept]
    told = f"not followed: {', '.join(missed)}" if missed else "followed"
    return replace(judged(trace, not missed, told), score=sum(found) / len(found))


def followed(problem: Problem, text: str, loose: bool) -> list[bool]:
    """Which of a problem's instructions a text follows, in their order.

    Of a whole text its final answer counts; thinking that never ended follows none. Taken loosely,
    it will do if the text follows an instruction without its first line, its last, or both, or
    without its asterisks: a model may announce what it writes, or set it in bold. ValueError for
    instructions that cannot be checked.
    """
    instructions = read_instructions(problem)
    answer, _ = answer_text(Trace("", problem.id, 0, text, "stop", ""))
    answer = _begun(text, answer or "")
    return _followed(instructions, versions(answer) if loose else [answer])


def read_instructions(problem: Problem) -> list[Instruction]:
    """Those of `meta["instructions"]`; ValueError for none, or for arguments that are wrong."""
    instructions = INSTRUCTIONS.validate_python(problem.meta.get("instructions"))
    for instruction in instructions:
        instruction.is_followed("")
    if not instructions:
        raise ValueError("no instructions")
    return instructions


def versions(answer: str) -> list[str]:
    """The text, and what it is without its first or last line, without asterisks."""
    lines = answer.split("\n")
    cut = [answer, *("\n".join(part).strip() for part in (lines[1:], lines[:-1], lines[1:-1]))]
    return list(dict.fromkeys([*cut, *(text.replace("*", "") for text in cut)]))


def _followed(instructions: Sequence[Instruction], texts: Sequence[str]) -> list[bool]:
    """Which instructions one of the texts follows; an empty text follows none."""
    return [any(i.is_followed(text) for text in texts if text.strip()) for i in instructions]


def _begun(text: str, answer: str) -> str:
    """An answer without the empty lines that models write behind their thinking."""
    return answer.lstrip() if CLOSE in text else answer
