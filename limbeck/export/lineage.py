"""What a model was made of, as the run folders on this disk tell it: stage by stage, to its start.

Each finished stage has a `stage.json` with its settings; what those name is followed in turn.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck import ledger, store

BEGINS = ("model", "tokenizer")  # settings by which a stage begins with a model
TEACHES = ("engine", "teacher")  # settings by which a model writes or scores for another
CHOOSES = ("gate", "choose")  # verbs that hand on one of several models


@dataclass(frozen=True)
class Made:
    """A finished stage of the model's past."""

    path: Path
    name: str
    verb: str
    config: dict[str, Any]
    summary: dict[str, Any]
    finished: str

    @property
    def taken(self) -> dict[str, Any]:
        """The settings that had a part in what it wrote: of several models only the one chosen."""
        if self.verb not in CHOOSES:
            return self.config
        chosen = self.summary["chosen"]
        kept = self.config if chosen is None else self.config["trials"][chosen]
        return {"model": kept["model"]}

    def cost(self) -> dict[str, Any]:
        """The sums of its ledger."""
        return ledger.total(self.path / "ledger.jsonl")


def stage_of(path: Path) -> Path | None:
    """The folder of the finished stage that wrote what lies here."""
    folders = (path, *path.parents)
    return next((p for p in folders if (p / "stage.json").is_file()), None)


def past(model: Path) -> list[Made]:
    """All stages that had a part in a model, the first first; none for one from elsewhere."""
    return _walked(model, lambda stage: stage.taken)


@dataclass(frozen=True)
class Tried:
    """What was tried on the way to a model and had no part in it."""

    models: list[str]
    """Each by the stage that made it, or by its name elsewhere."""
    stages: list[Made]
    """What made them, and what measured them and those that were taken."""


def tried(model: Path) -> Tried:
    """What gates and choices of a model's past have looked at besides what they took."""
    stages = _walked(model, lambda stage: stage.config)
    parts = {stage.path for stage in past(model)}
    choices = {stage.path: stage for stage in stages if stage.verb in CHOOSES}
    seen = {
        _maker(stage, trial["model"]): None
        for stage in choices.values()
        for trial in stage.config["trials"].values()
    }
    used = {_maker(stage, stage.taken["model"]) for path, stage in choices.items() if path in parts}
    left = [maker for maker in seen if maker not in parts | used | choices.keys()]
    names = [maker.name if isinstance(maker, Path) else maker for maker in left]
    return Tried(names, [stage for stage in stages if stage.path not in parts])


def _maker(stage: Made, model: str) -> Path | str:
    """The folder of the stage whose output a setting names; the name itself of what none made."""
    place = place_of(stage.path, model)
    return (stage_of(place) if place else None) or model


def _walked(model: Path, settings: Callable[[Made], Any]) -> list[Made]:
    """The stage that wrote a model, and all that `settings` of any of them lead to."""
    found: dict[Path, Made] = {}
    left = [folder] if (folder := stage_of(model.resolve())) else []
    while left:
        folder = left.pop()
        if folder in found:
            continue
        told = store.read_sealed(folder / "stage.json")
        found[folder] = Made(
            folder, told["stage"], told["verb"], told["config"], told["summary"], told["finished"]
        )
        for _, path in named(settings(found[folder])):
            place = place_of(folder, path)
            if place and (before := stage_of(place)):
                left.append(before)
    return sorted(found.values(), key=lambda made: (made.finished, made.name))


def readers(made: list[Made], output: Path) -> list[Made]:
    """The stages that read an output of one of them, or a file of it."""
    return [stage for stage in made if any(output in (p, *p.parents) for p in _read(stage))]


def _read(stage: Made) -> Iterator[Path]:
    places = (place_of(stage.path, path) for _, path in named(stage.taken))
    return (place for place in places if place)


def named(config: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(the outermost setting, text) of every text in a stage's settings."""
    if isinstance(config, str):
        yield key, config
    elif isinstance(config, dict):
        for name, value in config.items():
            yield from named(value, key or name)
    elif isinstance(config, list):
        for value in config:
            yield from named(value, key)


def place_of(stage: Path, path: str) -> Path | None:
    """What a setting of a stage names, if it lies on this disk."""
    if path.startswith("./"):
        return (stage.parent / path[2:]).resolve()
    if path.startswith(("/", "..")) or "/" in path:
        # Any text with a slash comes here, prompts too: such a name the system may object to.
        return Path(path).resolve() if os.path.exists(path) else None
    return None


def strangers(made: list[Made], settings: tuple[str, ...]) -> list[str]:
    """Models that these settings name and that no stage here has made: names on the hub, folders,
    servers' models. Each once."""
    found: dict[str, None] = {}
    for stage in made:
        for told in (stage.taken.get(key) for key in settings):
            name = told.get("model") if isinstance(told, dict) else told
            is_model = isinstance(told, dict) or "/" in str(name)  # and no engine without one
            if isinstance(name, str) and is_model and not _is_made(stage, name):
                found[name] = None
    return list(found)


def _is_made(stage: Made, name: str) -> bool:
    place = place_of(stage.path, name)
    return bool(place and stage_of(place))


def natives(made: list[Made]) -> set[str]:
    """Names that authors of texts go by who are no strangers: models that stages here have made,
    and engines that are functions."""
    names = {f"{stage.name}/model" for stage in made}
    for stage in made:
        told = stage.config.get("engine")
        engine = {"name": told} if isinstance(told, str) else told or {}
        if "model" not in engine:
            names.add(str(engine.get("name")))
    return names
