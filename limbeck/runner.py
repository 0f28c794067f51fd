"""Plans a recipe against its run folder and runs what is missing: skip, resume, extend, refuse."""

from __future__ import annotations

import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from limbeck import ledger, progress, store
from limbeck.config import map_references, split_fields, written
from limbeck.errors import UserError, UserErrors
from limbeck.folder import Machine, StageFolder
from limbeck.plugins import plugins, source_hash
from limbeck.recipe import TABLES, Recipe, Stage

State = Literal["done", "new", "resume", "extend", "stale"]
PACKAGES = ("limbeck", "torch", "transformers", "tokenizers", "pyarrow", "reasoning_gym")


@dataclass(frozen=True)
class Step:
    """One stage of a plan: what has to happen to it, and why."""

    stage: Stage
    state: State
    record: dict[str, Any]
    why: str = ""

    @property
    def key(self) -> str:
        """What the stage's outputs are: identity and extent."""
        return store.digest([self.record["identity"], self.record["extent"]])[:16]

    @property
    def identity(self) -> str:
        """What each of its rows is, however many there are."""
        return store.digest(self.record["identity"])[:16]


def plan(recipe: Recipe, run_dir: Path, keep: tuple[str, ...] = ()) -> list[Step]:
    """What running the recipe in this folder would do, stage by stage; changes nothing."""
    steps: dict[str, Step] = {}
    for stage in recipe.stages:
        record = _record(stage, steps)
        state, why = _state(stage, record, run_dir / stage.name)
        if state == "stale" and stage.name in keep:
            kept = store.read_sealed(run_dir / stage.name / "stage.json")
            record = {"identity": kept["identity"], "extent": kept["extent"]}
            state, why = "done", f"kept although {why}"
        steps[stage.name] = Step(stage, state, record, why)
    return list(steps.values())


def _record(stage: Stage, earlier: dict[str, Step]) -> dict[str, Any]:
    """The stage's identity and extent as plain JSON, its inputs by what they are."""
    extends = getattr(stage.module, "EXTENDS", False)
    amounts: dict[str, str] = {}

    def name_input(kind: str, path: str, key: str) -> str:
        if not path.startswith("./"):
            return f"{kind} {_hash_outside(path)}"
        name, _, output = path[2:].partition("/")
        step = earlier[name]
        if extends and kind in TABLES:
            amounts[key] = step.key
            return f"{kind} {step.identity}/{output}"
        return f"{kind} {step.key}/{output}"

    fields, extent = split_fields(map_references(stage.config, name_input))
    sources = {plugin.name: source_hash(plugin) for plugin in plugins(stage.config)}
    identity = {"verb": stage.verb, **fields, **({"source": sources} if sources else {})}
    return {"identity": identity, "extent": {**extent, **({"of": amounts} if amounts else {})}}


def _hash_outside(path: str) -> str:
    """What an outside file, folder or Hub name is."""
    place = Path(path)
    if place.is_dir():
        return store.digest(store.hash_tree(place))[:16]
    return store.hash_file(place)[:16] if place.exists() else path


def _state(stage: Stage, record: dict[str, Any], folder: Path) -> tuple[State, str]:
    manifest, started = folder / "stage.json", folder / "started.json"
    if not started.exists():
        return "new", ""
    before = store.read_sealed(manifest if manifest.exists() else started)
    changes = list(_changes(before["identity"], record["identity"]))
    resumes = getattr(stage.module, "RESUMES", False)
    if changes and (manifest.exists() or resumes):
        return "stale", "; ".join(changes)
    if not manifest.exists():
        return ("resume", "was interrupted") if resumes else ("new", "was interrupted")
    grown = list(_changes(before["extent"], record["extent"]))
    if not grown:
        return "done", ""
    shrunk = list(_shrunk(before["extent"], record["extent"]))
    if shrunk or not getattr(stage.module, "EXTENDS", False):
        return "stale", "; ".join(shrunk or grown)
    return "extend", "; ".join(grown)


def _changes(before: Any, after: Any, key: str = "") -> Iterator[str]:
    """'lr was 0.001, is 0.002' for each difference."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(n for n in after if n not in before)]:
            dotted = f"{key}.{name}" if key else name
            yield from _changes(before.get(name), after.get(name), dotted)
    elif before != after:
        told = [value is None or isinstance(value, bool | int | float) for value in (before, after)]
        short = isinstance(before, str) and isinstance(after, str) and " " not in before + after
        if all(told) or short:
            default = "its default"
            yield f"{key} was {default if before is None else before}, is " + str(
                default if after is None else after
            )
        else:
            yield f"{key} changed"


def _shrunk(before: Any, after: Any, key: str = "") -> Iterator[str]:
    for name in before if isinstance(before, dict) else ():
        old, new = before[name], after.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _shrunk(old, new, name)
        elif name.startswith("num") and isinstance(old, int) and (new is None or new < old):
            yield f"{name} was {old}, is {'its default' if new is None else new}"


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
    with store.locked(run_dir):
        _own(recipe, run_dir)
        for name in redo:
            shutil.rmtree(run_dir / name, ignore_errors=True)
        steps = plan(recipe, run_dir, keep)
        _refuse_stale(steps, run_dir)
        store.write_json(run_dir / "recipe.json", describe(recipe))
        machine = settle(recipe.machine)
        about = _about(machine) | {"gemm_gflops": _gemm_gflops()}
        session = {"command": command, "started": _now(), "machine": about}
        store.append_json(run_dir / "sessions.jsonl", session | {"versions": versions()})
        for index, step in enumerate(steps, 1):
            title = f"[{index}/{len(steps)}] {step.stage.name}"
            if step.state == "done":
                progress.say(f"{title}: done before{f' ({step.why})' if step.why else ''}")
                continue
            told = {"extend": " (extending)", "resume": " (going on)"}.get(step.state, "")
            progress.say(title + told)
            _run_stage(step, run_dir, machine)


def _own(recipe: Recipe, run_dir: Path) -> None:
    """A run folder belongs to one recipe."""
    described = run_dir / "recipe.json"
    if described.exists() and (owner := store.read_json(described)["name"]) != recipe.name:
        way_out = "choose another --run folder"
        raise UserError(str(run_dir), f"holds a run of {owner!r}, not {recipe.name!r}", way_out)
    strangers = [path.name for path in run_dir.iterdir() if path.name != "lock"]
    if not described.exists() and strangers:
        what = f"is not a run folder: it holds {strangers[0]!r}"
        raise UserError(str(run_dir), what, "choose an empty --run folder")


def _refuse_stale(steps: list[Step], run_dir: Path) -> None:
    stale = [step for step in steps if step.state == "stale"]
    if not stale:
        return
    redo = " ".join(f"--redo {step.stage.name}" for step in stale)
    way_out = f"make what changed anew with `{redo}`, use it as it is with --keep, or another --run"
    raise UserErrors(
        [
            UserError(f"{run_dir / step.stage.name}", f"is of another recipe: {step.why}", way_out)
            for step in stale
        ]
    )


def _run_stage(step: Step, run_dir: Path, machine: Machine) -> None:
    stage, folder = step.stage, run_dir / step.stage.name
    if step.state != "resume" and not getattr(stage.module, "RESUMES", False):
        shutil.rmtree(folder, ignore_errors=True)  # unfinished, or about to be made larger
    started = {**step.record, "machine": _about(machine), "versions": versions()}
    if step.state == "resume":
        _refuse_other_machine(store.read_sealed(folder / "started.json"), started, folder)
    (folder / "stage.json").unlink(missing_ok=True)
    store.write_sealed(folder / "started.json", {**started, "config": written(stage.config)})
    store.failpoint(f"{stage.name}.started")
    out = StageFolder(folder, stage.name, step.identity, machine)

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
        "files": store.hash_tree(folder),
    }
    store.failpoint(f"{stage.name}.finishing")
    store.write_sealed(folder / "stage.json", manifest)


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
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
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


def describe(recipe: Recipe) -> dict[str, Any]:
    """The resolved recipe as plain JSON."""
    stages = {s.name: {"stage": s.verb, **written(s.config)} for s in recipe.stages}
    return {"name": recipe.name, "title": recipe.title, "stages": stages}


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")
