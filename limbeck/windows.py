"""Problems, traces and verdicts side by side, a window of whole problems at a time.

Of a corpus only small columns are ever in memory: where each row belongs. Tables are streamed in
the order in which they lie; one that lies in another order than the problems (samples that were
added later, verdicts from elsewhere) is first put in order by window, in one scratch file.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from limbeck import tables
from limbeck.errors import UserError
from limbeck.types import Problem, Trace, Verdict

WINDOW = 64 << 20  # bytes; one problem's traces are never parted
ROW = 2048  # bytes that a row takes in Python, beside its text
COLUMNS = {
    "problems": [field.name for field in fields(Problem)],
    "traces": [f.name for f in fields(Trace) if f.name not in ("token_ids", "logprobs")],
    "verdicts": [field.name for field in fields(Verdict)],
}
MAY_LACK = ("answer", "domain", "split", "model", "correct", "extracted", "reason", "score")


@dataclass(frozen=True)
class Window:
    """Some problems in their table's order, all their traces by sample index, and the verdicts."""

    problems: dict[str, Problem]
    traces: list[Trace]
    verdicts: list[Verdict]


@dataclass(frozen=True)
class Plan:
    """Which window each row of the three tables belongs to; -1 for none."""

    paths: Mapping[str, str]
    windows: Mapping[str, np.ndarray]  # (rows,) int32 each
    num_samples: np.ndarray  # (problems,): how many traces each has

    @property
    def num_traces(self) -> int:
        return int(self.num_samples.sum())

    def read(self, scratch: Path) -> Iterator[Window]:
        """Every window in order; what has to be put in order goes to a file in `scratch`."""
        streams = [self._stream(kind, scratch / f"{kind}.arrow") for kind in COLUMNS]
        done = 0
        for problems, traces, verdicts in zip(*streams, strict=True):
            asked = tables.lessons_of(problems, self.paths["problems"])
            window = _window(asked, traces, verdicts)
            expected = Counter[str]()
            for problem in problems["id"].to_pylist():
                expected[problem] += int(self.num_samples[done])
                done += 1
            there = Counter(trace.problem_id for trace in window.traces)
            assert there == expected, "rows were lost"
            yield window

    def _stream(self, kind: str, scratch: Path) -> Iterator[pa.Table]:
        names, path = COLUMNS[kind], self.paths[kind]
        schema = pa.schema([tables.SCHEMAS[kind].field(name) for name in names])
        batches = tables.iter_batches(path, names, again=True)
        windows = self.windows[kind]
        pieces = _pieces((_fitting(batch, schema, path) for batch in batches), windows)
        named = windows[windows >= 0]
        if (named[1:] < named[:-1]).any():
            pieces = _in_order(pieces, schema, scratch)
        return _together(pieces, schema, int(self.windows["problems"].max(initial=-1)) + 1)


def plan(problems: str, traces: str, verdicts: str, where: str, window: int) -> Plan:
    """Reads ids, and how long each text is; a window is to have `window` bytes.

    UserError at `where` for a trace that is there twice, or has no problem, no verdict or two.
    """
    problem_ids, verdict_ids = _column(problems, "id"), _column(verdicts, "trace_id")
    trace_ids = _column(traces, "id")
    judged = _places(trace_ids, verdict_ids, trace_ids, f"{where}.verdicts")
    order = np.argsort(judged, kind="stable")
    if len(twice := order[1:][judged[order[1:]] == judged[order[:-1]]]):
        what = f"has two traces {trace_ids[int(twice[0])]}"
        raise UserError(f"{where}.traces", what, "give each an id of its own")
    theirs = pc.drop_null(pc.index_in(verdict_ids, value_set=trace_ids)).to_numpy()
    if len(twice := np.flatnonzero(np.bincount(theirs, minlength=len(trace_ids)) > 1)):
        what = f"has two verdicts on trace {trace_ids[int(twice[0])]}"
        raise UserError(f"{where}.verdicts", what, "leave one of them")
    asked_ids = _column(traces, "problem_id", again=True)
    asked = _places(asked_ids, problem_ids, trace_ids, f"{where}.problems")
    lengths = [
        pc.fill_null(pc.binary_length(batch["text"].cast(pa.string())), 0).to_numpy(
            zero_copy_only=False
        )
        for batch in tables.iter_batches(traces, ["text"], again=True)
    ]
    sizes = ROW + np.concatenate([[], *lengths])
    of_problems = _windows(asked, sizes, len(problem_ids), window)
    of_verdicts = np.full(len(verdict_ids), -1, np.int32)
    of_verdicts[judged] = of_problems[asked]
    return Plan(
        {"problems": problems, "traces": traces, "verdicts": verdicts},
        {"problems": of_problems, "traces": of_problems[asked], "verdicts": of_verdicts},
        np.bincount(asked, minlength=len(problem_ids)),
    )


def _column(path: str, name: str, again: bool = False) -> pa.ChunkedArray:
    chunks = [
        batch[name].cast(pa.string()) for batch in tables.iter_batches(path, [name], again=again)
    ]
    return pa.chunked_array(chunks, pa.string())


def _fitting(batch: pa.RecordBatch, schema: pa.Schema, path: str) -> pa.RecordBatch:
    """A batch of somebody's table in our schema; UserError if it does not fit, or a value lacks."""
    try:
        batch = batch.cast(schema)
    except pa.ArrowException as error:
        what = f"its columns are of other types ({' '.join(str(error).split())})"
        raise UserError(path, what, "give them the types of a table that Limbeck wrote") from error
    for name in schema.names:
        if name not in MAY_LACK and batch[name].null_count:
            row = batch.filter(pc.is_null(batch[name]))[0][0].as_py()
            raise UserError(path, f"row {row} has no {name}", "write it there, or drop the row")
    return batch


def _places(
    ids: pa.ChunkedArray, known: pa.ChunkedArray, trace_ids: pa.ChunkedArray, where: str
) -> np.ndarray:
    """Where each id stands among those known."""
    places = pc.index_in(ids, value_set=known)
    if places.null_count:
        missing = trace_ids[pc.index(pc.is_null(places), True).as_py()]
        what = f"has nothing on trace {missing}"
        raise UserError(where, what, "name those that belong to the traces")
    return places.to_numpy()


def _windows(asked: np.ndarray, sizes: np.ndarray, num_problems: int, most: int) -> np.ndarray:
    """The window of each problem, rising, (problems,) int32; `sizes` (traces,) in bytes.

    It begins where all that lies before it in the table of traces is of earlier problems, so that
    nothing has to be moved; at any problem, if that would make windows too large.
    """
    sizes = ROW + np.bincount(asked, weights=sizes, minlength=num_problems)
    before = np.cumsum(sizes) - sizes
    first, last = np.full(num_problems, len(asked)), np.full(num_problems, -1)
    np.minimum.at(first, asked, np.arange(len(asked)))
    np.maximum.at(last, asked, np.arange(len(asked)))
    ahead = np.minimum.accumulate(first[::-1])[::-1]
    reached = np.maximum.accumulate(np.append(-1, last)[:-1])
    windows = np.zeros(num_problems, np.int32)
    for may_begin in (reached < ahead, np.ones(num_problems, bool)):
        begins = np.maximum.accumulate(np.where(may_begin, before, 0)) // most
        windows = np.unique(begins, return_inverse=True)[1].astype(np.int32)
        if np.bincount(windows, weights=sizes).max(initial=0) <= 2 * most:
            break
    return windows


def _pieces(
    batches: Iterable[pa.RecordBatch], windows: np.ndarray
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Each batch's rows by window; those of none are left out."""
    done = 0
    for batch in batches:
        numbers = windows[done : done + batch.num_rows]
        done += batch.num_rows
        if (numbers[1:] < numbers[:-1]).any():
            order = np.argsort(numbers, kind="stable")
            batch, numbers = batch.take(pa.array(order)), numbers[order]
        found, starts = np.unique(numbers, return_index=True)
        for number, start, length in zip(
            found.tolist(), starts, np.diff(starts, append=len(numbers)), strict=True
        ):
            if number >= 0:
                yield number, batch.slice(start, length)


def _in_order(
    pieces: Iterable[tuple[int, pa.RecordBatch]], schema: pa.Schema, scratch: Path
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The same, window by window, by way of a file."""
    places: defaultdict[int, list[int]] = defaultdict(list)
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(scratch, schema, options=options) as writer:
        for place, (number, piece) in enumerate(pieces):
            places[number].append(place)
            writer.write_batch(piece)
    with pa.OSFile(str(scratch)) as file:
        reader = pa.ipc.open_file(file)
        for number in sorted(places):
            for place in places[number]:
                yield number, reader.get_batch(place)


def _together(
    pieces: Iterable[tuple[int, pa.RecordBatch]], schema: pa.Schema, num_windows: int
) -> Iterator[pa.Table]:
    """One table for each window."""
    held: list[pa.RecordBatch] = []
    now = 0
    for number, piece in pieces:
        for _ in range(now, number):
            yield pa.Table.from_batches(held, schema)
            held = []
        now = number
        held.append(piece)
    for _ in range(now, num_windows):
        yield pa.Table.from_batches(held, schema)
        held = []


def _window(problems: Sequence[Problem], traces: pa.Table, verdicts: pa.Table) -> Window:
    asked = {problem.id: problem for problem in problems}
    place = {problem: number for number, problem in enumerate(asked)}
    answered = [Trace(*row) for row in _rows(traces)]
    answered.sort(key=lambda trace: (place[trace.problem_id], trace.index))
    judged = {row[0]: Verdict(*row) for row in _rows(verdicts)}
    return Window(asked, answered, [judged[trace.id] for trace in answered])


def _rows(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.to_pylist() for column in table.columns), strict=True)
