"""What a recipe may say: typed configs, references between stages, identity and extent.

A field is *identity* (it changes the content of a row) unless it is marked `Extent` (how much is
made) or `HowRun` (batch sizes, time limits). Imports no torch, so that plan, schema and help stay
quick.
"""

from __future__ import annotations

import difflib
import inspect
import re
import reprlib
import types
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

T = TypeVar("T")
UNIONS = (typing.Union, types.UnionType)
SECRET = re.compile(r"(key|token|secret|password)(_variable)?$")


class _Extent:
    """Marks a field that says how much is made, not what."""


class _HowRun:
    """Marks a field that says how work is done: told, but part of no key."""


Extent = Annotated[T, _Extent()]
HowRun = Annotated[T, _HowRun()]


@dataclass(frozen=True)
class Reference:
    """Marks a path: `./stage/output` inside this run, or a file, folder or public name outside."""

    kind: str


ProblemsPath = Annotated[str, Reference("problems")]
TracesPath = Annotated[str, Reference("traces")]
VerdictsPath = Annotated[str, Reference("verdicts")]
DatasetPath = Annotated[str, Reference("dataset")]
PairsPath = Annotated[str, Reference("pairs")]
ScoresPath = Annotated[str, Reference("scores")]
DistributionsPath = Annotated[str, Reference("distributions")]
ModelPath = Annotated[str, Reference("model")]
FilePath = Annotated[str, Reference("file")]


class StageConfig(BaseModel):
    """What one stage can be told. Strict: unknown keys and wrong types are refused."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
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
    return f"did you mean {close[0]!r}?" if close else f"there is {', '.join(choices) or 'none'}"


def explain(error: ValidationError, model: type[BaseModel]) -> Iterator[tuple[list[Any], str]]:
    """pydantic's errors as (key path, 'what; way out'), one for each mistake."""
    errors = error.errors(include_url=False)
    told = set()  # fields that may be of several types: pydantic objects once for each of them
    for item in errors:
        where = list(item["loc"])
        if item["type"] == "knobs":
            for deeper, what in item["ctx"]["mistakes"]:
                yield where + deeper, what
        elif item["type"] == "extra_forbidden":
            known = sorted(model.model_fields) if len(where) == 1 else []
            yield where, f"unknown key; {suggest(str(where[-1]), known) if known else 'drop it'}"
        elif item["type"] == "missing":
            yield where, "is required; add it"
        elif item["type"] == "value_error":
            yield where, item["msg"].removeprefix("Value error, ")
        elif where and _has_choices(model, where[0]):
            if where[0] not in told:
                told.add(where[0])
                wanted = [_wanted(e["msg"]) for e in errors if e["loc"][0] == where[0]]
                yield where[:1], _unwanted(" or ".join(wanted), where[:1], item["input"])
        else:
            yield where, _unwanted(_wanted(item["msg"]), where, item["input"])


def _has_choices(model: type[BaseModel], field: Any) -> bool:
    annotation = model.model_fields[field].annotation if field in model.model_fields else None
    choices = {*typing.get_args(annotation)} - {types.NoneType}
    return typing.get_origin(annotation) in UNIONS and len(choices) > 1


def _wanted(message: str) -> str:
    return f"{message[0].lower()}{message[1:]}".removeprefix("input ")


def _unwanted(wanted: str, where: list[Any], value: Any) -> str:
    """'should be a valid integer, not '10s'; …'. What may be a secret is not shown."""
    is_secret = any(SECRET.search(str(part)) for part in where)
    shown = "" if is_secret or ", not " in wanted else f", not {reprlib.repr(value)}"
    is_number = isinstance(value, str) and value[:1] in [*"-+.0123456789"]
    way_out = "write a plain number, no unit, no quotes" if is_number else "change it"
    return f"{wanted}{shown}; {way_out}"


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
    if origin in UNIONS:
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
    if isinstance(value, Plugin):
        return {"name": value.name, **_written_fields(value)}
    if isinstance(value, BaseModel):
        return _written_fields(value)
    if isinstance(value, dict):
        return {name: written(item) for name, item in value.items()}
    return [written(item) for item in value] if isinstance(value, list) else value


def _written_fields(value: Plugin | BaseModel) -> dict[str, Any]:
    return {name: written(field) for name, field, _ in _set_fields(value)}


def split_fields(value: Any) -> tuple[Any, Any]:
    """(identity, extent) of a config or plug-in as plain JSON, fields at their defaults left out.

    Only what differs from its default is told, so that a new knob leaves old runs valid.
    """
    if isinstance(value, list):
        return [split_fields(item)[0] for item in value], {}
    if isinstance(value, dict):
        return {name: split_fields(item)[0] for name, item in value.items()}, {}
    if not isinstance(value, Plugin | BaseModel):
        return value, {}
    identity: dict[str, Any] = {"name": value.name} if isinstance(value, Plugin) else {}
    extent: dict[str, Any] = {}
    for name, field, marks in _set_fields(value):
        if _Extent in marks:
            extent[name] = written(field)
        elif _HowRun not in marks:
            identity[name], deeper = split_fields(field)
            if deeper:
                extent[name] = deeper
    return identity, extent


def _set_fields(value: Plugin | BaseModel) -> Iterator[tuple[str, Any, set[type]]]:
    """(name, value, marks) of each field or knob that is not left at its default."""
    if isinstance(value, Plugin):
        fields, hints = value.knobs, hints_of(value.function)
        defaults = _knob_defaults(value.function)
    else:
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        hints = hints_of(type(value))
        defaults = {
            name: field.get_default(call_default_factory=True)
            for name, field in type(value).model_fields.items()
        }
    for name, field in fields.items():
        if field != defaults.get(name, ...):
            yield name, field, {type(mark) for mark in typing.get_args(hints[name])[1:]}


def _knob_defaults(function: Callable[..., Any]) -> dict[str, Any]:
    return {name: p.default for name, p in inspect.signature(function).parameters.items()}
