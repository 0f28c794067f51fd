"""Recipe files: YAML (or Python) in, checked and typed stages out, every mistake at once."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from limbeck import stages as stage_package
from limbeck.config import StageConfig, explain, map_references, suggest
from limbeck.errors import UserError, UserErrors
from limbeck.folder import Machine

KEYS = ["name", "title", "machine", "sizes", "stages"]
VERBS = sorted(module.name for module in pkgutil.iter_modules(stage_package.__path__))
TABLES = ("problems", "traces", "verdicts", "dataset", "decisions", "scores", "results")
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


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


Lines = dict[tuple[Any, ...], int]


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2: `1e-4` is a number and `no` is a word."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if not tag.endswith((":float", ":bool"))]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)$|^[-+]?(\d[\d_]*\.\d*|\.\d+)$"),
    list("-+0123456789."),
)
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(true|false)$"), ["t", "f"])


def read_yaml(text: str, where: str) -> tuple[Any, Lines]:
    """The value of a YAML text, and the line on which each key stands."""
    loader = _Loader(text)
    lines: Lines = {}
    try:
        node = loader.get_single_node()
        if node is None:
            raise UserError(where, "is empty", "give it a name and stages")
        _walk(node, (), lines, where)
        return loader.construct_document(node), lines
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise UserError(f"{where}{line}", f"is not valid YAML ({what})", "mend the line") from None
    finally:
        loader.dispose()


def _walk(node: yaml.Node, path: tuple[Any, ...], lines: Lines, where: str) -> None:
    lines[path] = node.start_mark.line + 1
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen and key.value != "<<":
                raise UserError(f"{where}:{line}", f"key {key.value!r} stands twice", "keep one")
            seen.add(key.value)
            _walk(value, (*path, key.value), lines, where)
            lines[(*path, key.value)] = line
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), lines, where)


def load(
    recipe: str | Path | dict[str, Any], overrides: dict[str, Any] | None = None, size: str = ""
) -> Recipe:
    """A recipe from a file or a mapping, with its size and overrides applied, checked whole.

    Raises UserErrors with every mistake, each with file, line and key.
    """
    lines: Lines = {}
    path = None
    if isinstance(recipe, dict):
        value, where = recipe, "recipe"
    else:
        path, where = Path(recipe), str(recipe)
        value, lines = _read(path)
    check = _Check(where, lines)
    if not isinstance(value, dict) or not isinstance(value.get("stages"), dict):
        raise UserError(where, "has no mapping called 'stages'", "see recipes/quickstart.yaml")
    for key in value.keys() - set(KEYS):
        check.wrong((key,), f"unknown key; {suggest(str(key), KEYS)}")
    sizes = value.get("sizes") or {}
    if size and size not in sizes:
        raise UserError(where, f"has no size {size!r}", suggest(size, list(sizes)) or "add one")
    value = {**value, "stages": {k: dict(v or {}) for k, v in value["stages"].items()}}
    for key, setting in {**(sizes.get(size) or {}), **(overrides or {})}.items():
        _override(value, key, setting, check)
    machine = check.config((), "machine", Machine, value.get("machine") or {})
    checked = []
    writes: dict[str, dict[str, str] | None] = {}  # of the stages so far; None: nobody knows
    for name, entry in value["stages"].items():
        if stage := check.stage(name, entry):
            check.references(stage, writes, list(value["stages"]))
            checked.append(stage)
        verb = entry.get("stage", name)
        writes[name] = _module(verb).WRITES if verb in VERBS else None
    if check.errors:
        raise UserErrors(check.errors)
    name = str(value.get("name") or (path.stem if path else "run"))
    return Recipe(name, str(value.get("title") or name), machine, tuple(checked), path)


def _read(path: Path) -> tuple[Any, Lines]:
    if not path.exists():
        raise UserError(str(path), "no such recipe", "check the path")
    if path.suffix == ".py":
        spec = importlib.util.spec_from_file_location("recipe", path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.recipe, {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(str(path), f"cannot be read ({error})", "give a UTF-8 YAML file") from None
    return read_yaml(text, str(path))


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """`sft.lr=2e-5` from the command line; values are YAML."""
    settings = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise UserError(pair, "is not KEY=VALUE", "write, for instance, sft.lr=2e-5")
        settings[key] = read_yaml(text, key)[0] if text else None
    return settings


def _override(value: dict[str, Any], key: str, setting: Any, check: _Check) -> None:
    """Sets `stage.field`, or `machine.field`, in place."""
    head, *path = key.split(".")
    place = value.setdefault("machine", {}) if head == "machine" else value["stages"].get(head)
    if place is None or not path:
        check.wrong((key,), f"no stage {head!r}; {suggest(head, list(value['stages']))}")
        return
    for step in path[:-1]:
        inner = place.get(step)
        place[step] = place = dict(inner) if isinstance(inner, dict) else {}
    place[path[-1]] = setting


class _Check:
    """Collects mistakes with their places while a recipe is read."""

    def __init__(self, where: str, lines: Lines):
        self.where, self.lines = where, lines
        self.errors: list[UserError] = []

    def wrong(self, path: tuple[Any, ...], what: str) -> None:
        known = path
        while known and known not in self.lines:
            known = known[:-1]
        line = f":{self.lines[known]}" if known else ""
        what, _, way_out = what.partition("; ")
        key = ".".join(map(str, path))
        self.errors.append(UserError(f"{self.where}{line}: {key}", what, way_out or "mend it"))

    def config(self, path: tuple[Any, ...], name: str, model: type[StageConfig], value: Any) -> Any:
        try:
            return model.model_validate(value)
        except ValidationError as error:
            for deeper, what in explain(error, model):
                self.wrong((*path, name, *deeper), what)
            return None

    def stage(self, name: Any, entry: dict[str, Any]) -> Stage | None:
        verb = entry.get("stage", name)
        settings = {key: setting for key, setting in entry.items() if key != "stage"}
        if not re.fullmatch(r"[A-Za-z_][\w-]*", str(name)):
            self.wrong(("stages", name), "is no stage name; use letters, digits, _ and -")
            return None
        if verb not in VERBS:
            self.wrong(
                ("stages", name), f"no stage is called {verb!r}; {suggest(str(verb), VERBS)}"
            )
            return None
        config = self.config(("stages",), name, _module(verb).Config, settings)
        return Stage(name, verb, config) if config is not None else None

    def references(
        self, stage: Stage, writes: dict[str, dict[str, str] | None], names: list[str]
    ) -> None:
        """Each `./stage/output` must be what an earlier stage writes; what lies outside exists."""

        def visit(kind: str, path: str, key: str) -> str:
            if mistake := _reference_mistake(kind, path, writes, names):
                self.wrong(("stages", stage.name, *key.split(".")), mistake)
            return path

        map_references(stage.config, visit)


def _reference_mistake(
    kind: str, path: str, writes: dict[str, dict[str, str] | None], names: list[str]
) -> str | None:
    if not path.startswith("./"):
        if Path(path).exists() or (kind == "model" and HUB_NAME.fullmatch(path)):
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
    by_name = {verb: {"$ref": f"#/$defs/{verb}"} for verb in VERBS}
    named = {"anyOf": [{"$ref": f"#/$defs/{verb}", "required": ["stage"]} for verb in VERBS]}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "A Limbeck recipe",
        "type": "object",
        "required": ["stages"],
        "additionalProperties": False,
        "properties": {
            "name": {"type": "string", "description": "Names the run folder."},
            "title": {"type": "string", "description": "Heads the report."},
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
