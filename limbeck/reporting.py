"""The report of a run: what its tables and manifests hold, gathered for the page."""

from __future__ import annotations

import json
import os
import platform
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import ledger, store, tables
from limbeck.types import Problem, Trace
from limbeck.verifiers.judging import judge

if TYPE_CHECKING:
    from limbeck.runs import Run

Row = dict[str, Any]
NUM_SHOWN = 4  # pairs of traces, and problems with everybody's answer


def write_report(run: Run) -> Path:
    """Writes `report.html`, whole or not at all."""
    from limbeck.report import Report, headline, render

    compared = run.compared()
    sessions = store.read_jsonl(run.path / "sessions.jsonl")
    done = [row for row in run.stages() if row["state"] == "done"]
    page = Report(
        name=run.recipe["name"],
        title=run.recipe["title"],
        command=sessions[0]["command"] if sessions else "",
        started=sessions[0]["started"] if sessions else "",
        finished=max((row["finished"] for row in done), default=""),
        versions=sessions[-1]["versions"] if sessions else {},
        machine=_machine(run, sessions),
        headline=headline(compared["results"], compared["tests"]),
        results=compared["results"],
        tests=compared["tests"],
        families=compared["families"],
        guess=_guess(run),
        models=_models(run),
        funnel=[{"stage": row["stage"], **row["summary"]} for row in _curated(run)],
        verdict_reasons={r["stage"]: r["summary"]["reasons"] for r in run.done("verify")},
        curves=_curves(run),
        lengths=_lengths(run),
        examples=_examples(run),
        answers=_answers(run),
        ledger=run.ledger(),
        recipe_text=json.dumps(run.recipe, indent=1, ensure_ascii=False),
    )
    path = run.path / "report.html"
    store.write_text(path, render(page))
    return path


def _machine(run: Run, sessions: list[Row]) -> Row:
    rows = run.ledger()
    about = sessions[-1]["machine"] if sessions else {}
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": about.get("threads"),
        "device": about.get("device"),
        "gemm_gflops": about.get("gemm_gflops"),
        "cpu_seconds": round(sum(row["cpu_seconds"] for row in rows), 1),
        "wall_seconds": round(sum(row["wall_seconds"] for row in rows), 1),
    }


def _guess(run: Run) -> list[Row]:
    """Per evaluated split and domain, the score of always giving the commonest answer."""
    splits: dict[str, str] = {}
    for row in run.done("evaluate"):
        splits |= run.recipe["stages"][row["stage"]]["problems"]
    said = {row["stage"]: row["summary"]["guess"] for row in run.done("collect")}
    return [
        {"split": split, "domain": domain, "share": share}
        for split, reference in splits.items()
        for stage, _, output in [reference.removeprefix("./").partition("/")]
        for domain, share in said.get(stage, {}).get(output, {}).items()
    ]


def _models(run: Run) -> list[Row]:
    return [
        {"name": row["stage"]}
        | {
            key: value
            for key, value in row["summary"].items()
            if key not in ("accounts", "refused")
        }
        | {key: cost[key] for key in ("cpu_seconds", "flops")}
        | {"trained_on": run.recipe["stages"][row["stage"]]["data"]}
        for row in run.done("sft")
        for cost in [ledger.total(run.path / row["stage"] / "ledger.jsonl")]
    ]


def _curves(run: Run) -> list[Row]:
    curves = []
    for row in run.done("sft"):
        metrics = store.read_jsonl(run.path / row["stage"] / "metrics.jsonl")
        points = {m["step"]: m["loss"] for m in metrics}  # the last word on a step counts
        curves.append({"name": row["stage"], "points": sorted(points.items())})
    return curves


def _lengths(run: Run) -> list[Row]:
    """Completion tokens of what the main curation kept and dropped."""
    for row in _curated(run)[:1]:
        dropped = _dropped(run, row["stage"])
        kept: dict[bool, list[int]] = {True: [], False: []}
        for trace in _traces_of(run, row["stage"]).values():
            kept[dropped[trace["id"]] is None].append(trace["completion_tokens"])
        return [
            {"name": "kept", "values": kept[True]},
            {"name": "dropped", "values": kept[False]},
        ]
    return []


def _curated(run: Run) -> list[Row]:
    """The curations, that of the first test's first model, the student, before all others."""
    stages = run.recipe["stages"]
    main = ""
    for entry in stages.values():
        if entry["stage"] == "compare" and entry.get("pairs"):
            evaluation = _stage(entry["scores"][entry["pairs"][0][0]])
            student = _stage(stages.get(evaluation, {}).get("engine", {}).get("model", ""))
            main = main or _stage(stages.get(student, {}).get("data", ""))
    return sorted(run.done("curate"), key=lambda row: row["stage"] != main)


def _stage(reference: str) -> str:
    """The stage that `./stage/output` names, or nothing."""
    return reference[2:].partition("/")[0] if reference.startswith("./") else ""


def _dropped(run: Run, stage: str) -> dict[str, str | None]:
    decisions = tables.read_table(run.path / stage / "decisions").to_pylist()
    return {row["trace_id"]: row["dropped"] for row in decisions}


def _traces_of(run: Run, stage: str) -> dict[str, Row]:
    place = _inside(run, run.recipe["stages"][stage]["traces"])
    names = ["id", "problem_id", "text", "completion_tokens"]
    return {row["id"]: row for row in tables.read_table(place, names).to_pylist()}


def _inside(run: Run, reference: str) -> Path:
    return run.path / reference[2:] if reference.startswith("./") else Path(reference)


def _problems(run: Run, reference: str) -> dict[str, Problem]:
    return {problem.id: problem for problem in tables.read_problems(_inside(run, reference))}


def _examples(run: Run) -> list[Row]:
    """A kept and a dropped trace of the same problem, a few domains and reasons."""
    for row in _curated(run):
        stage = row["stage"]
        problems = _problems(run, run.recipe["stages"][stage]["problems"])
        dropped, traces = _dropped(run, stage), _traces_of(run, stage)
        good: dict[str, str] = {}
        for trace_id, reason in dropped.items():
            if reason is None:
                good.setdefault(traces[trace_id]["problem_id"], trace_id)
        pairs, seen = [], Counter[tuple[str, str]]()
        for trace_id, reason in dropped.items():
            problem = problems[traces[trace_id]["problem_id"]]
            kind = (problem.domain, reason or "")
            if reason in (None, "duplicate") or problem.id not in good or seen[kind]:
                continue
            seen[kind] += 1
            mine = good[problem.id]
            pairs.append(
                {
                    "problem": problem.question,
                    "answer": problem.answer,
                    "good": {"text": traces[mine]["text"], "reason": "kept", "id": mine},
                    "bad": {"text": traces[trace_id]["text"], "reason": reason, "id": trace_id},
                }
            )
        if pairs:
            return pairs[:NUM_SHOWN]
    return []


def _answers(run: Run) -> list[Row]:
    """Everybody's answer to the first problem of each domain that splits the first test's pair."""
    compares = [run.recipe["stages"][row["stage"]] for row in run.done("compare")]
    if not compares or not compares[0].get("pairs"):
        return []
    scores, pair = compares[0]["scores"], compares[0]["pairs"][0]
    by_model: dict[str, dict[str, Row]] = {}
    asked: dict[str, Problem] = {}
    for name, reference in scores.items():
        stage = _stage(reference)
        if not tables.parts(run.path / stage / "greedy"):
            return []
        rows = tables.read_table(run.path / stage / "greedy").to_pylist()
        by_model[name] = {row["problem_id"]: row for row in rows}
        splits = run.recipe["stages"][stage]["problems"]
        asked = asked or _problems(run, next(iter(splits.values())))
    shown: dict[str, Row] = {}
    for problem in asked.values():
        by = [
            {"name": name, "text": rows[problem.id]["text"], "reason": _judged(problem, rows)}
            for name, rows in by_model.items()
        ]
        right = {answer["reason"] == "correct" for answer in by if answer["name"] in pair}
        if len(right) == 2:
            row = {"problem": problem.question, "gold": problem.answer, "by": by}
            shown.setdefault(problem.domain, row)
    return list(shown.values())[:NUM_SHOWN]


def _judged(problem: Problem, rows: dict[str, Row]) -> str:
    return judge(problem, Trace(**rows[problem.id])).reason


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
