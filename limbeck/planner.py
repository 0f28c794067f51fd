"""Holds a recipe against its run folder: what is done, to resume, to extend, or of another recipe.

A stage's record is its *identity*, what each of its rows is, and its *extent*, how many there are.
Equal records are the same stage; a larger extent is more of the same; anything else is another.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from limbeck import store
from limbeck.config import Plugin, map_references, split_fields, written
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
    usual: dict[str, Any]
    """What each field of the record's extent is where the record tells nothing of it."""
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
    recipe: Recipe,
    run_dir: Path,
    keep: tuple[str, ...] = (),
    redo: tuple[str, ...] = (),
    *,
    is_here: bool = True,
) -> list[Step]:
    """What running the recipe in this folder would do, stage by stage; changes nothing.

    Raises UserErrors for what is known to fail before it is begun; where it is not to run here,
    nobody asks what packages and keys there are.
    """
    steps: dict[str, Step] = {}
    for stage in recipe.stages:
        step = Step(stage, "new", *_record(stage, steps))
        if stage.name not in redo:
            step = replan(step, run_dir)
        if step.state == "stale" and stage.name in keep:
            step = _keep(step, run_dir)
        steps[stage.name] = step
    if is_here and (errors := list(_known_to_fail(recipe, steps.values()))):
        raise UserErrors(errors)
    return list(steps.values())


def _known_to_fail(recipe: Recipe, steps: Iterable[Step]) -> Iterator[UserError]:
    """What plug-ins of stages that are to run object to: a file may have a `check(*, knobs)`. What
    they say of several stages is said once."""
    found: dict[tuple[str, str, str], list[str]] = {}
    for step in steps:
        for plugin in plugins(step.stage.config) if step.state != "done" else ():
            module = inspect.getmodule(plugin.function)
            try:
                if plugin.function.__module__.startswith("limbeck.") and hasattr(module, "check"):
                    module.check(**plugin.knobs)  # type: ignore[union-attr]
            except UserError as error:
                stages = found.setdefault((error.where, error.what, error.way_out), [])
                stages.append(step.stage.name)
    for (where, what, way_out), stages in found.items():
        named = ", ".join(dict.fromkeys(stages))
        yield UserError(f"{recipe.path or 'recipe'}: stages.{named}: {where}", what, way_out)


def replan(step: Step, run_dir: Path) -> Step:
    """The step by what the folder holds now."""
    if step.kept:
        return step
    state, why = _state(step, run_dir)
    return replace(step, state=state, why=why)


def _keep(step: Step, run_dir: Path) -> Step:
    """A stage that is of another recipe, used as it is."""
    manifest = run_dir / step.stage.name / "stage.json"
    if not manifest.exists():
        way_out = f"make it anew with --redo {step.stage.name}"
        raise UserError(str(manifest.parent), "was never finished: it cannot be kept", way_out)
    made = store.read_sealed(manifest)
    record = {"identity": made["identity"], "extent": made["extent"]}
    why = f"kept although {step.why}"
    return replace(step, state="done", record=record, why=why, kept=True)


def _record(stage: Stage, earlier: dict[str, Step]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The stage's identity and extent as plain JSON, its inputs by what they are; and `usual`."""
    extends = getattr(stage.module, "EXTENDS", False)
    amounts: dict[str, Any] = {}
    usual: dict[str, Any] = {}

    def name_input(kind: str, path: str, key: str) -> str:
        if not path.startswith("./"):
            return f"{kind} {_hash_outside(path)}"
        name, _, output = path[2:].partition("/")
        step = earlier[name]
        if extends and kind in TABLES:
            amounts[key], usual[key] = step.record["extent"], step.usual
            return f"{kind} {step.identity}/{output}"
        return f"{kind} {step.key}/{output}"

    fields, extent = split_fields(map_references(stage.config, name_input))
    sources = {plugin.name: source_hash(plugin) for plugin in plugins(stage.config)}
    sources |= {package: package_hash(package) for package in getattr(stage.module, "USES", ())}
    # The name is identity, too: seeds are derived from it.
    identity = {"verb": stage.verb, "name": stage.name, "config": fields, "source of": sources}
    record = {"identity": identity, "extent": {"config": extent, "of": amounts}}
    return record, {"config": _defaults(stage.config), "of": usual}


def _defaults(value: Plugin | BaseModel) -> dict[str, Any]:
    """What each field is where nothing is said about it; None where it must be said."""
    if isinstance(value, Plugin):
        fields = value.knobs
        knobs = inspect.signature(value.function).parameters.items()
        defaults = {name: knob.default for name, knob in knobs if knob.default is not knob.empty}
    else:
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        defaults = {
            name: field.get_default(call_default_factory=True)
            for name, field in type(value).model_fields.items()
            if not field.is_required()
        }
    return {
        name: _defaults(field)
        if isinstance(field, Plugin | BaseModel)
        else written(defaults.get(name))
        for name, field in fields.items()
    }


def _hash_outside(path: str) -> str:
    """What an outside file, folder or Hub name is."""
    place = Path(path)
    if place.is_dir():
        return store.digest(store.hash_tree(place))[:16]
    return store.hash_file(place)[:16] if place.exists() else path


def _state(step: Step, run_dir: Path) -> tuple[State, str]:
    stage, record = step.stage, step.record
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
    grown = list(_changes(before["extent"], record["extent"], step.usual))
    shrunk = list(_shrunk(before["extent"], record["extent"], step.usual))
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
    held = {k: v for k, v in files.items() if k == output or k.startswith(f"{output}/")}
    return store.digest(held)[:16]


def _made_anew(inputs: dict[str, str | None], run_dir: Path) -> Iterator[str]:
    """Inputs of the same recipe that hold other rows than when they were read."""
    for reference, was in inputs.items():
        now = content(run_dir, reference)
        if was is not None and now is not None and now != was:
            yield f"{reference} was made anew and holds something else"


def _changes(before: Any, after: Any, usual: Any = None, key: str = "") -> Iterator[str]:
    """'lr was 0.001, is 0.002' for each difference; what is left out is as in `usual`."""
    if isinstance(before, dict) and isinstance(after, dict):
        for name, was, now, default in _side_by_side(before, after, usual):
            yield from _changes(was, now, default, _dotted(key, name))
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


def _shrunk(before: Any, after: Any, usual: Any, key: str = "") -> Iterator[str]:
    """What was made of that is no longer wanted: fewer rows cannot be told from the others."""
    for name, was, now, default in _side_by_side(before, after, usual):
        inner = _dotted(key, name)
        if isinstance(was, dict):
            yield from _shrunk(was, now if isinstance(now, dict) else {}, default, inner)
        elif name.startswith("num") and isinstance(was, int) and (now is None or now < was):
            yield f"{inner} was {was}, is {'its default' if now is None else now}"


def _side_by_side(
    before: dict[str, Any], after: dict[str, Any], usual: Any
) -> Iterator[tuple[str, Any, Any, Any]]:
    """(name, before, after, default) of whatever one of the two tells."""
    defaults: Mapping[str, Any] = usual if isinstance(usual, dict) else {}
    for name in [*before, *(name for name in after if name not in before)]:
        default = defaults.get(name)
        yield name, before.get(name, default), after.get(name, default), default
