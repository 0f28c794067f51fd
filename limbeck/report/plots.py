"""Pictures as inline SVG strings: numbers in, markup out, coloured by `page.css`.

Series are told apart by colour and by shape; every picture has a title and a description.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from limbeck.report import formats, svg


@dataclass(frozen=True)
class Mark:
    """A value with its interval; `series` picks the colour and the shape."""

    name: str
    value: float
    low: float
    high: float
    series: int = 0


@dataclass(frozen=True)
class IntervalRow:
    """One line of an `interval_plot`: marks under a label; `reference` becomes a dashed line."""

    label: str
    marks: Sequence[Mark]
    note: str = ""
    reference: float | None = None


def interval_plot(
    title: str, desc: str, rows: Sequence[IntervalRow], digits: int | None = None
) -> str:
    """Values as dots on whiskers, one row per label: shares on an axis of always 0 to 100 %.

    Values in a unit of their own, told with `digits`, have an axis from 0 to a round number beyond
    the largest.
    """
    body, y = [], 0.0
    ticks = [0, 0.25, 0.5, 0.75, 1.0]
    if digits is not None:
        ticks = svg.ticks(0, max(mark.high for row in rows for mark in row.marks))
    most = ticks[-1]
    for row in rows:
        body.append(svg.text(0, y + 13, row.label, "label"))
        body.append(svg.text(100, y + 13, row.note, "note", "end"))
        bottom = y + 20 + 13 * len(row.marks)
        if row.reference is not None:
            body.append(svg.line(row.reference, y + 19, row.reference, bottom + 1, "reference"))
        for index, mark in enumerate(row.marks):
            middle = y + 27 + 13 * index
            value, low, high = (
                formats.share(end) if digits is None else f"{end:.{digits}f}"
                for end in (mark.value, mark.low, mark.high)
            )
            words = f"{mark.name} {value} ({low} to {high})"
            body.append(
                f'<g class="{svg.colour(mark.series)}"><title>{svg.clean(words)}</title>'
                + svg.line(0, middle, 1, middle, "track")
                + svg.line(mark.low / most, middle, mark.high / most, middle, "whisker")
                + svg.shape(100 * mark.value / most, middle, mark.series)
                + "</g>"
            )
        y = bottom + 12
    for tick in ticks:
        x, label = tick / most, f"{100 * tick:.0f} %" if digits is None else f"{tick:g}"
        body.insert(0, svg.line(x, 20, x, y - 8, "grid"))
        body.append(svg.text(100 * x, y + 7, label, "tick", svg.anchor(x)))
    return svg.picture(title, desc, y + 12, body)


def funnel(
    title: str,
    desc: str,
    total: int,
    drops: Sequence[tuple[str, int]],
    gloss: Mapping[str, str],
) -> str:
    """What went in, what each reason took away from it, and what is left, as steps of one bar."""
    left = total
    rows = [("sampled", total, 0, "whole")]
    for reason, count in drops:
        left -= count
        rows.append((reason, count, left, "dropped"))
    rows.append(("kept", left, 0, "kept"))
    body, y = [], 0
    for word, count, start, style in rows:
        share = count / max(total, 1)
        told = ("−" if style == "dropped" else "") + formats.count(count)
        body.append(svg.text(0, y + 13, word, "label"))
        body.append(svg.text(100, y + 13, told, "note", "end", extra=formats.share(share)))
        if word in gloss:
            y += 17
            body.append(svg.text(0, y + 13, gloss[word], "quiet"))
        body.append(svg.bar(0, y + 20, 1, 10, "track"))
        body.append(svg.bar(start / max(total, 1), y + 20, share, 10, style))
        y += 46
    return svg.picture(title, desc, y - 10, body)


def line_plot(
    title: str,
    desc: str,
    lines: Mapping[str, Sequence[tuple[float, float]]],
    series: int,
    label: str = "loss",
    whole: bool = False,
) -> str:
    """Curves over training steps: the first one solid, the others dashed, each with its shape.

    One or two are named in a line after `label`, more by their marks. `whole` are shares in per
    cent, on an axis of 0 to 100.
    """
    curves = {name: _thin(points) for name, points in lines.items()}
    curves = {name: points for name, points in curves.items() if points}
    everything = [point for points in curves.values() for point in points]
    if not everything:
        return ""
    right = max(x for x, _ in everything) or 1
    ticks = svg.ticks(min(y for _, y in everything), max(y for _, y in everything))
    ticks = [0, 25, 50, 75, 100] if whole else ticks
    bottom, top, height, body = ticks[0], ticks[-1], 170, []

    def place(y: float) -> float:
        return 22 + height * (1 - (y - bottom) / (top - bottom))

    for tick in ticks:
        body.append(svg.line(0, place(tick), 1, place(tick), "grid"))
        body.append(svg.text(0, place(tick) + 4, f"{tick:g}", "tick", "end", shift=-8))
    for tick in svg.ticks(0, right):
        if tick <= right:
            body.append(
                svg.text(
                    100 * tick / right, 210, svg.compact(tick), "tick", svg.anchor(tick / right)
                )
            )
    for index, (name, points) in enumerate(curves.items()):
        path = " ".join(f"{100 * x / right:.2f},{place(y) - 22:.1f}" for x, y in points)
        own = series + max(0, index - 1)  # the second has the colour of the first
        few = points[:: math.ceil(len(points) / 24)] if index else []
        dots = [svg.shape(100 * x / right, place(y), own, 0.5) for x, y in few]
        body.append(
            f'<g class="{svg.colour(own)}"><title>{svg.clean(name)}</title>'
            f'<svg y="22" width="100%" height="{height}" viewBox="0 0 100 {height}"'
            f' preserveAspectRatio="none"><polyline class="curve{" dashed" if index else ""}"'
            f' vector-effect="non-scaling-stroke" points="{path}"/></svg>{"".join(dots)}</g>'
        )
        if index > 1 or len(curves) > 2:
            mark = svg.shape(100 * index / len(curves), 6, own, 0.7) if index else ""
            body[-1] += f'<g class="{svg.colour(own)}">{mark}</g>'
            body.append(svg.text(100 * index / len(curves), 10, name, "tick", shift=8))
    if len(curves) < 3:
        told = f"{label}: " if label else ""
        body.append(svg.text(0, 10, told + ", ".join(curves), "tick", shift=-8))
    body.append(svg.text(100, 226, "optimizer steps", "tick", "end"))
    return svg.picture(title, desc, 230, body, "gutter")


def grid_plot(
    title: str, desc: str, ticks: Sequence[str], lines: Mapping[str, Sequence[Mark | None]]
) -> str:
    """A value at each tick, evenly spaced, one line per name; whiskers are intervals."""
    marks = [mark for line in lines.values() for mark in line if mark]
    if not marks or len(ticks) < 2:
        return ""
    scale = svg.ticks(min(mark.low for mark in marks), max(mark.high for mark in marks))
    bottom, top, height, body = scale[0], scale[-1], 170, []

    def place(y: float) -> float:
        return 22 + height * (1 - (y - bottom) / (top - bottom))

    for tick in scale:
        body.append(svg.line(0, place(tick), 1, place(tick), "grid"))
        body.append(svg.text(0, place(tick) + 4, f"{tick:g}", "tick", "end", shift=-8))
    spots = [8 + 84 * i / (len(ticks) - 1) for i in range(len(ticks))]  # per cent
    for spot, label in zip(spots, ticks, strict=True):
        body.append(svg.text(spot, 210, label, "tick", "middle"))
    for index, (name, line) in enumerate(lines.items()):
        spread = 1.6 * (index - (len(lines) - 1) / 2)  # or whiskers would hide each other
        points = [(x + spread, mark) for x, mark in zip(spots, line, strict=True) if mark]
        path = " ".join(f"{x:.2f},{place(mark.value) - 22:.1f}" for x, mark in points)
        dots = "".join(
            svg.line(x / 100, place(mark.low), x / 100, place(mark.high), "whisker")
            + svg.shape(x, place(mark.value), index)
            for x, mark in points
        )
        body.append(
            f'<g class="{svg.colour(index)}"><title>{svg.clean(name)}</title>'
            f'<svg y="22" width="100%" height="{height}" viewBox="0 0 100 {height}"'
            f' preserveAspectRatio="none"><polyline class="curve"'
            f' vector-effect="non-scaling-stroke" points="{path}"/></svg>{dots}</g>'
        )
    return svg.picture(title, desc, 216, body, "gutter")


def histogram(
    title: str, desc: str, groups: Mapping[str, Sequence[float]], num_bins: int = 36
) -> str:
    """Each group's share per bin as an outline, its median as a dashed line; all on one scale."""
    groups = {name: values for name, values in groups.items() if values}
    if not groups:
        return ""
    ticks = list(svg.ticks(0, max(max(values) for values in groups.values())))
    right, top, height = ticks[-1], 18 * len(groups) + 8, 120
    shares = {}
    for name, values in groups.items():
        counts = [0] * num_bins
        for value in values:
            counts[min(int(value / right * num_bins), num_bins - 1)] += 1
        shares[name] = [count / len(values) for count in counts]
    peak = max(max(bins) for bins in shares.values())
    body = [svg.line(0, top + height, 1, top + height, "axis")]
    for index, (name, bins) in enumerate(shares.items()):
        middle, values = median(groups[name]), groups[name]
        path = "".join(
            f"V{height * (1 - share / peak):.1f}H{bin + 1}" for bin, share in enumerate(bins)
        )
        words = f"{formats.count(len(values))} texts, median {formats.count(middle)} tokens"
        body.append(
            f'<g class="h{index}">'
            + svg.shape(0, 18 * index + 9, index, shift=6)
            + svg.text(0, 18 * index + 13, name, "label", extra=words, shift=18)
            + f'<svg y="{top}" width="100%" height="{height}" viewBox="0 0 {num_bins} {height}"'
            f' preserveAspectRatio="none"><path class="area" vector-effect="non-scaling-stroke"'
            f' d="M0,{height}{path}V{height}Z"/></svg>'
            + svg.line(middle / right, top, middle / right, top + height, "median")
            + "</g>"
        )
    for tick in ticks:
        x = tick / right
        body.append(svg.text(100 * x, top + height + 15, svg.compact(tick), "tick", svg.anchor(x)))
    return svg.picture(title, desc, top + height + 20, body)


def _thin(points: Sequence[tuple[float, float]], most: int = 240) -> list[tuple[float, float]]:
    """At most `most` finite points, each the mean of its neighbours."""
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = max(1, math.ceil(len(finite) / most))
    chunks = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]
