"""Files that are whole or not there: hashes, atomic writes, manifests, the lock. No torch.

Everything is written aside, flushed and renamed; a stage is finished when its `stage.json`
exists, and that names the hash of every file it wrote. A kill at any moment leaves whole files
or none, and a file that changed later is noticed when it is read.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from limbeck import guard
from limbeck.errors import UserError

REMAKE = "restore the file, or make its stage anew with --redo"

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


def hash_tree(path: Path, without: Sequence[str] = ()) -> dict[str, str]:
    """sha256 of every file below a folder, by relative name; `without` some of its folders."""
    names = [name for name in _names(path) if name.partition("/")[0] not in without]
    return {name: hash_file(path / name) for name in names}


def _names(path: Path) -> list[str]:
    """Every file below a folder, by relative name; what is still being written aside is none."""
    files = (p.relative_to(path) for p in path.rglob("*") if p.is_file())
    return sorted(str(p) for p in files if not any(name.startswith(".") for name in p.parts))


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


def copy_folder(folder: Path, to: Path) -> None:
    """The same files under another name where the disk can do that, else copies of them."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    if not folder.is_dir():
        raise UserError(str(folder), "is no folder to take it from", "name one on this machine")
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(folder, to, copy_function=link)


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    failpoint(f"{path.parent.name}.{path.name}.aside")
    commit(aside, path)


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path, way_out: str = REMAKE) -> Any:
    """UserError that names the file, if it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(str(path), f"is no JSON any more ({error})", way_out) from error


def write_sealed(path: Path, value: dict[str, Any]) -> None:
    """A manifest: JSON that carries the hash of itself."""
    write_json(path, {**value, "seal": digest(value)})


def read_sealed(path: Path, way_out: str = REMAKE) -> dict[str, Any]:
    """A manifest that is what was written, or a UserError that names it."""
    value = read_json(path, way_out)
    seal = value.pop("seal", None) if isinstance(value, dict) else None
    if seal is None or digest(value) != seal:
        raise UserError(str(path), "changed on disk since it was written", way_out)
    return value


def verify(path: Path) -> None:
    """Compares what a finished stage wrote at `path`, file or folder, with the stage's manifest.

    Nothing to say of what lies in no stage, or in one that is not finished. UserError names the
    first file that is missing, new or changed.
    """
    stage = next((p for p in path.parents if (p / "stage.json").exists()), None)
    if stage is None:
        return
    inside = str(path.relative_to(stage))
    promised = read_sealed(stage / "stage.json")["files"]
    promised = {n: h for n, h in promised.items() if n == inside or n.startswith(f"{inside}/")}
    there = {inside} if path.is_file() else {f"{inside}/{name}" for name in _names(path)}
    for name in sorted(promised.keys() | there):
        if name not in there:
            raise _changed(stage / name, "is missing")
        if name not in promised:
            raise _changed(stage / name, "is not of this stage")
        if hash_file(stage / name) != promised[name]:
            raise _changed(stage / name, "changed on disk since it was written")


def _changed(path: Path, what: str) -> UserError:
    return UserError(str(path), what, REMAKE)


def remove_tree(folder: Path) -> None:
    """Takes a folder away at once: a kill leaves it whole or not there, never half of it."""
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)
    if folder.exists():
        folder.rename(aside)
        failpoint(f"{folder.name}.removing")
        shutil.rmtree(aside, ignore_errors=True)


def append_json(path: Path, row: dict[str, Any]) -> None:
    """Adds one line to a `.jsonl` file in a single write; a torn last line gives way."""
    with open(path, "ab+") as file:
        file.truncate(_end_of_lines(file))
        file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())


def _end_of_lines(file: BinaryIO) -> int:
    """Where the last whole line of a file ends."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 4096)
        file.seek(start)
        if (place := file.read(end - start).rfind(b"\n")) >= 0:
            return start + place + 1
        end = start
    return 0


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """The rows of a `.jsonl` or `.jsonl.gz` file; a torn last line is left out.

    UserError that names file and line, if another is no JSON.
    """
    if not path.exists():
        return []
    return [row for _, row in guard.parse_rows(path, REMAKE, may_be_torn=True)]


_passed: Counter[str] = Counter()


def failpoint(name: str) -> None:
    """Dies here, as by SIGKILL, when a test has set LIMBECK_KILL_AT to this point's name.

    `name#3` is the third time that this process comes by.
    """
    wanted = os.environ.get("LIMBECK_KILL_AT")
    if wanted and wanted.partition("#")[0] == name:
        _passed[name] += 1
        if _passed[name] == int(wanted.partition("#")[2] or 1):
            os.kill(os.getpid(), signal.SIGKILL)


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
