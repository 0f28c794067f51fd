"""One verdict for one trace, by the verifier that its problem names."""

from __future__ import annotations

import functools
import json
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Literal

from pydantic_core import PydanticCustomError

from limbeck.config import Plugin
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.plugins import Kind
from limbeck.types import Problem, Trace, Verdict
from limbeck.verifiers import judge as model_judge

VERIFIERS = Kind("verifier", "limbeck.verifiers", "verify")
SLICE = 16  # pairs that a thread takes at a time: handing over costs more than a quick verdict
Pairs = Sequence[tuple[Problem, Trace]]
Begun = Verdict | list[Problem]
"""A verdict, or what a model must be asked before there is one."""
Ask = Callable[[Sequence[Problem]], Mapping[str, str]]
"""Has questions answered by a model: the replies by the questions' ids; a reply may be missing."""
Advance = Callable[[int], object]


def no_one(amount: int) -> None:
    """Hears of progress and does nothing."""


def verifier_of(problem: Problem) -> Plugin:
    """The verifier that a problem names; UserError where there is none of that name or knobs."""
    try:
        return _verifier(json.dumps(problem.verifier, sort_keys=True))
    except ValueError as error:
        what, way_out = mistake(error)
    raise UserError(f"problem {problem.id}", f"verifier {problem.verifier!r}: {what}", way_out)


def mistake(error: ValueError) -> tuple[str, str]:
    """(what is wrong, the way out) where a plug-in could not be read."""
    what = str(error)
    if isinstance(error, PydanticCustomError):
        mistakes = (error.context or {})["mistakes"]
        what = ", ".join(f"{'.'.join(map(str, key))}: {told}" for key, told in mistakes)
    what, _, way_out = what.rpartition("; ")
    return what, way_out


@functools.cache
def _verifier(written: str) -> Plugin:
    return VERIFIERS.parse(json.loads(written))


def needs_model(verifier: Plugin) -> bool:
    """Whether a verifier is a language model, which somebody has to ask."""
    return verifier.function is model_judge.verify


def judge(problem: Problem, trace: Trace) -> Verdict:
    """The verdict; a verifier that raises gives `error`, never a silent False.

    UserError for what its user can mend: a package that is missing, a judge without a model.
    """
    verifier = verifier_of(problem)
    try:
        return verifier(problem, trace)
    except UserError:
        raise
    except Exception as error:  # a verifier reads hostile text: whatever it throws is an answer
        return Verdict(trace.id, None, f"{type(error).__name__}: {error}"[:200], "error")


def judge_all(pairs: Pairs, out: StageFolder, ask: Ask | None, advance: Advance) -> list[Verdict]:
    """A stage's verdicts, one for each pair, in their order, whatever the number of threads.

    The ledger tells what rules cost and how many verdicts a model gives; asking accounts for
    itself. `advance` hears of every verdict.
    """
    with out.account("verdicts part") as row:
        begun = begin(pairs, out.machine.threads, advance)
        row["judged_by_model"] = sum(needs_model(verifier_of(problem)) for problem, _ in pairs)
    return settle(pairs, begun, ask, advance)


def begin(pairs: Pairs, threads: int | Literal["auto"], advance: Advance = no_one) -> list[Begun]:
    """What rules say, in threads: those that are late wait beside the others, not before them."""
    begun: list[Begun] = []
    slices = [pairs[start : start + SLICE] for start in range(0, len(pairs), SLICE)]
    pool = ThreadPoolExecutor(os.cpu_count() if threads == "auto" else threads)
    stopped = threading.Event()
    try:
        for items in pool.map(lambda some: _begin_all(some, stopped), slices):
            begun += items
            advance(sum(isinstance(item, Verdict) for item in items))
    finally:  # Ctrl-C, say: whoever waits has no more use for the rest
        stopped.set()
        pool.shutdown(cancel_futures=True)
    return begun


def _begin_all(pairs: Pairs, stopped: threading.Event) -> list[Begun]:
    return [_begin(*pair) for pair in pairs if not stopped.is_set()]


def _begin(problem: Problem, trace: Trace) -> Begun:
    verifier = verifier_of(problem)
    if needs_model(verifier):
        return model_judge.questions(problem, trace, **verifier.knobs)
    return judge(problem, trace)


def settle(
    pairs: Pairs, begun: Sequence[Begun], ask: Ask | None, advance: Advance = no_one
) -> list[Verdict]:
    """The verdicts, a model having been asked all that is left, at once and each thing once."""
    groups = [item for item in begun if not isinstance(item, Verdict)]
    questions = {question.id: question for group in groups for question in group}
    replies: Mapping[str, str] = {}
    if questions:
        check_model((problem for problem, _ in pairs), ask)
        assert ask is not None
        replies = ask([*questions.values()])
    advance(len(groups))
    return [
        item
        if isinstance(item, Verdict)
        else model_judge.verdict(trace, [replies.get(question.id) for question in item])
        for item, (_, trace) in zip(begun, pairs, strict=True)
    ]


def check_model(problems: Iterable[Problem], ask: Ask | None) -> None:
    """Raises UserError if a problem needs a model as its judge and there is none to ask."""
    for problem in problems if ask is None else ():
        if needs_model(verifier_of(problem)):
            what = "its verifier is a judge, and no model is named to be one"
            raise UserError(f"problem {problem.id}", what, "set `judge`, or name another verifier")


def gradable(problem: Problem) -> Verdict:
    """What a problem's verifier says to its own gold answer, given plainly and in a box.

    Anything but `correct` means that no student could ever be right. A model is not asked: to it
    a reference that says something will do; tests without a program that passes them have to be
    believed, and instructions if they can be checked at all. UserError when the problem names no
    verifier that there is, or a package is missing that it needs.
    """
    if not problem.answer.strip():
        if problem.meta.get("instructions"):
            verdict = judge(problem, _gold(problem, "a text that may or may not follow them"))
            return verdict if verdict.correct is None else Verdict("gold", True, None, "correct")
        if problem.meta.get("tests"):
            return Verdict("gold", True, "no program to prove its tests by", "correct")
        return Verdict("gold", None, "no answer to prove it by", "bad_gold")
    if needs_model(verifier_of(problem)):
        return Verdict("gold", True, problem.answer, "correct")
    plain = judge(problem, _gold(problem, problem.answer))
    return (
        plain if plain.correct else judge(problem, _gold(problem, f"\\boxed{{{problem.answer}}}"))
    )


def _gold(problem: Problem, text: str) -> Trace:
    return Trace("gold", problem.id, 0, text, "stop", "gold")
