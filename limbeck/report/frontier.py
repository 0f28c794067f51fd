"""The frontier: what every model is worth, against its size, memory, latency and length."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from limbeck.report import formats, sentences, svg
from limbeck.report.scatter import Point, front, scatter_plot

Row = Mapping[str, Any]


class Cost(NamedTuple):
    """What a model takes; less is better. `word` says of what a model is on the frontier."""

    key: str
    title: str
    what: str
    unit: str
    word: str

    def form(
        self, rows: Sequence[Row], write: Callable[[float], str] = formats.digits
    ) -> Callable[[Any], str]:
        """How it is told: in the same unit in the picture and in the table."""
        return formats.in_one_unit((row.get(self.key) for row in rows), self.unit, write)


SIZE = Cost("num_bytes", "Size", "bytes of weights", "B", "size")
PARAMETERS = Cost("num_parameters", "Size", "parameters", "parameters", "size")
COSTS = (
    SIZE,
    Cost("peak_memory_mib", "Memory", "taken at most", "MiB", "memory"),
    Cost("latency_s", "Latency", "an answer, one at a time", "s", "latency"),
    Cost("tokens_per_answer", "Length", "tokens an answer", "", "length"),
)
ENDS = ("low", "high")
KINDS = {"sft": "fine-tuned", "grpo": "reinforced", "distill": "distilled", "other": ""}
NEXT_TO_NOTHING = 0.05  # of the best: drawn beside it, this would push all others together


def frontiers(rows: Sequence[Row], colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """Of each split and metric its pictures and its table, unless nobody there is right at all."""
    ways = dict.fromkeys((row["split"], row["metric"]) for row in rows)
    found = []
    for split, metric in ways:
        here = [row for row in rows if (row["split"], row["metric"]) == (split, metric)]
        here = [row for row in here if formats.is_number(row.get("value"))]
        panels, best = _panels(here, colours)
        if best:
            told = {"panels": panels, "table": _table(here, best), "aside": _aside(here)}
            told["legend"] = _legend(here, colours)
            found.append({"split": split, "metric": metric, **told})
    return found


def _legend(rows: Sequence[Row], colours: Mapping[str, int]) -> list[dict[str, Any]]:
    """The mark and the number of each model that is drawn: what a picture's labels may not say."""
    drawn, costs = _drawn(rows), _measured(_drawn(rows))
    return [
        {"number": number, "name": row["name"], "series": _series(row, colours)}
        for number, row in enumerate(rows, 1)
        if row in drawn and any(formats.is_number(row.get(cost.key)) for cost in costs)
    ]


def _drawn(rows: Sequence[Row]) -> list[Row]:
    """The models that the pictures show; all, if few are worth more than next to nothing."""
    least = NEXT_TO_NOTHING * max((row["value"] for row in rows), default=0)
    worth = [row for row in rows if row["value"] >= least]
    return worth if len(worth) > 1 else list(rows)


def _aside(rows: Sequence[Row]) -> str:
    """Who is not in the pictures, and where their upright axis begins."""
    drawn = _drawn(rows)
    left_out = [row for row in rows if row not in drawn]
    absent = [f"`{row['name']}` ({formats.percent(row['value'])})" for row in left_out]
    begin = 100 * _scale(drawn)[0]
    told = [f"The upright axes begin at {begin:g} %."] if begin and "unit" not in rows[0] else []
    told += [f"Not drawn, being far below: {', '.join(absent)}."] if absent else []
    return " ".join(told)


def _scale(rows: Sequence[Row]) -> list[float]:
    """The ticks of the upright axis."""
    ends = [end for row in rows for end in _ends(row)]
    scale = svg.ticks(min(ends, default=0), max(ends, default=1))
    scale = scale if "unit" in rows[0] else [tick for tick in scale if 0 <= tick <= 1]
    return scale if len(scale) > 1 else [0.0, 1.0]  # all are right, always


def _panels(
    rows: Sequence[Row], colours: Mapping[str, int]
) -> tuple[list[dict[str, Any]], dict[int, list[str]]]:
    """The pictures, and by the number of a row of what it is on the frontier."""
    drawn = _drawn(rows)
    panels, best = [], dict[int, list[str]]()
    for cost in _measured(drawn):
        points = [
            _point(row, cost, _series(row, colours), number)
            for number, row in enumerate(rows, 1)
            if row in drawn and formats.is_number(row.get(cost.key))
        ]
        for point in front(points):
            best.setdefault(point.number, []).append(cost.word)
        form, label = cost.form(rows, formats.brief), sentences.label(rows[0]["metric"])
        title = f"{label} against {cost.what}"
        picture = scatter_plot(title, _told(points, form), points, _scale(drawn), form)
        panels.append({"title": cost.title, "unit": cost.what, "svg": Markup(picture)})
    return panels, best


def _point(row: Row, cost: Cost, series: int, number: int) -> Point:
    between = row.get("between", {}).get(cost.key)
    ends = (between[0], between[1]) if between else None
    return Point(row["name"], row[cost.key], row["value"], *_ends(row), series, number, ends)


def _size(rows: Sequence[Row]) -> Cost:
    """The size in parameters if more are known so than in bytes."""
    known = {c: sum(formats.is_number(r.get(c.key)) for r in rows) for c in (SIZE, PARAMETERS)}
    return PARAMETERS if known[PARAMETERS] > known[SIZE] else SIZE


def _measured(rows: Sequence[Row]) -> list[Cost]:
    """The costs that are known of at least two models."""
    return [
        cost
        for cost in (_size(rows), *COSTS[1:])
        if sum(formats.is_number(row.get(cost.key)) for row in rows) > 1
    ]


def _ends(row: Row) -> tuple[float, float]:
    low, high = (row[end] if formats.is_number(row.get(end)) else row["value"] for end in ENDS)
    return low, high


def _series(row: Row, colours: Mapping[str, int]) -> int:
    return colours.get(row["name"], len(colours))


def _told(points: Sequence[Point], form: Callable[[Any], str]) -> str:
    """The picture in words: who is on the frontier, from the cheapest on, and who is not."""
    best = front(points)
    beaten = [point.name for point in points if point not in best]
    named = [f"{point.name} ({form(point.x)})" for point in best]
    told = f"On the frontier: {', '.join(named) or 'nobody'}"
    return f"{told}. Off it: {', '.join(beaten)}." if beaten else f"{told}."


# -- the table ----------------------------------------------------------------------------------


class Cell(NamedTuple):
    """A figure, and in a quieter voice below what belongs to it."""

    figure: str
    more: str = ""


def _table(rows: Sequence[Row], best: Mapping[int, Sequence[str]]) -> dict[str, Any]:
    """A row for each model: its number, name and kind, figures, and where it is on the frontier."""
    columns = [_scores(rows), *(_prices(cost, rows) for cost in _known(rows)), *_speeds(rows)]
    return {
        "columns": [head for head, _ in columns],
        "rows": [
            {
                "number": number,
                "name": row["name"],
                "kind": KINDS.get(row.get("kind") or "", row.get("kind") or ""),
                "cells": [cells[number - 1] for _, cells in columns],
                "best": ", ".join(best.get(number, ())),
            }
            for number, row in enumerate(rows, 1)
        ],
    }


def _known(rows: Sequence[Row]) -> list[Cost]:
    costs = (PARAMETERS, *COSTS)
    return [c for c in costs if any(formats.is_number(row.get(c.key)) for row in rows)]


def _scores(rows: Sequence[Row]) -> tuple[Cell, list[Cell]]:
    scores = [dict(row) | dict(zip(ENDS, _ends(row), strict=True)) for row in rows]
    told = [formats.percent(row).partition(" (") for row in scores]
    head = Cell(sentences.label(rows[0]["metric"]), "95 % interval")
    return head, [Cell(value, more.removesuffix(")")) for value, _, more in told]


def _prices(cost: Cost, rows: Sequence[Row]) -> tuple[Cell, list[Cell]]:
    """A price with the range in which it was measured."""
    form, cells = cost.form(rows), []
    for row in rows:
        between = row.get("between", {}).get(cost.key, ())
        cells.append(Cell(form(row.get(cost.key)), _range([form(end) for end in between])))
    heads = {"num_parameters": "parameters", "num_bytes": "weights"}
    more = "" if cost.key in heads else cost.what
    return Cell(heads.get(cost.key, cost.title.lower()), more), cells


def _range(ends: Sequence[str]) -> str:
    """The unit once."""
    return "–".join([end.partition(" ")[0] for end in ends[:-1]] + list(ends[-1:]))


def _speeds(rows: Sequence[Row]) -> Iterator[tuple[Cell, list[Cell]]]:
    """Tokens a second, alone and at load, where anybody measured them."""
    keys = ("tokens_per_second_1", "tokens_per_second_load")
    if not any(formats.is_number(row.get(key)) for row in rows for key in keys):
        return
    cells = [[formats.count(row.get(key)) for key in keys] for row in rows]
    load = at_load(rows)
    head = Cell("tokens a second", f"alone; {load}" if load else "alone; at load")
    yield head, [Cell(alone, "" if many == "–" else many) for alone, many in cells]


def at_load(rows: Sequence[Row]) -> str:
    """How many answers were written side by side, where all were measured alike."""
    told = {row["num_at_once"] for row in rows if row.get("num_at_once")}
    return f"{told.pop()} answers at once" if len(told) == 1 else ""
