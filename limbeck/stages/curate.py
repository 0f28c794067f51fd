"""curate: which traces become training data, and the named reason for each that does not."""

from __future__ import annotations

import inspect
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from limbeck import tables
from limbeck.chat import split_think
from limbeck.config import Plugin, ProblemsPath, StageConfig, TracesPath, VerdictsPath
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.plugins import FilterChoice
from limbeck.types import Problem, Trace, Verdict

WRITES = {"dataset": "dataset", "decisions": "decisions"}
EXTENDS = True


class Config(StageConfig):
    problems: ProblemsPath
    """The questions that the traces answer."""
    traces: TracesPath
    """The candidates."""
    verdicts: VerdictsPath
    """What the verifier said of them."""
    keep: list[FilterChoice] = []
    """Filters of `limbeck/filters/`, in order; the first that objects names the reason."""
    thinking: Literal["keep", "drop"] = "keep"
    """`drop` leaves only what follows `</think>`: data without reasoning, for comparison."""


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `decisions`, one row per trace, and `dataset`, the kept ones as messages."""
    problems = {problem.id: problem for problem in tables.read_problems(config.problems)}
    verdicts = {verdict.trace_id: verdict for verdict in tables.read_verdicts(config.verdicts)}
    # By problem and sample, whatever the order in which they were made: in one go, or extended.
    place = {problem: number for number, problem in enumerate(problems)}
    traces = sorted(
        tables.read_traces(config.traces),
        key=lambda trace: (place.get(trace.problem_id, len(place)), trace.index),
    )
    for trace in traces:
        if trace.id not in verdicts or trace.problem_id not in problems:
            missing = "verdicts" if trace.id not in verdicts else "problems"
            what = f"has nothing on trace {trace.id}"
            raise UserError(f"{out.name}.{missing}", what, "name those that belong to the traces")
    unjudged = sum(trace.id not in verdicts for trace in traces)
    if unjudged:
        what = f"judge other traces: {unjudged:,} of {len(traces):,} have no verdict"
        raise UserError(f"{out.name}.verdicts", what, "name the verdicts of these traces")
    with out.account("curate"):
        dropped = decide(traces, verdicts, config.keep)
        kept = [trace for trace in traces if dropped[trace.id] is None]
        if not kept:
            told = ", ".join(f"{n:,} {why}" for why, n in Counter(dropped.values()).items())
            raise UserError(f"{out.name}.keep", f"dropped every trace ({told})", "loosen a filter")
        if any(trace.problem_id not in problems for trace in kept):
            what = "are not those that the traces answer"
            raise UserError(f"{out.name}.problems", what, "name the problems of these traces")
        decisions = [
            {"trace_id": t.id, "problem_id": t.problem_id, "dropped": dropped[t.id]} for t in traces
        ]
        rows = [_row(problems[t.problem_id], t, config.thinking) for t in kept]
        tables.write_part(out.path / "decisions", tables.to_table("decisions", decisions))
        tables.write_part(out.path / "dataset", tables.to_table("dataset", rows))
    reasons = Counter(reason for reason in dropped.values() if reason)
    told = ", ".join(f"{n:,} {reason}" for reason, n in reasons.most_common())
    out.log(f"kept {len(kept):,} of {len(traces):,} traces" + (f"; dropped {told}" if told else ""))
    accounts = out.balance(len(traces), len(kept), rejected=reasons.total())
    dropped_by = dict(reasons.most_common())
    return {"accounts": accounts, "sampled": len(traces), "kept": len(kept), "dropped": dropped_by}


def decide(
    traces: Sequence[Trace], verdicts: dict[str, Verdict], keep: Sequence[Plugin]
) -> dict[str, str | None]:
    """For each trace id None, or the reason of the first filter that objects.

    A filter of one trace sees it alone; a filter of a group sees what is left of one problem.
    """
    dropped: dict[str, str | None] = {trace.id: None for trace in traces}
    for rule in keep:
        left = [trace for trace in traces if dropped[trace.id] is None]
        if next(iter(inspect.signature(rule.function).parameters)) == "traces":
            for group in _by_problem(left).values():
                reasons = rule(group, [verdicts[trace.id] for trace in group])
                dropped.update(zip((trace.id for trace in group), reasons, strict=True))
        else:
            dropped.update({trace.id: rule(trace, verdicts[trace.id]) for trace in left})
    return dropped


def _by_problem(traces: Sequence[Trace]) -> dict[str, list[Trace]]:
    groups: dict[str, list[Trace]] = {}
    for trace in traces:
        groups.setdefault(trace.problem_id, []).append(trace)
    return groups


def _row(problem: Problem, trace: Trace, thinking: str) -> dict[str, Any]:
    text = trace.text if thinking == "keep" else split_think(trace.text).answer or ""
    asked = [{"role": m.role, "content": m.content} for m in problem.messages]
    return {
        "id": trace.id,
        "problem_id": problem.id,
        "messages": [*asked, {"role": "assistant", "content": text}],
        "domain": problem.domain,
        "source": str(problem.meta.get("source", "")),
        "teacher": trace.model,
        "weight": 1.0,
    }
