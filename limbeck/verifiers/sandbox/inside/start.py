"""The first words of a process in a sandbox: its limits, then what it was started for."""

from __future__ import annotations

import os
import resource
import sys

from limbeck.verifiers.sandbox import wire
from limbeck.verifiers.sandbox.inside import program, tester

TYPE_CHECKING = False  # typing takes longer to import than all the rest
if TYPE_CHECKING:
    from typing import Any


def main(channel: int) -> None:
    """Takes limits upon itself, says that the sandbox stands, and does what it is then asked."""
    os.set_inheritable(channel, False)
    limits, doors = wire.loads(wire.receive(channel)[1])
    join(doors)
    os.closerange(3, channel)
    os.closerange(channel + 1, 1 << 16)
    limit(limits)
    sys.set_int_max_str_digits(0)  # it guards against long work, for which there is a limit here
    wire.send(channel, wire.READY)
    kind, asked = wire.receive(channel)
    run = program.run if kind in (wire.SCRIPT, wire.FUNCTIONS) else tester.run
    run(channel, kind, **wire.loads(asked))


def join(doors: list[int]) -> None:
    """Enters the control group."""
    for door in doors:
        os.write(door, b"0")
        os.close(door)


def limit(limits: dict[str, Any]) -> None:
    """Sets what the kernel itself enforces; without capabilities nobody can raise it again."""
    cpu_s = int(limits["cpu_s"]) + 1
    wanted = {
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["num_open_files"],
        resource.RLIMIT_NPROC: limits["num_processes"],
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        least = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (least, least))
