"""How many rows a table has, and how long: of one that no stage of a recipe makes, too."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from math import nan
from pathlib import Path
from statistics import fmean
from typing import Any

from limbeck import tables
from limbeck.errors import UserError

CHARACTERS = 3.0  # of a token, about: English 4 to 5, formulas and other languages 2 to 3
TURN = 10.0  # tokens around a turn of a conversation
MEASURED = 2048  # rows, the first of a table


@dataclass(frozen=True)
class Amount:
    """How many rows a table has at most, and how many tokens a row's text on average and at most;
    NaN is unknown."""

    rows: float = nan
    tokens: float = nan
    longest: float = nan

    @property
    def total(self) -> float:
        return self.rows * self.tokens


def of_table(path: str) -> Amount:
    """Of a table on this machine, by its first rows; unknown where there is none, or is broken."""
    if not Path(path).exists():
        return Amount()
    try:
        num = tables.num_rows(path)
        batches = tables.iter_batches(path, rows=MEASURED, again=True)
        rows = next(batches).to_pylist() if num else []
        lengths = [length for row in islice(rows, MEASURED) if (length := _length(row))]
    except (UserError, OSError):  # whose words the run will have
        return Amount()
    if not lengths:
        return Amount(num)
    return Amount(num, fmean(lengths), max(lengths))


def _length(row: dict[str, Any]) -> float:
    """Tokens of a lesson's turns, of a problem with its answer, of a trace."""
    told = row.get("messages")
    told = told if isinstance(told, list) else []
    turns = [turn.get("content") for turn in told if isinstance(turn, dict)]
    texts = [each for each in (*turns, row.get("answer"), row.get("text")) if isinstance(each, str)]
    return sum(map(len, texts)) / CHARACTERS + TURN * len(turns) if texts else 0.0
