"""A disk that fills anywhere: one clear line, nothing lost, and with space again the same run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from limbeck import store, tables
from tests.faults.child import limbeck_run
from tests.faults.small import RECIPE, outputs, up_to

torch = pytest.importorskip("torch")
pytest.importorskip("reasoning_gym")

STAGES = list(RECIPE["stages"])
IN_CI = 2  # points per stage


@dataclass
class Undisturbed:
    """A run that never met a full disk, and the folder as it was before each stage."""

    before: dict[str, Path]
    hashes: dict[str, dict[str, str]]
    sizes: dict[str, list[int]]


def undisturbed(folder: Path) -> Undisturbed:
    """Runs the recipe stage by stage and keeps each state."""
    found = Undisturbed({}, {}, {})
    run = folder / "run"
    run.mkdir(parents=True)
    for stage in STAGES:
        found.before[stage] = shutil.copytree(run, folder / f"before-{stage}")
        code, said = limbeck_run(up_to(stage), run, folder)
        assert code == 0, said
        found.hashes[stage] = made(run, stage)
        written = [*(run / stage).rglob("*"), run / "recipe.json", run / "report.html"]
        found.sizes[stage] = sorted({p.stat().st_size for p in written if p.is_file()})
        if stage == "sft":  # the moments, which are gone when it is finished
            found.sizes[stage] = sorted([*found.sizes[stage], 50_000, 60_000])
    return found


def made(run: Path, stage: str) -> dict[str, str]:
    """sha256 of everything that a stage is there for."""
    return {
        f"{output}/{name}": digest
        for output in outputs(stage)
        if (run / stage / output).exists()
        for name, digest in store.hash_tree(run / stage / output).items()
    }


@dataclass
class Result:
    """What came of a stage's points; `wrong` must stay empty."""

    filled: int = 0
    wrong: list[str] = field(default_factory=list)


def check(
    stage: str,
    run: Path,
    known: Undisturbed,
    recipes: Path,
    fill: Callable[[], tuple[int, str]],
    free: Callable[[], None] = lambda: None,
) -> list[str] | None:
    """What is wrong with a stage that was run on a disk that filled up; None if it did not."""
    earlier = {s: store.hash_tree(run / s) for s in STAGES[: STAGES.index(stage)]}
    asked = recipes / "asked"
    asked.unlink(missing_ok=True)
    code, said = fill()
    if code == 0:
        return None
    wrong = []
    one_line = said.startswith("limbeck: the disk is full") and said.count("\n") == 1
    if code != 1 or not one_line or "Traceback" in said:
        wrong.append(f"exit code {code}: {said}")
    if any(store.hash_tree(run / s) != hashes for s, hashes in earlier.items()):
        wrong.append("an earlier stage changed")
    wrong += [f"{place} is half-written" for place in _half_written(run / stage, known, stage)]
    kept = {part: part.stat().st_mtime_ns for part in (run / stage).rglob("part-*.parquet")}
    free()
    code, said = limbeck_run(up_to(stage), run, recipes)
    if code != 0:
        return [*wrong, f"the rerun ended with {code}: {said}"]
    if made(run, stage) != known.hashes[stage]:
        wrong.append("the rerun made something else")
    if stage in ("sample", "bought", "verify", "evaluate"):  # those that resume
        wrong += [
            f"{part.name} was made again"
            for part, stamp in kept.items()
            if part.parent.name != "scores"  # computed from the answers, in no time
            and (not part.exists() or part.stat().st_mtime_ns != stamp)
        ]
    requests = asked.read_text().split() if asked.exists() else []
    if stage == "bought" and len(requests) > len(set(requests)) + 1:  # the one in flight
        wrong.append(f"{len(requests) - len(set(requests))} answers were paid for twice")
    return wrong


def _half_written(folder: Path, known: Undisturbed, stage: str) -> Iterator[str]:
    """Files under their final names that are not whole."""
    from limbeck.train.checkpoint import _problem

    for part in folder.rglob("part-*.parquet"):
        if not tables.is_whole(part):
            yield part.name
    for checkpoint in folder.glob("checkpoints/step-*"):
        if _problem(checkpoint):
            yield checkpoint.name
    whole = {n: h for n, h in known.hashes[stage].items() if n.startswith(("model/", "results/"))}
    there = {n: h for n, h in made(folder.parent, stage).items() if n in whole}
    if there and there != whole:
        yield "model or results"
    for manifest in ("stage.json", "started.json"):
        if (folder / manifest).exists():
            store.read_sealed(folder / manifest)


# -- two ways to fill a disk --------------------------------------------------------------------


def spread(points: list[int], num: int) -> list[int]:
    """At most `num` of the points, evenly."""
    points = sorted(set(points))
    return [points[i * len(points) // num] for i in range(num)] if len(points) > num else points


def limit_files(stage: str, known: Undisturbed, folder: Path, num: int) -> Result:
    """No file may grow beyond so many bytes: every file of the stage fails, at its begin or end."""
    result = Result()
    sizes = known.sizes[stage]
    for limit in spread([s - 1 for s in sizes] + [s // 2 for s in sizes], num):
        run = shutil.copytree(known.before[stage], folder / f"{stage}-{limit}")

        def fill(run: Path = run, limit: int = limit) -> tuple[int, str]:
            return limbeck_run(up_to(stage), run, folder, limit)

        _count(result, check(stage, run, known, folder, fill), f"{stage} at {limit} bytes a file")
        shutil.rmtree(run)
    return result


def fill_disk(
    stage: str, known: Undisturbed, folder: Path, num: int, enough: int | None = None
) -> Result:
    """A disk with so many free pages: none, and evenly up to those that are `enough`."""
    result, page = Result(), 4096
    with tmpfs(folder / "disk", 16 * 2**20) as disk:
        run, ballast = disk / "run", disk / "ballast"

        def leave(pages: int) -> None:
            shutil.rmtree(run, ignore_errors=True)
            ballast.unlink(missing_ok=True)
            shutil.copytree(known.before[stage], run)
            room = os.statvfs(disk)
            ballast.write_bytes(bytes((room.f_bavail - pages) * page))

        def fill() -> tuple[int, str]:
            return limbeck_run(up_to(stage), run, folder)

        low, high = 0, enough or 256
        while enough is None and high - low > 1:  # more than low are enough, high are
            leave(middle := (low + high) // 2)
            low, high = (low, middle) if fill()[0] == 0 else (middle, high)
        for pages in spread(list(range(high)), num):
            leave(pages)
            wrong = check(stage, run, known, folder, fill, ballast.unlink)
            _count(result, wrong, f"{stage} with {pages} pages free")
    return result


def _count(result: Result, wrong: list[str] | None, where: str) -> None:
    if wrong is not None:
        result.filled += 1
        result.wrong += [f"{where}: {what}" for what in wrong]


@contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Path]:
    """A small disk. Raises PermissionError where one may not be mounted."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        raise PermissionError("no disk can be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


# -- tests --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    return undisturbed(tmp_path_factory.mktemp("disk"))


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_fills_in_a_stage(known: Undisturbed, tmp_path: Path, stage: str) -> None:
    result = limit_files(stage, known, tmp_path, IN_CI)
    assert not result.wrong, result.wrong
    assert result.filled == IN_CI


@pytest.mark.parametrize(("stage", "enough"), [("collect", 12), ("sft", 60)])
def test_a_real_disk_that_fills(
    known: Undisturbed, tmp_path: Path, stage: str, enough: int
) -> None:
    """ENOSPC, where the tests above meet EFBIG: what lies aside takes room, too."""
    try:
        result = fill_disk(stage, known, tmp_path, 4, enough)
    except PermissionError as error:
        pytest.skip(str(error))
    assert not result.wrong, result.wrong
    assert result.filled >= 3
