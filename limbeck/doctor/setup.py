"""A recipe beside its run folder: which models and tables it names, and what of them is at hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from limbeck import planner
from limbeck.config import map_references
from limbeck.doctor.model import Model, open_model
from limbeck.errors import UserError, UserErrors
from limbeck.planner import Step
from limbeck.recipe import Recipe, Stage

ASIDE = ("keep", "validation", "charge")  # what a stage compares with, but does not learn


@dataclass(frozen=True)
class Pair:
    """A student, the teacher that it learns from, and whether what that said is kept on disk."""

    name: str
    student: str
    teacher: str
    is_kept: bool


@dataclass
class Setup:
    """A recipe and its run folder, which need not exist. Models are opened once."""

    recipe: Recipe
    folder: Path
    refused: dict[str, UserError] = field(default_factory=dict)
    _opened: dict[str, Model | None] = field(default_factory=dict)

    @cached_property
    def plan(self) -> tuple[list[Step], list[UserError]]:
        """The steps of the recipe, or what is known to fail before they begin."""
        try:
            return planner.plan(self.recipe, self.folder), []
        except (UserError, UserErrors) as error:
            return [], getattr(error, "errors", [error])

    def stage_of(self, path: str) -> Stage | None:
        """The stage that writes `./stage/output`."""
        name = path[2:].partition("/")[0] if path.startswith("./") else None
        return next((stage for stage in self.recipe.stages if stage.name == name), None)

    def place(self, path: str) -> Path | None:
        """Where a path of the recipe lies, if it is there and finished."""
        if not path.startswith("./"):
            return Path(path) if Path(path).exists() else None
        name, _, output = path[2:].partition("/")
        is_finished = (self.folder / name / "stage.json").is_file()
        return self.folder / name / output if is_finished else None

    def model(self, path: str) -> Model | None:
        """The model of that path, if it lies on this machine and can be opened."""
        if path not in self._opened:
            self._opened[path] = self._open(path)
        return self._opened[path]

    def _open(self, path: str) -> Model | None:
        place = self.place(path) or (None if path.startswith("./") else cached(path))
        if place is None:
            return None
        try:
            return open_model(path, place)
        except UserError as error:
            self.refused[path] = error
            return None

    def is_far(self, path: str) -> bool:
        """Whether a model would have to be fetched first."""
        return not path.startswith("./") and not Path(path).exists() and cached(path) is None

    def is_asked(self, path: str) -> bool:
        """Whether anybody speaks to a model by its own template; `adopt` gives it another."""
        return any(
            getattr(stage.config, "template", None) is None
            for stage in self.recipe.stages
            if any(path == named_path for _, named_path, _ in named(stage.config))
        )

    def models(self) -> list[str]:
        """The paths of all models that the recipe names."""
        paths = [named(stage.config) for stage in self.recipe.stages]
        return list(dict.fromkeys(p for found in paths for kind, p, _ in found if kind == "model"))

    def chain(self, path: str) -> Iterator[Stage]:
        """The stages that a model came through, the last first."""
        while stage := self.stage_of(path):
            yield stage
            path = _made_from(stage) or ""

    def root(self, path: str) -> str:
        """What a chain of models began with: a folder, a Hub name, or what a stage made of none."""
        for stage in self.chain(path):
            path = _made_from(stage) or path
        return path

    def context(self, path: str) -> int | None:
        """The most tokens that a model reads and writes; None where nobody here knows."""
        for stage in self.chain(path):
            if own := _field(stage, "context") or _field(stage, "max_position_embeddings"):
                return int(own)
        model = self.model(self.root(path))
        return model.context if model else None

    def width(self, path: str) -> int | None:
        """A model's hidden size, if it can be known."""
        for stage in self.chain(path):
            if own := _field(stage, "hidden_size"):
                return int(own)
        model = self.model(self.root(path))
        return model.config.get("hidden_size") if model else None

    def pairs(self) -> Iterator[Pair]:
        """Students and their teachers."""
        for stage in self.recipe.stages:
            if stage.verb != "distill":
                continue
            student, teacher = _field(stage, "model"), _field(stage, "teacher")
            kept = _field(stage, "distributions")
            scored = self.stage_of(kept) if kept else None
            if scored is not None:
                teacher = getattr(scored.config, "model", teacher)
            if teacher is not None:
                yield Pair(stage.name, student, teacher, kept is not None)

    def sources(self, stage: Stage) -> set[str]:
        """What a stage's rows come from: `./stage/output` of those that collect, and files.

        What a filter compares with, and what training looks at, is none of it.
        """
        found, new = set[str](), {*rows_of(stage.config)}
        while new:
            path = new.pop()
            origin = self.stage_of(path)
            if origin is None or origin.verb in ("collect", "general"):
                found.add(path)
            else:
                new |= {*rows_of(origin.config)}
        return found


def named(config: Any) -> list[tuple[str, str, str]]:
    """(kind, path, key) of each path that a config names."""
    found: list[tuple[str, str, str]] = []

    def visit(kind: str, path: str, key: str) -> str:
        found.append((kind, path, key))
        return path

    map_references(config, visit)
    return found


def rows_of(config: Any) -> Iterator[str]:
    """The tables that a stage takes its rows from."""
    for kind, path, key in named(config):
        if kind not in ("model", "file") and not key.startswith(ASIDE):
            yield path


def _made_from(stage: Stage) -> str | None:
    """The model that a stage began with; of several trials the first, which is wanted most."""
    trials = _field(stage, "trials")
    return next(iter(trials.values())).model if trials else _field(stage, "model")


def _field(stage: Stage, name: str) -> Any:
    return getattr(stage.config, name, None)


def cached(name: str) -> Path | None:
    """The folder of a Hub model in the cache of this machine; nothing is fetched."""
    try:
        from huggingface_hub import try_to_load_from_cache

        repository, _, revision = name.partition("@")
        found = try_to_load_from_cache(repository, "config.json", revision=revision or None)
    except (ImportError, ValueError):  # no Hub, or no name of its
        return None
    return Path(found).parent if isinstance(found, str) else None
