"""AIME 2025: thirty problems of the year after, which fewer models have read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from limbeck.config import FilePath
from limbeck.problems import public, source_name
from limbeck.problems.aime24 import PROTOCOL as YEAR_BEFORE
from limbeck.problems.aime24 import contest
from limbeck.problems.protocol import BOXED
from limbeck.types import Problem

PROTOCOL = replace(
    YEAR_BEFORE,
    paper="aime25",
    differs=(
        *YEAR_BEFORE.differs,
        "Some report AIME 2025 I alone: fifteen problems, 6.7 points each.",
    ),
)


def read(
    *,
    dataset: str = "math-ai/aime25",
    revision: str | None = None,
    path: FilePath | None = None,
    prompt: str = BOXED,
) -> Iterator[Problem]:
    """Columns `problem` and `answer`, as `aime24` reads them."""
    rows = public.read_table(path=path, dataset=dataset, split="test", revision=revision)
    return contest(rows, source_name(path or dataset), prompt)
