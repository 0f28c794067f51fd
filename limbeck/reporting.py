"""The report of a run: what its tables and manifests hold, gathered for the page."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

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
        decided = tables.read_table(run.path / row["stage"] / "decisions", ["trace_id", "dropped"])
        place = _inside(run, run.recipe["stages"][row["stage"]]["traces"])
        traces = tables.read_table(place, ["id", "completion_tokens"])
        tokens = traces["completion_tokens"].take(
            pc.index_in(decided["trace_id"], traces["id"].cast(pa.string()))
        )
        kept = pc.is_null(decided["dropped"])
        return [
            {"name": "kept", "values": tokens.filter(kept).to_pylist()},
            {"name": "dropped", "values": tokens.filter(pc.invert(kept)).to_pylist()},
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


def _inside(run: Run, reference: str) -> Path:
    return run.path / reference[2:] if reference.startswith("./") else Path(reference)


def _problems(run: Run, reference: str) -> dict[str, Problem]:
    return {problem.id: problem for problem in tables.read_problems(_inside(run, reference))}


def _examples(run: Run) -> list[Row]:
    """A kept and a dropped trace of the same problem, a few domains and reasons."""
    for row in _curated(run):
        settings = run.recipe["stages"][row["stage"]]
        asked = _inside(run, settings["problems"])
        if pairs := _pairs(run.path / row["stage"] / "decisions", asked):
            traces = [trace for pair in pairs for trace in (pair["good"], pair["bad"])]
            texts = _found(_inside(run, settings["traces"]), ["id", "text"], traces)
            columns = ["id", "messages", "answer"]
            problems = _found(asked, columns, [pair["problem_id"] for pair in pairs])
            return [_example(pair, problems[pair["problem_id"]], texts) for pair in pairs]
    return []


def _pairs(decisions: Path, asked: Path) -> list[Row]:
    """Of each domain and reason the first dropped trace whose problem has a kept one, too."""
    known = tables.read_table(asked, ["id", "domain"])
    domains = dict(zip(known["id"].to_pylist(), known["domain"].to_pylist(), strict=True))
    good: dict[str, str] = {}
    for row in _each(decisions):
        if row["dropped"] is None:
            good.setdefault(row["problem_id"], row["trace_id"])
    pairs: dict[tuple[str, str], Row] = {}
    for row in _each(decisions):
        problem, reason = row["problem_id"], row["dropped"]
        kind = (domains[problem], reason)
        if reason in (None, "duplicate") or problem not in good or kind in pairs:
            continue
        bad = {"bad": row["trace_id"], "reason": reason}
        pairs[kind] = {"problem_id": problem, "good": good[problem], **bad}
        if len(pairs) == NUM_SHOWN:
            break
    return list(pairs.values())


def _example(pair: Row, problem: Row, texts: dict[str, Row]) -> Row:
    good, bad = pair["good"], pair["bad"]
    return {
        "problem": next(m["content"] for m in problem["messages"][::-1] if m["role"] == "user"),
        "answer": problem["answer"],
        "good": {"text": texts[good]["text"], "reason": "kept", "id": good},
        "bad": {"text": texts[bad]["text"], "reason": pair["reason"], "id": bad},
    }


def _each(table: Path) -> Iterator[Row]:
    """The rows of a table, one after another."""
    for batch in tables.iter_batches(table):
        yield from batch.to_pylist()


def _found(table: Path, columns: list[str], ids: list[str]) -> dict[str, Row]:
    """Those rows of a table, by their ids."""
    wanted = pa.array(ids, pa.string())
    batches = tables.iter_batches(table, columns)
    hits = (batch.filter(pc.is_in(batch["id"].cast(pa.string()), wanted)) for batch in batches)
    return {row["id"]: row for hit in hits for row in hit.to_pylist()}


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
