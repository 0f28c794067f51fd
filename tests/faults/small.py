"""A recipe with every kind of stage that takes a second, and a teacher that would cost money."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck.engines.worked import worked_solution
from limbeck.types import Request, Sampling, Trace

ASKED = "LIMBECK_TEST_ASKED"  # names a file that gets a line for every request that is paid for

RECIPE: dict[str, Any] = {
    "name": "small",
    "machine": {"threads": 1, "device": "cpu"},
    "stages": {
        "collect": {
            "num": 40,
            "num_heldout": 6,
            "heldout_share": 0.3,
            "source": {"name": "reasoning_gym", "tasks": {"chain_sum": {}, "leg_counting": {}}},
        },
        "sample": {"problems": "./collect/problems", "engine": "worked"},
        "bought": {
            "stage": "sample",
            "problems": "./collect/heldout",
            "engine": "tests.faults.small:paid",
            "num_samples": 4,
        },
        "verify": {"problems": "./collect/problems", "traces": "./sample/traces"},
        "curate": {
            "problems": "./collect/problems",
            "traces": "./sample/traces",
            "verdicts": "./verify/verdicts",
            "keep": ["correct"],
        },
        "create": {
            "texts": "./curate/dataset",
            "architecture": "llama",
            "vocab_size": 300,
            "hidden_size": 16,
            "num_hidden_layers": 1,
        },
        "sft": {
            "model": "./create/model",
            "data": "./curate/dataset",
            "num_epochs": 2,
            "batch_size": 8,
            "lr": 0.01,
            "checkpoint_steps": 2,
        },
        "evaluate": {
            "engine": {"name": "local", "model": "./sft/model"},
            "problems": {"heldout": "./collect/heldout"},
            "num_samples": 2,
            "max_tokens": 12,
        },
        "compare": {"scores": {"sft": "./evaluate/scores"}},
    },
}


def up_to(stage: str) -> dict[str, Any]:
    """The recipe as far as a stage, that included."""
    names = list(RECIPE["stages"])
    kept = names[: names.index(stage) + 1]
    return {**RECIPE, "stages": {name: RECIPE["stages"][name] for name in kept}}


def outputs(stage: str) -> list[str]:
    """What a stage of the recipe writes besides its manifests and logs."""
    import importlib

    verb = RECIPE["stages"][stage].get("stage", stage)
    return list(importlib.import_module(f"limbeck.stages.{verb}").WRITES)


@dataclass
class Paid:
    """Worked solutions that count as paid for, one by one."""

    name: str = "paid"
    num_parameters: int | None = None
    costs_money: bool = True

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        for request in requests:
            if ASKED in os.environ:
                with Path(os.environ[ASKED]).open("a") as file:
                    file.write(f"{request.id}\n")
            text = worked_solution(request.problem)
            yield Trace(request.id, request.problem.id, request.index, text, "stop", self.name)


def paid() -> Paid:
    """An engine of our own, named in the recipe as `tests.faults.small:paid`."""
    return Paid()
