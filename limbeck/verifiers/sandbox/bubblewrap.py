"""The sandbox that bubblewrap makes: https://github.com/containers/bubblewrap."""

from __future__ import annotations

import functools
import shutil
import subprocess
from collections.abc import Sequence

from limbeck.verifiers.sandbox.interpreter import DEVICES, ENVIRONMENT, visible
from limbeck.verifiers.sandbox.limits import Limits


def command(inner: Sequence[str], limits: Limits, seccomp: int) -> list[str]:
    """The command line that runs `inner` in new namespaces of every kind.

    It sees the interpreter read-only, a private /tmp, four devices and no /proc; `seccomp` is a
    descriptor from which the filter can be read.
    """
    shown = [
        word
        for path, target in visible()
        for word in (["--symlink", target, path] if target else ["--ro-bind", path, path])
    ]
    return [
        shutil.which("bwrap") or "bwrap",
        *("--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
        *("--hostname", "sandbox", *_no_more_users(), *shown),
        *(word for device in DEVICES for word in ("--dev-bind", device, device)),
        *("--size", str(limits.file_bytes), "--tmpfs", "/tmp", "--symlink", "/tmp", "/dev/shm"),
        *("--remount-ro", "/", "--chdir", "/tmp", "--clearenv"),
        *(word for pair in ENVIRONMENT.items() for word in ("--setenv", *pair)),
        *("--seccomp", str(seccomp)),
        *("--", *inner),
    ]


@functools.cache
def _no_more_users() -> tuple[str, ...]:
    """The option that forbids user namespaces inside, where this bubblewrap knows it."""
    told = subprocess.run(["bwrap", "--help"], capture_output=True, text=True, check=False)
    known = "--disable-userns" in told.stdout + told.stderr
    return ("--unshare-user", "--disable-userns") if known else ()
