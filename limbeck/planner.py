"""Holds a recipe against its run folder: what is done, to resume, to extend, or of another recipe.

A stage's record is its *identity*, what each of its rows is, and its *extent*, how many there are.
Equal records are the same stage; a larger extent is more of the same; anything else is another.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from limbeck import store
from limbeck.config import map_references, split_fields
from limbeck.errors import UserError, UserErrors
from limbeck.plugins import package_hash, plugins, source_hash
from limbeck.recipe import TABLES, Recipe, Stage

HASH = re.compile(r"\b[0-9a-f]{16}\b")
State = Literal["done", "new", "resume", "extend", "stale"]


@dataclass(frozen=True)
class Step:
    """One stage of a plan: what has to happen to it, and why."""

    stage: Stage
    state: State
    record: dict[str, Any]
    why: str = ""
    kept: bool = False

    @property
    def key(self) -> str:
        """What the stage's outputs are: identity and extent."""
        return store.digest([self.record["identity"], self.record["extent"]])[:16]

    @property
    def identity(self) -> str:
        """What each of its rows is, however many there are."""
        return store.digest(self.record["identity"])[:16]


def plan(
    recipe: Recipe, run_dir: Path, keep: tuple[str, ...] = (), redo: tuple[str, ...] = ()
) -> list[Step]:
    """What running the recipe in this folder would do, stage by stage; changes nothing.

    Raises UserErrors for what is known to fail before it is begun.
    """
    steps: dict[str, Step] = {}
    for stage in recipe.stages:
        step = Step(stage, "new", _record(stage, steps))
        if stage.name not in redo:
            step = replan(step, run_dir)
        if step.state == "stale" and stage.name in keep:
            step = _keep(step, run_dir)
        steps[stage.name] = step
    if errors := list(_known_to_fail(recipe, steps.values())):
        raise UserErrors(errors)
    return list(steps.values())


def _known_to_fail(recipe: Recipe, steps: Iterable[Step]) -> Iterator[UserError]:
    """What plug-ins of stages that are to run object to: a file may have a `check(*, knobs)`."""
    for step in steps:
        for plugin in plugins(step.stage.config) if step.state != "done" else ():
            module = inspect.getmodule(plugin.function)
            try:
                if plugin.function.__module__.startswith("limbeck.") and hasattr(module, "check"):
                    module.check(**plugin.knobs)  # type: ignore[union-attr]
            except UserError as error:
                where = f"{recipe.path or 'recipe'}: stages.{step.stage.name}: {error.where}"
                yield UserError(where, error.what, error.way_out)


def replan(step: Step, run_dir: Path) -> Step:
    """The step by what the folder holds now."""
    if step.kept:
        return step
    state, why = _state(step.stage, step.record, run_dir)
    return replace(step, state=state, why=why)


def _keep(step: Step, run_dir: Path) -> Step:
    """A stage that is of another recipe, used as it is."""
    manifest = run_dir / step.stage.name / "stage.json"
    if not manifest.exists():
        way_out = f"make it anew with --redo {step.stage.name}"
        raise UserError(str(manifest.parent), "was never finished: it cannot be kept", way_out)
    made = store.read_sealed(manifest)
    record = {"identity": made["identity"], "extent": made["extent"]}
    return Step(step.stage, "done", record, f"kept although {step.why}", kept=True)


def _record(stage: Stage, earlier: dict[str, Step]) -> dict[str, Any]:
    """The stage's identity and extent as plain JSON, its inputs by what they are."""
    extends = getattr(stage.module, "EXTENDS", False)
    amounts: dict[str, Any] = {}

    def name_input(kind: str, path: str, key: str) -> str:
        if not path.startswith("./"):
            return f"{kind} {_hash_outside(path)}"
        name, _, output = path[2:].partition("/")
        step = earlier[name]
        if extends and kind in TABLES:
            amounts[key] = step.record["extent"]
            return f"{kind} {step.identity}/{output}"
        return f"{kind} {step.key}/{output}"

    fields, extent = split_fields(map_references(stage.config, name_input))
    sources = {plugin.name: source_hash(plugin) for plugin in plugins(stage.config)}
    sources |= {package: package_hash(package) for package in getattr(stage.module, "USES", ())}
    # The name is identity, too: seeds are derived from it.
    identity = {"verb": stage.verb, "name": stage.name, "config": fields, "source of": sources}
    return {"identity": identity, "extent": {"config": extent, "of": amounts}}


def _hash_outside(path: str) -> str:
    """What an outside file, folder or Hub name is."""
    place = Path(path)
    if place.is_dir():
        return store.digest(store.hash_tree(place))[:16]
    return store.hash_file(place)[:16] if place.exists() else path


def _state(stage: Stage, record: dict[str, Any], run_dir: Path) -> tuple[State, str]:
    folder = run_dir / stage.name
    manifest, started = folder / "stage.json", folder / "started.json"
    finished, resumes = manifest.exists(), getattr(stage.module, "RESUMES", False)
    if not finished and not started.exists():
        if resumes and any(not path.name.startswith(".") for path in folder.glob("*")):
            way_out = f"restore it, or make the stage anew with --redo {stage.name}"
            raise UserError(str(started), "is missing: nobody knows whose rows these are", way_out)
        return "new", ""
    if not finished and not resumes:
        return "new", "was interrupted"
    before = store.read_sealed(manifest if finished else started)
    if changes := list(_changes(before["identity"], record["identity"])):
        return "stale", _told(changes)
    grown = list(_changes(before["extent"], record["extent"]))
    shrunk = list(_shrunk(before["extent"], record["extent"]))
    if shrunk or (grown and finished and not getattr(stage.module, "EXTENDS", False)):
        return "stale", _told(shrunk or grown)
    if not grown and (anew := list(_made_anew(before["inputs"], run_dir))):
        return "stale", _told(anew)
    if not finished:
        return "resume", "was interrupted"
    return ("extend", _told(grown)) if grown else ("done", "")


def references(stage: Stage) -> list[str]:
    """The `./stage/output` that a stage reads."""
    found: list[str] = []

    def visit(kind: str, path: str, key: str) -> str:
        if path.startswith("./"):
            found.append(path)
        return path

    map_references(stage.config, visit)
    return found


def content(run_dir: Path, reference: str) -> str | None:
    """A hash of what `./stage/output` holds; None while its stage is not finished."""
    name, _, output = reference[2:].partition("/")
    manifest = run_dir / name / "stage.json"
    if not manifest.exists():
        return None
    files = store.read_sealed(manifest)["files"]
    return store.digest({k: v for k, v in files.items() if k.partition("/")[0] == output})[:16]


def _made_anew(inputs: dict[str, str | None], run_dir: Path) -> Iterator[str]:
    """Inputs of the same recipe that hold other rows than when they were read."""
    for reference, was in inputs.items():
        now = content(run_dir, reference)
        if was is not None and now is not None and now != was:
            yield f"{reference} was made anew and holds something else"


def _changes(before: Any, after: Any, key: str = "") -> Iterator[str]:
    """'lr was 0.001, is 0.002' for each difference."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name in [*before, *(n for n in after if n not in before)]:
            yield from _changes(before.get(name), after.get(name), _dotted(key, name))
    elif store.digest([before]) != store.digest([after]):
        was, now = ("its default" if value is None else value for value in (before, after))
        plain = [isinstance(value, bool | int | float) for value in (was, now)]
        words = [isinstance(value, str) and len(value) < 40 for value in (was, now)]
        hashes = any(HASH.search(str(value)) for value in (was, now))
        if all(p or w for p, w in zip(plain, words, strict=True)) and not hashes:
            yield f"{key} was {was}, is {now}"
        else:
            yield f"{key} changed"


def _dotted(key: str, name: str) -> str:
    """A field as a recipe names it, without our own boxes around it."""
    inner = "" if name in ("config", "of") else name
    return f"{key}.{inner}" if key and inner else key or inner


def _told(changes: list[str]) -> str:
    """The first of them; one change upstream comes by many ways."""
    more = f", and {len(changes) - 2} more" if len(changes) > 2 else ""
    return "; ".join(changes[:2]) + more


def _shrunk(before: dict[str, Any], after: dict[str, Any], key: str = "") -> Iterator[str]:
    """What was made of that is no longer wanted: fewer rows cannot be told from the others."""
    for name, old in before.items():
        new = after.get(name)
        inner = _dotted(key, name)
        if isinstance(old, dict):
            yield from _shrunk(old, new if isinstance(new, dict) else {}, inner)
        elif name.startswith("num") and isinstance(old, int) and (new is None or new < old):
            yield f"{inner} was {old}, is {'its default' if new is None else new}"
