"""The report of a run: what its tables and manifests hold, gathered for the page."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import store
from limbeck.reporting import compression, opening, reinforcement, texts, training

if TYPE_CHECKING:
    from limbeck.runs import Run

Row = dict[str, Any]


def write_report(run: Run) -> Path:
    """Writes `report.html`, whole or not at all."""
    from limbeck.report import Report, headline, intro, render

    compared, smaller, gates = run.compared(), compression.compression(run), run.gates()
    thinks = opening.thinks(run)
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
        headline=headline(compared["results"], compared["tests"], smaller, gates),
        results=compared["results"],
        tests=compared["tests"],
        families=compared["families"],
        guess=_guess(run),
        models=training.models(run),
        funnel=[_curation(run, row) for row in texts.curated(run)],
        verdict_reasons={r["stage"]: r["summary"]["reasons"] for r in run.done("verify")},
        intro=intro(opening.learned(run, smaller), thinks, smaller, bool(gates)),
        thinks=thinks,
        learning=reinforcement.learning(run),
        curves=training.curves(run),
        scales=training.scales(run),
        distributions=training.distributions(run),
        sizes=training.sizes(run),
        sweep=training.sweep(run, compared["results"]),
        lengths=texts.lengths(run),
        examples=texts.examples(run),
        answers=texts.answers(run),
        budgets=compared["budgets"],
        trials=training.trials(run),
        ledger=run.ledger(),
        costs=run.costs(),
        frontier=run.frontier(),
        compression=smaller,
        gates=gates,
        ratios=run.ratios(),
        scans=compression.scans(run),
        forgetting=compared["forgetting"],
        published=compared["published"],
        recipe_text=json.dumps(run.recipe, indent=1, ensure_ascii=False),
    )
    path = run.path / "report.html"
    store.write_text(path, render(page))
    return path


def _curation(run: Run, row: Row) -> Row:
    authors = opening.authors(run, row["stage"])
    return {"stage": row["stage"], "authors": authors, **row["summary"]}


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


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
