"""Records that must survive: each with its length and CRC, in one write. Imports no torch.

An answer that was paid for is in the journal before it counts. A record that a kill tore at the
end is cut off; a broken stretch in the middle is set aside in a file of its own, and what stands
behind it is found again by the mark that every record begins with.
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MARK = b"\xf0\x9f\xa7\xaaLJ1\n"  # no JSON text holds it
HEAD = struct.Struct("<II")  # length and CRC-32 of the payload
FLUSH_EVERY_S = 1.0
FLUSH_EVERY = 64


@dataclass(frozen=True)
class Contents:
    """What a journal holds: whole records, bytes of a torn end, broken stretches (start, end)."""

    records: list[dict[str, Any]]
    torn: int
    broken: list[tuple[int, int]]
    end: int


def parse(data: bytes) -> Contents:
    """Every record that is whole, and where the others lie."""
    records: list[dict[str, Any]] = []
    broken: list[tuple[int, int]] = []
    place = end = 0
    while (mark := data.find(MARK, place)) >= 0:
        record, after = _record(data, mark)
        if record is None:
            place = mark + 1
            continue
        if mark > end:
            broken.append((end, mark))
        records.append(record)
        place = end = after
    return Contents(records, len(data) - end, broken, end)


def _record(data: bytes, mark: int) -> tuple[dict[str, Any] | None, int]:
    start = mark + len(MARK) + HEAD.size
    if start > len(data):
        return None, mark
    length, crc = HEAD.unpack_from(data, mark + len(MARK))
    payload = data[start : start + length]
    if len(payload) < length or zlib.crc32(payload) != crc:
        return None, mark
    try:
        record = json.loads(payload)
    except ValueError:  # zeros, say, which a power cut leaves: a CRC of nothing is 0
        return None, mark
    return (record, start + length) if isinstance(record, dict) else (None, mark)


class Journal:
    """An append-only file of JSON records.

    `append` returns once the operating system has the record: a kill loses nothing that it
    returned for. A flush to the disk follows at least every second or 64 records, so a power cut
    loses no more than that.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        data = path.read_bytes() if path.exists() else b""
        contents = parse(data)
        self.path, self.records = path, contents.records
        self.torn = contents.torn
        self.quarantined = [self._quarantine(data[a:b], a) for a, b in contents.broken]
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        if contents.torn:
            os.ftruncate(self.file, contents.end)
        self.unflushed, self.flushed = 0, time.monotonic()

    def _quarantine(self, stretch: bytes, start: int) -> Path:
        """Keeps a broken stretch for whoever wants to look at it."""
        place = self.path.with_name(f"{self.path.name}.broken-at-{start}")
        place.write_bytes(stretch)
        return place

    def append(self, record: dict[str, Any]) -> None:
        """Adds a record, whole, in one write."""
        payload = json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass")
        whole = MARK + HEAD.pack(len(payload), zlib.crc32(payload)) + payload
        written = 0
        while written < len(whole):  # a write may be cut short by a signal or a full disk
            written += os.write(self.file, whole[written:])
        self.records.append(record)
        self.unflushed += 1
        late = time.monotonic() - self.flushed > FLUSH_EVERY_S
        if self.unflushed >= FLUSH_EVERY or late:
            self.flush()

    def flush(self) -> None:
        """Through to the disk."""
        os.fsync(self.file)
        self.unflushed, self.flushed = 0, time.monotonic()

    def clear(self) -> None:
        """Forgets its records: they are in a sealed part now."""
        os.ftruncate(self.file, 0)
        self.records = []
        self.flush()

    def remove(self) -> None:
        """Closes the journal and takes it away: nothing is left to be remembered."""
        os.close(self.file)
        self.path.unlink()
