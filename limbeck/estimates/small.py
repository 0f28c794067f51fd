"""A stage made small: a few rows of its tables, a few steps of its training, the rest as it is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from limbeck import tables
from limbeck.config import Plugin, map_references
from limbeck.estimates.work import WRITERS

NO_BUDGET: dict[str, Any] = {
    "num_epochs": None,
    "num_tokens": None,
    "num_flops": None,
    "charge": [],
}
TABLES = ("problems", "traces", "verdicts", "decisions", "dataset", "pairs")


@dataclass(frozen=True)
class Size:
    """How much of a stage is done: rows that plain functions go through, problems of an
    examination, tokens that a model writes, and what a training computes, in at least and at most
    so many steps."""

    rows: int
    exam: int
    tokens: int
    flops: float
    steps: int
    most_steps: int


TINY = Size(rows=16, exam=4, tokens=2_000, flops=0.0, steps=1, most_steps=1)
USUAL = Size(rows=512, exam=24, tokens=31_000, flops=2e10, steps=3, most_steps=80)
Inputs = dict[str, tuple[int, float | None]]
"""Of each table that was read by its reference: rows, and tokens of one, where they are known."""


def counts(config: Any, size: Size) -> dict[str, Any]:
    """The fields of a config that say how many rows a source is asked for, made small."""
    found: dict[str, Any] = {}
    limits = {"num": size.rows, "num_heldout": size.rows, "num_rounds": 1, "num_latency": 2}
    for name, most in limits.items():
        num = getattr(config, name, None)
        if isinstance(num, int):
            found[name] = min(num, most)
        elif isinstance(num, dict):
            found[name] = {part: min(n, most) for part, n in num.items()}
    if hasattr(config, "max_drop"):  # so few problems show nothing, and the first is wanted most
        found |= {"max_drop": 1.0, "max_longer": None}
    return found


def lessons(config: Any, num_rows: int, tokens: float, num_parameters: float, size: Size) -> Any:
    """The fields that shorten a training on `num_rows` texts of `tokens` each; none where it is
    short enough as it is."""
    each = config.training_flops(1, 1) * num_parameters * tokens
    most = max(size.steps * config.batch_size, size.flops / each)
    most = min(most, size.most_steps * config.batch_size)
    full = num_rows * (config.num_epochs or 0)
    if config.num_tokens is not None:
        full = config.num_tokens / tokens
    if config.num_flops is not None:
        full = config.num_flops / each
    if size.flops and full <= most:
        return {"validation": None}
    return {**NO_BUDGET, "validation": None, "num_epochs": most / num_rows}


def rounds(config: Any, length: int, size: Size) -> dict[str, Any]:
    """The fields that shorten reinforcement learning: one round, or a few of a step, and texts of
    `length`."""
    changed = {name: value for name, value in NO_BUDGET.items() if hasattr(config, name)}
    changed |= {"num_steps": size.steps, "refill": 0, "validation": None}
    changed["steps_per_round"] = min(config.steps_per_round, size.steps)
    return changed | {"max_tokens": min(length, config.max_tokens)}


def num_problems(config: Any, verb: str, size: Size, length: float) -> int:
    """How many problems a stage is given: as many as its model may write tokens for; of an
    examination `size.exam`, so that what is compared has answered the same."""
    if verb not in WRITERS or not models(config):
        return size.rows
    times = getattr(config, "num_samples", 1) + getattr(config, "greedy", 0)
    if isinstance(getattr(config, "problems", None), dict):
        times *= len(config.problems)
    most = size.exam if verb == "evaluate" else size.rows
    return max(2, min(most, round(size.tokens / length / max(times, 1))))


def num_texts(config: Any, tokens: float, size: Size) -> int:
    """How many calibration texts of `tokens` each a stage is given."""
    length = min(tokens, config.max_length)
    return min(config.num_texts, max(2, round(size.tokens / length)))


def models(config: Any) -> list[str]:
    """The models on this machine that a stage's engines write with."""
    named = getattr(config, "engines", {"": getattr(config, "engine", None)})
    engines = [engine for engine in named.values() if isinstance(engine, Plugin)]
    return [engine.knobs["model"] for engine in engines if engine.name == "local"]


def few(config: Any, num: int, folder: Path) -> Any:
    """The config, reading tables of `num` problems in `folder` in the place of its own."""
    paths: dict[str, tuple[str, str]] = {}
    map_references(config, lambda kind, path, key: paths.setdefault(key, (kind, path))[1])
    leading = next((path for kind, path in paths.values() if kind == "traces"), None)
    problems = _first(tables.read_table(leading)["problem_id"], num) if leading else None
    traces = _ids(leading, problems) if leading and problems is not None else None

    def shortened(kind: str, path: str, key: str) -> str:
        if kind not in TABLES or not Path(path).exists():
            return path
        place = folder / key
        if not place.exists():
            kept = _kept(kind, tables.read_table(path), num, problems, traces)
            tables.write_part(place, kept)
        return str(place)

    return map_references(config, shortened)


def _kept(
    kind: str, table: pa.Table, num: int, problems: pa.Array | None, traces: pa.Array | None
) -> pa.Table:
    """The rows that belong to the first problems."""
    if problems is None:
        return table.slice(0, num)
    if kind == "verdicts":
        return table.filter(pc.is_in(table["trace_id"], value_set=traces))
    name = "id" if kind == "problems" else "problem_id"
    is_ours = pc.is_in(table[name], value_set=problems)
    return table.filter(is_ours) if name in table.column_names else table.slice(0, num)


def _first(column: pa.ChunkedArray, num: int) -> pa.Array:
    return pc.unique(column)[:num]


def _ids(path: str, problems: pa.Array) -> pa.ChunkedArray:
    table = tables.read_table(path, ["id", "problem_id"])
    return table.filter(pc.is_in(table["problem_id"], value_set=problems))["id"]


def read(config: Any, tokens: Mapping[str, float]) -> Inputs:
    """Rows of each table that a config reads, by key, and `tokens` of those that are known."""
    found: Inputs = {}

    def visit(kind: str, path: str, key: str) -> str:
        if kind in (*TABLES, "scores") and Path(path).exists():
            found[key] = (sum(b.num_rows for b in tables.iter_batches(path)), tokens.get(key))
        return path

    map_references(config, visit)
    return found


def mean_length(folder: Path, outputs: Iterable[str]) -> float | None:
    """Tokens of an answer in the tables of traces that a stage wrote; None where it wrote none."""
    lengths = [
        num
        for name in outputs
        if tables.parts(folder / name)
        for num in tables.read_table(folder / name, ["completion_tokens"])[0].to_pylist()
    ]
    return fmean(lengths) if any(lengths) else None
