"""Tables on disk: Parquet parts with page checksums, each whole or not there. Imports no torch."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from limbeck import guard, sealed, store
from limbeck.errors import UserError
from limbeck.types import Message, Problem, Trace, Verdict

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
SCHEMAS = {
    "problems": pa.schema(
        [
            ("id", pa.string()),
            ("messages", MESSAGES),
            ("answer", pa.string()),
            ("verifier", pa.string()),  # JSON: a name, or a mapping with knobs
            ("domain", pa.string()),
            ("split", pa.string()),
            ("meta", pa.string()),  # JSON
        ]
    ),
    "traces": pa.schema(
        [
            ("id", pa.string()),
            ("problem_id", pa.string()),
            ("index", pa.int32()),
            ("text", pa.string()),
            ("finish", pa.string()),
            ("model", pa.string()),
            ("prompt_tokens", pa.int32()),
            ("completion_tokens", pa.int32()),
            ("token_ids", pa.list_(pa.int32())),
            ("logprobs", pa.list_(pa.float32())),
        ]
    ),
    "verdicts": pa.schema(
        [
            ("trace_id", pa.string()),
            ("correct", pa.bool_()),
            ("extracted", pa.string()),
            ("reason", pa.string()),
            ("score", pa.float64()),
        ]
    ),
    "decisions": pa.schema(
        [("trace_id", pa.string()), ("problem_id", pa.string()), ("dropped", pa.string())]
    ),
    "dataset": pa.schema(
        [
            ("id", pa.string()),
            ("problem_id", pa.string()),
            ("messages", MESSAGES),
            ("domain", pa.string()),
            ("source", pa.string()),
            ("teacher", pa.string()),
            ("weight", pa.float32()),
        ]
    ),
    "pairs": pa.schema(
        [
            ("id", pa.string()),
            ("problem_id", pa.string()),
            ("messages", MESSAGES),
            ("chosen", pa.string()),
            ("rejected", pa.string()),
            ("margin", pa.float64()),  # how much better the chosen answer is
            ("chosen_length", pa.int64()),  # characters of what was compared
            ("rejected_length", pa.int64()),
        ]
    ),
    "scores": pa.schema(
        [
            ("split", pa.string()),
            ("metric", pa.string()),
            ("problem_id", pa.string()),
            ("domain", pa.string()),
            ("num_samples", pa.int32()),
            ("num_correct", pa.int32()),
            ("num_failed", pa.int32()),  # could not be written, or not be judged
            ("num_truncated", pa.int32()),
            ("num_unparsed", pa.int32()),  # finished, and gave no answer that could be read
            ("num_timeout", pa.int32()),  # were not judged in time; they are among the failed
            ("prompt_tokens", pa.int64()),
            ("completion_tokens", pa.int64()),
            ("flops", pa.float64()),
            ("value", pa.float64()),  # the metric of this problem
            ("weight", pa.float64()),  # what it counts: 1, or the tokens that it is the mean of
        ]
    ),
}
LATER = {"score": pa.float64(), "num_unparsed": pa.int32(), "num_timeout": pa.int32()}
"""Columns that tables of before do not have; whoever asks for them reads nulls."""


def to_table(kind: str, rows: Iterable[Any]) -> pa.Table:
    """Rows (our dataclasses, or dicts of that shape) as an Arrow table."""
    plain = [
        asdict(row) if is_dataclass(row) and not isinstance(row, type) else row for row in rows
    ]
    if kind == "problems":
        plain = [sealed.seal(row) if sealed.MARK in row["meta"] else row for row in plain]
        for row in plain:
            row["verifier"] = json.dumps(row["verifier"])
            row["meta"] = json.dumps(row["meta"], ensure_ascii=False)
    return pa.Table.from_pylist(plain, schema=SCHEMAS[kind])


def write_part(folder: Path, table: pa.Table) -> Path:
    """Adds the next part to a table; whole or not at all.

    Its name ends in its hash, so that it can vouch for itself while no manifest does; where one
    was taken out, the next takes its number.
    """
    folder.mkdir(parents=True, exist_ok=True)
    taken = {path.name[:10] for path in parts(folder)}
    name = next(n for i in range(len(taken) + 1) if (n := f"part-{i:05d}") not in taken)
    aside = folder / f".{name}.parquet.tmp"
    pq.write_table(table, aside, compression="zstd", write_page_checksum=True)
    path = folder / f"{name}-{store.hash_file(aside)[:16]}.parquet"
    store.failpoint(f"{folder.parent.name}.{name}")
    store.commit(aside, path)
    store.failpoint(f"{folder.parent.name}.{name}.renamed")
    return path


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def is_whole(part: Path) -> bool:
    """Whether a part is what was written; a file of other origin is not asked."""
    named = re.fullmatch(r"part-\d{5}-([0-9a-f]{16})\.parquet", part.name)
    return named is None or store.hash_file(part).startswith(named[1])


def set_broken_aside(folder: Path, tell: Callable[[str], None]) -> None:
    """Takes parts that changed on disk out of an unfinished table: their rows are made again."""
    for part in parts(folder):
        if not is_whole(part):
            part.rename(part.with_name(f".{part.name}.broken"))
            tell(f"{part} changed on disk since it was written; its rows are made again")


def read_table(path: Path | str, columns: list[str] | None = None) -> pa.Table:
    """A table: a folder of parts, one Parquet file, or one `.jsonl[.gz]` file.

    What a finished stage wrote is compared with its manifest first, so that nothing that changed
    on disk is taken for whole. UserError names the file.
    """
    path = Path(path)
    files = _checked(path)
    if ".jsonl" in path.name:
        table = _from_rows(store.read_jsonl(path), path)
        return table.select(columns) if columns else table
    return pa.concat_tables(
        [_read_part(file, columns) for file in files], promote_options="default"
    )


def iter_batches(
    path: Path | str, columns: list[str] | None = None, rows: int = 4096, again: bool = False
) -> Iterator[pa.RecordBatch]:
    """The same, at most so many rows at a time: of Parquet no more is ever in memory.

    Lines of JSON are read whole. `again` spares the comparison of files with their hashes to a
    reader that has made it; page checksums are always compared.
    """
    path = Path(path)
    if ".jsonl" in path.name:
        yield from read_table(path, columns).to_batches(max_chunksize=rows)
        return
    for file in _files(path) if again else _checked(path):
        with _read_errors(file):
            if not again:
                _check_whole(file)
            guard.check_parquet(file, columns)
            with pq.ParquetFile(file, buffer_size=1 << 20, page_checksum_verification=True) as part:
                for batch in part.iter_batches(rows, columns=columns):
                    yield _completed(batch, columns).select(columns) if columns else batch


def num_rows(path: Path | str) -> int:
    """Of the same, without reading more of Parquet than its footers."""
    path = Path(path)
    if ".jsonl" in path.name:
        return read_table(path).num_rows
    total = 0
    for file in _files(path):
        with _read_errors(file):
            total += pq.read_metadata(file).num_rows
    return total


def _checked(path: Path) -> list[Path]:
    """The files of a table that is what its stage wrote."""
    if not path.exists():
        raise UserError(str(path), "no such table", "check the path, or run its stage")
    store.verify(path)
    return _files(path)


def _files(path: Path) -> list[Path]:
    files = parts(path) if path.is_dir() else [path]
    if not files:
        raise UserError(str(path), "has no parts", "run the stage that makes it")
    return files


def _from_rows(rows: list[Any], path: Path) -> pa.Table:
    """Rows of any shape; what one of them lacks is null."""
    try:
        names = dict.fromkeys(name for row in rows for name in row)
        return pa.table({name: [row.get(name) for row in rows] for name in names})
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        what = f"its rows are no table ({str(error).splitlines()[0]})"
        raise UserError(str(path), what, "give a field the same type in all") from error


def _read_part(file: Path, columns: list[str] | None) -> pa.Table:
    with _read_errors(file):
        _check_whole(file)
        guard.check_parquet(file, columns)
        table = pq.read_table(
            file, columns=columns, page_checksum_verification=True, memory_map=False
        )
        return _completed(table, columns or [])


def _completed(rows: Any, columns: list[str]) -> Any:
    """The same table or batch, with nulls in what was asked for and came later than it did."""
    for name in columns:
        if name in LATER and name not in rows.schema.names:
            rows = rows.append_column(name, pa.nulls(rows.num_rows, LATER[name]))
    return rows


def _check_whole(file: Path) -> None:
    if not is_whole(file):  # of a stage that is not finished: a manifest would have objected
        way_out = "restore it, or delete it to have its rows made again"
        raise UserError(str(file), "changed on disk since it was written", way_out)


@contextmanager
def _read_errors(file: Path) -> Iterator[None]:
    """What the library says of a broken file, as a UserError that names it."""
    try:
        yield
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        way_out = "restore it, or make its stage anew with --redo"
        raise UserError(str(file), f"is broken ({reason})", way_out) from error


def read_problems(path: Path | str) -> list[Problem]:
    return problems_of(read_table(path), path)


def problems_of(table: pa.Table, path: Path | str) -> list[Problem]:
    """A table's rows as problems; UserError at `path` for one that is none."""
    problems = []
    for row in table.to_pylist():
        try:
            problems.append(_problem(row))
        except (TypeError, ValueError, KeyError) as error:
            what = f"problem {row.get('id')} cannot be read ({error})"
            raise UserError(str(path), what, "mend it, or collect it from its source") from error
    return problems


def read_lessons(path: Path | str) -> list[Problem]:
    return lessons_of(read_table(path), path)


def lessons_of(table: pa.Table, path: Path | str) -> list[Problem]:
    """A table's rows as problems to learn from; UserError at `path` for those of a sealed exam."""
    problems = problems_of(table, path)
    if any(sealed.MARK in problem.meta for problem in problems):
        what = "holds an exam whose authors ask that nobody learns it"
        raise UserError(str(path), what, "`evaluate` on it, and learn from other problems")
    return problems


def _problem(row: dict[str, Any]) -> Problem:
    row = sealed.unseal({**row, "meta": json.loads(row["meta"])})
    messages = tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])
    if not any(message.role == "user" for message in messages):
        raise ValueError("nothing is asked")
    verifier, meta = json.loads(row["verifier"]), row["meta"]
    domain = row["domain"] or ""
    if not isinstance(meta, dict):
        raise ValueError("its meta is no object")
    read = {"messages": messages, "verifier": verifier, "domain": domain, "meta": meta}
    return Problem(**{**row, **read})


def read_traces(path: Path | str) -> list[Trace]:
    """Traces without token ids and log-probs, which most readers do not need."""
    names = [f.name for f in fields(Trace) if f.name not in ("token_ids", "logprobs")]
    return [Trace(**row) for row in read_table(path, names).to_pylist()]


def read_verdicts(path: Path | str) -> list[Verdict]:
    return [Verdict(**row) for row in read_table(path).to_pylist()]
