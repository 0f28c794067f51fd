"""What a recipe will take, before anything runs: memory, time and money of each stage.

From sizes and amounts that the recipe states and from a few assumptions, which are told; what
nobody knows is NaN, and told as unknown. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Any

from limbeck.estimates import training, writing
from limbeck.estimates.devices import Device, device_of
from limbeck.estimates.work import Effort, Given, Work
from limbeck.folder import Machine
from limbeck.planner import Step

HOUR = 3600.0
WORK: Mapping[str, Callable[[Any, Given], Work]] = {
    "adopt": writing.adopt,
    "choose": training.choose,
    "collect": writing.collect,
    "compare": writing.nothing,
    "create": writing.create,
    "curate": writing.curate,
    "distill": training.distill,
    "evaluate": writing.evaluate,
    "general": writing.general,
    "grpo": training.grpo,
    "mix": writing.mix,
    "prefer": writing.prefer,
    "reward_model": training.reward_model,
    "rewrite": writing.rewrite,
    "sample": writing.sample,
    "score": writing.score,
    "sft": training.sft,
    "verify": writing.verify,
}


@dataclass(frozen=True)
class Estimate:
    """What a stage takes. `flops` of its model; `memory` bytes on each device; `seconds` on all;
    `cost` of devices and of paid servers. NaN is unknown, 0 nothing worth reckoning."""

    step: Step
    work: Work
    flops: float
    memory: float
    seconds: float
    cost: float
    notes: tuple[str, ...]

    def row(self) -> dict[str, Any]:
        """As plain JSON, unknown figures as null."""
        stage, shape = self.step.stage, self.work.shape
        figures = {
            "parameters": shape.num_parameters if shape else 0.0,
            "tokens": self.work.tokens,
            "flops": self.flops,
            "memory_bytes": self.memory,
            "seconds": self.seconds,
            "cost": self.cost,
        }
        about = {"stage": stage.name, "verb": stage.verb, "state": self.step.state}
        known = {key: None if isnan(value) else value for key, value in figures.items()}
        return {**about, "why": self.step.why, **known, "notes": list(self.notes)}


@dataclass(frozen=True)
class Estimates:
    """All stages of a plan, what they take together, and what was assumed."""

    stages: tuple[Estimate, ...]
    machine: Machine
    device: Device | None

    def summary(self) -> dict[str, Any]:
        """What `limbeck plan --json` prints; unknown figures are null."""
        sums = {"seconds": self.seconds, "cost": self.cost}
        known = {key: None if isnan(value) else value for key, value in sums.items()}
        stages = [stage.row() for stage in self.stages]
        return {"stages": stages, **known, "assumed": self.assumptions()}

    @property
    def seconds(self) -> float:
        """Of what is still to be done."""
        return sum(stage.seconds for stage in self._to_do())

    @property
    def cost(self) -> float:
        return sum(stage.cost for stage in self._to_do())

    def _to_do(self) -> Iterator[Estimate]:
        return (stage for stage in self.stages if stage.step.state != "done")

    def assumptions(self) -> str:
        """In one line; each is a field of `machine`."""
        machine = self.machine
        told = [f"answers of {machine.mean_tokens:,} tokens where max_tokens allows (mean_tokens)"]
        if self.device is None:
            return "; ".join(["no device is named (machine.device_name: H100)", *told, BOUNDS])
        price = machine.price_per_hour
        costs = "no price_per_hour" if price is None else f"{price:g} an hour each"
        peak = self.device.bfloat16 / 1e12
        return "; ".join(
            [
                f"{machine.devices} x {self.device.name}, {peak:g} TFLOP/s in bfloat16, {costs}",
                f"training at {machine.training_utilisation:g} of it (training_utilisation)",
                f"writing at {machine.writing_utilisation:g} (writing_utilisation)",
                *told,
                BOUNDS,
            ]
        )


BOUNDS = (
    "every row that may come does, and curate keeps all; prompts, judges and attention's own term "
    "are left out; what is begun counts whole; all devices are paid for while one works"
)


def estimate(steps: Sequence[Step], machine: Machine) -> Estimates:
    """What each stage of a plan takes on this machine; UserError for an unknown device."""
    device = device_of(machine)
    given = Given(machine.mean_tokens)
    found = []
    for step in steps:
        stage = step.stage
        reckon = WORK.get(stage.verb)
        unknown = Work(unknown=(f"what {stage.verb} computes",))
        work = reckon(stage.config, given) if reckon else unknown
        given.tables |= {f"./{stage.name}/{name}": n for name, n in work.tables.items()}
        given.flops |= dict.fromkeys((f"./{stage.name}/{name}" for name in work.tables), work.flops)
        if work.model is not None:
            given.models[f"./{stage.name}/model"] = work.model
        found.append(_estimate(step, work, machine, device))
    return Estimates(tuple(found), machine, device)


def _estimate(step: Step, work: Work, machine: Machine, device: Device | None) -> Estimate:
    devices = machine.devices if work.spread else 1
    memory = work.memory.bytes_per_device(devices) if work.memory else 0.0
    seconds = sum(
        _seconds(effort, machine, device, devices if effort.spread else 1)
        for effort in work.efforts
    )
    price = nan if machine.price_per_hour is None else machine.price_per_hour
    rented = seconds / HOUR * machine.devices * price if seconds else 0.0
    flops = work.flops
    notes = [f"unknown: {what}" for what in work.unknown]
    if isnan(flops):
        what = "how large its model is" if _is_unknown(work) else "how many rows it reads"
        notes.append(f"unknown: {what}")
    elif isnan(memory):
        notes.append("unknown: its memory, as nobody tells the shape of the model's layers")
    elif device and work.memory and memory > device.memory:
        ways = list(work.memory.ways_out(devices, work.spread, device.memory))
        fits = f"would fit: {', or '.join(ways)}" if ways else "a smaller model would"
        notes.append(f"does not fit in the {device.memory / 1e9:g} GB of one {device.name}; {fits}")
    return Estimate(step, work, flops, memory, seconds, rented + work.paid, tuple(notes))


def _is_unknown(work: Work) -> bool:
    return work.shape is not None and isnan(work.shape.num_parameters)


def _seconds(effort: Effort, machine: Machine, device: Device | None, devices: int) -> float:
    if device is None:
        return nan
    shares = {"training": machine.training_utilisation, "writing": machine.writing_utilisation}
    return effort.flops / (device.peak(effort.dtype) * shares[effort.kind] * devices)
