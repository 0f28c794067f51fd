"""How much of the machine a judged program may take."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """`cpu_s` is processor time of each process; the clock is the caller's.

    `memory_bytes` is address space of each process, and what all of them and their files hold
    together where a control group was granted.
    """

    cpu_s: float
    memory_bytes: int = 1 << 30
    num_processes: int = 64  # threads, too
    file_bytes: int = 64 << 20  # of all files together, and of the longest
    num_open_files: int = 256
    output_bytes: int = 16 << 20
