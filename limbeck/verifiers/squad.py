"""The answer is a span of text: exact match and F1 by the rules of SQuAD 1.1.

Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, and their script evaluate-v1.1.py.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from dataclasses import replace

from limbeck.types import Problem, Trace, Verdict
from limbeck.verifiers import AnswerIn, answer_text, judged, no_answer

PUNCTUATION = str.maketrans("", "", string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def verify(problem: Problem, trace: Trace, *, answer_in: AnswerIn = "after_thinking") -> Verdict:
    """Right if it equals one of the gold answers once both are normalised; `score` is the best F1.

    The gold answers are those in `meta["answers"]`, or `answer` alone. No answer is a wrong one.
    """
    golds = [gold for gold in problem.meta.get("answers") or [problem.answer] if gold.strip()]
    if not golds:
        return Verdict(trace.id, None, None, "bad_gold")
    answer, reason = answer_text(trace, answer_in)
    if answer is None:
        verdict = no_answer(trace, reason or "unparsed")
        return verdict if verdict.correct is None else replace(verdict, score=0.0)
    said, wanted = normalise(answer), [normalise(gold) for gold in golds]
    score = max(f1(said, gold) for gold in wanted)
    return replace(judged(trace, said in wanted, answer.strip()), score=score)


def normalise(text: str) -> str:
    """Lower case, without punctuation (ASCII), English articles and extra white space."""
    return " ".join(ARTICLES.sub(" ", text.lower().translate(PUNCTUATION)).split())


def f1(answer: str, gold: str) -> float:
    """The harmonic mean of precision and recall of the words of normalised texts, 0 to 1."""
    said, wanted = answer.split(), gold.split()
    shared = (Counter(said) & Counter(wanted)).total()
    if not shared:
        return 0.0
    precision, recall = shared / len(said), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)
