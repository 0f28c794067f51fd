"""Filters of a problem's traces beside each other: `keep_group(traces, verdicts, *, knobs)`.

They give one word or None per trace, see what the filters before them kept, and do not mind being
given several problems at once.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

from pydantic import PositiveInt

from limbeck.filters.reading import undressed
from limbeck.filters.traces import Share
from limbeck.types import Trace, Verdict


def deduplicate(traces: Sequence[Trace], verdicts: Sequence[Verdict] = ()) -> list[str | None]:
    """Drops a text that an earlier trace of the same problem has word for word."""
    seen: set[tuple[str, str]] = set()
    reasons: list[str | None] = []
    for trace in traces:
        key = (trace.problem_id, trace.text)
        reasons.append("duplicate" if key in seen else None)
        seen.add(key)
    return reasons


def shortest(
    traces: Sequence[Trace], verdicts: Sequence[Verdict] = (), *, num: PositiveInt = 1
) -> list[str | None]:
    """Keeps the `num` shortest traces of a problem, in tokens, then in characters."""
    order = sorted(
        range(len(traces)), key=lambda i: (traces[i].completion_tokens, len(traces[i].text), i)
    )
    return _first_of_each(traces, order, num, "longer")


def at_most(
    traces: Sequence[Trace], verdicts: Sequence[Verdict] = (), *, num: PositiveInt = 4
) -> list[str | None]:
    """Keeps the first `num` traces of a problem, by sample index."""
    order = sorted(range(len(traces)), key=lambda i: (traces[i].index, i))
    return _first_of_each(traces, order, num, "surplus")


def difficulty(
    traces: Sequence[Trace],
    verdicts: Sequence[Verdict],
    *,
    min_pass_rate: Share | None = 0.0,
    max_pass_rate: Share | None = 1.0,
) -> list[str | None]:
    """Keeps problems that are solved more often than `min_pass_rate`, less than `max_pass_rate`.

    As they stand: those that are neither always nor never solved. The rate is that of the traces
    that are left and could be judged, so name this filter first, before `correct`. A problem with
    fewer than two of them is kept: one trace tells nothing of it.
    """
    judged: defaultdict[str, list[bool]] = defaultdict(list)
    for trace, verdict in zip(traces, verdicts, strict=True):
        if verdict.correct is not None:
            judged[trace.problem_id].append(verdict.correct)

    def reason(right: list[bool]) -> str | None:
        if len(right) < 2:
            return None
        rate = sum(right) / len(right)
        if min_pass_rate is not None and rate <= min_pass_rate:
            return "too_hard"
        return "too_easy" if max_pass_rate is not None and rate >= max_pass_rate else None

    reasons = {problem_id: reason(right) for problem_id, right in judged.items()}
    return [reasons.get(trace.problem_id) for trace in traces]


def agreement(
    traces: Sequence[Trace], verdicts: Sequence[Verdict], *, min_share: Share = 0.5
) -> list[str | None]:
    """Keeps traces whose answer is the majority's: for problems without a known answer.

    The answers are what the verifier read, compared without LaTeX's looks; a trace without one
    casts no vote. The commonest must stand alone, have at least two votes and `min_share` of them;
    otherwise the whole problem is dropped.
    """
    answers = [None if v.extracted is None else undressed(v.extracted) for v in verdicts]
    votes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for trace, answer in zip(traces, answers, strict=True):
        if answer is not None:
            votes[trace.problem_id][answer] += 1
    winners = {problem_id: _winner(count, min_share) for problem_id, count in votes.items()}
    reasons: list[str | None] = []
    for trace, answer in zip(traces, answers, strict=True):
        winner = winners.get(trace.problem_id)
        agrees = None if answer == winner else "disagrees"
        reasons.append("no_majority" if winner is None else agrees)
    return reasons


def _winner(votes: Counter[str], min_share: float) -> str | None:
    """The one answer that enough votes are for; None where there is none."""
    (first, most), *others = votes.most_common(2)
    tied = bool(others) and others[0][1] == most
    return None if tied or most < max(2, min_share * votes.total()) else first


def _first_of_each(
    traces: Sequence[Trace], order: Sequence[int], num: int, reason: str
) -> list[str | None]:
    """`reason` for every trace but its problem's first `num` in `order`."""
    kept: defaultdict[str, int] = defaultdict(int)
    reasons: list[str | None] = [None] * len(traces)
    for i in order:
        kept[traces[i].problem_id] += 1
        if kept[traces[i].problem_id] > num:
            reasons[i] = reason
    return reasons
