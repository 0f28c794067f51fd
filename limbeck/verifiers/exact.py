"""The answer is the gold answer, letter for letter."""

from __future__ import annotations

from limbeck.types import Problem, Trace, Verdict
from limbeck.verifiers import AnswerIn, compatible, final_answer, judged, no_answer


def verify(
    problem: Problem,
    trace: Trace,
    *,
    answer_in: AnswerIn = "after_thinking",
    ignore_case: bool = False,
) -> Verdict:
    """Equal after NFKC and with white space collapsed; `ignore_case` forgives capitals."""
    gold = normalise(problem.answer, ignore_case)
    if not gold:
        return Verdict(trace.id, None, None, "bad_gold")
    answer, reason = final_answer(trace, answer_in)
    if answer is None:
        return no_answer(trace, reason or "unparsed")
    answer = normalise(answer, ignore_case)
    return judged(trace, answer == gold, answer)


def normalise(text: str, ignore_case: bool) -> str:
    """Compatible characters made one (NFKC), hidden ones gone, white space collapsed."""
    text = " ".join(compatible(text).split())
    return text.casefold() if ignore_case else text
