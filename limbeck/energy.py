"""Joules, where the machine tells them: the counters of its CPU packages and of NVIDIA's GPUs.

A counter counts everybody: on a shared machine what others draw is in it, too.
"""

from __future__ import annotations

import importlib
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

POWERCAP = Path("/sys/class/powercap")
WATCH_S = 30.0  # the smallest counters hold 65 kJ: more than two kilowatts for so long


@dataclass(frozen=True)
class Counter:
    """Tells joules that only grow, but begin anew at `wraps_at`, if that is known."""

    of: Literal["packages", "gpus"]
    read: Callable[[], float]
    wraps_at: float | None = None


class Meter:
    """What several counters have counted together since the meter was made."""

    def __init__(self, counters: Sequence[Counter]) -> None:
        self.counters, self.counted = counters, 0.0
        self.lock = threading.Lock()
        self.last: list[float] = []
        with suppress(OSError):
            self.last = [counter.read() for counter in counters]
        self.is_broken = not self.last

    @property
    def of(self) -> list[str]:
        """What is counted."""
        return sorted({counter.of for counter in self.counters})

    def joules(self) -> float | None:
        """So far; None once a counter cannot be read, or has turned back without a word."""
        with self.lock:
            if not self.is_broken:
                self._read()
            return None if self.is_broken else self.counted

    def _read(self) -> None:
        try:
            now = [counter.read() for counter in self.counters]
        except OSError:
            self.is_broken = True
            return
        for counter, before, after in zip(self.counters, self.last, now, strict=True):
            turned = counter.wraps_at if after < before else 0.0
            self.is_broken |= turned is None
            self.counted += after - before + (turned or 0.0)
        self.last = now

    def watch(self) -> None:
        """Reads now and then, for as long as the process lives: no turn goes unseen."""
        while not self.is_broken:
            time.sleep(WATCH_S)
            self.joules()


@cache
def meter(num_gpus: int) -> Meter:
    """The machine's: its CPU packages and, where accelerators are in use, so many GPUs.

    It counts nothing where these do not tell, as they draw the most.
    """
    gpus = nvidia(num_gpus) if num_gpus else []
    found = Meter([*packages(), *gpus] if len(gpus) == num_gpus else [])
    if not found.is_broken:
        threading.Thread(target=found.watch, daemon=True).start()
    return found


def packages(folder: Path = POWERCAP) -> list[Counter]:
    """The CPU packages' counters (RAPL), where Linux lets us read them; no part of them twice."""
    found = []
    for place in sorted(folder.glob("intel-rapl:*")):  # AMD's are called so, too
        with suppress(OSError):
            if (place / "name").read_text().startswith("package"):
                read = partial(_joules, place / "energy_uj")
                read()  # most systems leave it to root
                found.append(Counter("packages", read, _joules(place / "max_energy_range_uj")))
    return found


def _joules(file: Path) -> float:
    return int(file.read_text()) / 1e6


def nvidia(num: int) -> list[Counter]:
    """The first `num` GPUs that this process may see; none without the package nvidia-ml-py."""
    try:
        nvml = importlib.import_module("pynvml")
    except ImportError:
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [str(i) for i in range(num)] if visible is None else visible.split(",")
    try:
        nvml.nvmlInit()
        handles = [_handle(nvml, name.strip()) for name in names[:num]]
    except nvml.NVMLError:
        return []
    return [Counter("gpus", partial(_drawn, nvml, handle)) for handle in handles]


def _handle(nvml: Any, name: str) -> Any:
    """The GPU of a number, or of an identity like GPU-5f1c…, as CUDA_VISIBLE_DEVICES names it."""
    if name.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(name))
    return nvml.nvmlDeviceGetHandleByUUID(name)


def _drawn(nvml: Any, handle: Any) -> float:
    """Joules since its driver was loaded."""
    try:
        return float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3
    except nvml.NVMLError as error:  # one from before Volta
        raise OSError(str(error)) from error
