"""Memory and processes of a sandbox counted together, where the platform grants a control group."""

from __future__ import annotations

import functools
import itertools
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
DOOR = "cgroup.procs"
ENDS_S = 1.0  # how long killed processes may take to be gone
ENTER = "import os, sys; [os.write(int(door), b'0') for door in sys.argv[1:]]"
_numbers = itertools.count()


@dataclass(frozen=True)
class Cgroup:
    """A group that was made for one sandbox: one folder in version 2, two in version 1.

    `doors` are descriptors of its `cgroup.procs`: a process that writes 0 into them is inside.
    """

    folders: tuple[Path, ...]
    doors: tuple[int, ...]

    def end(self) -> bool:
        """Kills whoever is left, and removes the group; whether all are gone in time."""
        for door in self.doors:
            os.close(door)
        deadline = time.monotonic() + ENDS_S
        while not all(_removed(folder) for folder in self.folders):
            if time.monotonic() > deadline:
                return False
            for folder in self.folders:
                _kill(folder)
            time.sleep(0.001)
        return True


def _removed(folder: Path) -> bool:
    try:
        folder.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _kill(folder: Path) -> None:
    with suppress(OSError):
        for pid in (folder / DOOR).read_text().split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def grant(memory_bytes: int, num_processes: int) -> Cgroup | None:
    """A new group with these limits; None where the platform grants none."""
    parents = home()
    return None if parents is None else _make(parents, memory_bytes, num_processes)


@functools.cache
def home() -> tuple[Path, ...] | None:
    """The folders in which groups can be made, proved by making one; None without."""
    for parents in _candidates(Path("/proc/self/cgroup"), ROOT):
        _sweep(parents)
        try:
            cgroup = _make(parents, 1 << 30, 64)
        except OSError:
            continue
        lets_in = _lets_in(cgroup)
        cgroup.end()
        if lets_in:
            return parents
    return None


def _lets_in(cgroup: Cgroup) -> bool:
    """Whether a process can enter: who may make a group may not always leave another for it."""
    command = [sys.executable, "-I", "-S", "-c", ENTER, *map(str, cgroup.doors)]
    return not subprocess.run(command, pass_fds=cgroup.doors, stderr=subprocess.DEVNULL).returncode


def _candidates(own: Path, root: Path) -> list[tuple[Path, ...]]:
    """Where groups may be made: below our own first, so that its limits stay, then above it."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    paths = {name: path.strip("/") for _, names, path in lines for name in names.split(",")}
    if {"memory", "pids"} <= paths.keys():
        ours = (root / "memory" / paths["memory"], root / "pids" / paths["pids"])
        return [ours, (root / "memory", root / "pids")]
    folder = root / paths.get("", "")
    return [(place,) for place in (folder, *folder.parents) if place.is_relative_to(root)]


def _sweep(parents: tuple[Path, ...]) -> None:
    """Removes the empty groups of processes that were killed before they could."""
    for folder in [folder for parent in parents for folder in parent.glob("limbeck-*")]:
        pid = folder.name.split("-")[1]
        if not Path("/proc", pid).exists():
            _removed(folder)


def _make(parents: tuple[Path, ...], memory_bytes: int, num_processes: int) -> Cgroup:
    """Raises OSError where a folder, a limit or the way in is refused."""
    name = f"limbeck-{os.getpid()}-{next(_numbers)}"
    folders = tuple(parent / name for parent in parents)
    doors: list[int] = []
    try:
        for folder in folders:
            folder.mkdir()
        if len(folders) == 2:
            (folders[0] / "memory.limit_in_bytes").write_text(str(memory_bytes))
        else:
            (folders[0] / "memory.max").write_text(str(memory_bytes))
            (folders[0] / "memory.oom.group").write_text("1")
            with suppress(OSError):  # a kernel without swap
                (folders[0] / "memory.swap.max").write_text("0")
        (folders[-1] / "pids.max").write_text(str(num_processes))
        for folder in folders:
            doors.append(os.open(folder / DOOR, os.O_WRONLY | os.O_CLOEXEC))
    except OSError:
        Cgroup(folders, tuple(doors)).end()
        raise
    return Cgroup(folders, tuple(doors))
