"""The figures of the DeepSeek-R1 paper as data, each with its source, and beside them one's own.

v1 is arXiv 2501.12948v1 (January 2025); v2 its second version (January 2026), with the article in
Nature (645, 633-638, 2025) and its supplement. A YAML file here is a table as the paper has it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import UserError

Row = Mapping[str, Any]

TABLES = (  # where several have a figure, the first one counts
    "distilled_models",
    "r1_and_o1",
    "r1_zero",
    "table_6",
    "stage_ablation",
    "small_reinforcement",
    "independent_check",
)
UNITS = {"rating": "rating", "percentile": "percentile"}  # of metrics that are no share


@dataclass(frozen=True)
class Figure:
    """One published number."""

    name: str
    benchmark: str
    metric: str
    value: float
    """A share, 0 to 1; or in `unit`."""
    unit: str | None
    source: str
    """Version and table."""
    protocol: Row
    """temperature, top_p, max_tokens, num_samples (k), num_problems: what is known of them."""
    note: str = ""


@dataclass(frozen=True)
class Table:
    title: str
    source: str
    figures: tuple[Figure, ...]


@cache
def tables() -> dict[str, Table]:
    """Every table of figures, by the name of its file."""
    return {name: _table(_read(name)) for name in TABLES}


def costs() -> list[dict[str, Any]]:
    """What DeepSeek-R1 took, part by part: {what, hours, money, note, source}.

    `hours` are of one H800, `money` US dollars at 2 an hour.
    """
    read = _read("costs")
    return [{"note": "", **row, "source": read["source"]} for row in read["rows"]]


def benchmarks() -> dict[str, Row]:
    """How the paper asks each benchmark: title, num_samples, num_problems, differs and more."""
    read = _read("benchmarks")
    return {name: {**read["every"], **row} for name, row in read["benchmarks"].items()}


def is_known(name: str) -> bool:
    """Whether the paper has figures of a model: `deepseek-ai/DeepSeek-R1`, with owner or not."""
    return _plain(name) in _names()


def beside(results: Sequence[Row], names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The paper's figure beside each measured one that it has, and why the two may differ.

    `results` are rows of a results table, `names` says which of them the paper calls what; who
    bears a public name, with or without `, few_shot_cot` behind it, needs no entry. A result may
    say `temperature`, `top_p` and `max_tokens`. A row is {name, paper_name, split, metric, value,
    low, high, published, source, differs} and a `unit`, where it is no share. Raises UserError for
    a name that the paper does not have.
    """
    for name, meant in names.items():
        if not is_known(meant):
            close = get_close_matches(_plain(meant), _names(), n=3, cutoff=0.4) or [*_names()][:3]
            way_out = f"take one of its own, {', '.join(_names()[key] for key in close)}"
            raise UserError(f"beside.{name}", f"the paper has no {meant!r}", way_out)
    found = (_beside(result, names, results) for result in results)
    return [row for row in found if row]


def _beside(result: Row, names: Mapping[str, str], results: Sequence[Row]) -> dict[str, Any] | None:
    """The row of one result; None where the paper has no such figure."""
    benchmark = _benchmark(result["split"])
    called, _, way = result["name"].partition(", ")  # of a way of prompting
    meant = _names().get(_plain(names.get(result["name"], called)))
    found = [
        figure
        for figure in _figures(meant, benchmark)
        if _same_metric(result, figure, results) and figure.source != _independent().source
    ]
    if not found:
        return None
    figure = found[0]
    keys = ("name", "split", "metric", "value", "low", "high")
    row = {key: result.get(key) for key in keys} | {"paper_name": figure.name}
    row |= {"published": figure.value, "source": figure.source}
    row |= {"unit": figure.unit} if figure.unit else {}
    asked = [f"asked by {way} here, without examples in the paper"] if way else []
    return row | {"differs": [*asked, *_differs(result, figure), *_conflicts(found)]}


def _same_metric(result: Row, figure: Figure, results: Sequence[Row]) -> bool:
    """Whether a result can stand beside a figure: a vote also over fewer samples, and greedy
    answers where nothing else was measured."""
    metric = result["metric"]
    if metric.startswith("cons_at_"):
        return figure.metric.startswith("cons_at_")
    if metric != "greedy":
        return bool(metric == figure.metric)
    asked = (result["name"], result["split"], "pass_at_1")
    drawn = {(row["name"], row["split"], row["metric"]) for row in results}
    return figure.metric == "pass_at_1" and asked not in drawn


def _differs(result: Row, figure: Figure) -> Iterator[str]:
    """Why a measured number and a published one may differ, one sentence each."""
    protocol = figure.protocol
    asked, all_asked = result.get("num_problems"), protocol.get("num_problems")
    if asked and all_asked and asked != all_asked:
        yield f"{asked:,} problems here, {all_asked:,} in the paper"
    drawn, k = result.get("num_samples"), protocol.get("num_samples")
    if result["metric"] == "greedy":
        yield "greedy here, in the paper samples: greedy answers repeat themselves and vary more"
    elif figure.metric.startswith("cons_at_"):
        if result["metric"] != figure.metric:
            votes = [metric.rpartition("_")[2] for metric in (result["metric"], figure.metric)]
            yield f"{votes[0]} samples vote here, {votes[1]} in the paper"
    elif drawn and k and drawn != k:
        yield f"{drawn} samples a problem here, {k} in the paper"
    yield from _drawn_otherwise(result, protocol)
    yield from protocol.get("differs", ())
    yield from _read("benchmarks")["metrics"].get(figure.metric, ())
    for again in _figures(figure.name, figure.benchmark):
        if again.source == _independent().source and again.metric == figure.metric:
            yield f"others measured {_told(again)} of the same model ({again.source})"
    if figure.note:
        yield figure.note


def _drawn_otherwise(result: Row, protocol: Row) -> Iterator[str]:
    """What of the sampling is not the paper's; where a result does not say, what the paper's is."""
    words = {"temperature": "temperature {:g}", "top_p": "top-p {:g}", "max_tokens": "{:,} tokens"}
    if result["metric"] == "greedy":
        return
    if "temperature" not in result:
        told = [form.format(protocol[key]) for key, form in words.items()]
        yield f"the paper draws at {told[0]} and {told[1]}, up to {told[2]}"
    for key, form in words.items():
        if key in result and result[key] != protocol[key]:
            yield f"{form.format(result[key])} here, {form.format(protocol[key])} in the paper"


def _conflicts(found: Sequence[Figure]) -> Iterator[str]:
    """That the paper itself has other values elsewhere."""
    for other in found[1:]:
        if (other.value, other.metric) != (found[0].value, found[0].metric):
            yield f"the paper also has {_told(other)} ({other.source})"


def _told(figure: Figure) -> str:
    return f"{figure.value:g}" if figure.unit else f"{100 * figure.value:.1f} %"


def _figures(name: str | None, benchmark: str | None) -> list[Figure]:
    """All that is published of a model on a benchmark, in the tables' order."""
    every = (figure for table in tables().values() for figure in table.figures)
    return [figure for figure in every if (figure.name, figure.benchmark) == (name, benchmark)]


def _independent() -> Table:
    return tables()["independent_check"]


@cache
def _names() -> dict[str, str]:
    """The paper's names by their plain forms."""
    every = (figure.name for table in tables().values() for figure in table.figures)
    return {_plain(name): name for name in every}


def _benchmark(split: str) -> str | None:
    """The benchmark that a split's name means: `AIME-2024`, `aime_2024` and `aime24` are one."""
    for name, about in benchmarks().items():
        if _plain(split) in map(_plain, (name, about["title"], *about.get("also", ()))):
            return name
    return None


def _plain(name: str) -> str:
    """A name without its owner, case and punctuation."""
    return re.sub(r"[^a-z0-9.]", "", name.rpartition("/")[2].casefold())


def _table(read: Row) -> Table:
    notes = read.get("notes", {})
    figures = [
        _figure(name, column, value, read["source"], notes.get(f"{name} {column}", ""))
        for name, values in read["rows"].items()
        for column, value in zip(read["columns"], values, strict=True)
    ]
    return Table(read["title"], read["source"], tuple(figures))


def _figure(name: str, column: str, value: float, source: str, note: str) -> Figure:
    """Of a cell; `column` names benchmark and metric, and shares are printed in per cent."""
    benchmark, metric = column.split()
    unit = UNITS.get(metric)
    share = value if unit else round(value / 100, 6)
    return Figure(name, benchmark, metric, share, unit, source, benchmarks()[benchmark], note)


@cache
def _read(name: str) -> dict[str, Any]:
    text = (Path(__file__).parent / f"{name}.yaml").read_text(encoding="utf-8")
    read: dict[str, Any] = yaml.safe_load(text)
    return read
