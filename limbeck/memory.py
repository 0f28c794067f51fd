"""Memory: how much is left, and keeping what is freed. Imports torch only to ask a GPU."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # glibc's words


def left(device: torch.device) -> int:
    """Bytes that can still be taken on a device."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0]
    return left_here()


def left_here() -> int:
    """Bytes that can still be taken of this machine's own memory, as far as the system tells."""
    told = Path("/proc/meminfo")
    if told.exists():
        lines = dict(line.split(":") for line in told.read_text().splitlines())
        available = int(lines["MemAvailable"].split()[0]) * 1024
    else:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and (most := limit.read_text().strip()).isdigit():
        available = min(available, int(most) - int(used.read_text()))
    return available


def keep_freed() -> None:
    """Tells glibc to keep what is freed for what comes next.

    By default it gives a step's large blocks back to the system and takes them again, page by page.
    Other C libraries are left as they are.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "gnu_get_libc_version"):
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_TOP_PAD, 64 << 20)
        libc.mallopt(M_MMAP_THRESHOLD, 32 << 20)  # the most that it takes


def give_back() -> None:
    """Has glibc return to the system what was freed: what is held from now on is in use."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
