"""Limbeck from Python: `run` and `plan` a recipe, `evaluate` models, `open` a run folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from limbeck import estimates, planner, processes, progress, runner
from limbeck import recipe as recipes
from limbeck.estimates import Estimates, devices, measured
from limbeck.evaluation import shortcut
from limbeck.evaluation.shortcut import Benchmark, Wishes
from limbeck.evaluation.subjects import EngineName, subjects
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
    return _finished(loaded, _folder(loaded, run, size), redo, keep, command)


def plan(
    recipe: str | Path | dict[str, Any],
    overrides: dict[str, Any] | None = None,
    *,
    run: str | Path | None = None,
    size: str = "",
) -> list[Step]:
    """Checks a recipe and says what running it would do, stage by stage; changes nothing."""
    loaded = recipes.load(recipe, overrides, size)
    return _steps(loaded, _folder(loaded, run, size))


def estimate(
    recipe: str | Path | dict[str, Any],
    overrides: dict[str, Any] | None = None,
    *,
    run: str | Path | None = None,
    size: str = "",
    machine: str | None = None,
) -> Estimates:
    """What `plan` finds, with the memory, time and money of each stage: on `machine`, `8xH100` or
    `local`, or the one that the recipe names, or this one, where its stages are rehearsed."""
    loaded = recipes.load(recipe, overrides, size)
    chosen = devices.named(loaded.machine, machine) if machine else loaded.machine
    folder, here = _folder(loaded, run, size), None
    steps = _steps(loaded, folder, is_here=chosen.device_name is None)
    if chosen.device_name is None and any(step.state != "done" for step in steps):
        here = measured.rehearse(loaded, {"recipe": recipe, "overrides": overrides, "size": size})
    if here and here.gpu:
        chosen, here = devices.of_gpus(chosen, here.gpu, here.num_gpus), None
    return estimates.estimate(steps, chosen, here, folder)


def evaluate(
    models: str | Sequence[str],
    on: str | Sequence[str],
    wishes: Wishes = Wishes(),
    *,
    engine: EngineName | None = None,
    served: str | None = None,
    run: str | Path | None = None,
    redo: Sequence[str] = (),
    keep: Sequence[str] = (),
    command: str = "limbeck.evaluate(...)",
) -> Run:
    """Evaluates models, by folder, hub name or a server's address, `on` benchmarks by their own
    protocols, and compares them: `evaluate("runs/demo/sft", "gsm8k", Wishes(num_samples=4))`.

    Asked again it goes on where it was stopped; more samples, problems, benchmarks and ways of
    asking are added to those there.
    """
    found = subjects([models] if isinstance(models, str) else models, engine, served)
    benchmarks = [Benchmark.of(word) for word in ([on] if isinstance(on, str) else on)]
    loaded = recipes.load(shortcut.recipe(found, benchmarks, wishes))
    for line in shortcut.cuts(found, benchmarks, wishes):
        progress.say(line)
    tables = [stage.name for stage in loaded.stages if stage.verb == "compare"]
    return _finished(loaded, _folder(loaded, run), [*redo, *tables], keep, command)


def open(run: str | Path) -> Run:
    """A run folder, to read results, tables and stories from."""
    return Run(run)


def _steps(loaded: Recipe, folder: Path, *, is_here: bool = True) -> list[Step]:
    runner.own(loaded, folder)
    return planner.plan(loaded, folder, is_here=is_here)


def _finished(
    loaded: Recipe, folder: Path, redo: Sequence[str], keep: Sequence[str], command: str
) -> Run:
    """The run, once what was missing has been done, with its report."""
    runner.run(loaded, folder, tuple(redo), tuple(keep), command)
    finished = Run(folder)
    if processes.leads():
        finished.write_report()
    return finished


def _folder(loaded: Recipe, run: str | Path | None, size: str = "") -> Path:
    return Path(run) if run else Path("runs") / (f"{loaded.name}-{size}" if size else loaded.name)
