"""AIME 2024: the thirty problems of a contest whose answers are whole numbers from 0 to 999."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from limbeck.config import FilePath
from limbeck.errors import UserError
from limbeck.problems import public, source_name
from limbeck.problems.protocol import BOXED, Protocol
from limbeck.problems.rows import Columns, problem_from_row
from limbeck.types import Problem

WHOLE = re.compile(r"\s*\$?0*(\d{1,3})(?:\^\{?\\circ\}?)?\$?\s*")  # 073; a copy says 336^\circ
PROTOCOL = Protocol(
    num_samples=64,
    num_problems=30,
    cons_at=(64,),
    paper="aime24",
    differs=(
        "There are 30 problems: one is 3.3 points, and harnesses that agree on all else differ by"
        " 3 to 7.",
        "Copies of the set write answers with leading zeros (073); here they are the number 73.",
        "An answer that is said plainly, without a box, counts; others want the box.",
        "The paper tells no rule for ties in cons@64; here each tied answer has an equal chance.",
    ),
)


def read(
    *,
    dataset: str = "HuggingFaceH4/aime_2024",
    revision: str | None = None,
    path: FilePath | None = None,
    prompt: str = BOXED,
) -> Iterator[Problem]:
    """Columns `problem` and `answer`. UserError for an answer that the contest does not have."""
    rows = public.read_table(path=path, dataset=dataset, split="train", revision=revision)
    return contest(rows, source_name(path or dataset), prompt)


def contest(
    rows: Iterator[tuple[str, dict[str, Any]]], source: str, prompt: str
) -> Iterator[Problem]:
    """The problems of an AIME, their answers without leading zeros."""
    columns = Columns(question="problem", verifier="math", prompt=prompt, source=source)
    for where, row in rows:
        yield problem_from_row({**row, "answer": _whole(row, where)}, where, columns)


def _whole(row: Mapping[str, Any], where: str) -> str:
    answer = row.get("answer")
    match = WHOLE.fullmatch("" if answer is None else str(answer))
    if match is None:
        what = f"the answer {answer!r:.40} is no whole number from 0 to 999"
        raise UserError(where, what, "mend the row, or give another copy of the set")
    return match[1]
