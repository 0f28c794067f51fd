"""Runs Python programs that nobody trusts: in namespaces of their own, without network.

A process of it sees the interpreter and its standard library, read-only, and a small /tmp of its
own: no home, no run folder, no environment, no other process. Its memory, processes, files, output
and time are limited, and all of it dies together. Bubblewrap makes the namespaces, or, where that
is not installed, the kernel's own calls do; a control group counts memory and processes together
where the platform grants one, and where it does not a program may start threads, but no process.
The kernel is shared: what is made to attack it, rather than sloppy or sly, needs a virtual machine.
"""

from __future__ import annotations

import functools
import platform
import shutil
import sys
import time

from limbeck.errors import UserError
from limbeck.verifiers.sandbox import seccomp, wire
from limbeck.verifiers.sandbox.limits import Limits
from limbeck.verifiers.sandbox.process import Ended, Late, Process, Trouble

__all__ = ["BACKENDS", "Ended", "Late", "Limits", "Process", "Trouble", "backend", "run", "start"]

BACKENDS = ("bubblewrap", "namespaces")
TRIED_S = 10.0  # for an empty program


@functools.cache
def backend() -> str:
    """The strongest sandbox that this machine has; UserError where there is none."""
    reasons = []
    for name in BACKENDS:
        reason = refusal(name)
        if reason is None:
            return name
        reasons.append(f"{name}: {reason}")
    raise UserError(
        "verifier code",
        f"no sandbox for programs on this machine ({'; '.join(reasons)})",
        "install bubblewrap and allow user namespaces, or verify on a Linux machine that has them",
    )


def refusal(name: str) -> str | None:
    """Why a backend does not work here; None where it does: it is tried."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if platform.machine() not in seccomp.MACHINES:
        return f"has no filter for system calls of {platform.machine()}"
    if name == "bubblewrap" and shutil.which("bwrap") is None:
        return "bwrap is not installed"
    try:
        _run(Process(Limits(cpu_s=TRIED_S), name, piped=True), "", "", TRIED_S)
    except (Trouble, Ended, Late, OSError) as error:  # OSError: a kernel before 5.3
        return str(error) or type(error).__name__
    return None


def start(limits: Limits, piped: bool = False) -> Process:
    """A process in the best sandbox; UserError where there is none, Trouble where it fails."""
    return Process(limits, backend(), piped)


def run(program: str, stdin: str, time_s: float, limits: Limits) -> tuple[bytes, int]:
    """(standard output, exit status) of a program that is run as a script.

    Raises Late past its time, Ended where it wrote too much, Trouble where no sandbox came up.
    """
    return _run(start(limits, piped=True), program, stdin, time_s)


def _run(started: Process, program: str, stdin: str, time_s: float) -> tuple[bytes, int]:
    with started as process:
        deadline = time.monotonic() + time_s
        process.ask(wire.SCRIPT, deadline, source=program, stdin=stdin)
        return process.output(deadline)
