"""What a rehearsal measured, kept for the next plan, and reckoned up to a stage's full size."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from limbeck import progress, runner, store
from limbeck.config import written
from limbeck.recipe import Recipe

ROW, TOKEN = 5_000, 32  # bytes that a row takes in Python, and each token of its text
STAYS = 0.6  # the share of these that the process holds on to afterwards
TIMEOUT_S = 300.0
LACKING = " was not rehearsed"  # behind the output that a stage would have read


@dataclass(frozen=True)
class Series:
    """What a little and what more work took, and what the first time came on top."""

    first: float
    few: tuple[float, float]  # (units, seconds)
    more: tuple[float, float]

    def at(self, units: float, rounds: float = 1.0) -> float:
        """Seconds of so many units, NaN where nobody knows; what does not depend on them is spent
        `rounds` times."""
        (few, least), (more, most) = self.few, self.more
        if isnan(more):  # of something that nobody counts: it takes what it took
            return self.first + most
        slope = max(0.0, (most - least) / (more - few)) if more > few else 0.0
        fixed = max(0.0, most - slope * more)
        return self.first + fixed * rounds + slope * units


@dataclass(frozen=True)
class Stage:
    """A stage as it was rehearsed. `takes`: usual, unless that was all of it tiny, and, of the
    first of its kind, cold."""

    takes: Mapping[str, Mapping[str, Any]]
    memory_mib: float
    length: float | None
    made: Mapping[str, int]

    def series(self, clock: str, few: float, more: float) -> Series:
        """Of a clock (cpu, wall), the takes having been of so many units."""
        usual = self.takes["usual"][clock]
        tiny = self.takes["tiny"][clock] if "tiny" in self.takes else 0.0
        cold = self.takes["cold"][clock] if "cold" in self.takes else tiny
        return Series(max(0.0, cold - tiny), (few, tiny), (more, usual))


@dataclass(frozen=True)
class Rehearsed:
    """All stages that were rehearsed, and why others were not; `gflops` is what this machine's
    matrix product reaches, `start` the CPU-seconds before the first stage. Where there are GPUs
    nothing is rehearsed: their name and number are told."""

    stages: Mapping[str, Stage] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)
    gflops: float = 0.0
    threads: int = 1
    start: float = 0.0
    gpu: str = ""
    num_gpus: int = 0


def rehearse(recipe: Recipe, asked: Mapping[str, Any]) -> Rehearsed | None:
    """What a rehearsal of the recipe says, now or when it was last made with the same recipe,
    versions, processor and threads; None without torch. `asked` is what `recipe.load` was given."""
    if find_spec("torch") is None:
        return None
    path = cache() / f"{_key(recipe)}.jsonl"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _make(path, asked, len(recipe.stages))
    lines = store.read_jsonl(path)
    if not lines:
        return None
    head, *rows = lines
    if "gpu" in head:
        return Rehearsed(gpu=head["gpu"], num_gpus=head["num"])
    fields = ("takes", "memory_mib", "length", "made")
    stages = {r["stage"]: Stage(*(r[f] for f in fields)) for r in rows if "takes" in r}
    reasons = {r["stage"]: r["left_out"] for r in rows if "left_out" in r}
    left_out = {stage: _first_reason(stage, reasons) for stage in reasons}
    return Rehearsed(stages, left_out, head["gflops"], head["threads"], head["start"])


def _first_reason(stage: str, reasons: Mapping[str, str]) -> str:
    """Why a stage was left out, or why the first one was that it reads of through others."""
    first = stage
    while (said := reasons[first]).endswith(LACKING):
        before = said.removeprefix("./").partition("/")[0]
        if before not in reasons:
            break
        first = before
    return said if first == stage else f"{first} was not, as {said}"


def _make(path: Path, asked: Mapping[str, Any], num_stages: int) -> None:
    """Has a process of its own rehearse. What it said is kept if it came to its end, or to that of
    its time; of one that died nobody knows what it would have said."""
    with TemporaryDirectory(prefix="limbeck-plan-") as folder:
        said, told = Path(folder) / "said.jsonl", Path(folder) / "asked.json"
        told.write_text(json.dumps(asked, default=str), encoding="utf-8")
        command = [sys.executable, "-m", "limbeck.estimates.rehearsal", str(said)]
        silent = subprocess.DEVNULL
        progress.say("rehearsing each stage small, to learn what it takes; kept for the next plan")
        with told.open() as asked_for, progress.progress("rehearsal", num_stages, "stages") as tell:
            child = subprocess.Popen(command, stdin=asked_for, stdout=silent, stderr=silent)
            try:
                is_late = not _wait(child, said, tell)
            finally:  # Ctrl-C, or too late
                child.kill()
                child.wait()
        if said.exists() and (is_late or child.returncode == 0):
            aside = path.with_suffix(f".{os.getpid()}.tmp")
            aside.write_bytes(said.read_bytes())
            aside.replace(path)


def _wait(child: subprocess.Popen[bytes], said: Path, tell: Callable[[int], object]) -> bool:
    """Until the child ends, which is told, or has had its time; tells of every stage that it is
    through with."""
    until, num_told = time.monotonic() + TIMEOUT_S, 0
    while child.poll() is None and time.monotonic() < until:
        num = said.read_bytes().count(b"\n") - 1 if said.exists() else 0  # the first is its head
        tell(max(0, num - num_told))
        num_told = max(num, num_told)
        time.sleep(0.1)
    return child.poll() is not None


def cache() -> Path:
    """Where rehearsals are kept: the user's own cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "limbeck" / "plan"


def _key(recipe: Recipe) -> str:
    """What a rehearsal depends on."""
    stages = [[stage.name, stage.verb, written(stage.config)] for stage in recipe.stages]
    about = [runner.versions(), platform.node(), os.cpu_count(), os.environ.get("OMP_NUM_THREADS")]
    return store.digest([stages, written(recipe.machine), about])[:32]
