"""Programs that attack the verifier, beside honest ones: none passes that should not."""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path

import pytest

from limbeck.problems import make_problem
from limbeck.types import Trace
from limbeck.verifiers import sandbox
from limbeck.verifiers.code import verify
from limbeck.verifiers.sandbox import cgroups

ROWS = [
    json.loads(line)
    for line in files("limbeck.audit").joinpath("hostile/programs.jsonl").read_text().splitlines()
]
REFUSALS = [sandbox.refusal(name) for name in sandbox.BACKENDS]
NAME = "limbeck-canary"  # what the programs look for


def judged(row):
    meta = {"tests": row["tests"], "prefix": row.get("prefix", "")}
    problem = make_problem("?", row.get("gold", ""), verifier="code", meta=meta)
    trace = Trace(row["id"], problem.id, 0, row["program"], "stop", "model")
    return verify(problem, trace, **row.get("knobs", {}))


def left_behind():
    """What the programs would have made outside: files, processes, control groups."""
    found = [
        str(path)
        for place in ("/", "/tmp", "/usr/lib", "/dev", "/dev/shm", str(Path.cwd()))
        for path in Path(place).glob("limbeck-hostile*")
    ]
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "comm").read_text().startswith("lb-hostile"):
                found.append(folder.name)
        except OSError:
            continue
    groups = (parent.glob(f"limbeck-{os.getpid()}-*") for parent in cgroups.home() or ())
    return found + [str(path) for paths in groups for path in paths]


@pytest.fixture
def canaries():
    """Files in home and in the working folder, which no program may read or change."""
    paths = [Path.home() / f".{NAME}", Path.cwd() / NAME]
    for path in paths:
        path.write_text("untouched")
    yield paths
    for path in paths:
        path.unlink()


def test_there_are_enough_of_each_kind():
    kinds = Counter(row["expect"] for row in ROWS)
    assert kinds["reject"] >= 150 and kinds["accept"] >= 40
    assert len({row["id"] for row in ROWS}) == len(ROWS)
    assert {row["family"] for row in ROWS} >= {f"E{n}" for n in range(1, 17)} - {"E15"}


@pytest.mark.skipif(all(REFUSALS), reason=f"no sandbox on this machine: {REFUSALS}")
def test_no_hostile_program_passes_and_every_honest_one_does(canaries):
    with ThreadPoolExecutor(4) as pool:
        verdicts = list(pool.map(judged, ROWS))
    time.sleep(1.0)
    wrong = [
        (row["id"], verdict.reason)
        for row, verdict in zip(ROWS, verdicts, strict=True)
        if (verdict.correct is True) != (row["expect"] == "accept")
    ]
    assert wrong == []
    assert [path.read_text() for path in canaries] == ["untouched", "untouched"]
    assert left_behind() == []
    honest = next(row for row in ROWS if row["expect"] == "accept")
    assert judged(honest).correct is True
