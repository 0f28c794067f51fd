"""Problems from a table on this machine: JSON lines, plain or gzipped, or Parquet."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from limbeck import guard
from limbeck.config import FilePath
from limbeck.errors import UserError
from limbeck.plugins import VerifierName
from limbeck.problems import source_name
from limbeck.problems.rows import Columns, problem_from_row
from limbeck.types import Problem

NUM_LOOKED_AT = 1000  # rows, before anything runs


def read(
    *,
    path: FilePath,
    question: str = "question",
    answer: str = "answer",
    answer_after: str | None = None,
    verifier: VerifierName = "number",
    prompt: str = "{question}",
    domain: str | None = None,
    choices: str | None = None,
    tests: str | None = None,
    source: str | None = None,
    licence: str | None = None,
) -> Iterator[Problem]:
    """One problem a row, in the file's order; `Columns` says what the knobs mean.

    `source` is the file's name if nothing else is said. Raises UserError that names file and line.
    """
    columns = Columns(
        question=question,
        answer=answer,
        answer_after=answer_after,
        verifier=verifier,
        prompt=prompt,
        domain=domain,
        choices=choices,
        tests=tests,
        source=source or source_name(path),
        licence=licence,
    )
    for where, row in rows(path=path):
        yield problem_from_row(row, where, columns)


def check(*, path: FilePath, **columns: Any) -> None:
    """Raises UserError if the file is no table, is empty, or does not have the columns."""
    found: Iterator[Any] = read(path=path, **columns) if columns else rows(path=path)
    if not list(islice(found, NUM_LOOKED_AT)):
        raise UserError(path, "holds no rows", "give a file that has some")


def rows(*, path: FilePath) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) for each row; `where` is `file:line`, counted from 1."""
    place = Path(path)
    if not place.is_file():
        raise UserError(path, "no such file", "mend `path`")
    if place.suffix == ".parquet":
        found = _parquet_rows(place)
    elif place.name.endswith((".jsonl", ".jsonl.gz")):
        found = guard.parse_rows(place)
    else:
        raise UserError(path, "not a table known here", "use .jsonl, .jsonl.gz or .parquet")
    for line, row in found:
        yield f"{path}:{line}", row


def _parquet_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        guard.check_parquet(path)
        for batch in pq.ParquetFile(path).iter_batches(batch_size=1024):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}:{number}", str(error), "write the file again") from error
