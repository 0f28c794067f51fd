"""What `limbeck plan` foretells against what runs then take: CPU-seconds and memory of each stage.

Quickstart at three sizes, and a recipe that is not shipped: another family of models, other texts,
distillation from a live teacher and reinforcement learning. Each is planned from nothing (its
rehearsal is not kept), then run. A busy machine changes CPU-seconds by half within minutes: the
speed of a matrix product stands beside each, and a ratio is to be read with it.

    python bench/plan.py                # everything, some 15 minutes
    python bench/plan.py --quick        # the smallest size, and the recipe that is not shipped
    python bench/plan.py full --at DIR  # one of them, against a run that lies there already
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import measure

ROOT = Path(__file__).parents[1]
QUICKSTART = str(ROOT / "recipes" / "quickstart.yaml")
TIME, MEMORY = 1.5, 0.25  # factor, share
NOTED = 0.02  # of a run's CPU-seconds, above which a stage is held to them, too

TASKS = {"gcd": {}, "leg_counting": {"min_animals": 3, "max_animals": 4}}
FRESH = {
    "stage": "create",
    "architecture": "qwen3",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.05,
}
UNSHIPPED: dict[str, Any] = {
    "name": "unshipped",
    "machine": {"threads": 1},
    "stages": {
        "collect": {
            "source": {"name": "reasoning_gym", "tasks": {"leg_counting": TASKS["leg_counting"]}},
            "num": 1500,
            "num_heldout": 100,
            "heldout_share": 0.2,
        },
        "sample": {"problems": "./collect/problems", "engine": "worked"},
        "verify": {"problems": "./collect/problems", "traces": "./sample/traces"},
        "curate": {
            "problems": "./collect/problems",
            "traces": "./sample/traces",
            "verdicts": "./verify/verdicts",
            "keep": ["correct"],
        },
        "big": {**FRESH, "texts": "./curate/dataset", "hidden_size": 96, "num_hidden_layers": 4},
        "teacher": {
            "stage": "sft",
            "model": "./big/model",
            "data": "./curate/dataset",
            "num_epochs": 2.0,
            "batch_size": 16,
            "lr": 3e-3,
        },
        "small": {**FRESH, "tokenizer": "./big/model", "hidden_size": 48, "num_hidden_layers": 2},
        "distill": {
            "model": "./small/model",
            "teacher": "./teacher/model",
            "data": "./curate/dataset",
            "num_tokens": 120_000,
            "batch_size": 16,
            "lr": 4e-3,
        },
        "grpo": {
            "model": "./distill/model",
            "problems": "./collect/problems",
            "num_samples": 8,
            "questions_per_step": 16,
            "steps_per_round": 2,
            "num_steps": 8,
            "max_tokens": 96,
            "lr": 2e-4,
        },
        "evaluate": {
            "engine": {"name": "local", "model": "./grpo/model"},
            "problems": {"heldout": "./collect/heldout"},
            "num_samples": 8,
            "max_tokens": 128,
        },
    },
}


@dataclass(frozen=True)
class Case:
    """A recipe, its size and what is set beside it."""

    recipe: Any
    size: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)


CASES = {
    "ci": Case(QUICKSTART, "ci"),
    "middle": Case(
        QUICKSTART,
        "",
        {
            "lessons.num": 4000,
            "collect.num": 1000,
            "collect.num_heldout": 100,
            "teacher.num_tokens": 150_000,
            "distilled.num_tokens": 150_000,
            "unfiltered.num_tokens": 150_000,
            "answers_only.num_tokens": 150_000,
            "start.hidden_size": 48,
        },
    ),
    "full": Case(QUICKSTART),
    "unshipped": Case(UNSHIPPED),
}
RUN = """
import json, sys
from limbeck import api, progress
progress.quiet = True
asked = json.load(sys.stdin)
api.run(asked["recipe"], asked["overrides"], run=asked["run"], size=asked["size"])
"""
PLAN = """
import json, pathlib, sys
from limbeck import api
from limbeck.estimates import measured
asked = json.load(sys.stdin)
measured.cache = lambda: pathlib.Path(asked["kept"])
found = api.estimate(asked["recipe"], asked["overrides"], run="nowhere", size=asked["size"])
print(json.dumps(found.summary()))
"""


def python(code: str, asked: dict[str, Any]) -> tuple[str, float]:
    """(what a process of its own prints, its CPU-seconds)."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=environment,
        check=False,
    )
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measured(case: Case, at: Path | None) -> dict[str, Any]:
    """What a plan foretells of a case, what a run takes, and the speed of the machine at both."""
    with tempfile.TemporaryDirectory() as folder:
        asked = {"recipe": case.recipe, "overrides": case.overrides, "size": case.size}
        asked["kept"] = folder
        run = at or Path(folder) / "run"
        told, planning = python(PLAN, asked)
        speed = measure.gemm_gflops(measure.torch.float32)
        took = None if at else python(RUN, {**asked, "run": str(run)})[1]
        speeds = [speed, measure.gemm_gflops(measure.torch.float32)]
        foretold = json.loads(told)
        stages = [_stage(row, run / row["stage"] / "ledger.jsonl") for row in foretold["stages"]]
    took = took or sum(stage["cpu_seconds"] for stage in stages)
    about = {"foretold": foretold["cpu_seconds"], "took": took, "planning": planning}
    return {**about, "gflops": speeds, "stages": stages}


def _stage(row: dict[str, Any], ledger: Path) -> dict[str, Any]:
    lines = ledger.read_text().splitlines() if ledger.exists() else []
    rows = [json.loads(line) for line in lines]
    memory = row["memory_bytes"] / 2**20 if row["memory_bytes"] else 0.0
    return {
        "stage": row["stage"],
        "source": row["source"],
        "foretold_cpu_seconds": row["cpu_seconds"] or 0.0,
        "cpu_seconds": sum(one["cpu_seconds"] for one in rows),
        "foretold_memory_mib": memory,
        "memory_mib": max((one["peak_memory_mib"] for one in rows), default=0.0),
    }


def show(name: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    """A table of a case, and its lines of the result: the worst factor, the worst share."""
    print(f"\n{name}: planned in {found['planning']:.1f} CPU-seconds, GFLOP/s {found['gflops']}")
    print(f"{'stage':<20}{'foretold':>10}{'took':>10}{'ratio':>8}{'MiB':>8}{'held':>8}{'ratio':>8}")
    factors, shares = [], []
    for one in found["stages"]:
        ours, took = one["foretold_cpu_seconds"], one["cpu_seconds"]
        memory, held = one["foretold_memory_mib"], one["memory_mib"]
        ratio, share = _ratio(ours, took), _ratio(memory, held)
        print(
            f"{one['stage']:<20}{ours:>10.2f}{took:>10.2f}{ratio:>8.2f}"
            f"{memory:>8.0f}{held:>8.0f}{share:>8.2f}"
        )
        if took > NOTED * found["took"]:
            factors.append(max(ratio, 1 / ratio))
        if held:
            shares.append(abs(share - 1))
    whole = found["foretold"] / found["took"]
    print(f"{'in all':<20}{found['foretold']:>10.1f}{found['took']:>10.1f}{whole:>8.2f}")
    return [
        _within(f"{name}_time", max(whole, 1 / whole), "factor, in all", TIME),
        _within(f"{name}_stages", max(factors), "factor, worst stage", TIME),
        _within(f"{name}_memory", max(shares), "share off, worst", MEMORY),
    ]


def _ratio(ours: float, took: float) -> float:
    return ours / took if ours and took else float("nan")


def _within(name: str, value: float, unit: str, most: float) -> dict[str, Any]:
    return {**measure.case(name, value, unit, None), "target": most, "met": value <= most}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", choices=[[], *CASES], metavar="CASE")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--at", type=Path)
    parser.add_argument("--to", type=Path)
    arguments = parser.parse_args()
    names = arguments.cases or (["ci", "unshipped"] if arguments.quick else [*CASES])
    found = {name: measured(CASES[name], arguments.at) for name in names}
    cases = [line for name in names for line in show(name, found[name])]
    measure.finish("plan", cases, ["limbeck", "torch"], arguments.to, measured=found)


if __name__ == "__main__":
    main()
