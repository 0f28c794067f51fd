"""What a unit of something came to: a kept trace, a point of accuracy, a right answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from limbeck.report import formats, sentences
from limbeck.report.frontier import at_load

Row = Mapping[str, Any]


class Kind(NamedTuple):
    title: str
    caption: str


KINDS = {
    "per_accepted_trace": Kind(
        "A trace that was kept",
        "What writing, checking and curating took, for those that were dropped, too, over the"
        " number of those kept; below it the same with the making of the models that wrote them.",
    ),
    "per_point": Kind(
        "A point of accuracy",
        "What a training and its data took, over the points by which it is better than what it"
        " began with. A gain that cannot be told from chance has no price.",
    ),
    "per_correct_answer": Kind(
        "A right answer, once it serves",
        "What an answer takes, over the share of them that is right: FLOPs by the evaluation, time"
        " and money by the measured throughput at load",
    ),
}
UNITS = {  # by the last word of a column's name
    "seconds": "s",
    "flops": "FLOP",
    "joules": "J",
    "mib": "MiB",
    "in": "",
    "out": "",
    "tokens": "",
    "answer": "",
}
HEADS = {
    "name": "",
    "cpu_seconds": "CPU time",
    "device_seconds": "device time",
    "flops": "compute",
    "joules": "energy",
    "metric": "by",
    "num_accepted": "kept",
    "seconds": "time at load",
    "start": "over",
}
ENDS = ("low", "high")
OWN = "its own making"
ABOUT = ("name", "split", "metric", "start", "points", "num_accepted")  # not what it took
HIDDEN = ("stages", "counted", "is_clear", "num_at_once")
UNKNOWN: tuple[object, ...] = (None, "", 0, [])


class Column(NamedTuple):
    """Of the ledger, shown where anybody told it."""

    head: str
    key: str
    form: Callable[[Any], str]
    adds_up: bool = True


LEDGER = (
    Column("device time", "device_seconds", formats.seconds),
    Column("device memory at most", "peak_device_memory_mib", formats.mib, adds_up=False),
    Column("energy", "joules", lambda value: formats.si(value, "J")),
    Column("money", "money", formats.money),
)


def ledger_columns(ledger: Sequence[Row]) -> list[Column]:
    """What else than time, tokens and compute is known of the stages."""
    return [column for column in LEDGER if any(row.get(column.key) for row in ledger)]


def silent(ledger: Sequence[Row]) -> list[str]:
    """Why energy and money are missing, where they are."""
    why = {
        "joules": "Energy is not told: this system keeps no energy counters that a run may read.",
        "money": "Money is not told: the recipe's `machine` has no `price_per_hour`, and nobody"
        " named a server's `prices`.",
    }
    return [told for key, told in why.items() if all(row.get(key) is None for row in ledger)]


def cost_tables(costs: Mapping[str, Sequence[Row]]) -> list[dict[str, Any]]:
    """A table of each kind that has any rows; columns are those of which anything is known."""
    return [_table(kind, rows) for kind, rows in costs.items() if rows]


def _table(kind: str, rows: Sequence[Row]) -> dict[str, Any]:
    """`sources` says of each row which stages its numbers add up."""
    keys = dict.fromkeys(key for row in rows for key in row if key not in (*HIDDEN, *ENDS))
    known = [key for key in keys if any(row.get(key) not in UNKNOWN for row in rows)]
    forms = {key: _form(key, rows) for key in known}
    rows = [row for row in rows if row.get("is_clear", True) or not _is_part(row)]
    title, caption = KINDS.get(kind, Kind(kind.replace("_", " "), ""))
    if kind == "per_correct_answer":
        load = at_load(rows)
        caption += f", {load}." if load else "."
    return {
        "title": title,
        "caption": caption,
        "columns": [(_head(key), _is_number(rows, key)) for key in known],
        "rows": [{"cells": _cells(row, forms), "is_part": _is_part(row)} for row in rows],
        "sources": {_whose(row): row["stages"] for row in rows if row.get("stages")},
    }


def _is_part(row: Row) -> bool:
    """Whether it is the row above once more, with the models behind it."""
    return row.get("counted", OWN) != OWN


def _whose(row: Row) -> str:
    return ", ".join(str(row[key]) for key in ("name", "counted") if row.get(key))


def _cells(row: Row, forms: Mapping[str, Callable[[Any], str]]) -> list[str]:
    """The name and the figures; of a part only the figures that are its own."""
    if _is_part(row):
        told = {key: "" if key in ABOUT else form(row.get(key)) for key, form in forms.items()}
        return list((told | {"name": row["counted"]}).values())
    told = {key: form(row.get(key)) for key, form in forms.items()}
    if "points" in told:
        told["points"] = _points(row)
    if not row.get("is_clear", True):
        prices = [key for key in told if key not in ABOUT]
        told |= dict.fromkeys(prices, "") | dict.fromkeys(prices[:1], "no clear gain")
    return list(told.values())


def _points(row: Row) -> str:
    """With their interval, if there is one."""
    low, high = (row.get(end) for end in ENDS)
    told = "" if low is None or high is None else f" ({low:.1f} to {high:.1f})"
    return f"{row['points']:.1f}{told}".replace("-", "−")


def _form(key: str, rows: Sequence[Row]) -> Callable[[Any], str]:
    """How a column writes its values, all in one unit; nothing is an empty cell."""
    values = [row.get(key) for row in rows]
    if key == "metric":
        return lambda value: sentences.label(str(value)) if value else "–"
    if not any(map(formats.is_number, values)):
        return lambda value: "–" if value is None else str(value)
    if key.endswith("money"):
        return _money(values)
    form = formats.in_one_unit(values, UNITS.get(key.rpartition("_")[2], ""))
    return lambda value: "" if value == 0 else form(value)


def _money(values: Sequence[Any]) -> Callable[[Any], str]:
    """In the currency of the recipe's prices, or in millionths of it."""
    known = filter(formats.is_number, values)
    size, name = (1e-6, " millionths") if max(known) < 1e-3 else (1, "")
    return lambda value: f"{formats.digits(value / size)}{name}" if value else "–"


def _head(key: str) -> str:
    return HEADS.get(key, key.replace("_", " "))


def _is_number(rows: Sequence[Row], key: str) -> bool:
    return any(formats.is_number(row.get(key)) for row in rows)
