"""verify: one verdict per trace, with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

from pydantic import model_validator

from limbeck import tables
from limbeck.config import ProblemsPath, TracesPath, written
from limbeck.engines.asking import JudgeConfig
from limbeck.folder import StageFolder
from limbeck.plugins import VerifierChoice
from limbeck.types import Problem, Trace, Verdict
from limbeck.verifiers.judging import check_model, judge_all, needs_model, verifier_of

WRITES = {"verdicts": "verdicts", "judgements": "traces"}
RESUMES = True
EXTENDS = True
USES = ("limbeck.verifiers",)
ROWS_PER_PART = 16_384
ORPHAN = "its problem is not among the problems"


class Config(JudgeConfig):
    problems: ProblemsPath
    """The problems, with their answers and their verifiers."""
    traces: TracesPath
    """What was answered."""
    verifier: VerifierChoice | None = None
    """Judges instead of the verifier that each problem names: old traces, judged anew."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.verifier and needs_model(self.verifier) and self.judge is None:
            raise ValueError("verifier judge has no model to ask; set judge to an engine")
        return self


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `verdicts`, those that are missing; a part of the traces is in memory at a time.

    `timeout` and `error` are verdicts, too: they stay, and nobody is asked again.
    """
    problems = {problem.id: problem for problem in read_problems(config)}
    ask = config.asker(out)
    check_model(problems.values(), ask)
    table = out.path / "verdicts"
    tables.set_broken_aside(table, out.log)
    done = set(column(table, "trace_id")) if tables.parts(table) else set()
    num_missing = sum(id not in done for id in column(config.traces, "id"))
    missing = (trace for trace in read_traces(config.traces) if trace.id not in done)
    with out.progress(num_missing, "verdicts") as advance:
        while chunk := list(islice(missing, ROWS_PER_PART)):
            pairs = [(p, t) for t in chunk if (p := problems.get(t.problem_id))]
            judged = {v.trace_id: v for v in judge_all(pairs, out, ask, advance)}
            verdicts = [judged.get(trace.id) or _orphan(trace) for trace in chunk]
            tables.write_part(table, tables.to_table("verdicts", verdicts))
    return summarise(config, problems, out)


def _orphan(trace: Trace) -> Verdict:
    return Verdict(trace.id, None, ORPHAN, "error")


def read_problems(config: Config) -> list[Problem]:
    """The problems, with the stage's verifier where it has one."""
    problems = tables.read_problems(config.problems)
    if config.verifier is None:
        return problems
    return [replace(problem, verifier=written(config.verifier)) for problem in problems]


def read_traces(path: str) -> Iterator[Trace]:
    """One after another, without token ids and log-probs."""
    names = [f.name for f in fields(Trace) if f.name not in ("token_ids", "logprobs")]
    for batch in tables.iter_batches(path, names, again=True):
        yield from (Trace(**row) for row in batch.to_pylist())


def column(path: str | Path, name: str) -> Iterator[Any]:
    """A column's values, one after another."""
    for batch in tables.iter_batches(path, [name]):
        yield from batch[name].to_pylist()


def summarise(config: Config, problems: dict[str, Problem], out: StageFolder) -> dict[str, Any]:
    """The accounts of all traces, the verdicts by reason, and by verifier."""
    reasons: Counter[str] = Counter()
    num_judged = num_orphans = 0
    for batch in tables.iter_batches(out.path / "verdicts", ["correct", "reason", "extracted"]):
        rows = batch.to_pylist()
        reasons.update(row["reason"] for row in rows)
        num_judged += sum(row["correct"] is not None for row in rows)
        num_orphans += sum(r["reason"] == "error" and r["extracted"] == ORPHAN for r in rows)
    out.log(" · ".join(f"{n:,} {reason}" for reason, n in reasons.most_common()))
    asked = Counter(column(config.traces, "problem_id"))
    verifiers: Counter[str] = Counter()
    for problem in problems.values():
        verifiers[verifier_of(problem).name] += asked[problem.id]
    by_model = sum(asked[p.id] for p in problems.values() if needs_model(verifier_of(p)))
    failed = reasons.total() - num_judged - num_orphans
    return {
        "accounts": out.balance(asked.total(), num_judged, failed=failed, poison=num_orphans),
        "reasons": dict(reasons.most_common()),
        "verifiers": {name: num for name, num in verifiers.most_common() if num},
        "judged_by_model": by_model,
    }
