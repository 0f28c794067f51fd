"""Problems that an earlier stage wrote, as a source: to split what is held out once more, say."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck import tables
from limbeck.config import ProblemsPath
from limbeck.types import Problem


def read(*, problems: ProblemsPath) -> Iterator[Problem]:
    """The table's problems, in its order; ids, answers and verifiers are as they were."""
    yield from tables.read_problems(problems)
