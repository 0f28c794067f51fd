"""Limbeck from Python: `run` and `plan` a recipe, `open` a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck import estimates, planner, processes, runner
from limbeck import recipe as recipes
from limbeck.estimates import Estimates
from limbeck.planner import Step
from limbeck.recipe import Recipe
from limbeck.runs import Run


def run(
    recipe: str | Path | dict[str, Any],
    overrides: dict[str, Any] | None = None,
    *,
    run: str | Path | None = None,
    size: str = "",
    redo: Sequence[str] = (),
    keep: Sequence[str] = (),
    command: str = "limbeck.run(...)",
) -> Run:
    """Runs a recipe (a file, or a mapping of the same shape) and writes its report.

    A single stage is a recipe of one: `run({"stages": {"verify": {...}}}, run="runs/again")`.
    """
    loaded = recipes.load(recipe, overrides, size)
    folder = _folder(loaded, run, size)
    runner.run(loaded, folder, tuple(redo), tuple(keep), command)
    finished = Run(folder)
    if processes.leads():
        finished.write_report()
    return finished


def plan(
    recipe: str | Path | dict[str, Any],
    overrides: dict[str, Any] | None = None,
    *,
    run: str | Path | None = None,
    size: str = "",
) -> list[Step]:
    """Checks a recipe and says what running it would do, stage by stage; changes nothing."""
    loaded = recipes.load(recipe, overrides, size)
    folder = _folder(loaded, run, size)
    runner.own(loaded, folder)
    return planner.plan(loaded, folder)


def estimate(
    recipe: str | Path | dict[str, Any],
    overrides: dict[str, Any] | None = None,
    *,
    run: str | Path | None = None,
    size: str = "",
) -> Estimates:
    """What `plan` finds, with the memory, time and money of each stage on the recipe's machine."""
    machine = recipes.load(recipe, overrides, size).machine
    return estimates.estimate(plan(recipe, overrides, run=run, size=size), machine)


def open(run: str | Path) -> Run:
    """A run folder, to read results, tables and stories from."""
    return Run(run)


def _folder(loaded: Recipe, run: str | Path | None, size: str) -> Path:
    return Path(run) if run else Path("runs") / (f"{loaded.name}-{size}" if size else loaded.name)
