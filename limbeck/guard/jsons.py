"""JSON of strangers: as large, as deep and as unambiguous as honest files are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from limbeck.errors import UserError

MAX_BYTES = 16 << 20  # of a config; the largest known, with all added tokens listed, has 3 MB
MAX_INDEX_BYTES = 32 << 20  # of a shard index; DeepSeek-V3's has 9 MB
MAX_DEPTH = 32  # honest configs nest 6 deep


def refuse(path: Path, what: str, way_out: str = "take the files of another revision") -> UserError:
    return UserError(str(path), what, way_out)


def read(path: Path, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """The object in a JSON file; a key that stands twice means one thing here, another there."""
    size = path.stat().st_size
    if size > max_bytes:
        raise refuse(path, f"has {size:,} bytes, more than the {max_bytes:,} of any honest one")
    return parse(path, path.read_bytes())


def parse(path: Path, content: bytes) -> dict[str, Any]:
    """`content`, which stands in `path`, as an object."""
    try:
        value = json.loads(content.decode("utf-8"), object_pairs_hook=_once)
        if not isinstance(value, dict):
            raise ValueError(f"it holds no object but {type(value).__name__}")
        if _depth(value) > MAX_DEPTH:
            raise RecursionError
    except RecursionError:
        raise refuse(path, f"is nested deeper than {MAX_DEPTH} levels") from None
    except ValueError as error:
        raise refuse(path, f"is not JSON that can be trusted ({_first_line(error)})") from error
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:60]!r} stands twice")
    return value


def _depth(value: Any) -> int:
    """How deep the containers of a value are nested."""
    depth, level = 0, [value]
    while level:
        depth += 1
        inside = [i for v in level for i in (v.values() if isinstance(v, dict) else v)]
        level = [item for item in inside if isinstance(item, dict | list)]
    return depth


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0][:200] if str(error) else type(error).__name__
