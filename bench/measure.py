"""What every benchmark does alike: one thread, interleaved runs, medians of ratios, JSON last."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

# Both sides get the same allocator settings, those at which the peers are quickest: large blocks
# are kept instead of being given back to the system after every operation.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": str(8 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(16 << 30),
    "MALLOC_TOP_PAD_": str(256 << 20),
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
NOISY = 1.1  # seconds on the clock per CPU-second, above which somebody else had the core
TRIES = 3


def one_thread() -> None:
    """Starts this script again under ENVIRONMENT, unless it is."""
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **ENVIRONMENT})
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Rate:
    """Units of work per CPU-second, and whether the machine was busy with something else."""

    per_second: float
    noisy: bool


def rate(work: Callable[[], float]) -> Rate:
    """`work` does something and tells how many units it was; noisy runs are tried again."""
    for _ in range(TRIES):
        wall, cpu = time.perf_counter(), time.process_time()
        units = work()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if wall / cpu <= NOISY:
            return Rate(units / cpu, False)
    return Rate(units / cpu, True)


def interleaved(
    contestants: Mapping[str, Callable[[], float]], repeats: int
) -> dict[str, list[Rate]]:
    """The rates of each, one after the other, `repeats` times; the first round warms up."""
    rates: dict[str, list[Rate]] = {name: [] for name in contestants}
    for turn in range(repeats + 1):
        for name, work in contestants.items():
            found = rate(work)
            if turn:
                rates[name].append(found)
            told = "warm-up" if not turn else f"{turn} of {repeats}"
            noise = ", noisy" if found.noisy else ""
            print(f"  {told:>8}  {name:<24} {found.per_second:12,.1f}{noise}", flush=True)
    return rates


def ratio(ours: Sequence[Rate], peer: Sequence[Rate]) -> tuple[float, float, float]:
    """(median, lowest, highest) of the pairwise ratios."""
    ratios = [a.per_second / b.per_second for a, b in zip(ours, peer, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def gemm_gflops(dtype: torch.dtype, rows: int = 512, inner: int = 384, outer: int = 1152) -> float:
    """What this core does in matrix products now, GFLOP per CPU-second."""
    left = torch.randn(rows, inner).to(dtype)
    right = torch.randn(outer, inner).to(dtype)
    count, begin = 0, time.process_time()
    while time.process_time() - begin < 1.0:
        for _ in range(20):
            torch.nn.functional.linear(left, right)
        count += 20
    return 2e-9 * rows * inner * outer * count / (time.process_time() - begin)


def case(name: str, value: float, unit: str, target: float | None, **more: Any) -> dict[str, Any]:
    """A line of the result; a target is met from it upwards."""
    met = None if target is None else bool(value >= target)
    line = {"case": name, "value": round(float(value), 4), "unit": unit, "target": target}
    return {**line, "met": met, **more}


def finish(
    bench: str,
    cases: Sequence[dict[str, Any]],
    packages: Sequence[str],
    to: Path | None = None,
    **more: Any,
) -> None:
    """A table for people, and last one line for programs, which a file may keep, too."""
    print(f"\n{'case':<24}{'value':>12}  {'unit':<22}{'target':>8}  met")
    for line in cases:
        target = "" if line["target"] is None else f"{line['target']:g}"
        met = {True: "yes", False: "NO", None: ""}[line["met"]]
        print(f"{line['case']:<24}{line['value']:>12,.3f}  {line['unit']:<22}{target:>8}  {met}")
    versions = {name: importlib.metadata.version(name) for name in packages}
    versions |= {"python": platform.python_version(), "processor": processor()}
    line = json.dumps({"bench": bench, "cases": list(cases), "versions": versions, **more})
    if to:
        to.write_text(line + "\n")
    print(line)


def processor() -> str:
    """The CPU's name, where the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(
                line.split(":")[1].strip() for line in file if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor()
