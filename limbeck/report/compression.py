"""The tables of models that were made smaller, each below what it was made from."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from limbeck.report import formats, sentences
from limbeck.report.frontier import COSTS, PARAMETERS, SIZE, Cell, at_load

Row = Mapping[str, Any]
VERDICTS = {
    "passed": "has kept it",
    "fell": "has lost more",
    "longer": "answers are too long",
    "not shown": "cannot be told",
}
WAYS = {"batch 1": "one at a time", "load": "at load"}
LATENCY = next(cost for cost in COSTS if cost.key == "latency_s")


def compression(rows: Sequence[Row]) -> dict[str, Any]:
    """Columns of what anybody knows, a row for each model; nothing where there are no models."""
    if not rows:
        return {}
    columns = [(head, [cell(row) for row in rows]) for head, cell in _columns(rows)]
    known = [column for column in columns if any(cell.figure != "–" for cell in column[1])]
    return {
        "split": next((row["split"] for row in rows if row.get("split")), ""),
        "columns": [head for head, _ in known],
        "rows": [
            {
                "name": row["name"],
                "how": row["how"],
                "made_of": row["made_of"],
                "cells": [cells[number] for _, cells in known],
            }
            for number, row in enumerate(rows)
        ],
    }


def _columns(rows: Sequence[Row]) -> Iterator[tuple[Cell, Callable[[Row], Cell]]]:
    """(head, how a row's cell is told)."""
    metric = next((row["metric"] for row in rows if row.get("metric")), "")
    yield Cell(sentences.label(metric), "95 % interval"), lambda row: _score(row, metric)
    yield Cell("length", "tokens an answer"), _length
    yield Cell("weights"), _plain(SIZE.form(rows), SIZE.key)
    yield Cell("parameters"), _plain(PARAMETERS.form(rows), PARAMETERS.key)
    yield Cell("zeros or gone", "of the blocks"), _plain(formats.share, "sparsity")
    yield Cell("bits", "a weight"), _plain(_bits, "bits_per_weight")
    yield Cell("latency", LATENCY.what), _plain(LATENCY.form(rows), LATENCY.key)
    load = at_load(rows)
    for key, more in (("tokens_per_second_1", "alone"), ("tokens_per_second_load", load)):
        yield Cell("tokens a second", more or "at load"), _plain(formats.count, key)


def _plain(form: Callable[[Any], str], key: str) -> Callable[[Row], Cell]:
    return lambda row: Cell(form(row.get(key)))


def _bits(value: Any) -> str:
    return f"{value:.3g}" if formats.is_number(value) else "–"


def _score(row: Row, metric: str) -> Cell:
    """With its interval, and its metric where that is not the column's."""
    if not formats.is_number(row.get("value")):
        return Cell("–")
    value, _, more = formats.percent(row).partition(" (")
    other = sentences.label(row["metric"]) if row["metric"] != metric else ""
    return Cell(value, ", ".join(filter(None, (other, more.removesuffix(")")))))


def _length(row: Row) -> Cell:
    """Tokens, and times as many as those of what it was made from."""
    times = row.get("longer")
    return Cell(
        formats.count(row.get("tokens_per_answer")),
        f"× {times:.2f}" if formats.is_number(times) else "",
    )


def ratios(rows: Sequence[Row]) -> dict[str, Any]:
    """How many times as fast one engine writes as another: a row for each pair, a column for each
    way to ask; nothing where nobody compared."""
    ways = list(dict.fromkeys(row["at"] for row in rows))
    found: dict[tuple[str, str, str], dict[str, Cell]] = {}
    for row in rows:
        ratio, between = _factor(row)
        pair = found.setdefault((row["stage"], row["a"], row["b"]), {})
        pair[row["at"]] = Cell(f"× {ratio}", between)
    return {
        "columns": [WAYS.get(way, way) for way in ways],
        "rows": [
            {"a": a, "b": b, "cells": [cells.get(way, Cell("–")) for way in ways]}
            for (_, a, b), cells in found.items()
        ],
    }


def gates(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """What each step was allowed to cost, and whether it did."""
    return [
        {
            **{key: row[key] for key in ("stage", "model", "chosen")},
            "allowed": sentences.points(row["max_drop"]),
            "verdict": VERDICTS.get(row["verdict"], row["verdict"]),
            "metric": sentences.label(row["metric"]),
            "score": formats.percent(row),
            "difference": sentences.difference(row["test"]),
            "longer": _times(row["length"]),
        }
        for row in rows
    ]


def _times(length: Row) -> str:
    """'1.08 (1.02 to 1.15)' times as many tokens as before."""
    ratio, between = _factor(length)
    return f"{ratio} ({between})" if between else ratio


def _factor(row: Row) -> tuple[str, str]:
    """('1.08', '1.02 to 1.15'): a ratio, and its interval where it has one."""
    if not formats.is_number(row["ratio"]):
        return "–", ""
    ends = [row[end] for end in ("low", "high")]
    between = f"{ends[0]:.2f} to {ends[1]:.2f}" if all(map(formats.is_number, ends)) else ""
    return f"{row['ratio']:.2f}", between
