"""The text of a recipe file as plain values, with the line on which each key stands."""

from __future__ import annotations

import importlib.util
import os
import re
import traceback
from pathlib import Path
from typing import Any

import yaml

from limbeck.errors import UserError

MAX_VALUES = 100_000

Lines = dict[tuple[Any, ...], int]
Places = dict[tuple[Any, ...], str]


class _Loader(yaml.SafeLoader):
    """Safe YAML with the scalars of YAML 1.2: `1e-4` is a number, `no` a word, `1:30` no number."""


_TAG = "tag:yaml.org,2002:"
_PLAIN = {
    "null": r"^(~|null|)$",
    "bool": r"^(true|false)$",
    "int": r"^[-+]?(0|[1-9][\d_]*)$",
    "float": r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)([eE][-+]?\d+)$|^[-+]?(\d[\d_]*\.\d*|\.\d+)$",
    "merge": r"^<<$",
}
_TAGS = {_TAG + kind for kind in (*_PLAIN, "str", "seq", "map")}
_Loader.yaml_implicit_resolvers = {}
for _kind, _rule in _PLAIN.items():
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(_rule), None)


def read_yaml(text: str, where: str) -> tuple[Any, Lines]:
    """The value of a YAML text, and the line on which each key stands."""
    lines: Lines = {}
    try:
        loader = _Loader(text)
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
    except RecursionError:
        raise UserError(where, "is nested too deeply", "make it flatter") from None
    except (ValueError, LookupError, AttributeError, TypeError) as error:  # `!!int x`
        raise UserError(where, f"is not valid YAML ({error})", "mend the value") from None


def _walk(node: yaml.Node, path: tuple[Any, ...], lines: Lines, where: str) -> None:
    """Notes the line of each key; refuses what no recipe needs, exploding aliases among it."""
    line = node.start_mark.line + 1
    if len(lines) > MAX_VALUES:
        what = f"has more than {MAX_VALUES:,} values once its aliases are written out"
        raise UserError(f"{where}:{line}", what, "use fewer aliases")
    if node.tag not in _TAGS:
        what = f"is not valid YAML for a recipe ({node.tag.replace(_TAG, '!!')})"
        raise UserError(f"{where}:{line}", what, "drop the tag")
    lines[path] = line
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.tag not in (_TAG + "str", _TAG + "merge"):
                raise UserError(f"{where}:{line}", "has a key that is no word", "put it in quotes")
            if key.value in seen and key.value != "<<":
                raise UserError(f"{where}:{line}", f"key {key.value!r} stands twice", "keep one")
            seen.add(key.value)
            _walk(value, (*path, key.value), lines, where)
            lines[(*path, key.value)] = line
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _walk(value, (*path, index), lines, where)


def read_whole(path: Path, above: tuple[Path, ...] = ()) -> tuple[Any, Places]:
    """The value of a recipe file on top of that of its `base`, and where each key stands.

    The base's stages come first; what both have is the file's own: a whole stage, a setting of a
    size or of the machine. In the place of its `base` stand the names of all that it builds on.
    """
    value, lines = read_file(path)
    places = {key: f"{path}:{line}" for key, line in lines.items()}
    if not isinstance(value, dict) or "base" not in value:
        return value, places
    where = f"{places.get(('base',), path)}: base"
    own = {key: setting for key, setting in value.items() if key != "base"}
    if not isinstance(base := value["base"], str):
        raise UserError(where, "is no file's name", "write one, mix.yaml say")
    under = path.parent / base
    if not os.path.exists(under):  # Path's own does not bear names that are too long
        raise UserError(where, f"there is no {under}", "name a recipe from beside this one")
    if any(under.samefile(file) for file in (path, *above)):
        raise UserError(where, f"{base} builds on this recipe itself", "name another")
    below, below_places = read_whole(under, (path, *above))
    if not isinstance(below, dict):
        raise UserError(str(under), "has no mapping called 'stages'", "see recipes/quickstart.yaml")
    mine = {key for key in places if len(key) == 2}  # whole stages, of which nothing is the base's
    rest = {key: place for key, place in below_places.items() if key[:2] not in mine}
    bases = [*below.get("base", ()), below.get("name") or under.stem]
    return _merged(below, own) | {"base": bases}, {**rest, **places}


def _merged(below: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """A recipe on top of another: their stages, machines and sizes are put together."""
    whole = {**below, **own}
    for section in ("machine", "stages", "sizes"):
        if section in own and section in below:
            whole[section] = _over(below[section], own[section])
    if isinstance(sizes := whole.get("sizes"), dict) and sizes is not own.get("sizes"):
        for name in below["sizes"].keys() & (own.get("sizes") or {}):
            sizes[name] = _over(below["sizes"][name], own["sizes"][name])
    return whole


def _over(below: Any, own: Any) -> Any:
    """One's own keys over those below, where both are mappings."""
    return {**below, **own} if isinstance(below, dict) and isinstance(own, dict) else own


def read_file(path: Path) -> tuple[Any, Lines]:
    """The value of a recipe file, YAML or Python; of Python no lines are known."""
    if not os.path.exists(path):
        raise UserError(str(path), "no such recipe", "check the path")
    if not is_text(str(path)):
        raise UserError(str(path), "has a name that is not UTF-8", "rename it")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(str(path), f"is not UTF-8 ({error.reason})", "save it as UTF-8") from None
    except OSError as error:
        raise UserError(str(path), f"cannot be read ({error.strerror})", "give a file") from None
    return read_yaml(text, str(path)) if path.suffix != ".py" else (_read_python(path), {})


def _read_python(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location("recipe", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return module.recipe
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame.lineno for frame in frames if Path(frame.filename) == path.absolute()]
        line = getattr(error, "lineno", None) or (inside[-1] if inside else 1)
        what = f"cannot be run ({type(error).__name__}: {error})"
        raise UserError(f"{path}:{line}", what, "mend it; it must define `recipe`") from error


def is_text(value: str) -> bool:
    """Whether it has no half of a character, which UTF-8 could not write."""
    return not any("\ud800" <= char <= "\udfff" for char in value)
