"""What a recipe may say: typed configs, references between stages, identity and extent.

A field is *identity* (it changes the content of a row) unless it is marked `Extent` (how much is
made, or how it is run). Imports no torch, so that plan, schema and help stay quick.
"""

from __future__ import annotations

import difflib
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

T = TypeVar("T")


class _Extent:
    """Marks a field that says how much is made or how it is run, not what."""


Extent = Annotated[T, _Extent()]


@dataclass(frozen=True)
class Reference:
    """Marks a path: `./stage/output` inside this run, or a file, folder or public name outside."""

    kind: str


ProblemsPath = Annotated[str, Reference("problems")]
TracesPath = Annotated[str, Reference("traces")]
VerdictsPath = Annotated[str, Reference("verdicts")]
DatasetPath = Annotated[str, Reference("dataset")]
ScoresPath = Annotated[str, Reference("scores")]
ModelPath = Annotated[str, Reference("model")]
FilePath = Annotated[str, Reference("file")]


class StageConfig(BaseModel):
    """What one stage can be told. Strict: unknown keys and wrong types are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True
    )


@dataclass(frozen=True)
class Plugin:
    """A function that a recipe named, with its knobs checked and completed."""

    name: str
    function: Callable[..., Any]
    knobs: dict[str, Any]

    def __call__(self, *args: Any) -> Any:
        return self.function(*args, **self.knobs)


def suggest(word: str, choices: list[str]) -> str:
    """'did you mean …?' or the list of what there is."""
    close = difflib.get_close_matches(word, choices, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there is {', '.join(choices)}"


def explain(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[list[Any], str]]:
    """pydantic's errors as (key path, words for people), one for each mistake."""
    for item in error.errors(include_url=False):
        where = list(item["loc"])
        if item["type"] == "knobs":
            for deeper, what in item["ctx"]["mistakes"]:
                yield where + deeper, what
        elif item["type"] == "extra_forbidden":
            choices = sorted(model.model_fields) if len(where) == 1 else []
            hint = f"; {suggest(str(where[-1]), choices)}" if choices else ""
            yield where, f"unknown key{hint}"
        elif item["type"] == "missing":
            yield where, "is required"
        elif item["type"] == "value_error":
            yield where, item["msg"].removeprefix("Value error, ")
        else:
            yield where, f"{item['msg'][0].lower()}{item['msg'][1:]}, not {item['input']!r}"


Visit = Callable[[str, str, str], str]  # (kind, path, dotted key) -> path


def map_references(value: Any, visit: Visit, annotation: Any = Any, key: str = "") -> Any:
    """A copy of a config in which every referenced path has gone through `visit`."""
    if isinstance(value, Plugin):
        knobs = _map_fields(value.knobs, hints_of(value.function), visit, key)
        return Plugin(value.name, value.function, knobs)
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        return value.model_copy(update=_map_fields(fields, hints_of(type(value)), visit, key))
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        for mark in inner[1:]:
            if isinstance(mark, Reference) and isinstance(value, str):
                return visit(mark.kind, value, key)
        return map_references(value, visit, inner[0], key)
    if origin in (typing.Union, types.UnionType):
        for choice in inner:
            value = map_references(value, visit, choice, key)
        return value
    if origin is list and isinstance(value, list):
        return [map_references(v, visit, inner[0], f"{key}[{i}]") for i, v in enumerate(value)]
    if origin is dict and isinstance(value, dict):
        return _map_fields(value, dict.fromkeys(value, inner[1]), visit, key)
    return value


def _map_fields(
    fields: dict[str, Any], hints: dict[str, Any], visit: Visit, key: str
) -> dict[str, Any]:
    dotted = f"{key}." if key else ""
    return {
        name: map_references(value, visit, hints[name], f"{dotted}{name}")
        for name, value in fields.items()
    }


def hints_of(thing: Any) -> dict[str, Any]:
    """The types of a class's fields or of a function's keyword-only parameters.

    Of nothing else: what a function returns may be a type that only a type checker imports.
    """
    if isinstance(thing, type):
        return typing.get_type_hints(thing, include_extras=True)
    knobs = types.SimpleNamespace(__annotations__={**inspect.get_annotations(thing)})
    for name, parameter in inspect.signature(thing).parameters.items():
        if parameter.kind is not inspect.Parameter.KEYWORD_ONLY:
            knobs.__annotations__.pop(name, None)
    knobs.__annotations__.pop("return", None)
    return typing.get_type_hints(knobs, thing.__globals__, include_extras=True)


def written(value: Any) -> Any:
    """A config as plain JSON, as a recipe would say it, without what is left at its default."""
    identity, extent = split_fields(value)
    return _merge(identity, extent)


def split_fields(value: Any) -> tuple[Any, Any]:
    """(identity, extent) of a config or plug-in as plain JSON, fields at their defaults left out.

    Only what differs from its default is told, so that a new knob leaves old runs valid.
    """
    if isinstance(value, Plugin):
        hints, defaults = hints_of(value.function), _knob_defaults(value.function)
        identity, extent = _split(value.knobs, hints, defaults)
        return {"name": value.name, **identity}, extent
    if isinstance(value, BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        defaults = {name: f.default for name, f in type(value).model_fields.items()}
        return _split(fields, hints_of(type(value)), defaults)
    if isinstance(value, list):
        pairs = [split_fields(item) for item in value]
        return [identity for identity, _ in pairs], {}
    return value, {}


def _split(
    fields: dict[str, Any], hints: dict[str, Any], defaults: dict[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    identity: dict[str, Any] = {}
    extent: dict[str, Any] = {}
    for name, value in fields.items():
        if value == defaults.get(name, ...):
            continue
        if any(isinstance(mark, _Extent) for mark in typing.get_args(hints[name])[1:]):
            extent[name] = written(value)
            continue
        identity[name], deeper = split_fields(value)
        if deeper:
            extent[name] = deeper
    return identity, extent


def _merge(a: Any, b: Any) -> Any:
    if isinstance(a, dict) and isinstance(b, dict):
        return {
            k: _merge(a.get(k, {}), b.get(k, {})) if k in a and k in b else a.get(k, b.get(k))
            for k in [*a, *(k for k in b if k not in a)]
        }
    return a


def _knob_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}
