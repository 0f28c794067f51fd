"""What a plan foretells: a stage's estimate, and all of them together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import isnan
from typing import Any, Literal

from limbeck.errors import UserError
from limbeck.estimates.amounts import CHARACTERS
from limbeck.estimates.devices import Device
from limbeck.estimates.measured import Rehearsed
from limbeck.estimates.work import Work
from limbeck.folder import Machine
from limbeck.planner import Step

BOUNDS = (
    "every row that may come does, and curate keeps all; prompts, judges and attention's own term "
    "are left out; what is begun counts whole; all devices are paid for while one works; texts in "
    f"files have a token for each {CHARACTERS:g} characters"
)
REHEARSAL = (
    "rehearsed here with few rows and steps, and reckoned up; a model's answers are as long as "
    "what it learns, and right; looks at validation are left out"
)
TIMES = {True: "times are CPU-seconds, of one thread", False: "CPU-seconds are in --json"}
REPORT = 1.5  # CPU-seconds that its report takes at the end


@dataclass(frozen=True)
class Estimate:
    """What a stage takes. `flops` of its model; `memory` bytes on each device, or of the process on
    this machine; `seconds` on all; `cost` of devices and of paid servers. NaN is unknown, 0 nothing
    worth reckoning. `source`: measured in a rehearsal, told by the ledger, or assumed."""

    step: Step
    work: Work
    flops: float
    memory: float
    seconds: float
    cost: float
    notes: tuple[str, ...] = ()
    cpu_seconds: float = 0.0
    source: Literal["measured", "ledger", "assumed"] = "assumed"
    refused: str = ""
    """What it does not fit in."""
    way_out: str = ""

    def row(self) -> dict[str, Any]:
        """As plain JSON, unknown figures as null."""
        stage, shape = self.step.stage, self.work.shape
        figures = {
            "parameters": shape.num_parameters if shape else 0.0,
            "tokens": self.work.tokens,
            "flops": self.flops,
            "memory_bytes": self.memory,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "cost": self.cost,
        }
        about = {"stage": stage.name, "verb": stage.verb, "state": self.step.state}
        about |= {"why": self.step.why, "source": self.source}
        refused = [f"{self.refused}; {self.way_out}"] if self.refused else []
        return {**about, **_known(figures), "notes": [*self.notes, *refused]}


@dataclass(frozen=True)
class Estimates:
    """All stages of a plan, what they take together, and what was assumed. `here`: what a rehearsal
    on this machine found, where the plan is for it."""

    stages: tuple[Estimate, ...]
    machine: Machine
    device: Device | None
    here: Rehearsed | None = None

    def summary(self) -> dict[str, Any]:
        """What `limbeck plan --json` prints; unknown figures are null."""
        sums = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds, "cost": self.cost}
        stages = [stage.row() for stage in self.stages]
        return {"stages": stages, **_known(sums), "assumed": self.assumptions()}

    @property
    def seconds(self) -> float:
        """Of what is still to be done."""
        return sum(stage.seconds for stage in self._to_do()) + self.around

    @property
    def cpu_seconds(self) -> float:
        """The same of processors; on accelerators nothing is reckoned of theirs."""
        return sum(stage.cpu_seconds for stage in self._to_do()) + self.around

    @property
    def around(self) -> float:
        """Seconds that the program takes to begin, and to write its report."""
        return self.here.start + REPORT if self.here and self.is_to_do else 0.0

    @property
    def is_to_do(self) -> bool:
        """Whether any stage is still to be done."""
        return any(self._to_do())

    @property
    def cost(self) -> float:
        return sum(stage.cost for stage in self._to_do())

    def refusals(self) -> list[UserError]:
        """A mistake for each stage that is still to be done and cannot fit."""
        return [
            UserError(stage.step.stage.name, stage.refused, stage.way_out)
            for stage in self._to_do()
            if stage.refused
        ]

    def _to_do(self) -> Iterator[Estimate]:
        return (stage for stage in self.stages if stage.step.state != "done")

    def assumptions(self) -> str:
        """In one line; each is a field of `machine`. Of what has run nothing is assumed."""
        if not self.is_to_do:
            return ""
        machine, here = self.machine, self.here
        told = [
            f"training at {machine.training_utilisation:g} of it (training_utilisation)",
            f"writing at {machine.writing_utilisation:g} (writing_utilisation)",
            f"answers of {machine.mean_tokens:,} tokens where max_tokens allows (mean_tokens)",
        ]
        if here is not None:
            speed = f"this machine, threads: {here.threads}, {here.gflops:g} GFLOP/s in float32"
            is_assumed = any(one.source == "assumed" and one.work.efforts for one in self.stages)
            rest = ["of what was not: " + told[0], *told[1:], BOUNDS] if is_assumed else []
            return "; ".join([speed, REHEARSAL, TIMES[here.threads == 1], *rest])
        if self.device is None:
            return "; ".join(["no device is named (--machine 8xH100)", told[-1], BOUNDS])
        price = machine.price_per_hour
        costs = "no price_per_hour" if price is None else f"{price:g} an hour each"
        peak = self.device.bfloat16 / 1e12
        named = f"{machine.devices} x {self.device.name}, {peak:g} TFLOP/s in bfloat16, {costs}"
        return "; ".join([named, *told, BOUNDS])


def _known(figures: dict[str, float]) -> dict[str, float | None]:
    return {key: None if isnan(value) else value for key, value in figures.items()}
