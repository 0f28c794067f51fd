"""Estimates as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan

from limbeck.estimates.result import Estimate, Estimates

HEAD = ("stage", "", "", "parameters", "tokens", "FLOPs", "memory", "time", "cost")
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
YEAR = 365.25 * 86400
MOST_YEARS = 1000  # beyond it a figure says no more
SPANS = ((YEAR, "years"), (86400, "days"), (3600, "hours"), (60, "minutes"))


def table(estimates: Estimates) -> str:
    """A row a stage, the sums of what is still to be done, notes, the assumptions."""
    rows = [HEAD, *map(_row, estimates.stages)]
    computes = any(stage.seconds or stage.work.tokens for stage in estimates.stages)
    if estimates.around:
        rows.append(("beginning and report", *[""] * 6, span(estimates.around), ""))
    if computes and estimates.is_to_do:
        rows.append(("in all", *[""] * 6, span(estimates.seconds), money(estimates.cost)))
    lines = list(_aligned(rows if computes else [row[:3] for row in rows[1:]]))
    lines += _notes(estimates)
    assumed = estimates.assumptions() if computes else ""
    return "\n".join([*lines, f"assumed: {assumed}"] if assumed else lines)


def _notes(estimates: Estimates) -> Iterator[str]:
    """Each note once, behind the names of the stages it is of; of many the first alone."""
    told: dict[str, list[str]] = {}
    for stage in estimates.stages:
        for note in stage.notes:
            told.setdefault(note, []).append(stage.step.stage.name)
    for note, (first, *others) in told.items():
        names = f"{first} and {len(others)} others" if len(others) > 1 else ", ".join(told[note])
        yield f"{names}: {note}"


def _row(estimate: Estimate) -> tuple[str, ...]:
    step, work = estimate.step, estimate.work
    told = f"{step.state}, {step.why}" if step.why else step.state
    return (
        step.stage.name,
        step.stage.verb,
        told,
        count(work.shape.num_parameters) if work.shape else "",
        count(work.tokens),
        "" if not work.efforts else _or_unknown(estimate.flops, f"{estimate.flops:.1e}"),
        size(estimate.memory),
        span(estimate.seconds),
        money(estimate.cost),
    )


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    """Words to the left, figures to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = [
            cell.ljust(width) if column < 3 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def count(number: float) -> str:
    """7.62 B, or nothing for 0."""
    for factor, unit in UNITS:
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return _or_unknown(number, f"{number:.0f}" if number else "")


def size(num_bytes: float) -> str:
    factor, unit = next((f for f in ((1e9, "GB"), (1e6, "MB")) if num_bytes >= f[0]), (1e3, "kB"))
    return _or_unknown(num_bytes, f"{num_bytes / factor:,.3g} {unit}" if num_bytes else "")


def span(seconds: float) -> str:
    if seconds >= MOST_YEARS * YEAR:
        return f"over {MOST_YEARS:,} years"
    for length, unit in SPANS:
        if seconds >= 2 * length:
            return f"{seconds / length:,.3g} {unit}"
    return _or_unknown(seconds, f"{seconds:.3g} seconds" if seconds else "")


def money(amount: float) -> str:
    told = f"{amount:,.0f}" if amount >= 10 else f"{amount:.2g}"
    return _or_unknown(amount, told if amount else "")


def _or_unknown(number: float, told: str) -> str:
    return "unknown" if isnan(number) else told
