"""A row of somebody's instruction data as a conversation, an assistant's turn the last."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from limbeck.chat import split_think
from limbeck.errors import UserError
from limbeck.problems import is_text

ROLES = {
    "system": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
}


@dataclass(frozen=True)
class Turns:
    """Which columns hold what is said: whole conversations in `messages`, or one turn each.

    A turn of `messages` has `role` and `content`, or `from` and `value`. `context` stands behind
    the question, where it is not empty (Alpaca: `input`). `fill` says what stands in the place of
    which words of the texts.
    """

    messages: str | None
    question: str
    context: str | None
    answer: str
    fill: Mapping[str, str] = field(default_factory=dict)


def conversation(row: Mapping[str, Any], where: str, columns: Turns) -> list[dict[str, str]] | str:
    """`role` and `content` of each turn, or why there is nothing to learn from the row.

    UserError at `where` if it does not have the columns.
    """
    turns = _whole(row, where, columns.messages) if columns.messages else _pair(row, where, columns)
    turns = [(role, _filled(text, columns.fill)) for role, text in turns]
    turns = [turn for turn in turns if turn != ("system", "")]
    if not all(is_text(text) for _, text in turns):
        return "half a character"
    if not all(role in ROLES.values() for role, _ in turns):
        return "unknown role"
    role, text = turns[-1] if turns else ("", "")
    if role != "assistant" or not (split_think(text).answer or "").strip():
        return "no answer"
    if not any(role == "user" and text.strip() for role, text in turns[:-1]):
        return "no question"
    return [{"role": role, "content": text} for role, text in turns]


def _whole(row: Mapping[str, Any], where: str, column: str) -> list[tuple[str, str]]:
    cell = cell_of(row, where, column)
    return [_turn(turn) for turn in cell] if isinstance(cell, list) else []


def _turn(turn: Any) -> tuple[str, str]:
    """(role, text); the role is as it stands there if nobody knows it."""
    if not isinstance(turn, Mapping):
        return "", ""
    role, text = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
    return ROLES.get(str(role), str(role)), text if isinstance(text, str) else ""


def _pair(row: Mapping[str, Any], where: str, columns: Turns) -> list[tuple[str, str]]:
    asked = [column for column in (columns.question, columns.context) if column]
    parts = [_written(cell_of(row, where, column)) for column in asked]
    answer = _written(cell_of(row, where, columns.answer))
    return [("user", "\n\n".join(part for part in parts if part)), ("assistant", answer)]


def _written(cell: Any) -> str:
    """A cell as text; a 0 is one, too."""
    return "" if cell is None else str(cell).strip()


def _filled(text: str, fill: Mapping[str, str]) -> str:
    """In one go, longer words first: what was put in is not looked at again."""
    if not fill:
        return text
    words = sorted(fill, key=len, reverse=True)
    return re.sub("|".join(map(re.escape, words)), lambda found: fill[found[0]], text)


def cell_of(row: Mapping[str, Any], where: str, column: str) -> Any:
    """What stands in a column, None included; UserError if there is no such column."""
    if column not in row:
        raise UserError(where, f"no {column!r}", f"name one of {', '.join(map(str, row))}")
    return row[column]
