"""Runs what is missing of a recipe: skip, resume, extend, or refuse."""

from __future__ import annotations

import os
import platform
import shutil
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from limbeck import ledger, memory, progress, store
from limbeck.config import map_references, written
from limbeck.errors import UserError, UserErrors
from limbeck.folder import Machine, StageFolder
from limbeck.planner import Step, content, plan, references, replan
from limbeck.recipe import Recipe, Stage

OURS = ("lock", ".recipe.json.tmp", "sessions.jsonl", "report.html")  # beside recipe.json
PACKAGES = ("limbeck", "torch", "transformers", "tokenizers", "pyarrow", "reasoning_gym")


def run(
    recipe: Recipe,
    run_dir: Path,
    redo: tuple[str, ...] = (),
    keep: tuple[str, ...] = (),
    command: str = "",
) -> None:
    """Runs what the plan says is missing; a finished stage is never touched.

    Raises UserErrors for stages that are stale, with the ways out, before anything runs.
    """
    for name in (*redo, *keep):
        if name not in (names := [stage.name for stage in recipe.stages]):
            raise UserError(f"--redo/--keep {name}", "is no stage", f"there is {', '.join(names)}")
    _make(run_dir)
    with store.locked(run_dir):
        own(recipe, run_dir)
        steps = plan(recipe, run_dir, keep, redo)
        _refuse_stale(steps, run_dir, redo)
        machine = settle(recipe.machine)
        for path in run_dir.glob(".*.removed"):  # a kill came in the middle
            shutil.rmtree(path, ignore_errors=True)
        for name in redo:
            store.remove_tree(run_dir / name)
        store.write_sealed(run_dir / "recipe.json", describe(recipe, steps, run_dir))
        about = _about(machine) | {"gemm_gflops": _gemm_gflops()}
        session = {"command": command, "started": _now(), "machine": about}
        store.append_json(run_dir / "sessions.jsonl", session | {"versions": versions()})
        for index, planned in enumerate(steps, 1):
            step = replan(planned, run_dir)  # what came before it may have come out otherwise
            _refuse_stale([step], run_dir)
            title = f"[{index}/{len(steps)}] {step.stage.name}"
            if step.state == "done":
                _sweep(step.stage, run_dir)  # a kill may have come before it
                progress.say(f"{title}: done before{f' ({step.why})' if step.why else ''}")
                continue
            told = {"extend": " (extending)", "resume": " (going on)"}.get(step.state, "")
            progress.say(title + told)
            _run_stage(step, run_dir, machine, recipe.name)


def _make(run_dir: Path) -> None:
    try:
        str(run_dir).encode()
        run_dir.mkdir(parents=True, exist_ok=True)
    except (OSError, UnicodeEncodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its name is not UTF-8"
        what = f"cannot be made ({reason})"
        raise UserError(str(run_dir), what, "choose another --run folder") from error


def own(recipe: Recipe, run_dir: Path) -> None:
    """A run folder belongs to one recipe; UserError if this one belongs to another, or is none."""
    if not run_dir.exists():
        return
    if not run_dir.is_dir():
        raise UserError(str(run_dir), "is no folder", "choose another --run folder")
    described = run_dir / "recipe.json"
    if described.exists() and (owner := read_description(run_dir)["name"]) != recipe.name:
        way_out = "choose another --run folder"
        raise UserError(str(run_dir), f"holds a run of {owner!r}, not {recipe.name!r}", way_out)
    strangers = [
        path.name
        for path in run_dir.iterdir()
        if path.name not in OURS and not (path / "started.json").exists()
    ]
    if not described.exists() and strangers:
        what = f"is not a run folder: it holds {strangers[0]!r}"
        raise UserError(str(run_dir), what, "choose an empty --run folder")


def _refuse_stale(steps: list[Step], run_dir: Path, asked: tuple[str, ...] = ()) -> None:
    stale = [step for step in steps if step.state == "stale"]
    if not stale:
        return
    redo = " ".join(f"--redo {name}" for name in (*asked, *(step.stage.name for step in stale)))
    way_out = f"make what changed anew with `{redo}`, use it as it is with --keep, or another --run"
    raise UserErrors(
        [
            UserError(f"{run_dir / step.stage.name}", f"is of another recipe: {step.why}", way_out)
            for step in stale
        ]
    )


def _run_stage(step: Step, run_dir: Path, machine: Machine, recipe: str) -> None:
    stage, folder = step.stage, run_dir / step.stage.name
    if not getattr(stage.module, "RESUMES", False):
        store.remove_tree(folder)  # unfinished, or about to be made larger
    inputs = {path: content(run_dir, path) for path in references(stage)}
    started = {**step.record, "inputs": inputs}
    started |= {"machine": _about(machine), "versions": versions()}
    if step.state == "resume":
        _refuse_other_machine(store.read_sealed(folder / "started.json"), started, folder)
    (folder / "stage.json").unlink(missing_ok=True)
    store.write_sealed(folder / "started.json", {**started, "config": written(stage.config)})
    store.failpoint(f"{stage.name}.started")
    out = StageFolder(folder, stage.name, step.identity, machine, recipe)

    def inside(kind: str, path: str, key: str) -> str:
        return str(run_dir / path[2:]) if path.startswith("./") else path

    begun = time.monotonic()
    summary = stage.module.run(map_references(stage.config, inside), out)
    manifest = {
        "stage": stage.name,
        "verb": stage.verb,
        **started,
        "config": written(stage.config),
        "summary": summary,
        "wall_seconds": round(time.monotonic() - begun, 1),
        "finished": _now(),
        "files": store.hash_tree(folder, getattr(stage.module, "SCRATCH", ())),
    }
    store.failpoint(f"{stage.name}.finishing")
    store.write_sealed(folder / "stage.json", manifest)
    store.failpoint(f"{stage.name}.finished")
    _sweep(stage, run_dir)


def _sweep(stage: Stage, run_dir: Path) -> None:
    """Takes away what a stage needed to resume, once it is finished."""
    for name in getattr(stage.module, "SCRATCH", ()):
        shutil.rmtree(run_dir / stage.name / name, ignore_errors=True)


def _refuse_other_machine(before: dict[str, Any], now: dict[str, Any], folder: Path) -> None:
    """Bits depend on threads, device and torch: half a stage under each would be neither's."""
    for what, was, is_now in [
        *((k, before["machine"].get(k), now["machine"][k]) for k in ("threads", "device")),
        ("torch", before["versions"].get("torch"), now["versions"].get("torch")),
    ]:
        if was != is_now:
            way_out = f"go on with machine.{what}={was}" if what != "torch" else f"install {was}"
            raise UserError(
                str(folder),
                f"was begun with {what} {was}, this is {is_now}",
                f"{way_out}, or start the stage anew with --redo {folder.name}",
            )


def settle(machine: Machine) -> Machine:
    """The machine with every `auto` decided, and torch told about it, where it is installed."""
    threads = machine.threads
    if threads == "auto":
        threads = (
            len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )
    device = machine.device
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for engines, too, which look for themselves
    try:
        import torch
    except ImportError:
        return Machine(device="cpu" if device == "auto" else device, threads=threads)
    torch.set_num_threads(threads)
    memory.keep_freed()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("machine.device", "there is no CUDA device here", "take cpu, or auto")
    return Machine(device=device, threads=threads)


def _about(machine: Machine) -> dict[str, Any]:
    return {"device": machine.device, "threads": machine.threads, "platform": platform.platform()}


def _gemm_gflops() -> float | None:
    try:
        return ledger.gemm_gflops()
    except ImportError:
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results may depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def describe(recipe: Recipe, steps: list[Step], run_dir: Path) -> dict[str, Any]:
    """The resolved recipe as plain JSON; a kept stage as it was when it was made."""
    stages = {s.name: {"stage": s.verb, **written(s.config)} for s in recipe.stages}
    for step in steps:
        if step.kept:
            made = store.read_sealed(run_dir / step.stage.name / "stage.json")["config"]
            stages[step.stage.name] = {"stage": step.stage.verb, **made}
    return {"name": recipe.name, "title": recipe.title, "stages": stages}


def read_description(run_dir: Path) -> dict[str, Any]:
    """What `describe` said of the run in this folder."""
    way_out = "delete it: the next limbeck run writes it again"
    return store.read_sealed(run_dir / "recipe.json", way_out)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
