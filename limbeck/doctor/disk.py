"""What a recipe will write, against what the disk still holds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from math import isnan
from pathlib import Path
from typing import Any

from limbeck import estimates
from limbeck.doctor.finding import Said, broken, fine, worth_knowing
from limbeck.doctor.setup import Setup
from limbeck.train.checkpoint import NUM_KEPT
from limbeck.train.config import TrainingConfig

WEIGHT, MOMENTS = 4, 8  # bytes of a parameter: float32, and AdamW's two in a checkpoint
TOKEN = 10  # bytes of a trace's token: its text, id and log-probability, compressed
PLACE = 6  # bytes of one token of a kept distribution
GB = 1e9


def free_disk(setup: Setup) -> Iterator[Said]:
    """Models, checkpoints, traces and distributions of what is still to be done."""
    free = _free(setup.folder)
    steps, _ = setup.plan
    found = estimates.estimate(steps, setup.recipe.machine)
    to_do = [one for one in found.stages if one.step.state != "done"]
    needed = sum(map(_kept, to_do)) + max(map(_checkpoints, to_do), default=0.0)
    told = f"up to {needed / GB:,.1f} GB will be written, {free / GB:,.1f} GB are free"
    if needed <= free:
        yield fine(told)
        return
    way_out = "free some, give --run a folder on a larger disk, or train fewer models"
    if setup.recipe.machine.device_name or any(map(setup.is_far, setup.models())):
        yield worth_knowing(f"{told} here", way_out)  # it is meant for another machine
    else:
        yield broken(told, way_out)


def _free(folder: Path) -> int:
    """Bytes that the disk of a folder has left, whether the folder is there or not."""
    place = folder.resolve()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def _kept(estimate: Any) -> float:
    """Bytes of a stage's tables and model; what nobody knows counts nothing."""
    work, config = estimate.work, estimate.step.stage.config
    written = TOKEN * sum(_known(amount.total) for amount in work.tables.values())
    written += _known(work.written)
    if estimate.step.stage.verb == "score":
        width = config.num_top if config.method == "top_k" else config.num_draws
        written += PLACE * width * len(config.temperatures) * _known(work.tokens)
    return written + (_known(work.model.num_bytes(WEIGHT)) if work.model else 0.0)


def _checkpoints(estimate: Any) -> float:
    """Bytes of those that lie there until a stage is finished: one more while it is written."""
    config, shape = estimate.step.stage.config, estimate.work.model
    if not isinstance(config, TrainingConfig) or shape is None:
        return 0.0
    learned = shape.adapter_parameters(config.lora.rank) if config.lora else shape.num_parameters
    return (NUM_KEPT + 1) * (WEIGHT + MOMENTS) * _known(learned)


def _known(amount: float) -> float:
    return 0.0 if isnan(amount) else amount
