"""What a process holds and takes, as its system tells. Imports torch for no clock."""

from __future__ import annotations

import os
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any


def held_memory_mib() -> float | None:
    """The memory that this process holds now, in MiB; None where the system does not say."""
    return _of_status("VmRSS")


def peak_memory_mib() -> float:
    """The most memory that this process has held since `forget_peak`, in MiB."""
    peak = _of_status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 if peak is None else peak


def _of_status(key: str) -> float | None:
    """MiB that Linux tells of this process; None elsewhere."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition(f"{key}:")[2].split()[0]) / 1024
    except (OSError, ValueError, IndexError):
        return None


def held_device_memory_mib() -> float:
    """What tensors of this process hold now, on the GPU where they hold most, in MiB."""
    cuda = _cuda()
    gpus = range(cuda.device_count()) if cuda else ()
    return max((cuda.memory_allocated(gpu) / 2**20 for gpu in gpus), default=0.0)


def peak_device_memory_mib() -> float:
    """The most that tensors of this process have held on one GPU since `forget_peak`, in MiB."""
    cuda = _cuda()
    gpus = range(cuda.device_count()) if cuda else ()
    return max((cuda.max_memory_allocated(gpu) / 2**20 for gpu in gpus), default=0.0)


def forget_peak() -> None:
    """Counts the peaks of memory from now on, where the system lets us (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    cuda = _cuda()
    for gpu in range(cuda.device_count()) if cuda else ():
        cuda.reset_peak_memory_stats(gpu)


def _cuda() -> Any:
    """torch's, if somebody has imported it and uses a GPU; else None."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch and torch.cuda.is_initialized() else None


def cpu_seconds() -> float:
    """CPU time of this process and its finished children, in seconds."""
    times = os.times()  # in ticks of a hundredth: good enough for children alone
    return time.process_time() + times.children_user + times.children_system


def gemm_gflops(seconds: float = 0.5) -> float:
    """What this machine's matrix product reaches now, fp32, 1024 x 1024, in GFLOP/s.

    Shared machines differ from minute to minute; a time beside this figure can be compared.
    """
    import torch

    matrix = torch.ones(1024, 1024)
    matrix @ matrix
    count, begun = 0, time.monotonic()
    while (spent := time.monotonic() - begun) < seconds:
        matrix @ matrix
        count += 1
    return round(count * 2 * 1024**3 / spent / 1e9, 1)
