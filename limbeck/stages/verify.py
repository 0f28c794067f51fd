"""verify: one verdict per trace, with its reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

from limbeck import tables
from limbeck.config import ProblemsPath, StageConfig, TracesPath
from limbeck.folder import StageFolder
from limbeck.types import Trace, Verdict
from limbeck.verifiers.judging import judge

WRITES = {"verdicts": "verdicts"}
RESUMES = True
EXTENDS = True
USES = ("limbeck.verifiers",)
ROWS_PER_PART = 16_384
ORPHAN = "its problem is not among the problems"


class Config(StageConfig):
    problems: ProblemsPath
    """The problems, with their answers and their verifiers."""
    traces: TracesPath
    """What was answered."""


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `verdicts`, those that are missing."""
    problems = {problem.id: problem for problem in tables.read_problems(config.problems)}
    table = out.path / "verdicts"
    tables.set_broken_aside(table, out.log)
    done = {v.trace_id for v in tables.read_verdicts(table)} if tables.parts(table) else set()
    traces = tables.read_traces(config.traces)
    missing = [trace for trace in traces if trace.id not in done]
    with out.progress(len(missing), "verdicts") as advance:
        for start in range(0, len(missing), ROWS_PER_PART):
            chunk = missing[start : start + ROWS_PER_PART]
            with out.account("verdicts part"):
                verdicts = []
                for trace in chunk:
                    problem = problems.get(trace.problem_id)
                    verdicts.append(judge(problem, trace) if problem else _orphan(trace))
                    advance(1)
            tables.write_part(table, tables.to_table("verdicts", verdicts))
    verdicts = tables.read_verdicts(table)
    reasons = Counter(verdict.reason for verdict in verdicts)
    out.log(" · ".join(f"{n:,} {reason}" for reason, n in reasons.most_common()))
    judged = sum(verdict.correct is not None for verdict in verdicts)
    poison = sum(verdict.extracted == ORPHAN for verdict in verdicts)
    failed = len(verdicts) - judged - poison
    accounts = out.balance(len(traces), judged, failed=failed, poison=poison)
    return {"accounts": accounts, "reasons": dict(reasons.most_common())}


def _orphan(trace: Trace) -> Verdict:
    return Verdict(trace.id, None, ORPHAN, "error")
