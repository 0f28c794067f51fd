"""Where others' outputs lie, and how they become tables that the engine `replay` plays."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

DATA = Path(os.environ.get("LIMBECK_TEST_DATA", "/nowhere"))


def needs(folder: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not (DATA / folder).exists(), reason=f"set LIMBECK_TEST_DATA to the test data ({folder})"
    )


def read(path: str) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, gzipped or not."""
    place = DATA / path
    with gzip.open(place, "rt") if place.suffix == ".gz" else open(place) as file:
        return [json.loads(line) for line in file]


def write(path: Path, rows: Iterable[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def results(run: Any, stage: str = "evaluate") -> dict[str, dict[str, Any]]:
    """An evaluation's results by the metric's name."""
    (row,) = [row for row in run.done("evaluate") if row["stage"] == stage]
    return {found["metric"]: found for found in row["summary"]["results"]}
