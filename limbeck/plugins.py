"""Names that become functions: the folder is the registry, the signature is the config.

`math` is `limbeck/verifiers/math.py`, `my_package.checks:verify` is yours; the knobs are the
function's keyword-only parameters, checked before anything runs.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    create_model,
)
from pydantic_core import PydanticCustomError, core_schema

from limbeck.config import Plugin, StageConfig, explain, hints_of, suggest, written


@dataclass(frozen=True)
class Kind:
    """A kind of plug-in: `limbeck/<package>/<name>.py` has `function`, or, where `function` is
    None, `limbeck/<package>` has or imports a function of that name. `my_package.module:name` is
    yours."""

    noun: str
    package: str
    function: str | None = None
    other: str | None = None
    """Another name that the function may have instead, where a kind has two signatures."""

    def names(self) -> list[str]:
        """The names that Limbeck itself brings."""
        if self.function is None:
            module = importlib.import_module(self.package)
            return sorted(
                name
                for name, member in vars(module).items()
                if inspect.isfunction(member)
                and f"{member.__module__}.".startswith(f"{self.package}.")
                and not name.startswith("_")
            )
        folder = importlib.import_module(self.package).__path__
        found = (m.name for m in pkgutil.iter_modules(folder))
        return sorted(n for n in found if self._has(f"{self.package}.{n}"))

    def _has(self, module: str) -> bool:
        """Whether the file defines our function; read as text, since helpers may import torch."""
        spec = importlib.util.find_spec(module)
        assert spec and spec.origin
        with open(spec.origin, encoding="utf-8") as file:
            text = file.read()
        return any(f"\ndef {name}(" in text for name in (self.function, self.other) if name)

    def find(self, name: str) -> Callable[..., Any]:
        """The function called `name`; ValueError with a suggestion where there is none."""
        if ":" in name:
            module_name, _, attribute = name.partition(":")
            try:
                return _checked(getattr(importlib.import_module(module_name), attribute))
            except Exception as error:  # it is somebody's own file: anything may be wrong with it
                reason = f"{type(error).__name__}: {error}"
                way_out = "mend the module, or write my_module:function"
                raise ValueError(
                    f"cannot import {self.noun} {name!r} ({reason}); {way_out}"
                ) from error
        if name not in (names := self.names()):
            raise ValueError(f"no {self.noun} is called {name!r}; {suggest(name, names)}")
        if self.function is None:
            return getattr(importlib.import_module(self.package), name)
        module = importlib.import_module(f"{self.package}.{name}")
        return getattr(module, self.function, None) or getattr(module, self.other or "")

    def parse(self, value: Any) -> Plugin:
        """`name` or `{name: ..., knob: ...}` from a recipe, or a Plugin as it is."""
        if isinstance(value, Plugin):
            return value
        if isinstance(value, str):
            value = {"name": value}
        if not isinstance(value, dict) or not isinstance(value.get("name"), str):
            example = f"{{name: {self.names()[0]}, ...}}"
            raise ValueError(f"is no {self.noun} (a name, or a mapping); write one like {example}")
        function = self.find(value["name"])
        knobs = {str(key): knob for key, knob in value.items() if key != "name"}
        model = knobs_model(function)
        try:
            checked = model.model_validate(knobs)
        except ValidationError as error:
            mistakes = [(list(where), what) for where, what in explain(error, model)]
            raise PydanticCustomError("knobs", "wrong knobs", {"mistakes": mistakes}) from None
        return Plugin(value["name"], function, {k: getattr(checked, k) for k in model.model_fields})

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            self.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(written),
        )

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        choices = []
        for name in self.names():
            knobs = _whole(knobs_model(self.find(name)).model_json_schema())
            properties = {"name": {"const": name}, **knobs.get("properties", {})}
            required = ["name", *knobs.get("required", [])]
            choices.append(
                {
                    "type": "object",
                    "properties": properties,
                    "required": required,
                    "additionalProperties": False,
                }
            )
        own = {"type": "object", "properties": {"name": {"type": "string", "pattern": ":"}}}
        return {"anyOf": [{"type": "string"}, *choices, {**own, "required": ["name"]}]}


def _whole(schema: Any, definitions: Mapping[str, Any] | None = None) -> Any:
    """A schema with what its `$ref` name put in their place: it becomes part of another."""
    if isinstance(schema, list):
        return [_whole(part, definitions) for part in schema]
    if not isinstance(schema, dict):
        return schema
    definitions = definitions if definitions is not None else schema.get("$defs", {})
    if "$ref" in schema:
        named = definitions[schema["$ref"].rpartition("/")[2]]
        schema = {**named, **{key: value for key, value in schema.items() if key != "$ref"}}
    return {key: _whole(part, definitions) for key, part in schema.items() if key != "$defs"}


Source = Annotated[Plugin, Kind("source", "limbeck.problems", "read")]
EngineChoice = Annotated[Plugin, Kind("engine", "limbeck.engines", "connect")]
VerifierChoice = Annotated[Plugin, Kind("verifier", "limbeck.verifiers", "verify")]
FilterChoice = Annotated[Plugin, Kind("filter", "limbeck.filters")]
DivergenceChoice = Annotated[Plugin, Kind("divergence", "limbeck.train.divergences")]
OBJECTIVES = Kind("objective", "limbeck.train.policy")
ObjectiveChoice = Annotated[Plugin, OBJECTIVES]
ADVANTAGES = Kind("advantage", "limbeck.train.advantages")
AdvantageChoice = Annotated[Plugin, ADVANTAGES]
RewardChoice = Annotated[Plugin, Kind("reward", "limbeck.rewards")]
PruningChoice = Annotated[
    Plugin, Kind("way of pruning", "limbeck.compress.prune", "prune_weight", "prune_model")
]
QuantizingChoice = Annotated[
    Plugin, Kind("way of quantizing", "limbeck.compress.quantize", "quantize_weight")
]
PromptingChoice = Annotated[Plugin, Kind("way of prompting", "limbeck.prompting")]


def _checked(function: Any) -> Callable[..., Any]:
    """A function of somebody's own, if a recipe can speak to it."""
    if not inspect.isfunction(function):
        raise TypeError("it is no function")
    for name, parameter in inspect.signature(function).parameters.items():
        keyword = parameter.kind is inspect.Parameter.KEYWORD_ONLY
        if keyword and parameter.annotation is inspect.Parameter.empty:
            raise TypeError(f"its knob {name!r} has no type")
    return function


def _is_verifier(value: Any) -> Any:
    Kind("verifier", "limbeck.verifiers", "verify").parse(value)
    return value


VerifierName = Annotated[str | dict[str, Any], BeforeValidator(_is_verifier)]
"""A verifier as a problem carries it: a name, or a mapping with knobs; checked, no more."""


class _Knobs(StageConfig):
    model_config = ConfigDict(use_attribute_docstrings=False)  # a signature has none


@functools.cache
def knobs_model(function: Callable[..., Any]) -> type[StageConfig]:
    """A strict model of a function's keyword-only parameters."""
    hints = hints_of(function)
    fields: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY:
            required = parameter.default is inspect.Parameter.empty
            fields[name] = (hints[name], ... if required else parameter.default)
    return create_model(function.__qualname__, __base__=_Knobs, **fields)


def plugins(value: Any) -> Iterator[Plugin]:
    """Every plug-in that a config names."""
    if isinstance(value, Plugin):
        yield value
        for knob in value.knobs.values():
            yield from plugins(knob)
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from plugins(getattr(value, name))
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from plugins(item)


def source_hash(plugin: Plugin) -> str:
    """sha256 of the file that a plug-in's function lives in."""
    module = inspect.getmodule(plugin.function)
    assert module is not None
    return hashlib.sha256(inspect.getsource(module).encode()).hexdigest()[:16]


def package_hash(package: str) -> str:
    """sha256 of every source file of a package: what judges, for a stage that lets it judge."""
    found = importlib.util.find_spec(package)
    assert found is not None and found.submodule_search_locations
    files = sorted(Path(found.submodule_search_locations[0]).rglob("*.py"))
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]
