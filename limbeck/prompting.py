"""How a question is put: to be answered at once, step by step, or as worked examples show.

A way of prompting is a function `(problem, examples, *, knobs) -> Problem`. It changes what is
asked, never which problem it is: ids stay, so that ways of asking are paired like models. Where a
problem's `meta["question"]` is the bare question, what its source has said around it gives way.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import PositiveInt

from limbeck.chat import split_think
from limbeck.errors import UserError
from limbeck.types import Message, Problem

AT_ONCE = "Give the final answer at once, without any reasoning before it."
STEP_BY_STEP = "Let's think step by step."
FORMS = {  # what a verifier reads; the others look for no form, or the question tells it
    "math": "Put your final answer within \\boxed{}.",
    "number": "Put your final answer within \\boxed{}.",
    "choice": "Put the letter of your answer within \\boxed{}.",
}


@dataclass(frozen=True)
class Example:
    """A question with a worked solution: its thinking as plain text, for most chat templates drop
    what stands between an earlier turn's thinking tags."""

    problem_id: str | None
    question: str
    solution: str

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Example:
        """A data set's row: the last question in it, and the answer that it ends with."""
        turns = [Message(turn["role"], turn["content"]) for turn in row["messages"]]
        question = next(m.content for m in reversed(turns) if m.role == "user")
        thought = split_think(turns[-1].content)
        parts = [(part or "").strip() for part in (thought.thinking, thought.answer)]
        return cls(row.get("problem_id"), question, "\n\n".join(filter(None, parts)))


def direct(problem: Problem, examples: Sequence[Example] = ()) -> Problem:
    """The answer and nothing else: what a model knows without writing its way there."""
    return _asked(problem, (), f"{_question(problem)}\n\n{_told(AT_ONCE, _form(problem))}")


def zero_shot_cot(problem: Problem, examples: Sequence[Example] = ()) -> Problem:
    """Kojima et al. 2022 (https://arxiv.org/abs/2205.11916), their words at the question's end.

    There they begin the answer; a chat template leaves no place for that.
    """
    return _asked(problem, (), f"{_question(problem)}\n\n{_told(_form(problem), STEP_BY_STEP)}")


def few_shot_cot(
    problem: Problem, examples: Sequence[Example], *, num: PositiveInt = 4, turns: bool = True
) -> Problem:
    """Wei et al. 2022 (https://arxiv.org/abs/2201.11903): `num` worked examples come first.

    They are `turns` of a conversation, which every chat template takes; or, for a base model, one
    prompt of `Q:` and `A:`. UserError where they are too few, or the problem is among them.
    """
    shown = examples[:num]
    _check(problem, shown, num)
    question = _told(_question(problem), _form(problem), between="\n\n")
    if turns:
        roles = ("user", "assistant")
        before = [
            Message(role, text)
            for example in shown
            for role, text in zip(roles, (example.question, example.solution), strict=True)
        ]
        return _asked(problem, before, question)
    worked = [f"Q: {example.question}\nA: {example.solution}" for example in shown]
    return _asked(problem, (), "\n\n".join([*worked, f"Q: {question}\nA:"]))


def _check(problem: Problem, shown: Sequence[Example], num: int) -> None:
    if len(shown) < num:
        what = f"there are {len(shown)} worked examples, and num is {num}"
        raise UserError("prompting few_shot_cot", what, "name more `examples`, or lower num")
    texts = {_plain(_question(problem)), _plain(problem.question)}
    if any(e.problem_id == problem.id or _plain(e.question) in texts for e in shown):
        what = "is one of the worked examples"
        raise UserError(f"problem {problem.id}", what, "take examples that nobody is asked")


def _asked(problem: Problem, before: Sequence[Message], question: str) -> Problem:
    """The problem with another last question, and with turns between it and what comes first."""
    last = max(i for i, m in enumerate(problem.messages) if m.role == "user")
    messages = (*problem.messages[:last], *before, Message("user", question))
    return replace(problem, messages=messages)


def _question(problem: Problem) -> str:
    return str(problem.meta.get("question") or problem.question)


def _form(problem: Problem) -> str:
    """How the answer is to be written down, where the question's own words for it gave way."""
    verifier = problem.verifier
    name = verifier if isinstance(verifier, str) else str(verifier.get("name"))
    return FORMS.get(name, "") if "question" in problem.meta else ""


def _told(*parts: str, between: str = " ") -> str:
    return between.join(filter(None, parts))


def _plain(text: str) -> str:
    """What makes two questions one: neither capitals nor white space."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())
