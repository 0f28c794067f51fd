"""A row of somebody's instruction data as a conversation, an assistant's turn the last."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from limbeck.chat import split_think
from limbeck.errors import UserError

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
    the question, where it is not empty (Alpaca: `input`).
    """

    messages: str | None
    question: str
    context: str | None
    answer: str


def conversation(row: Mapping[str, Any], where: str, columns: Turns) -> list[dict[str, str]] | str:
    """`role` and `content` of each turn, or why there is nothing to learn from the row.

    UserError at `where` if it does not have the columns.
    """
    turns = _whole(row, where, columns.messages) if columns.messages else _pair(row, where, columns)
    turns = [turn for turn in turns if turn != ("system", "")]
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
    parts = [str(cell_of(row, where, column) or "").strip() for column in asked]
    answer = str(cell_of(row, where, columns.answer) or "").strip()
    return [("user", "\n\n".join(part for part in parts if part)), ("assistant", answer)]


def cell_of(row: Mapping[str, Any], where: str, column: str) -> Any:
    """What stands in a column, None included; UserError if there is no such column."""
    if column not in row:
        raise UserError(where, f"no {column!r}", f"name one of {', '.join(map(str, row))}")
    return row[column]
