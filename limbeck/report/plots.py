"""Pictures as inline SVG strings: numbers in, markup out, coloured by `page.css`.

Horizontal places are percentages and type is never scaled, so one picture fits a phone and a desk.
Series are told apart by colour and by shape; every picture has a title and a description.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

SHAPES = (  # circle, square, triangle, diamond, cross, plus
    "M0,-5A5,5 0 1 1 0,5A5,5 0 1 1 0,-5Z",
    "M-4.5,-4.5h9v9h-9Z",
    "M0,-6L5.8,4.6H-5.8Z",
    "M0,-6.2L6.2,0L0,6.2L-6.2,0Z",
    "M-4.5,-6L0,-1.5L4.5,-6L6,-4.5L1.5,0L6,4.5L4.5,6L0,1.5L-4.5,6L-6,4.5L-1.5,0L-6,-4.5Z",
    "M-2,-6h4v4h4v4h-4v4h-4v-4h-4v-4h4Z",
)


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


def visible(text: object) -> str:
    """Text that cannot act: control, bidi and invisible characters become signs, `␛`, `⟨U+202E⟩`.

    What it returns is legal in XML. Newlines, tabs, spaces of all widths and joiners stay.
    """
    text = str(text).replace("\r\n", "\n")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else _sign(char) for char in text)


def _sign(char: str) -> str:
    code = ord(char)
    if char in "\n\t\u200c\u200d" or unicodedata.category(char) == "Zs":
        return char
    if code < 0x20:
        return chr(0x2400 + code)
    return "\u2421" if code == 0x7F else f"⟨U+{code:04X}⟩"


def compact(value: float) -> str:
    """A number in at most three digits: 950, 12k, 3.4M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{letter}"
    return f"{value:.3g}"


def interval_plot(
    title: str, desc: str, rows: Sequence[IntervalRow], in_units: bool = False
) -> str:
    """Values as dots on whiskers, one row per label: shares on an axis of always 0 to 100 %.

    Values in units of their own have an axis from 0 to a round number beyond the largest.
    """
    body, y = [], 0.0
    ticks = [0, 0.25, 0.5, 0.75, 1.0]
    if in_units:
        ticks = _ticks(0, max(mark.high for row in rows for mark in row.marks))
    most = ticks[-1]
    for row in rows:
        body.append(_text(0, y + 13, row.label, "label"))
        body.append(_text(100, y + 13, row.note, "note", "end"))
        bottom = y + 20 + 13 * len(row.marks)
        if row.reference is not None:
            body.append(_line(row.reference, y + 19, row.reference, bottom + 1, "reference"))
        for index, mark in enumerate(row.marks):
            middle = y + 27 + 13 * index
            form = ".3f" if in_units else ".1%"
            words = f"{mark.name} {mark.value:{form}} ({mark.low:{form}} to {mark.high:{form}})"
            body.append(
                f'<g class="s{mark.series}"><title>{_clean(words)}</title>'
                + _line(0, middle, 1, middle, "track")
                + _line(mark.low / most, middle, mark.high / most, middle, "whisker")
                + _shape(100 * mark.value / most, middle, mark.series)
                + "</g>"
            )
        y = bottom + 12
    for tick in ticks:
        x, label = tick / most, f"{tick:g}" if in_units else f"{tick:.0%}"
        body.insert(0, _line(x, 20, x, y - 8, "grid"))
        body.append(_text(100 * x, y + 7, label, "tick", _anchor(x)))
    return _svg(title, desc, y + 12, body)


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
    body = []
    for index, (word, count, start, style) in enumerate(rows):
        y, share = 46 * index, count / max(total, 1)
        sign = "−" if style == "dropped" else ""
        body.append(_text(0, y + 13, word, "label", extra=gloss.get(word, "")))
        body.append(_text(100, y + 13, f"{sign}{count:,}", "note", "end", extra=f"{share:.1%}"))
        body.append(_bar(0, y + 20, 1, 10, "track"))
        body.append(_bar(start / max(total, 1), y + 20, share, 10, style))
    return _svg(title, desc, 46 * len(rows) - 10, body)


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
    ticks = _ticks(min(y for _, y in everything), max(y for _, y in everything))
    ticks = [0, 25, 50, 75, 100] if whole else ticks
    bottom, top, height, body = ticks[0], ticks[-1], 170, []

    def place(y: float) -> float:
        return 22 + height * (1 - (y - bottom) / (top - bottom))

    for tick in ticks:
        body.append(_line(0, place(tick), 1, place(tick), "grid"))
        body.append(_text(0, place(tick) + 4, f"{tick:g}", "tick", "end", shift=-8))
    for tick in _ticks(0, right):
        if tick <= right:
            body.append(
                _text(100 * tick / right, 210, compact(tick), "tick", _anchor(tick / right))
            )
    for index, (name, points) in enumerate(curves.items()):
        path = " ".join(f"{100 * x / right:.2f},{place(y) - 22:.1f}" for x, y in points)
        own = (series + max(0, index - 1)) % len(SHAPES)  # the second has the colour of the first
        few = points[:: math.ceil(len(points) / 24)] if index else []
        dots = [_shape(100 * x / right, place(y), own, 0.5) for x, y in few]
        body.append(
            f'<g class="s{own}"><title>{_clean(name)}</title>'
            f'<svg y="22" width="100%" height="{height}" viewBox="0 0 100 {height}"'
            f' preserveAspectRatio="none"><polyline class="curve{" dashed" if index else ""}"'
            f' vector-effect="non-scaling-stroke" points="{path}"/></svg>{"".join(dots)}</g>'
        )
        if index > 1 or len(curves) > 2:
            mark = _shape(100 * index / len(curves), 6, own, 0.7) if index else ""
            body[-1] += f'<g class="s{own}">{mark}</g>'
            body.append(_text(100 * index / len(curves), 10, name, "tick", shift=8))
    if len(curves) < 3:
        told = f"{label}: " if label else ""
        body.append(_text(0, 10, told + ", ".join(curves), "tick", shift=-8))
    body.append(_text(100, 226, "optimizer steps", "tick", "end"))
    return _svg(title, desc, 230, body, "gutter")


def grid_plot(
    title: str, desc: str, ticks: Sequence[str], lines: Mapping[str, Sequence[Mark | None]]
) -> str:
    """A value at each tick, evenly spaced, one line per name; whiskers are intervals."""
    marks = [mark for line in lines.values() for mark in line if mark]
    if not marks or len(ticks) < 2:
        return ""
    scale = _ticks(min(mark.low for mark in marks), max(mark.high for mark in marks))
    bottom, top, height, body = scale[0], scale[-1], 170, []

    def place(y: float) -> float:
        return 22 + height * (1 - (y - bottom) / (top - bottom))

    for tick in scale:
        body.append(_line(0, place(tick), 1, place(tick), "grid"))
        body.append(_text(0, place(tick) + 4, f"{tick:g}", "tick", "end", shift=-8))
    spots = [8 + 84 * i / (len(ticks) - 1) for i in range(len(ticks))]  # per cent
    for spot, label in zip(spots, ticks, strict=True):
        body.append(_text(spot, 210, label, "tick", "middle"))
    for index, (name, line) in enumerate(lines.items()):
        spread = 1.6 * (index - (len(lines) - 1) / 2)  # or whiskers would hide each other
        points = [(x + spread, mark) for x, mark in zip(spots, line, strict=True) if mark]
        path = " ".join(f"{x:.2f},{place(mark.value) - 22:.1f}" for x, mark in points)
        dots = "".join(
            _line(x / 100, place(mark.low), x / 100, place(mark.high), "whisker")
            + _shape(x, place(mark.value), index)
            for x, mark in points
        )
        body.append(
            f'<g class="s{index}"><title>{_clean(name)}</title>'
            f'<svg y="22" width="100%" height="{height}" viewBox="0 0 100 {height}"'
            f' preserveAspectRatio="none"><polyline class="curve"'
            f' vector-effect="non-scaling-stroke" points="{path}"/></svg>{dots}</g>'
        )
    return _svg(title, desc, 216, body, "gutter")


def histogram(
    title: str, desc: str, groups: Mapping[str, Sequence[float]], num_bins: int = 36
) -> str:
    """Each group's share per bin as an outline, its median as a dashed line; all on one scale."""
    groups = {name: values for name, values in groups.items() if values}
    if not groups:
        return ""
    ticks = list(_ticks(0, max(max(values) for values in groups.values())))
    right, top, height = ticks[-1], 18 * len(groups) + 8, 120
    shares = {}
    for name, values in groups.items():
        counts = [0] * num_bins
        for value in values:
            counts[min(int(value / right * num_bins), num_bins - 1)] += 1
        shares[name] = [count / len(values) for count in counts]
    peak = max(max(bins) for bins in shares.values())
    body = [_line(0, top + height, 1, top + height, "axis")]
    for index, (name, bins) in enumerate(shares.items()):
        middle, values = median(groups[name]), groups[name]
        path = "".join(
            f"V{height * (1 - share / peak):.1f}H{bin + 1}" for bin, share in enumerate(bins)
        )
        words = f"{len(values):,} texts, median {middle:,.0f} tokens"
        body.append(
            f'<g class="h{index}">'
            + _shape(0, 18 * index + 9, index, shift=6)
            + _text(0, 18 * index + 13, name, "label", extra=words, shift=18)
            + f'<svg y="{top}" width="100%" height="{height}" viewBox="0 0 {num_bins} {height}"'
            f' preserveAspectRatio="none"><path class="area" vector-effect="non-scaling-stroke"'
            f' d="M0,{height}{path}V{height}Z"/></svg>'
            + _line(middle / right, top, middle / right, top + height, "median")
            + "</g>"
        )
    for tick in ticks:
        x = tick / right
        body.append(_text(100 * x, top + height + 15, compact(tick), "tick", _anchor(x)))
    return _svg(title, desc, top + height + 20, body)


def _thin(points: Sequence[tuple[float, float]], most: int = 240) -> list[tuple[float, float]]:
    """At most `most` finite points, each the mean of its neighbours."""
    finite = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = max(1, math.ceil(len(finite) / most))
    chunks = [finite[start : start + size] for start in range(0, len(finite), size)]
    return [(sum(x for x, _ in c) / len(c), sum(y for _, y in c) / len(c)) for c in chunks]


def _ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers that enclose `low` and `high`."""
    if not high > low:
        high = low + (abs(low) or 1)
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(power * m for m in (1, 2, 2.5, 5, 10, 20) if (high - low) / (power * m) <= most)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 10 - math.floor(math.log10(step))
    return [round(step * i, digits) for i in range(first, last + 1)]


def _anchor(share: float) -> str:
    return "start" if share <= 0 else "end" if share > 0.97 else "middle"


def _clean(text: object) -> str:
    return escape(visible(text))


def _text(
    x: float,
    y: float,
    text: str,
    style: str,
    anchor: str = "start",
    *,
    extra: str = "",
    shift: int = 0,
) -> str:
    """A label at x per cent, moved by `shift` pixels; `extra` follows in a quieter voice."""
    more = f'<tspan class="quiet" dx="8">{_clean(extra)}</tspan>' if extra else ""
    return (
        f'<text x="{x:.2f}%" y="{y:.0f}" dx="{shift}" class="{style}" text-anchor="{anchor}">'
        f"{_clean(text)}{more}</text>"
    )


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return (
        f'<line x1="{100 * x1:.2f}%" x2="{100 * x2:.2f}%" y1="{y1:.1f}" y2="{y2:.1f}"'
        f' class="{style}"/>'
    )


def _bar(x: float, y: float, width: float, height: float, style: str) -> str:
    return (
        f'<rect x="{100 * x:.2f}%" y="{y:.0f}" width="{100 * width:.2f}%" height="{height:.0f}"'
        f' class="{style}"/>'
    )


def _shape(x: float, y: float, series: int, scale: float = 1, shift: int = 0) -> str:
    path = SHAPES[series % len(SHAPES)]
    return (
        f'<svg x="{x:.2f}%" y="{y:.1f}" class="mark"><path d="{path}"'
        f' transform="translate({shift} 0) scale({scale})"/></svg>'
    )


def _svg(title: str, desc: str, height: float, body: Sequence[str], style: str = "") -> str:
    return (
        f'<svg role="img" class="plot {style}" xmlns="http://www.w3.org/2000/svg" width="100%"'
        f' height="{height:.0f}"><title>{_clean(title)}</title><desc>{_clean(desc)}</desc>'
        + "".join(body)
        + "</svg>"
    )
