"""Run folders: tables in parts, manifests written last, content hashes. Imports no torch.

A part is a Parquet file with page checksums, written aside and renamed; a stage is finished when
its `stage.json` exists. So a kill at any moment leaves whole files or none.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import platform
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

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
            ("teacher", pa.string()),
            ("weight", pa.float32()),
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
            ("num_truncated", pa.int32()),
            ("prompt_tokens", pa.int64()),
            ("completion_tokens", pa.int64()),
            ("flops", pa.float64()),
        ]
    ),
}

Row = TypeVar("Row")


# -- hashes -------------------------------------------------------------------------------------


def digest(value: Any) -> str:
    """sha256 of a JSON value in canonical form."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def seed_of(*parts: Any) -> int:
    """A uint64 seed for one piece of work, whatever order or process it runs in."""
    return int(digest(parts)[:16], 16)


def hash_file(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_tree(path: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by relative name."""
    files = sorted(p for p in path.rglob("*") if p.is_file())
    return {str(p.relative_to(path)): hash_file(p) for p in files}


# -- atomic writes ------------------------------------------------------------------------------


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last beyond a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def commit(aside: Path, path: Path) -> None:
    """Renames a finished file to its place, on disk before this returns."""
    descriptor = os.open(aside, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(aside, path)
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    commit(aside, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def append_json(path: Path, row: dict[str, Any]) -> None:
    """Adds one line to a `.jsonl` file in a single write."""
    with open(path, "ab") as file:
        file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a `.jsonl` or `.jsonl.gz` file; a torn last line is left out."""
    if not path.exists():
        return []
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        return [json.loads(line) for line in file if line.endswith(b"\n") and line.strip()]


def failpoint(name: str) -> None:
    """Dies here, as by SIGKILL, when a test has set LIMBECK_KILL_AT to this point's name."""
    if os.environ.get("LIMBECK_KILL_AT") == name:
        os.kill(os.getpid(), signal.SIGKILL)


# -- tables -------------------------------------------------------------------------------------


def to_table(kind: str, rows: Iterable[Any]) -> pa.Table:
    """Rows (our dataclasses, or dicts of that shape) as an Arrow table."""
    plain = [
        asdict(row) if is_dataclass(row) and not isinstance(row, type) else row for row in rows
    ]
    if kind == "problems":
        for row in plain:
            row["verifier"] = json.dumps(row["verifier"])
            row["meta"] = json.dumps(row["meta"], ensure_ascii=False)
    return pa.Table.from_pylist(plain, schema=SCHEMAS[kind])


def write_part(folder: Path, table: pa.Table) -> Path:
    """Adds the next part to a table; whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"part-{len(parts(folder)):05d}.parquet"
    aside = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, aside, compression="zstd", write_page_checksum=True)
    failpoint(f"{folder.parent.name}.{path.stem}")
    commit(aside, path)
    return path


def parts(folder: Path) -> list[Path]:
    return sorted(folder.glob("part-*.parquet"))


def read_table(path: Path | str, columns: list[str] | None = None) -> pa.Table:
    """A table: a folder of parts, one Parquet file, or one `.jsonl[.gz]` file."""
    path = Path(path)
    if not path.exists():
        raise UserError(
            str(path), "no such table", "check the path, or run the stage that makes it"
        )
    if ".jsonl" in path.name:
        table = pa.Table.from_pylist(read_jsonl(path))
        return table.select(columns) if columns else table
    files = parts(path) if path.is_dir() else [path]
    if not files:
        raise UserError(str(path), "has no parts", "run the stage that makes it")
    tables = [
        pq.read_table(file, columns=columns, page_checksum_verification=True, memory_map=False)
        for file in files
    ]
    return pa.concat_tables(tables)


def read_problems(path: Path | str) -> list[Problem]:
    rows = read_table(path).to_pylist()
    for row in rows:
        row["messages"] = tuple(Message(**message) for message in row["messages"])
        row["verifier"], row["meta"] = json.loads(row["verifier"]), json.loads(row["meta"])
    return [Problem(**row) for row in rows]


def read_traces(path: Path | str) -> list[Trace]:
    """Traces without token ids and log-probs, which most readers do not need."""
    names = [f.name for f in fields(Trace) if f.name not in ("token_ids", "logprobs")]
    return [Trace(**row) for row in read_table(path, names).to_pylist()]


def read_verdicts(path: Path | str) -> list[Verdict]:
    return [Verdict(**row) for row in read_table(path).to_pylist()]


# -- the run folder -----------------------------------------------------------------------------


@contextmanager
def locked(run_dir: Path) -> Iterator[None]:
    """Holds a run folder; the kernel lets go of it when its holder dies, however it dies."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with open(run_dir / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another process"
            raise UserError(
                str(run_dir),
                f"is in use by {holder}",
                "wait for it, or choose another --run folder",
            ) from None
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {platform.node()} since {since}")
        file.flush()
        yield
