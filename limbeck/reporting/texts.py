"""The texts that a report shows, and how long they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from limbeck import sealed, tables
from limbeck.reporting.training import chosen, stage_of
from limbeck.types import Problem, Trace
from limbeck.verifiers.judging import judge

if TYPE_CHECKING:
    from limbeck.runs import Run

Row = dict[str, Any]
NUM_SHOWN = 4  # pairs of traces, and problems with everybody's answer


def lengths(run: Run) -> list[Row]:
    """Completion tokens of what the main curation kept and dropped."""
    for row in curated(run)[:1]:
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


def curated(run: Run) -> list[Row]:
    """The curations, that of the first test's first model, the student, before all others."""
    stages = run.recipe["stages"]
    main = ""
    for entry in stages.values():
        if entry["stage"] == "compare" and entry.get("pairs"):
            evaluation = stage_of(entry["scores"][entry["pairs"][0][0]])
            student = stage_of(stages.get(evaluation, {}).get("engine", {}).get("model", ""))
            student = chosen(run).get(student, student)
            main = main or stage_of(stages.get(student, {}).get("data", ""))
    written = [row for row in run.done("curate") if not _is_gold(run, row["stage"])]
    return sorted(written, key=lambda row: row["stage"] != main)


def _is_gold(run: Run, curation: str) -> bool:
    """Whether what was curated are gold answers, which nobody wrote and no filter drops."""
    stages = run.recipe["stages"]
    author = stages.get(stage_of(stages[curation]["traces"]), {}).get("engine", {})
    return bool(author == {"name": "gold"} or author == "gold")


def examples(run: Run) -> list[Row]:
    """A kept and a dropped trace of the same problem, a few domains and reasons."""
    for row in curated(run):
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


def answers(run: Run) -> list[Row]:
    """Everybody's answer to the first problem of each domain that splits the first test's pair."""
    compares = [run.recipe["stages"][row["stage"]] for row in run.done("compare")]
    answered = [entry for entry in compares if _all_greedy(run, entry["scores"].values())]
    if not answered or not answered[0].get("pairs"):
        return []
    scores, pair = answered[0]["scores"], answered[0]["pairs"][0]
    by_model: dict[str, dict[str, Row]] = {}
    asked: dict[str, Problem] = {}
    for name, reference in scores.items():
        stage = stage_of(reference)
        rows = tables.read_table(run.path / stage / "greedy").to_pylist()
        by_model[name] = {row["problem_id"]: row for row in rows}
        splits = run.recipe["stages"][stage]["problems"]
        asked = asked or _problems(run, next(iter(splits.values())))
    shown: dict[str, Row] = {}
    for problem in asked.values():
        if sealed.MARK in problem.meta:  # a report is given to others
            continue
        by = [
            {"name": name, "text": rows[problem.id]["text"], "reason": _judged(problem, rows)}
            for name, rows in by_model.items()
        ]
        right = {answer["reason"] == "correct" for answer in by if answer["name"] in pair}
        if len(right) == 2:
            row = {"problem": problem.question, "gold": problem.answer, "by": by}
            shown.setdefault(problem.domain, row)
    return list(shown.values())[:NUM_SHOWN]


def _all_greedy(run: Run, scores: Iterable[str | list[str]]) -> bool:
    return all(tables.parts(run.path / stage_of(score) / "greedy") for score in scores)


def _judged(problem: Problem, rows: dict[str, Row]) -> str:
    return judge(problem, Trace(**rows[problem.id])).reason


def _problems(run: Run, reference: str) -> dict[str, Problem]:
    return {problem.id: problem for problem in tables.read_problems(_inside(run, reference))}


def _inside(run: Run, reference: str) -> Path:
    return run.path / reference[2:] if reference.startswith("./") else Path(reference)
