"""What a recipe will take, before anything runs: memory, time and money of each stage.

On a machine that is named, from sizes and amounts that the recipe states and from a few
assumptions, which are told. On this one its stages are rehearsed (`rehearsal.py`), and what they
took is reckoned up; what has run already its ledger tells. What nobody knows is NaN, and told as
unknown. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isnan, nan
from pathlib import Path
from typing import Any

from limbeck import ledger
from limbeck.estimates import compression, devices, foretold, text, training, writing
from limbeck.estimates.devices import Device
from limbeck.estimates.foretold import Foretelling, Foretold
from limbeck.estimates.measured import Rehearsed
from limbeck.estimates.result import Estimate, Estimates
from limbeck.estimates.work import Effort, Given, Work
from limbeck.folder import Machine
from limbeck.planner import Step

__all__ = ["WORK", "Estimate", "Estimates", "estimate"]

HOUR = 3600.0
MUCH = 1e9  # bytes
PROCESS = 0.45e9  # bytes that a process holds with torch and transformers in it, and no model
WORK: Mapping[str, Callable[[Any, Given], Work]] = {
    "adopt": writing.adopt,
    "choose": training.choose,
    "collect": writing.collect,
    "compare": writing.compare,
    "create": writing.create,
    "curate": writing.curate,
    "distill": training.distill,
    "evaluate": writing.evaluate,
    "export": compression.export,
    "gate": compression.gate,
    "general": writing.general,
    "grpo": training.grpo,
    "likelihood": writing.likelihood,
    "mix": writing.mix,
    "prefer": writing.prefer,
    "profile": writing.profile,
    "prune": compression.prune,
    "quantize": compression.quantize,
    "reward_model": training.reward_model,
    "rewrite": writing.rewrite,
    "sample": writing.sample,
    "score": writing.score,
    "sft": training.sft,
    "verify": writing.verify,
}


def estimate(
    steps: Sequence[Step],
    machine: Machine,
    here: Rehearsed | None = None,
    run_dir: Path | None = None,
) -> Estimates:
    """What each stage of a plan takes: on this machine, where a rehearsal tells of it, else on the
    one that `machine` names. UserError for an unknown device."""
    device = devices.of_this_machine(here.gflops) if here else devices.device_of(machine)
    given, foretelling = Given(machine.mean_tokens), Foretelling()
    found = []
    for step in steps:
        stage = step.stage
        reckon = WORK.get(stage.verb) or _unknown(stage.verb)
        rehearsed = here.stages.get(stage.name) if here else None
        given.answer = None
        if rehearsed:
            foretold.learn(given, stage, rehearsed)
        work = reckon(stage.config, given)
        took = foretelling.of(stage, reckon, given, rehearsed) if rehearsed else None
        if rehearsed:
            work = foretold.kept(stage, reckon, given, work, rehearsed)
        given.tables |= {f"./{stage.name}/{name}": n for name, n in work.tables.items()}
        given.flops |= dict.fromkeys((f"./{stage.name}/{name}" for name in work.tables), work.flops)
        if work.model is not None:
            given.models[f"./{stage.name}/model"] = work.model
        given.models |= {f"./{stage.name}/{name}": one for name, one in work.models.items()}
        if step.state == "done" and run_dir:
            found.append(_told(step, work, run_dir))
        elif took:
            found.append(_measured(step, work, took, machine, device, here))
        else:
            why = here.left_out.get(stage.name) if here else None
            found.append(_assumed(step, work, machine, device, why))
    return Estimates(tuple(found), machine, device, here)


def _unknown(verb: str) -> Callable[[Any, Given], Work]:
    return lambda config, given: Work(unknown=(f"what {verb} computes",))


def _told(step: Step, work: Work, run_dir: Path) -> Estimate:
    """Of a stage that is done, what its ledger says."""
    took = ledger.total(run_dir / step.stage.name / "ledger.jsonl")
    memory, seconds = took["peak_memory_mib"] * 2**20, took["wall_seconds"]
    cost = took["money"] or 0.0
    about: Any = {"cpu_seconds": took["cpu_seconds"], "source": "ledger"}
    return Estimate(step, work, took["flops"], memory, seconds, cost, **about)


def _measured(
    step: Step,
    work: Work,
    took: Foretold,
    machine: Machine,
    device: Device | None,
    here: Rehearsed | None,
) -> Estimate:
    """Of a stage that was rehearsed on this machine. One thread takes as long as it computes: what
    the clock said beyond that, others had the processor for."""
    is_alone = here is not None and here.threads == 1
    seconds = took.cpu_seconds if is_alone else took.seconds
    refused = way_out = ""
    if device and took.memory > device.memory:
        refused = f"does not fit in the {device.memory / 1e9:.3g} GB of {device.name}"
        way_out = "would fit: fewer rows or tokens at once, or a larger machine"
    cost = work.paid + seconds / HOUR * (machine.price_per_hour or 0.0)
    about: Any = {"cpu_seconds": took.cpu_seconds, "source": "measured"}
    about |= {"refused": refused, "way_out": way_out}
    return Estimate(step, work, work.flops, took.memory, seconds, cost, **about)


def _assumed(
    step: Step, work: Work, machine: Machine, device: Device | None, left_out: str | None
) -> Estimate:
    """Of sizes and assumptions alone; `left_out` is why a rehearsal does not tell."""
    is_here = device is not None and device.name == devices.HERE
    num = machine.devices if work.spread and not is_here else 1
    memory = work.memory.bytes_per_device(num) if work.memory else 0.0
    memory += work.host + PROCESS if is_here and work.memory else 0.0
    seconds = sum(
        _seconds(effort, machine, device, num if effort.spread else 1) for effort in work.efforts
    )
    price = nan if machine.price_per_hour is None else machine.price_per_hour
    if is_here:
        price = machine.price_per_hour or 0.0
    rented = seconds / HOUR * (1 if is_here else machine.devices) * price if seconds else 0.0
    flops, refused, way_out = work.flops, "", ""
    notes = [f"unknown: {what}" for what in work.unknown]
    notes += _beside(work, is_here)
    if left_out and work.efforts:
        notes.append(f"assumed, not measured: {left_out}")
    if isnan(flops):
        what = "how large its model is" if _is_unknown(work) else "how many rows it reads"
        notes.append(f"unknown: {what}")
    elif isnan(memory):
        notes.append("unknown: its memory, as nobody tells the shape of the model's layers")
    elif device and work.memory and memory > device.memory:
        ways = list(work.memory.ways_out(num, work.spread and not is_here, device.memory))
        if is_here:  # where there is no GPU
            ways = [way for way in ways if not way.startswith("vllm")]
            ways += devices.that_hold(work.memory.bytes_per_device(1))
        refused = f"does not fit in the {device.memory / 1e9:.3g} GB of {device.one}"
        way_out = f"would fit: {', or '.join(ways)}" if ways else "a smaller model would"
    cost = rented + work.paid
    cpu = seconds if is_here else 0.0
    about: Any = {"cpu_seconds": cpu, "refused": refused, "way_out": way_out}
    return Estimate(step, work, flops, memory, seconds, cost, tuple(notes), **about)


def _beside(work: Work, is_here: bool) -> list[str]:
    """What is neither computed nor held by the device, if it is much."""
    told = {"the host's memory holds {}": 0.0 if is_here else work.host, "writes {}": work.written}
    return [note.format(text.size(amount)) for note, amount in told.items() if amount > MUCH]


def _is_unknown(work: Work) -> bool:
    return work.shape is not None and isnan(work.shape.num_parameters)


def _seconds(effort: Effort, machine: Machine, device: Device | None, num: int) -> float:
    if device is None:
        return nan
    shares = {"training": machine.training_utilisation, "writing": machine.writing_utilisation}
    return effort.flops / (device.peak(effort.dtype) * shares[effort.kind] * num)
