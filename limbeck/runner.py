"""Runs what is missing of a recipe: skip, resume, extend, or refuse."""

from __future__ import annotations

import os
import platform
import shutil
import time
from contextlib import nullcontext
from importlib import metadata
from pathlib import Path
from typing import Any

from limbeck import ledger, memory, processes, progress, store
from limbeck.config import StageConfig, map_references, written
from limbeck.errors import UserError, UserErrors
from limbeck.folder import Machine, StageFolder
from limbeck.planner import Step, content, plan, references, replan
from limbeck.recipe import Recipe, Stage

OURS = ("lock", ".recipe.json.tmp", "sessions.jsonl", "report.html")  # beside recipe.json
PACKAGES = (
    "limbeck",
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "torchao",
    "bitsandbytes",
    "pyarrow",
    "reasoning_gym",
)


def run(
    recipe: Recipe,
    run_dir: Path,
    redo: tuple[str, ...] = (),
    keep: tuple[str, ...] = (),
    command: str = "",
) -> None:
    """Runs what the plan says is missing; a finished stage is never touched.

    Raises UserErrors for stages that are stale, with the ways out, before anything runs. Under
    torchrun the first process does all that; the others take part in what it asks of them, and
    return when it does.
    """
    if processes.num_started() > 1:
        machine = settle(recipe.machine)  # hides GPUs that are not wanted
        processes.join()
        if not processes.leads():
            return _follow(recipe, run_dir, machine)
    with processes.leading():
        _lead(recipe, run_dir, redo, keep, command)


def _follow(recipe: Recipe, run_dir: Path, machine: Machine) -> None:
    """Computes its part of each stage that all take part in; writes and says nothing."""
    progress.quiet = True
    stages = {stage.name: stage for stage in recipe.stages}
    for message in processes.heard():
        name = message["stage"]
        out = StageFolder(run_dir / name, name, message["key"], machine, recipe.name, leads=False)
        with processes.together():
            stages[name].module.run(_inside(stages[name], run_dir), out)


def _lead(
    recipe: Recipe,
    run_dir: Path,
    redo: tuple[str, ...],
    keep: tuple[str, ...],
    command: str,
) -> None:
    for name in (*redo, *keep):
        if name not in (names := [stage.name for stage in recipe.stages]):
            raise UserError(f"--redo/--keep {name}", "is no stage", f"there is {', '.join(names)}")
    _make(run_dir)
    with store.locked(run_dir):
        owner = own(recipe, run_dir)
        steps = plan(recipe, run_dir, keep, redo)
        _refuse_stale(steps, run_dir, redo)
        machine = settle(recipe.machine)
        for path in run_dir.glob(".*.removed"):  # a kill came in the middle
            shutil.rmtree(path, ignore_errors=True)
        for name in redo:
            store.remove_tree(run_dir / name)
        store.write_sealed(run_dir / "recipe.json", describe(recipe, steps, run_dir, owner))
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


def own(recipe: Recipe, run_dir: Path) -> str:
    """The name of the recipe that a run folder belongs to: this one, or one that it builds on.

    UserError if it belongs to another, or is none.
    """
    if not run_dir.exists():
        return recipe.name
    if not run_dir.is_dir():
        raise UserError(str(run_dir), "is no folder", "choose another --run folder")
    described = run_dir / "recipe.json"
    owner: str = read_description(run_dir)["name"] if described.exists() else recipe.name
    if owner not in (recipe.name, *recipe.bases):
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
    return owner


def _refuse_stale(steps: list[Step], run_dir: Path, asked: tuple[str, ...] = ()) -> None:
    stale = [step for step in steps if step.state == "stale"]
    if not stale:
        return
    redo = " ".join(f"--redo {name}" for name in (*asked, *(step.stage.name for step in stale)))
    way_out = f"make what changed anew with `{redo}`, use it as it is with --keep, or another --run"
    names = {step.stage.name for step in stale}
    first = [step for step in stale if names.isdisjoint(_reads(step.stage))]
    raise UserErrors(
        [
            UserError(f"{run_dir / step.stage.name}", f"is of another recipe: {step.why}", way_out)
            for step in first
        ]
    )


def _reads(stage: Stage) -> set[str]:
    """The stages whose outputs it reads."""
    return {reference.split("/")[1] for reference in references(stage)}


def _run_stage(step: Step, run_dir: Path, machine: Machine, recipe: str) -> None:
    stage, folder = step.stage, run_dir / step.stage.name
    if not getattr(stage.module, "RESUMES", False):
        _begin_again(folder)  # unfinished, or about to be made larger
    inputs = {path: content(run_dir, path) for path in references(stage)}
    started = {**step.record, "inputs": inputs}
    started |= {"machine": _about(machine), "versions": versions()}
    out = StageFolder(folder, stage.name, step.identity, machine, recipe)
    is_spread = getattr(stage.module, "DISTRIBUTED", False)
    if step.state == "resume":
        _compare_machines(store.read_sealed(folder / "started.json"), started, out, is_spread)
    (folder / "stage.json").unlink(missing_ok=True)
    store.write_sealed(folder / "started.json", {**started, "config": written(stage.config)})
    store.failpoint(f"{stage.name}.started")
    begun = time.monotonic()
    told = {"stage": stage.name, "key": step.identity}
    with processes.together(**told) if is_spread else nullcontext(), out.account("around it"):
        summary = stage.module.run(_inside(stage, run_dir), out)
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


def _begin_again(folder: Path) -> None:
    """Takes away what a stage has made, but not the book of what that took: it was spent."""
    book = folder / "ledger.jsonl"
    rows = book.read_bytes() if book.exists() else b""
    store.remove_tree(folder)
    if rows:
        folder.mkdir()
        book.write_bytes(rows)


def _sweep(stage: Stage, run_dir: Path) -> None:
    """Takes away what a stage needed to resume, once it is finished."""
    for name in getattr(stage.module, "SCRATCH", ()):
        shutil.rmtree(run_dir / stage.name / name, ignore_errors=True)


def _inside(stage: Stage, run_dir: Path) -> StageConfig:
    """A stage's config with its references as paths."""

    def path_of(kind: str, path: str, key: str) -> str:
        return str(run_dir / path[2:]) if path.startswith("./") else path

    return map_references(stage.config, path_of)


def _compare_machines(
    before: dict[str, Any], now: dict[str, Any], out: StageFolder, is_spread: bool
) -> None:
    """Bits depend on threads, device and torch: half a stage under each would be neither's.

    A stage that several processes share goes on with any number of them, and says so.
    """
    num_before, num_now = (about["machine"].get("processes", 1) for about in (before, now))
    is_other_number = is_spread and num_before != num_now
    if is_other_number:
        out.log(f"begun by {num_before} processes, {num_now} go on; sums will round otherwise")
    compared = ["device"] if is_other_number else ["threads", "device"]
    for what, was, is_now in [
        *((k, before["machine"].get(k), now["machine"][k]) for k in compared),
        ("torch", before["versions"].get("torch"), now["versions"].get("torch")),
    ]:
        if was != is_now:
            way_out = f"go on with machine.{what}={was}" if what != "torch" else f"install {was}"
            raise UserError(
                str(out.path),
                f"was begun with {what} {was}, this is {is_now}",
                f"{way_out}, or start the stage anew with --redo {out.name}",
            )


def settle(machine: Machine) -> Machine:
    """The machine with every `auto` decided, and torch told about it, where it is installed."""
    threads = _own_cores() if machine.threads == "auto" else machine.threads
    device = machine.device
    if device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for engines, too, which look for themselves
    try:
        import torch
    except ImportError:
        device = "cpu" if device == "auto" else device
        return machine.model_copy(update={"device": device, "threads": threads})
    torch.set_num_threads(threads)
    memory.keep_freed()
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("machine.device", "there is no CUDA device here", "take cpu, or auto")
    return machine.model_copy(update={"device": device, "threads": threads})


def _own_cores() -> int:
    """How many cores this process may use: no more than OMP_NUM_THREADS says, as everywhere; of
    several that torchrun started, which sets that itself, each takes its share."""
    has_affinity = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count() or 1
    if processes.num_here() > 1:
        return max(1, cores // processes.num_here())
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    return min(cores, int(told)) if told.isdecimal() and int(told) else cores


def _about(machine: Machine) -> dict[str, Any]:
    about = {"device": machine.device, "threads": machine.threads}
    return about | {"processes": processes.num_started(), "platform": platform.platform()}


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


def describe(recipe: Recipe, steps: list[Step], run_dir: Path, owner: str) -> dict[str, Any]:
    """The resolved recipe as plain JSON, under the name of whose run it is; a kept stage as it was
    when it was made."""
    stages = {s.name: {"stage": s.verb, **written(s.config)} for s in recipe.stages}
    for step in steps:
        if step.kept:
            made = store.read_sealed(run_dir / step.stage.name / "stage.json")["config"]
            stages[step.stage.name] = {"stage": step.stage.verb, **made}
    return {"name": owner, "title": recipe.title, "stages": stages}


def read_description(run_dir: Path) -> dict[str, Any]:
    """What `describe` said of the run in this folder."""
    way_out = "delete it: the next limbeck run writes it again"
    return store.read_sealed(run_dir / "recipe.json", way_out)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
