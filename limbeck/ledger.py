"""What every piece of work cost: seconds, tokens, FLOPs, memory; one row each in `ledger.jsonl`."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from limbeck import memory, store

SUMMED = ("wall_seconds", "cpu_seconds", "tokens_in", "tokens_out", "flops")


def forward_flops(num_parameters: int, num_tokens: int) -> float:
    """2·N·D: a multiply and an add per parameter and token (Kaplan et al. 2020, 2001.08361).

    Attention's own term, 4·layers·width·context per token, is left out: below 2 % at the miniature
    lengths and below 10 % at 4k tokens of a 1.5B model.
    """
    return 2.0 * num_parameters * num_tokens


def training_flops(num_parameters: int, num_tokens: int) -> float:
    """6·N·D: the backward pass costs twice the forward pass."""
    return 3.0 * forward_flops(num_parameters, num_tokens)


def peak_memory_mib() -> float:
    """The most memory that this process has held since `forget_peak`, in MiB."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024
    except (OSError, ValueError, IndexError):  # no Linux, or one that does not say
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def forget_peak() -> None:
    """Counts the peak of memory from now on, where the system lets us (Linux)."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def cpu_seconds() -> float:
    """CPU time of this process and its finished children, in seconds."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


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


_open: list[dict[str, Any]] = []  # accounts; one may lie within another


def _note_peak() -> None:
    for row in _open:
        row["peak_memory_mib"] = max(row["peak_memory_mib"], round(peak_memory_mib(), 1))


@contextmanager
def account(path: Path, work: str) -> Iterator[dict[str, Any]]:
    """Times a piece of work and adds its row to the ledger; the caller fills in what was used."""
    row: dict[str, Any] = {"work": work, "tokens_in": 0, "tokens_out": 0, "flops": 0.0}
    row["peak_memory_mib"] = 0.0
    if not _open:
        memory.give_back()  # what others have freed is no part of it
    _note_peak()
    forget_peak()
    _open.append(row)
    wall, cpu = time.monotonic(), cpu_seconds()
    try:
        yield row
    finally:
        row["wall_seconds"] = round(time.monotonic() - wall, 3)
        row["cpu_seconds"] = round(cpu_seconds() - cpu, 3)
        _note_peak()
        _open[:] = [other for other in _open if other is not row]
        store.append_json(path, row)


def total(path: Path) -> dict[str, float]:
    """The sums of a ledger, and the highest memory; interrupted work counts, since it cost."""
    rows = store.read_jsonl(path)
    sums = {key: sum(row.get(key, 0) for row in rows) for key in SUMMED}
    return sums | {"peak_memory_mib": max((r["peak_memory_mib"] for r in rows), default=0.0)}


def flops_of(output: str) -> float | None:
    """The FLOPs that the stage which wrote an output says it took; None where it does not say."""
    manifest = Path(output).parent / "stage.json"
    summary = store.read_sealed(manifest)["summary"] if manifest.exists() else {}
    return summary.get("flops")
