"""Filters of a problem's traces beside each other: `keep_group(traces, verdicts, *, knobs)`.

They give one word or None per trace, see what the filters before them kept, and do not mind being
given several problems at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from pydantic import PositiveInt

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
