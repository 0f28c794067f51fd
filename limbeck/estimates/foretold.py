"""A stage's seconds and memory on this machine: what its rehearsal took, at its full size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

from limbeck.config import map_references
from limbeck.estimates import measured
from limbeck.estimates.amounts import Amount
from limbeck.estimates.measured import ROW, STAYS, TOKEN
from limbeck.estimates.work import Given, Work
from limbeck.recipe import Stage

Reckon = Callable[[Any, Given], Work]
MIB = 2.0**20


@dataclass(frozen=True)
class Foretold:
    """Seconds on the clock and of the processor, and bytes that the process holds at most."""

    seconds: float
    cpu_seconds: float
    memory: float


class Foretelling:
    """Foretells stage after stage: a process keeps some of what earlier ones held."""

    def __init__(self) -> None:
        self.held = 0.0

    def of(self, stage: Stage, reckon: Reckon, given: Given, found: measured.Stage) -> Foretold:
        """Of a stage, `given` what is known of it at full size."""
        more = _small(stage, reckon, given, found, "usual")
        few = _small(stage, reckon, given, found, "tiny") if "tiny" in found.takes else Work()
        full = reckon(stage.config, given)
        rounds = max(1.0, full.rows / max(full.batch_rows, 1)) if full.batch_rows > 1 else 1.0
        rounds = max(1.0, rounds / max(1.0, more.rows / max(more.batch_rows, 1)))
        wall, cpu = (
            found.series(clock, few.units, more.units).at(full.units, rounds)
            for clock in ("wall", "cpu")
        )
        tokens = max((t for _, t in found.takes["usual"]["read"].values() if t), default=0.0)
        tokens = max(tokens, found.length or 0.0)
        grown = max(0.0, full.rows - more.rows) * (ROW + TOKEN * tokens)
        grown = 0.0 if isnan(grown) else grown
        memory = found.memory_mib * MIB + max(grown, STAYS * self.held)
        self.held = max(self.held, grown)
        return Foretold(wall, cpu, memory)


def _small(stage: Stage, reckon: Reckon, given: Given, found: measured.Stage, take: str) -> Work:
    """What a take of the rehearsal computed."""
    told = found.takes[take]
    paths = references(stage.config)
    read = {
        paths[key]: Amount(rows, tokens or _length(given, paths[key]))
        for key, (rows, tokens) in told["read"].items()
        if key in paths
    }
    known = Given(given.mean_tokens, read, given.models, given.flops, given.answer)
    return reckon(stage.config.model_copy(update=dict(told["changed"])), known)


def _length(given: Given, path: str) -> float:
    return given.table(path).tokens


def learn(given: Given, stage: Stage, found: measured.Stage) -> None:
    """Takes up what the rehearsal says of lengths: of the answers, and of the texts it reads."""
    given.answer = found.length
    paths = references(stage.config)
    for key, (_, tokens) in found.takes["usual"]["read"].items():
        if tokens is not None:
            path = paths[key]
            given.tables[path] = replace(given.table(path), tokens=tokens)


def kept(stage: Stage, reckon: Reckon, given: Given, full: Work, found: measured.Stage) -> Work:
    """The work, its tables as much smaller than their upper bounds as those of the rehearsal."""
    small = _small(stage, reckon, given, found, "usual")
    shares = {
        name: min(1.0, num / small.tables[name].rows)
        for name, num in found.made.items()
        if name in small.tables and small.tables[name].rows
    }
    tables = {
        name: replace(table, rows=table.rows * shares.get(name, 1.0))
        for name, table in full.tables.items()
    }
    return replace(full, tables=tables)


def references(config: Any) -> dict[str, str]:
    """The paths that a config gives, by their keys."""
    found: dict[str, str] = {}
    map_references(config, lambda kind, path, key: found.setdefault(key, path))
    return found
