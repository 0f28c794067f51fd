"""How a count is compared with what an instruction asks for."""

from __future__ import annotations

from typing import Literal

Relation = Literal["at least", "less than"]


def holds(count: int, relation: Relation, asked: int) -> bool:
    """Whether a count is at least, or less than, what was asked."""
    return count >= asked if relation == "at least" else count < asked
