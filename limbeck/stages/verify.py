"""verify: one verdict per trace, with its reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

from limbeck import store
from limbeck.config import ProblemsPath, StageConfig, TracesPath
from limbeck.folder import StageFolder
from limbeck.verifiers.judging import judge

WRITES = {"verdicts": "verdicts"}
RESUMES = True
EXTENDS = True
ROWS_PER_PART = 16_384


class Config(StageConfig):
    problems: ProblemsPath
    """The problems, with their answers and their verifiers."""
    traces: TracesPath
    """What was answered."""


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `verdicts`, those that are missing."""
    problems = {problem.id: problem for problem in store.read_problems(config.problems)}
    table = out.path / "verdicts"
    done = {v.trace_id for v in store.read_verdicts(table)} if store.parts(table) else set()
    missing = [trace for trace in store.read_traces(config.traces) if trace.id not in done]
    with out.progress(len(missing), "verdicts") as advance:
        for start in range(0, len(missing), ROWS_PER_PART):
            chunk = missing[start : start + ROWS_PER_PART]
            with out.account("verdicts part"):
                verdicts = []
                for trace in chunk:
                    verdicts.append(judge(problems[trace.problem_id], trace))
                    advance(1)
                store.write_part(table, store.to_table("verdicts", verdicts))
    reasons = Counter(verdict.reason for verdict in store.read_verdicts(table))
    out.log(" · ".join(f"{n:,} {reason}" for reason, n in reasons.most_common()))
    return {"num": reasons.total(), "reasons": dict(reasons.most_common())}
