"""The report: contents in, one HTML page out. It loads nothing, runs nothing, believes no text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from limbeck.report import beside, costs, formats, pictures, sentences, svg
from limbeck.report.compression import compression, gates, ratios
from limbeck.report.contents import Report, Row
from limbeck.report.frontier import frontiers
from limbeck.report.journey import journey, notes
from limbeck.report.learning import learning_plots
from limbeck.report.sensitivity import sensitivity
from limbeck.report.words import MEANING

ALL_OR_NONE = ("device_seconds", "joules")
MANY = 7  # models that fit beside each other


def render(report: Report) -> str:
    """The whole page. Every value is made visible and escaped on its way out, in one place."""
    folder = Path(__file__).parent
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        finalize=formats.safe,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "count": formats.count,
        "seconds": formats.seconds,
        "si": formats.si,
        "prose": formats.prose,
        "share": formats.share,
        "percent": formats.percent,
        "trace": formats.trace,
        "metric": sentences.label,
        "points": sentences.points,
        "p": sentences.probability,
        "gain": sentences.gain,
        "again": sentences.again,
        "seeds": sentences.seeds,
    }
    sections = {
        "score_plots": pictures.score_plots(report),
        "family_plots": pictures.family_plots(report),
        "funnels": [pictures.funnel(row, MEANING) for row in report.funnel],
        "learning_plots": {row["name"]: learning_plots(row) for row in report.learning},
        "curve_plots": pictures.curve_plots(report),
        "sweep_plots": pictures.sweep_plots(report),
        "length_plot": pictures.length_plot(report),
    }
    page = environment.get_template("page.html.j2")
    return page.render(
        r=report,
        journey=journey(report),
        series=pictures.series_of(report),
        sentences=[sentences.sentence(test) for test in report.tests],
        reasons=list(dict.fromkeys(w for row in report.verdict_reasons.values() for w in row)),
        has_votes=any(row["metric"].startswith("cons_at_") for row in report.results),
        unanswered=_unanswered(report.results),
        frontiers=frontiers(report.frontier, pictures.series_of(report)),
        compression=compression(report.compression),
        gates=gates(report.gates),
        ratios=ratios(report.ratios),
        sensitivities=[sensitivity(row) for row in report.scans],
        forgetting=beside.forgetting(report.forgetting, report.results),
        published=beside.published(report.published),
        cost_tables=costs.cost_tables(report.costs),
        ledger_columns=costs.ledger_columns(report.ledger),
        silent=costs.silent(report.ledger) if report.ledger else [],
        energy_of=sorted({str(row["joules_of"]) for row in report.ledger if row.get("joules_of")}),
        total=lambda key: _total(report.ledger, key),
        notes=[*report.notes, *notes(report)],
        matrix=_matrix(report.results),
        meaning=MEANING,
        colour=svg.colour,
        sign=lambda series: Markup(svg.sign(series)),
        css=Markup((folder / "page.css").read_text(encoding="utf-8")),
        **sections,
    )


def _matrix(results: Sequence[Row]) -> dict[str, Any]:
    """All scores side by side: a column for each model, or a row where there are many of them."""
    names = list(dict.fromkeys(row["name"] for row in results))
    ways = list(dict.fromkeys((row["split"], row["metric"]) for row in results))
    heads = {way: f"{way[0]} · {sentences.label(way[1])}" for way in ways}
    found = {(row["name"], row["split"], row["metric"]): formats.percent(row) for row in results}
    if len(names) < 2 or len(ways) < 2:
        return {}
    if len(names) > MANY:
        rows = [(name, [found.get((name, *way)) for way in ways]) for name in names]
        return {"columns": [heads[way] for way in ways], "rows": rows}
    rows = [(heads[way], [found.get((name, *way)) for name in names]) for way in ways]
    return {"columns": names, "rows": rows}


def _unanswered(results: Sequence[Row]) -> dict[str, Any]:
    """Why answers are none and what share of them, a row for each model that has such answers."""
    rows = sentences.without_answers(results)
    told = {(row["split"], row["metric"]) for row in rows}
    ways = [way for way in dict.fromkeys((r["split"], r["metric"]) for r in results) if way in told]
    found = {(r["name"], r["split"], r["metric"]): sentences.reasons(r) for r in rows}
    names = dict.fromkeys(row["name"] for row in rows)
    return {
        "columns": [f"{split} · {sentences.label(metric)}" for split, metric in ways],
        "rows": [(name, [found.get((name, *way), {}) for way in ways]) for name in names],
    }


def _total(rows: Sequence[Row], key: str) -> float | None:
    """The sum of a column; of what every stage takes, like joules, none if one does not tell."""
    values = [row[key] for row in rows if formats.is_number(row.get(key))]
    is_known = len(values) == len(rows) or key not in ALL_OR_NONE
    return sum(values) if values and is_known else None
