"""Tables of strangers: JSON lines and Parquet files that are larger inside than outside."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from limbeck.errors import UserError

MAX_LINE = 64 << 20  # bytes; a text of a million tokens has 4 MB
FLOOR = 256 << 20  # bytes that any Parquet file may decode to, however small it is
FLOOR_PACKED = 32 << 20  # bytes of lines in any archive: as Python objects they take ten times more
VALUE = 64  # bytes that a value takes as a Python object, however short it is
MAX_RATIO = 64  # beyond that: what honest texts gain is 3 to 10, and 40 where all are alike
PIECE = 1 << 20


def check_regular(path: Path) -> None:
    """UserError for a device or a pipe, which may have no end and may never begin."""
    if path.exists() and not path.is_file():
        raise UserError(str(path), "is not a regular file", "name a file")


def lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, gzipped or not, with their ends.

    ValueError for a line longer than MAX_LINE and for a file that unpacks to far more than it is.
    """
    check_regular(path)
    is_packed = path.suffix == ".gz"
    if is_packed:
        _check_archive(path)
    with gzip.open(path, "rb") if is_packed else open(path, "rb") as file:
        while line := file.readline(MAX_LINE + 1):
            if len(line) > MAX_LINE:
                raise ValueError(f"the next line has more than {MAX_LINE:,} bytes")
            yield line


def _check_archive(path: Path) -> None:
    """Unpacks it once for its size alone, a small part of what its rows cost to read."""
    room = max(FLOOR_PACKED, MAX_RATIO * path.stat().st_size)
    try:
        with gzip.open(path, "rb") as file:
            while piece := file.read(PIECE):
                room -= len(piece)
                if room < 0:
                    raise ValueError(f"the file unpacks to more than {MAX_RATIO} times its size")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"the archive is broken ({error})") from error


def parse_rows(
    path: Path, way_out: str = "mend the line", may_be_torn: bool = False
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number, row) of each line that is not blank; UserError that names the line.

    A last line without an end is left out, if it `may_be_torn` and is.
    """
    numbered = enumerate(lines(path), 1)
    number, line = 0, b""
    while True:
        try:
            number, line = next(numbered, (number, b""))
            row = _parse_row(line) if line.strip() else None
        except (ValueError, OSError) as error:
            if may_be_torn and line and not line.endswith(b"\n"):
                return
            raise UserError(f"{path}:{number}", str(error), way_out) from error
        if not line:
            return
        if row is not None:
            yield number, row


def _parse_row(line: bytes) -> dict[str, Any]:
    """A line's object, or ValueError."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"a row is an object, not {type(row).__name__}")
    return row


def check_parquet(path: Path, columns: Sequence[str] | None = None) -> None:
    """UserError for a Parquet file that decodes to far more than it is.

    A dictionary page says a megabyte once and each row repeats it in two bits. Numbers are counted
    from the metadata; texts are bounded by the longest word of the dictionary, and
    counted exactly, still undecoded, only where that bound is too large.
    """
    import pyarrow.parquet as pq

    check_regular(path)
    room = max(FLOOR, MAX_RATIO * path.stat().st_size)
    with pq.ParquetFile(path) as file:
        meta = file.metadata
        total = 0
        for group in range(meta.num_row_groups):
            for index in range(meta.num_columns):
                chunk = meta.row_group(group).column(index)
                if columns is None or chunk.path_in_schema.split(".")[0] in columns:
                    total += _decoded(path, chunk, group, room - total)
                if total > room:
                    what = f"decodes to more than {room:,} bytes, {MAX_RATIO} times its size"
                    raise UserError(str(path), what, "write it again, in smaller files")


TEXTS = ("BYTE_ARRAY", "FIXED_LEN_BYTE_ARRAY")


def _decoded(path: Path, chunk: Any, group: int, room: int) -> int:
    """Bytes that a column chunk decodes to, or an upper bound of them that fits the room."""
    plain = chunk.num_values * VALUE + chunk.total_uncompressed_size
    if chunk.physical_type not in TEXTS or not chunk.has_dictionary_page or plain > room:
        return plain
    if plain + chunk.num_values * chunk.total_uncompressed_size <= room:
        return plain
    bound = plain + chunk.num_values * _longest_word(path, chunk, group)
    return bound if bound <= room else plain + _words(path, chunk, group)


def _longest_word(path: Path, chunk: Any, group: int) -> int:
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    leaf = chunk.path_in_schema
    with pq.ParquetFile(path, read_dictionary=[leaf]) as file:
        batch = next(file.iter_batches(1, row_groups=[group], columns=[leaf]), None)
    if batch is None:
        return 0
    return max(
        (pc.max(pc.binary_length(a.dictionary)).as_py() or 0 for a in _leaves(batch)), default=0
    )


def _words(path: Path, chunk: Any, group: int) -> int:
    """The exact length of all a chunk's texts, which stay in their dictionary."""
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    leaf, total = chunk.path_in_schema, 0
    with pq.ParquetFile(path, read_dictionary=[leaf]) as file:
        for batch in file.iter_batches(65_536, row_groups=[group], columns=[leaf]):
            for array in _leaves(batch):
                lengths = pc.binary_length(array.dictionary).take(array.indices)
                total += pc.sum(lengths).as_py() or 0
    return total


def _leaves(batch: Any) -> list[Any]:
    """The one leaf of a batch's one column, however it is nested; none if it is no dictionary."""
    import pyarrow as pa

    array = batch.column(0)
    while not pa.types.is_dictionary(array.type):
        if pa.types.is_struct(array.type):
            array = array.field(0)
        elif pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
            array = array.flatten()
        elif pa.types.is_map(array.type):
            array = array.keys if array.type.key_type else array.items
        else:
            return []
    return [array]
