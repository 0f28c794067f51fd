"""A picture of what something is worth against what it takes, with the best trades marked.

Labels have a size in pixels and points a place in per cent of a width that nobody knows yet. A gap
between two of them is linear in that width, so labels that are apart, in the same order, on the
narrowest and on the widest screen are apart on every screen between.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

from limbeck.report import svg

HEIGHT, TOP = 200, 12
INSET = 7  # per cent of the width that stay free on both sides of the points
WIDTHS = (230, 800)  # of a picture, in pixels: a small phone's, and one column of a desk's
LETTER, LINE = 6.7, 14  # pixels that a character and a line take
RING = 9  # pixels: the radius of what is drawn around a mark of the front
LONGEST = 24  # characters of a name
WIDE = 4  # values that differ by more than this factor stand on a logarithmic axis
CLOSE = 0.25  # the least width of a linear axis, as a share of its largest value

Place = Callable[[float], float]  # of a value: across in per cent, upright in pixels
Step = tuple[float, float, float, float]  # of a line: from and to, across as shares


@dataclass(frozen=True)
class Point:
    """What takes `x` and is worth `y`, between `low` and `high`; `number` is its row in a table.

    `between` are the least and the most that it was measured to take.
    """

    name: str
    x: float
    y: float
    low: float
    high: float
    series: int
    number: int
    between: tuple[float, float] | None = None

    @property
    def prices(self) -> tuple[float, float]:
        return self.between or (self.x, self.x)

    def is_cheaper(self, other: Point) -> bool:
        """Clearly so: measured ranges do not overlap, and two digits differ."""
        apart = self.prices[1] < other.prices[0]
        return apart and float(f"{self.x:.2g}") < float(f"{other.x:.2g}")


class Box(NamedTuple):
    """An upright rectangle: a place in per cent of the width, and pixels from there.

    One that grows with the picture ends at another place, `until`.
    """

    at: float
    left: float
    right: float
    top: float
    bottom: float
    until: float | None = None

    def meets(self, other: Box) -> bool:
        """Whether two overlap at any width."""
        if self.bottom <= other.top or other.bottom <= self.top:
            return False
        return not (self._before(other) or other._before(self))

    def _before(self, other: Box) -> bool:
        shift = other.at - (self.at if self.until is None else self.until)
        return all(shift * width / 100 + other.left >= self.right for width in WIDTHS)

    def stays(self) -> bool:
        """Whether it leaves the picture at no width, nor touches the ticks below."""
        if self.top < 0 or self.bottom > TOP + HEIGHT + LINE / 2:
            return False
        ends = [(self.at * width / 100, width) for width in WIDTHS]
        return all(x + self.left >= 0 and x + self.right <= width for x, width in ends)


class Label(NamedTuple):
    point: Point
    words: str
    align: str
    dx: float
    y: float


def front(points: Sequence[Point]) -> list[Point]:
    """The best trades, from the cheapest on: no other is worth more at no clearly higher price, or
    as much at a clearly lower one (Pareto). What is worth nothing is no trade.
    """
    worth = [point for point in points if point.y > 0]
    best = [point for point in worth if not any(_beats(other, point) for other in worth)]
    return sorted(best, key=lambda point: (point.x, point.y))


def _beats(one: Point, other: Point) -> bool:
    if one.y == other.y:
        return one.is_cheaper(other)
    return one.y > other.y and not other.is_cheaper(one)


def scatter_plot(
    title: str,
    desc: str,
    points: Sequence[Point],
    scale: Sequence[float],
    form: Callable[[float], str] = svg.compact,
) -> str:
    """Points with whiskers; those of the front have a ring, and steps lead from one to the next.

    `scale` are the ticks of the upright axis, the same in pictures that stand side by side: shares
    in per cent, unless the highest is above 1. `form` writes those of the other.
    """
    place_x, ticks, is_logarithmic = _across([end for point in points for end in point.prices])
    bottom, top = scale[0], scale[-1]

    def place_y(value: float) -> float:
        return TOP + HEIGHT * (1 - (value - bottom) / (top - bottom))

    body = []
    for tick in scale:
        words = f"{tick:.0f}" if top > 1 else f"{100 * tick:g} %"
        body.append(svg.line(0, place_y(tick), 1, place_y(tick), "grid"))
        body.append(svg.text(0, place_y(tick) + 4, words, "tick", "end", shift=-8))
    for tick in ticks:
        x, y = place_x(tick), TOP + HEIGHT + 18
        body.append(svg.text(x, y, form(tick), "tick", svg.anchor(x / 100)))
    if is_logarithmic:
        body.append(svg.text(100, TOP + HEIGHT + 34, "logarithmic", "tick", "end"))
    best = front(points)
    steps = list(_steps([(place_x(point.x) / 100, place_y(point.y)) for point in best]))
    body += [svg.line(*step, "front") for step in steps]
    for point in sorted(points, key=lambda point: point in best):
        body.append(_mark(point, point in best, place_x, place_y))
    for label in _labels(points, best, steps, place_x, place_y):
        x = place_x(label.point.x)
        body.append(svg.text(x, label.y, label.words, "name", label.align, shift=int(label.dx)))
    height = TOP + HEIGHT + (38 if is_logarithmic else 22)
    return svg.picture(title, desc, height, body, "gutter")


def _mark(point: Point, is_best: bool, place_x: Place, place_y: Place) -> str:
    x, y = place_x(point.x), place_y(point.y)
    left, right = (place_x(end) / 100 for end in point.prices)
    ring = f'<circle cx="{x:.2f}%" cy="{y:.1f}" r="{RING}" class="ring"/>'
    return (
        f'<g class="{svg.colour(point.series)}"><title>{svg.clean(point.name)}</title>'
        + svg.line(x / 100, place_y(point.low), x / 100, place_y(point.high), "whisker")
        + (svg.line(left, y, right, y, "whisker") if point.between else "")
        + svg.shape(x, y, point.series)
        + (ring if is_best else "")
        + "</g>"
    )


def _steps(places: Sequence[tuple[float, float]]) -> Iterator[Step]:
    """Along the front: what its cheaper end reaches, until the next one is within reach."""
    ends = [(1.0, y) for _, y in places[-1:]]
    for (x, y), (next_x, next_y) in pairwise([*places, *ends]):
        yield x, y, next_x, y
        yield next_x, y, next_x, next_y


def _across(values: Sequence[float]) -> tuple[Place, list[float], bool]:
    """Where a value stands across, in per cent, the ticks there, and whether it is logarithmic."""
    low, high = _spread(min(values), max(values))
    logarithmic = low > 0 and high / low > WIDE
    scaled = math.log10 if logarithmic else float
    span = scaled(high) - scaled(low)

    def place(value: float) -> float:
        share = (scaled(value) - scaled(low)) / span if span else 0.5
        return INSET + (100 - 2 * INSET) * share

    ticks = _powers(low, high) if logarithmic else svg.ticks(low, high, 4)
    ticks = [tick for tick in ticks if 0 <= place(tick) <= 100] if span else [low]
    return place, ticks, logarithmic


def _spread(low: float, high: float) -> tuple[float, float]:
    """The ends of an axis, so far apart that what takes almost the same stands close together."""
    lacking = max(0.0, CLOSE * abs(high) - (high - low))
    return low - lacking / 2, high + lacking / 2


def _powers(low: float, high: float) -> list[float]:
    """Round numbers of a logarithmic axis: 1, 2, 5, 10; of many decades the powers of ten alone."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if math.log10(high / low) < 2 else (1,)
    powers = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    return powers[:: math.ceil((last - first) / 6)] if steps == (1,) else powers


def _labels(
    points: Sequence[Point],
    best: Sequence[Point],
    steps: Sequence[Step],
    place_x: Place,
    place_y: Place,
) -> Iterator[Label]:
    """A name beside each point where there is room for it, else its number, else nothing."""
    marks = [
        Box(place_x(p.x), -RING, RING, place_y(p.y) - RING, place_y(p.y) + RING) for p in points
    ]
    line = [Box(100 * x, -2, 2, end - 1, y + 1, 100 * next_x) for x, y, next_x, end in steps]
    whiskers = []
    for point in points:
        (left, right), y = point.prices, place_y(point.y)
        whiskers.append(Box(place_x(point.x), -2, 2, place_y(point.high), place_y(point.low)))
        whiskers.append(Box(place_x(left), -2, 2, y - 1, y + 1, place_x(right)))
    taken: list[Box] = []
    for point in sorted(points, key=lambda point: (point not in best, -point.y)):
        tries = (
            (label, box)
            for words in (short(point.name), str(point.number))
            # better across a whisker than across the line, and better so than not at all
            for obstacles in ([*marks, *line, *whiskers], [*marks, *line], marks)
            for label, box in _spots(point, words, place_x(point.x), place_y(point.y))
            if box.stays() and not any(map(box.meets, (*obstacles, *taken)))
        )
        for label, box in islice(tries, 1):
            taken.append(box)
            yield label


def _spots(point: Point, words: str, x: float, y: float) -> Iterator[tuple[Label, Box]]:
    """Where a label may stand: beside its point, above, below, and beside it a little off."""
    width = sum(2 * LETTER if unicodedata.east_asian_width(c) in "WF" else LETTER for c in words)
    gap = RING + 3
    beside = [("start", gap, float(gap)), ("end", -gap, -gap - width)]
    middle = [("middle", 0, -width / 2)]
    places = ((0, beside), (-17, middle), (17, middle), (-12, beside), (12, beside))
    for up, sides in (*places, (-26, middle), (26, middle), (-22, beside), (22, beside)):
        for align, dx, left in sides:
            box = Box(x, left, left + width, y + up - LINE / 2, y + up + LINE / 2)
            yield Label(point, words, align, dx, y + up + 4), box


def short(name: str) -> str:
    """A name that fits beside a point: without its owner, and without its middle if it is long."""
    name = svg.visible(name).rstrip("/").rpartition("/")[2]
    return name if len(name) <= LONGEST else f"{name[:9]}…{name[-LONGEST + 10 :]}"
