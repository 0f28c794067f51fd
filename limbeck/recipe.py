"""Recipe files: YAML (or Python) in, checked and typed stages out, every mistake at once."""

from __future__ import annotations

import importlib
import os
import pkgutil
import re
import reprlib
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel, ValidationError

from limbeck import outside, secrets
from limbeck import stages as stage_package
from limbeck.config import StageConfig, explain, map_references, suggest
from limbeck.errors import UserError, UserErrors
from limbeck.folder import Machine
from limbeck.recipe_file import Places, is_text, read_whole, read_yaml

KEYS = ["name", "title", "machine", "sizes", "stages"]
VERBS = sorted(module.name for module in pkgutil.iter_modules(stage_package.__path__))
TABLES = ("problems", "traces", "verdicts", "dataset", "decisions", "scores", "results")
NAME = re.compile(r"\w[\w .-]{0,99}")
STAGE_NAME = re.compile(r"[A-Za-z_][\w-]{0,63}")
RESERVED = ("lock", "machine")
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@[\w./-]+)?")


@dataclass(frozen=True)
class Stage:
    """One entry of a recipe: a verb with its config, under a name of its own."""

    name: str
    verb: str
    config: StageConfig

    @property
    def module(self) -> ModuleType:
        return _module(self.verb)


@dataclass(frozen=True)
class Recipe:
    """A checked recipe; file order is execution order."""

    name: str
    title: str
    machine: Machine
    stages: tuple[Stage, ...]
    path: Path | None = None
    bases: tuple[str, ...] = ()
    """Names of the recipes that it builds on: with a run of theirs it can go on."""


def load(
    recipe: str | Path | dict[str, Any], overrides: dict[str, Any] | None = None, size: str = ""
) -> Recipe:
    """A recipe from a file or a mapping, with its size and overrides applied, checked whole.

    A stage that is `false` is left out: it keeps a place for one that only some sizes have.
    Raises UserErrors with every mistake, each with file, line and key.
    """
    places: Places = {}
    path = None
    if isinstance(recipe, dict):
        value, where = recipe, "recipe"
    else:
        path, where = Path(recipe), str(recipe)
        value, places = read_whole(path)
    check = _Check(where, places)
    if not isinstance(value, dict) or not isinstance(value.get("stages"), dict):
        raise UserError(where, "has no mapping called 'stages'", "see recipes/quickstart.yaml")
    bases = value["base"] if path and "base" in value else ()
    value = {key: part for key, part in value.items() if key != "base" or not path}
    for key in value.keys() - set(KEYS):
        check.wrong((key,), f"unknown key; {suggest(str(key), KEYS)}")
    value = {**value, "stages": {k: _copy(v) for k, v in value["stages"].items()}}
    value["machine"] = _copy(value.get("machine"))
    for key, settings in [*check.size(value.get("sizes"), size), *(overrides or {}).items()]:
        _override(value, key, settings, check)
    name, title = check.names(value, path.stem if path else "run")
    machine = check.config((), "machine", Machine, value["machine"])
    checked = []
    writes: dict[str, dict[str, str] | None] = {}  # of the stages so far; None: nobody knows
    stages = {key: entry for key, entry in value["stages"].items() if entry is not False}
    for key, entry in stages.items():
        if stage := check.stage(key, entry):
            check.references(stage, writes, list(stages))
            checked.append(stage)
        verb = entry.get("stage", key) if isinstance(entry, dict) else key
        writes[key] = _module(verb).WRITES if verb in VERBS else None
        for meant in get_close_matches(str(verb), VERBS, n=1):  # said once is enough
            writes.setdefault(meant, None)
    check.texts(value)
    if check.errors:
        raise UserErrors(check.errors)
    if not checked:
        raise UserError(f"{where}: stages", "is empty", "see recipes/quickstart.yaml")
    return Recipe(name, title, machine, tuple(checked), path, tuple(bases))


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`sft.lr=2e-5` from the command line; values are YAML."""
    settings = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            way_out = "write, for instance, sft.lr=2e-5"
            raise UserError(f"setting {pair!r}", "is not KEY=VALUE", way_out)
        settings[key] = read_yaml(text, key)[0] if text else None
    return settings


def _override(value: dict[str, Any], key: str, setting: Any, check: _Check) -> None:
    """Sets `stage.field`, or `machine.field`, in place; or a whole stage, `false` for none."""
    head, *path = str(key).split(".")
    stages = value["stages"]
    if head != "machine" and head not in stages:
        check.wrong((key,), f"no stage {head!r}; {suggest(head, list(map(str, stages)))}")
        return
    if not path and head in stages and (setting is False or isinstance(setting, dict)):
        stages[head] = _copy(setting)
        return
    place = value["machine"] if head == "machine" else stages[head]
    if not path or not isinstance(place, dict):
        check.wrong((key,), "is no setting of a stage; write, for instance, sft.lr=2e-5")
        return
    for step in path[:-1]:
        inner = place.get(step)
        place[step] = place = dict(inner) if isinstance(inner, dict) else {}
    place[path[-1]] = setting


def _copy(settings: Any) -> Any:
    """Of one's own, since aliases share theirs; nothing is an empty mapping."""
    return dict(settings or {}) if isinstance(settings, dict | None) else settings


class _Check:
    """Collects mistakes with their places while a recipe is read."""

    def __init__(self, where: str, places: Places):
        self.where, self.places = where, places
        self.errors: list[UserError] = []

    def wrong(self, path: tuple[Any, ...], what: str) -> None:
        known = path
        while known and known not in self.places:
            known = known[:-1]
        where = self.places[known] if known else self.where
        what, _, way_out = what.partition("; ")
        key = ".".join(map(str, path))
        self.errors.append(UserError(f"{where}: {key}", what, way_out or "mend it"))

    def config(self, path: tuple[Any, ...], name: str, model: type[StageConfig], value: Any) -> Any:
        try:
            return model.model_validate(value)
        except ValidationError as error:
            for deeper, what in explain(error, model):
                self.wrong((*path, name, *deeper), what)
            return None

    def size(self, sizes: Any, size: str) -> list[tuple[str, Any]]:
        """The settings of a named size."""
        sizes = {} if sizes is None else sizes
        named = sizes if isinstance(sizes, dict) else {"": sizes}
        for name, settings in named.items():
            if not name or not isinstance(settings, dict | None):
                path = ("sizes", name) if name else ("sizes",)
                self.wrong(path, "is no mapping; write a mapping like {ci: {collect.num: 8}}")
                return []
        if size and size not in sizes:
            raise UserError(self.where, f"has no size {size!r}", suggest(size, list(sizes)))
        return list((sizes.get(size) or {}).items())

    def names(self, value: dict[str, Any], default: str) -> tuple[str, str]:
        """The recipe's name, which is a folder's too, and its title."""
        name = str(value.get("name") or default)
        if not NAME.fullmatch(name) or not isinstance(value.get("name"), str | None):
            self.wrong(("name",), f"{name!r} names no folder; use letters, digits, _ and -")
        title = value.get("title") or name
        if not isinstance(title, str):
            self.wrong(("title",), "is no text; put it in quotes")
        return name, title

    def texts(self, value: Any, path: tuple[Any, ...] = ()) -> None:
        """Every text goes into the run folder: it must fit, and be no secret."""
        if isinstance(value, str) and secrets.is_told(value):
            self.wrong(path, "holds a key; take it out, only the environment may hold it")
        elif isinstance(value, str) and not is_text(value):
            self.wrong(path, "holds half a character; mend it")
        elif isinstance(value, dict | list):
            for step, inner in value.items() if isinstance(value, dict) else enumerate(value):
                self.texts(inner, (*path, step))

    def stage(self, name: Any, entry: Any) -> Stage | None:
        if not STAGE_NAME.fullmatch(str(name)) or name in RESERVED:
            self.wrong(("stages", name), "is no stage name; use letters, digits, _ and -")
            return None
        if not isinstance(entry, dict):
            what = f"is no mapping but {reprlib.repr(entry)}; write settings as key: value"
            self.wrong(("stages", name), what)
            return None
        verb = entry.get("stage", name)
        settings = {key: setting for key, setting in entry.items() if key != "stage"}
        if verb not in VERBS:
            told = f"no stage is called {verb!r}; {suggest(str(verb), VERBS)}"
            if "stage" not in entry and verb == name:
                told += f"; of a base's stage write all, or say {name}.KEY=VALUE when you run it"
            self.wrong(("stages", name), told)
            return None
        config = self.config(("stages",), name, _module(verb).Config, settings)
        return Stage(name, verb, config) if config is not None else None

    def references(
        self, stage: Stage, writes: dict[str, dict[str, str] | None], names: list[str]
    ) -> None:
        """Each `./stage/output` must be what an earlier stage writes; what lies outside exists."""

        speaks = not getattr(stage.module, "GIVES_TEMPLATE", False)

        def visit(kind: str, path: str, key: str) -> str:
            if mistake := _reference_mistake(kind, path, writes, names, speaks):
                self.wrong(("stages", stage.name, *key.split(".")), mistake)
            return path

        map_references(stage.config, visit)


def _reference_mistake(
    kind: str,
    path: str,
    writes: dict[str, dict[str, str] | None],
    names: list[str],
    speaks: bool,
) -> str | None:
    if not path.startswith("./"):
        if os.path.exists(path):
            return outside.mistake(kind, Path(path), speaks)
        if kind == "model" and HUB_NAME.fullmatch(path):
            return None
        return f"{path!r} does not exist; give ./stage/output of this recipe, or an existing path"
    name, _, output = path[2:].partition("/")
    if name not in writes:
        if name in names:
            return f"{path!r} names a later stage, or itself; move that stage up"
        return f"{path!r} names no stage; {suggest(name, list(writes) or names)}"
    outputs = writes[name]
    if outputs is None:
        return None
    if output not in outputs:
        return f"{path!r}: {name} writes no {output!r}; {suggest(output, sorted(outputs))}"
    if outputs[output] != kind:
        return f"{path!r} is {outputs[output]}, not {kind}; name another output"
    return None


def _module(verb: str) -> ModuleType:
    return importlib.import_module(f"limbeck.stages.{verb}")


def schema() -> dict[str, Any]:
    """The JSON schema of recipes, for editors."""
    choices = {}
    definitions: dict[str, Any] = {}
    for verb in VERBS:
        config: type[BaseModel] = _module(verb).Config
        choice = config.model_json_schema(ref_template="#/$defs/{model}")
        definitions.update(choice.pop("$defs", {}))
        choice["properties"] = {"stage": {"const": verb}, **choice["properties"]}
        choice["title"] = verb
        choices[verb] = choice
    definitions.update(choices)
    left_out = {"const": False}
    by_name = {verb: {"anyOf": [{"$ref": f"#/$defs/{verb}"}, left_out]} for verb in VERBS}
    choices_of_verb = [{"$ref": f"#/$defs/{verb}", "required": ["stage"]} for verb in VERBS]
    named = {"anyOf": [*choices_of_verb, left_out]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A Limbeck recipe",
        "type": "object",
        "required": ["stages"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "description": "Names the run folder."},
            "title": {"type": "string", "description": "Heads the report."},
            "base": {
                "type": "string",
                "description": "A recipe beside this one, on top of which this one is.",
            },
            "machine": Machine.model_json_schema(),
            "sizes": {
                "type": "object",
                "description": "Named sets of overrides: `--size ci`.",
                "additionalProperties": {"type": "object"},
            },
            "stages": {"type": "object", "properties": by_name, "additionalProperties": named},
        },
        "$defs": definitions,
    }
