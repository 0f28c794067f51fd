"""Public data sets as they are given out, on the Hugging Face hub or in a file on this machine."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from limbeck import guard
from limbeck.errors import UserError
from limbeck.problems import file, hub, source_name
from limbeck.problems.rows import Columns, problem_from_row
from limbeck.types import Problem


def problems(
    columns: Columns,
    *,
    path: str | None,
    dataset: str,
    config: str | None = None,
    split: str = "test",
    revision: str | None = None,
) -> Iterator[Problem]:
    """One problem a row, in the set's order; they say that they come from `path` or `dataset`."""
    columns = replace(columns, source=source_name(path or dataset))
    for where, row in read_table(
        path=path, dataset=dataset, config=config, split=split, revision=revision
    ):
        yield problem_from_row(row, where, columns)


def read_table(
    *,
    path: str | None,
    dataset: str,
    config: str | None = None,
    split: str = "test",
    revision: str | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) for each row, from a file at `path`, if there is one, else from the hub.

    A file is a table that source `file` reads, a list in a `.json`, or a `.csv` or `.tsv` with a
    header, each plain or gzipped. UserError that names the row.
    """
    if path is None:
        # It asks again for half a minute, with a line each time; what came of it, we say ourselves.
        logging.getLogger("huggingface_hub.utils._http").setLevel(logging.ERROR)
        return _writable(hub.rows(dataset=dataset, config=config, split=split, revision=revision))
    return _writable(_rows_of(path))


def _rows_of(path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    place = Path(path)
    if not place.is_file():
        raise UserError(path, "no such file", "mend `path`")
    name = path.removesuffix(".gz")
    if name.endswith(".json"):
        return _listed(place)
    if name.endswith((".csv", ".tsv")):
        return _delimited(place, tabs=name.endswith(".tsv"))
    return file.rows(path=path)


def in_hash_order(problems: Iterable[Problem]) -> Iterator[Problem]:
    """The same problems, sorted by their ids: an order that nobody chose and everybody gets.

    For sets that are sorted by label or subject, of which the first n are of one kind. All of them
    are read before the first is given.
    """
    yield from sorted(problems, key=lambda problem: problem.id)


def asked(prompt: str, question: str) -> str:
    """The prompt with the question in its place; UserError for one that asks nothing."""
    if "{question}" not in prompt:
        raise UserError("prompt", "has no {question}", "write {question} into `prompt`")
    return prompt.replace("{question}", question)


def _writable(
    rows: Iterator[tuple[str, dict[str, Any]]],
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same rows; UserError for one that no table could hold."""
    for where, row in rows:
        try:
            json.dumps(row, ensure_ascii=False, default=str).encode()
        except (UnicodeEncodeError, RecursionError) as error:
            what = "holds half a character" if isinstance(error, ValueError) else "is too deep"
            raise UserError(where, what, "mend the row, or drop it") from error
        yield where, row


def _listed(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        listed = json.loads(b"".join(guard.lines(path)))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(str(path), f"cannot be read ({error})", "fetch it again") from error
    if not isinstance(listed, list) or not all(isinstance(row, dict) for row in listed):
        raise UserError(str(path), "is no list of objects", "give [{…}, …]")
    for number, row in enumerate(listed):
        yield f"{path}[{number}]", row


def _delimited(path: Path, tabs: bool) -> Iterator[tuple[str, dict[str, Any]]]:
    """Tab-separated values are never quoted, comma-separated ones may be, over several lines."""
    lines = (line.decode("utf-8-sig") for line in guard.lines(path))
    if tabs:
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.DictReader(lines)
    try:
        for row in reader:
            if None in row or None in row.values():
                raise ValueError("it has more or fewer cells than the header")
            yield f"{path}:{reader.line_num}", row
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path}:{reader.line_num}", str(error), "mend the line") from error
