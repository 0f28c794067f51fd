"""The answer is right if the `reasoning_gym` family that made the problem scores it 1.

Where several answers are right (countdown, sokoban, a walk through a maze), only the family knows.
Scorers are foreign code that reads hostile text: they run in worker processes, and those that
evaluate an answer as Python see only answers made of what cannot do anything but arithmetic.
"""

from __future__ import annotations

import functools
import re
from importlib.util import find_spec
from typing import Any

from pydantic import PositiveFloat

from limbeck.errors import UserError
from limbeck.types import Problem, Trace, Verdict
from limbeck.verifiers import AnswerIn, final_answer, judged, no_answer, workers

SCORE = "limbeck.verifiers.reasoning_gym_worker:score"
MAX_LETTERS = 20_000  # of an answer; the longest of a family's own has a tenth of it
NOT_META = ("family", "knobs", "template", "source", "licence")  # what is not the family's

FUNCTIONS = "a?(?:sin|cos|tan|sec|csc|cot)h?|sqrt|exp|log|ln|Abs|pi"
FORMULA = (  # no name but these and single letters, hence no attribute and no call of another
    rf"(?:(?<![A-Za-z_\d])(?:{FUNCTIONS}|[A-Za-z])(?![A-Za-z_\d])"
    r"|[0-9]++(?:\.[0-9]*+)?|\.[0-9]++|[-+*/(),\s])++"
)
ARITHMETIC = r"(?!.*(?:\*\*|//))[-+*/()0-9\s]+"  # no power and no rounding: nobody allowed them
HEXADECIMAL = r"[-+*<>&|^~()0-9a-fA-FxX\s]+"
WHO = r"[A-Z][a-z]+ is an? [a-z]+"
TIME = r"[0-9]+:[0-9]+(?::[0-9]+(?:\.[0-9]+)?)?"
MADE_OF = {  # what an answer must be made of, or its family's scorer does not see it
    # These evaluate it as Python:
    "binary_matrix": r"[0-9\s]+",
    "countdown": ARITHMETIC,
    "intermediate_integration": FORMULA,
    "n_queens": r"[Q_\s]+",
    "polynomial_multiplication": FORMULA,
    "puzzle24": ARITHMETIC,
    "simple_integration": FORMULA,
    "spiral_matrix": r"[-0-9\s]+",
    "string_insertion": r"[A-E]+",
    # And these read so loosely that something else would pass, too:
    "complex_arithmetic": r"[-+0-9.ijIJ()\s]+",
    "kakurasu": r"[01\s]+",
    "knights_knaves": rf"{WHO}(?:(?:,? and |, ){WHO})*\.?",
    "quantum_lock": r"[A-Ca-c→>,\s-]+",
    "sokoban": r"[DLRU,\s]+",
    "survo": r"[-0-9\s]+",
    "time_intervals": rf"-?[0-9]+(?: days?)?(?:, ?{TIME})?|-?{TIME}",
}
EVALUATED_TOO = {  # what else of a problem some of them evaluate: it may come from anywhere
    "bitwise_arithmetic": ("problem", HEXADECIMAL),
    "intermediate_integration": ("integrand", FORMULA),
    "simple_integration": ("integrand", FORMULA),
}
UNSOUND = {  # families whose scorers give full marks to wrong answers, and what judges them instead
    "coin_flip": ("to the first digits of the answer", "exact"),
    "fraction_simplification": ("to the first fraction of any text", "math"),
    "game_of_life": ("to a board with more than it should have", "exact"),
    "game_of_life_halting": ("to anything that is written", "exact"),
    "gsm_symbolic": ("to the first number of any text, without its sign", "number"),
    "letter_jumble": ("to a text with more words than it should have", "exact"),
    "number_sorting": ("to numbers that are off by one", "exact"),
}


def verify(
    problem: Problem,
    trace: Trace,
    *,
    timeout_s: PositiveFloat = 5.0,
    answer_in: AnswerIn = "after_thinking",
) -> Verdict:
    """A score of exactly 1 is right, part of it is wrong; a scorer that raises could not read it.

    Past `timeout_s`, `correct` is None and the reason `timeout`. UserError for a problem that no
    family made, or one whose scorer cannot be trusted.
    """
    family = _family(problem)
    if not problem.answer.strip() or not _is_sane(problem, family):
        return Verdict(trace.id, None, None, "bad_gold")
    answer, reason = final_answer(trace, answer_in)
    if answer is None:
        return no_answer(trace, reason or "unparsed")
    answer = answer.strip()
    if not is_harmless(family, answer):
        return no_answer(trace, "unparsed")
    try:
        score = workers.ask(SCORE, _question(problem, family, answer), timeout_s)
    except workers.Late:
        return Verdict(trace.id, None, answer, "timeout")
    except workers.Died:
        return Verdict(trace.id, None, answer, "error")
    except workers.Failed:
        return Verdict(trace.id, False, answer, "unparsed")
    return judged(trace, score == 1.0, answer)


def is_harmless(family: str, answer: str) -> bool:
    """Whether an answer may be shown to the family's scorer."""
    return len(answer) <= MAX_LETTERS and _matches(MADE_OF.get(family), answer)


def _is_sane(problem: Problem, family: str) -> bool:
    """Whether what the scorer evaluates of the problem itself is harmless."""
    name, made_of = EVALUATED_TOO.get(family, ("", None))
    return is_harmless(family, problem.answer) and _matches(made_of, str(problem.meta.get(name)))


def _matches(made_of: str | None, text: str) -> bool:
    return made_of is None or re.fullmatch(made_of, text.strip(), re.DOTALL) is not None


def _family(problem: Problem) -> str:
    family = problem.meta.get("family")
    where = f"problem {problem.id}"
    if not isinstance(family, str):
        what = "is of no reasoning_gym family, whose scorer could judge it"
        raise UserError(where, what, "name another verifier")
    if family in UNSOUND:
        what, instead = UNSOUND[family]
        what = f"verifier reasoning_gym: the scorer of {family} gives full marks {what}"
        raise UserError(where, what, f"take verifier: {instead}")
    if not _is_installed():
        what = "its verifier needs the package reasoning_gym"
        raise UserError(where, what, "pip install 'limbeck[gym]'")
    return family


@functools.cache
def _is_installed() -> bool:
    return find_spec("reasoning_gym") is not None


def _question(problem: Problem, family: str, answer: str) -> dict[str, Any]:
    """What the worker is asked; the entry as the family made it."""
    metadata = {key: value for key, value in problem.meta.items() if key not in NOT_META}
    knobs = problem.meta.get("knobs", {})
    if family == "puzzle24":  # its own scorer takes any four numbers, not the problem's
        family, knobs, metadata = "countdown", {}, {**metadata, "target": 24}
    entry = {"question": problem.question, "answer": problem.answer, "metadata": metadata}
    return {"family": family, "knobs": knobs, "answer": answer, "entry": entry}
