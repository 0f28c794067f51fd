"""Recorded answers as an engine: it plays what somebody's model wrote, or one of yours.

With it the outputs that others published get Limbeck's verdicts, and nothing is asked again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from limbeck import guard, tables
from limbeck.config import FilePath
from limbeck.errors import UserError
from limbeck.types import Finish, Generator, Problem, Request, Sampling, Trace

FINISHES: tuple[Finish, ...] = ("stop", "length", "error")


def connect(
    *,
    path: FilePath,
    problem: str = "problem_id",
    text: str = "text",
    finish: str | None = None,
    missing: Literal["refuse", "fail"] = "refuse",
    model: str | None = None,
) -> Generator:
    """The engine; a row of the table at `path` (.jsonl, .jsonl.gz, .parquet) is an answer.

    `problem` names the column that tells whose answer it is: it holds the problem's id, its
    question, or one of the values in its `meta`, a task's name say. `text` names the column with
    the answer, and `finish` one that says how it ended, in `stop`, `length` or `error`; without it
    each was finished. Sample i of a problem is the i-th row that is its. Where there is none, it is
    a mistake, or, if `missing` says `fail`, an answer that failed. `model` is who wrote them; else
    it is the file's name.
    """
    recorded: dict[str, list[Answer]] = defaultdict(list)
    for key, answer in _answers(path, problem, text, finish):
        recorded[key].append(answer)
    name = model or Path(path).name.partition(".")[0]
    return RecordedAnswers(name, dict(recorded), path, missing == "fail")


def check(*, path: FilePath, problem: str, text: str, finish: str | None, **_: Any) -> None:
    """Raises UserError if the table has no row, or not these columns."""
    if next(_answers(path, problem, text, finish), None) is None:
        raise UserError(path, "holds no rows", "give a file that has some")


class Answer(NamedTuple):
    """What was once written, and how it ended."""

    text: str
    finish: Finish


class RecordedAnswers:
    """Plays what was recorded, up to a stop string, whatever else the sampling says."""

    num_parameters: int | None = None
    costs_money: bool = False

    def __init__(
        self, name: str, recorded: dict[str, list[Answer]], path: str, may_be_missing: bool
    ) -> None:
        self.name, self.recorded, self.path = name, recorded, path
        self.may_be_missing = may_be_missing
        self.owners: dict[str, str] = {}  # by what a row is recorded under, whose it is

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        """One trace a request, in order. UserError where none was recorded and one must be."""
        for request in requests:
            text, finish = cut(self._answer(request), sampling.stop)
            yield Trace(
                id=request.id,
                problem_id=request.problem.id,
                index=request.index,
                text=text,
                finish=finish,
                model=self.name,
            )

    def _answer(self, request: Request) -> Answer:
        answers = self._of(request.problem)
        if request.index < len(answers):
            return answers[request.index]
        if self.may_be_missing:
            return Answer("", "error")
        what = (
            f"has {len(answers)} answers in {self.path}, and number {request.index + 1} is wanted"
        )
        way_out = (
            "ask for fewer samples, mend the column that `problem` names, or set missing: fail"
        )
        raise UserError(f"problem {request.problem.id}", what, way_out)

    def _of(self, problem: Problem) -> list[Answer]:
        """The answers to a problem, by the first of its names that one was recorded under.

        UserError where that names another one, too: how difficult they are, say.
        """
        names = (problem.id, problem.question, *problem.meta.values())
        keys = (str(name) for name in names if isinstance(name, str | int))
        key = next((key for key in keys if key in self.recorded), None)
        if key is None:
            return []
        owner = self.owners.setdefault(key, problem.id)
        if owner != problem.id and key != problem.question:
            what = f"and problem {owner} are both {key!r} in {self.path}"
            way_out = "let `problem` name a column that tells them apart"
            raise UserError(f"problem {problem.id}", what, way_out)
        return self.recorded[key]


def cut(answer: Answer, stop: Sequence[str]) -> Answer:
    """An answer up to the first of the stop strings, or as it is without one."""
    ends = [end for word in stop if (end := answer.text.find(word)) >= 0]
    return Answer(answer.text[: min(ends)], "stop") if ends else answer


def _answers(
    path: str, problem: str, text: str, finish: str | None
) -> Iterator[tuple[str, Answer]]:
    """(whose it is, answer) of each row, in the file's order."""
    for where, row in _rows(Path(path)):
        for column in (problem, text, *([finish] if finish else [])):
            if row.get(column) is None:
                way_out = f"name one of {', '.join(map(str, row))}"
                raise UserError(where, f"no {column!r}", way_out)
        ended = row[finish] if finish else "stop"
        if ended not in FINISHES:
            way_out = f"`finish` names a column of {', '.join(FINISHES)}"
            raise UserError(where, f"{ended!r} is no way to end", way_out)
        yield str(row[problem]), Answer(str(row[text]), ended)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of each row, counted from 1."""
    if path.suffix == ".parquet":
        batches = tables.iter_batches(path)
        rows = enumerate((row for batch in batches for row in batch.to_pylist()), 1)
        yield from ((f"{path}:{number}", row) for number, row in rows)
    elif path.name.endswith((".jsonl", ".jsonl.gz")):
        yield from ((f"{path}:{line}", row) for line, row in guard.parse_rows(path))
    else:
        way_out = "use .jsonl, .jsonl.gz or .parquet"
        raise UserError(str(path), "not a table known here", way_out)
