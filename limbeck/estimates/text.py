"""Estimates as a table for people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isnan

from limbeck.estimates import Estimate, Estimates

HEAD = ("stage", "", "", "parameters", "tokens", "FLOPs", "memory each", "time", "cost")
UNITS = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
SPANS = ((365.25 * 86400, "years"), (86400, "days"), (3600, "hours"), (60, "minutes"))


def table(estimates: Estimates) -> str:
    """A row a stage, the sums of what is still to be done, what does not fit, the assumptions."""
    rows = [HEAD, *map(_row, estimates.stages)]
    computes = any(stage.work.efforts or stage.work.tokens for stage in estimates.stages)
    if computes:
        rows.append(("in all", *[""] * 6, span(estimates.seconds), money(estimates.cost)))
    lines = list(_aligned(rows if computes else [row[:3] for row in rows[1:]]))
    lines += [f"{s.step.stage.name}: {note}" for s in estimates.stages for note in s.notes]
    return "\n".join([*lines, f"assumed: {estimates.assumptions()}"] if computes else lines)


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
    for length, unit in SPANS:
        if seconds >= 2 * length:
            return f"{seconds / length:,.3g} {unit}"
    return _or_unknown(seconds, f"{seconds:.3g} seconds" if seconds else "")


def money(amount: float) -> str:
    told = f"{amount:,.0f}" if amount >= 10 else f"{amount:.2g}"
    return _or_unknown(amount, told if amount else "")


def _or_unknown(number: float, told: str) -> str:
    return "unknown" if isnan(number) else told
