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
from limbeck.problems import problem_from_row
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
) -> Iterator[Problem]:
    """One problem a row, in the file's order; `problem_from_row` says what the knobs mean.

    Raises UserError that names file and line.
    """
    for where, row in _rows(Path(path)):
        yield problem_from_row(
            row,
            where,
            question=question,
            answer=answer,
            answer_after=answer_after,
            verifier=verifier,
            prompt=prompt,
            domain=domain,
        )


def check(*, path: FilePath, **columns: Any) -> None:
    """Raises UserError if the file is no table, is empty, or does not have the columns."""
    rows = read(path=path, **columns)
    if not list(islice(rows, NUM_LOOKED_AT)):
        raise UserError(path, "holds no rows", "give a file that has some")


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) for each row; `where` is `file:line`, counted from 1."""
    if not path.is_file():
        raise UserError(str(path), "no such file", "mend `path`")
    if path.suffix == ".parquet":
        rows = _parquet_rows(path)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        rows = _json_rows(path)
    else:
        raise UserError(str(path), "not a table known here", "use .jsonl, .jsonl.gz or .parquet")
    for line, row in rows:
        yield f"{path}:{line}", row


def _json_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    yield from guard.parse_rows(path)


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
