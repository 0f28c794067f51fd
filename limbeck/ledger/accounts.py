"""Accounts: a piece of work is timed, and its row added to a ledger."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from limbeck import energy, memory, store
from limbeck.ledger import clocks

SUMMED = ("wall_seconds", "cpu_seconds", "tokens_in", "tokens_out", "flops")
ALL_OR_NONE = ("device_seconds", "joules")  # a sum of what only some rows tell would be none
HOUR = 3600.0

Row = dict[str, Any]


@dataclass(frozen=True)
class Rent:
    """What is held while work is done: accelerators, and what all of it costs an hour."""

    accelerators: int = 0
    price_per_hour: float | None = None


FREE = Rent()


@dataclass(eq=False)
class _Account:
    """An open account; what others take that are opened within it is theirs alone."""

    row: Row
    rent: Rent
    within: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def __post_init__(self) -> None:
        self.meter = energy.meter(self.rent.accelerators)
        self.begun = self._clocks()

    def _clocks(self) -> dict[str, float]:
        told = {"wall_seconds": time.monotonic(), "cpu_seconds": clocks.cpu_seconds()}
        joules = self.meter.joules()
        return told if joules is None else {**told, "joules": joules}

    def close(self, around: _Account | None) -> None:
        """Fills in what the clocks say, and the rent."""
        row, rent = self.row, self.rent
        for key, now in self._clocks().items():
            taken = now - self.begun[key]
            row[key] = round(taken - self.within[key], 3)
            if around:
                around.within[key] += taken
        if row["joules"] is not None:
            row["joules_of"] = ", ".join(self.meter.of)
        row["device_seconds"] = row["wall_seconds"] * rent.accelerators
        if row.get("unpriced"):
            row["money"] = None
        elif rent.price_per_hour is not None:
            rented = rent.price_per_hour * row["wall_seconds"] / HOUR
            row["money"] = rented + (row["money"] or 0.0)


_open: list[_Account] = []  # the last lies within those before it


def _note_peaks() -> None:
    host, device = clocks.peak_memory_mib(), clocks.peak_device_memory_mib()
    for account in _open:
        row = account.row
        row["peak_memory_mib"] = max(row["peak_memory_mib"], round(host, 1))
        row["peak_device_memory_mib"] = max(row["peak_device_memory_mib"], round(device, 1))


@contextmanager
def account(path: Path, work: str, rent: Rent = FREE) -> Iterator[Row]:
    """Times a piece of work and adds its row to the ledger; the caller fills in what was used.

    Of what a server was paid he says the `money`, or that it is `unpriced`: the rent comes on top.
    """
    row: Row = {"work": work, "tokens_in": 0, "tokens_out": 0, "flops": 0.0}
    row |= {"joules": None, "money": None, "peak_memory_mib": 0.0, "peak_device_memory_mib": 0.0}
    if not _open:
        memory.give_back()  # what others have freed is no part of it
    _note_peaks()
    clocks.forget_peak()
    opened, around = _Account(row, rent), _open[-1] if _open else None
    _open.append(opened)
    try:
        yield row
    finally:
        _note_peaks()
        _open.remove(opened)
        opened.close(around)
        store.append_json(path, row)


def total(path: Path) -> Row:
    """The sums of a ledger, and the highest memory; interrupted work counts, since it cost."""
    return summed(store.read_jsonl(path))


def summed(rows: Sequence[Row]) -> Row:
    """The sums of a ledger's rows; None is what they, or rows of older ledgers, do not tell.

    Money is the sum of what has a price; None where nothing has one, and where a server was paid
    by prices that nobody told.
    """
    sums: Row = {key: sum(row.get(key, 0) for row in rows) for key in SUMMED}
    for key in ALL_OR_NONE:
        told = [row.get(key) for row in rows]
        sums[key] = None if None in told else sum(told)
    if sums["joules"]:
        sums["joules_of"] = "; ".join(dict.fromkeys(row["joules_of"] for row in rows))
    priced = [row["money"] for row in rows if row.get("money") is not None]
    is_known = priced and not any(row.get("unpriced") for row in rows)
    sums["money"] = sum(priced) if is_known else None
    for key in ("peak_memory_mib", "peak_device_memory_mib"):
        sums[key] = max((row.get(key, 0.0) for row in rows), default=0.0)
    return sums
