"""The Python that judged programs run in: this one, without its packages."""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path

FLAGS = ("-P", "-s", "-S", "-B", "-X", "utf8")
ENVIRONMENT = {
    "HOME": "/tmp",
    "LANG": "C.UTF-8",
    "PYTHONHASHSEED": "0",  # the order of a set is the same whenever a program is judged
}
LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/nix/store")
ZONES = "/usr/share/zoneinfo"
OWN_LIBRARIES = re.compile(
    r"lib(python[\d.]*|ssl|crypto|z|ffi|bz2|lzma|sqlite3|expat|mpdec)[.\d-]*\.so"
)
DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


@functools.cache
def executable() -> str:
    """The interpreter itself, not a virtual environment's link to it."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


@functools.cache
def visible() -> tuple[tuple[str, str | None], ...]:
    """(path, None) for what is shown read-only at its own place, (path, target) for a link.

    The interpreter, its standard library and the system's shared libraries; no other program.
    """
    library = Path(os.__file__).resolve().parent
    prefix = Path(sys.base_prefix).resolve()
    shown = [*LIBRARIES, ZONES, executable(), str(library)]
    shown += [
        str(path) for path in (prefix / "lib").glob("*.so*") if OWN_LIBRARIES.match(path.name)
    ]
    links = {path: os.readlink(path) for path in shown if os.path.islink(path)}
    folders = [path for path in shown if os.path.isdir(path) and path not in links]
    found: dict[str, str | None] = dict(links)
    for path in shown:
        within = any(path != folder and path.startswith(folder + "/") for folder in folders)
        if os.path.exists(path) and path not in links and not within:
            found[path] = None
    return tuple(sorted(found.items()))
