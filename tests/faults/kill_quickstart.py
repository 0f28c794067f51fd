"""Kills the quickstart again and again, and compares what it ends as with a run that was not.

    python -m tests.faults.kill_quickstart --kills 60 [--seed 0]

The reference runs once, uninterrupted. A second run is killed with SIGKILL at `--kills` moments
and started again after each: at fail points (`store.failpoint`), which hit every boundary in the
order of the recipe, and after random delays in between. From 90 kills on every one of the 23
stages is killed at least three times: beginning, in the middle and finishing; 60 reach every stage
twice and every verb at least three times. Then everything must be the same: rows, weights,
tokenizers, results, summaries, and the last word on each training step; and no ledger may name
fewer tokens.

Work is counted in the CPU seconds that the reference's ledgers give for each piece; starting
Python is not work. A piece is what a resume makes again whole: a part of a table, a training step,
or a whole stage that does not resume (collect, curate, create, compare). Of each kill is told

    again   the pieces that had to be made again, as a share of the run; one that was being made
            counts as if it had been nearly done
    beyond  of these, what was not in flight: a part that had been renamed, a step that a
            checkpoint or a saved model held, a stage that had its manifest

and the sum of `beyond` may be 5 %. The last line is JSON; the exit code is 1 if anything is off.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck import ledger, store, tables

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.yaml"
MOST_BEYOND = 0.05
RANDOM = "a random moment"
LONGEST_DELAY_S = 0.6
IDS = {"verdicts": ["trace_id"], "decisions": ["trace_id"]}
IDS["scores"] = ["split", "metric", "problem_id"]

BEGIN, END = ["started.json.aside", "started"], ["finishing", "stage.json.aside", "finished"]
PART = ["part-00000", "part-00000.renamed"]
MODEL = ["model.weights", "model.aside", "model.renamed"]
MIDDLE = {
    "collect": [*PART, "part-00000#2"],
    "sample": PART,
    "verify": PART,
    "curate": [*PART, "part-00000#2"],
    "create": MODEL,
    "sft": ["step-5", "step-15", *MODEL],
    "evaluate": [*PART, "part-00000#2"],
    "compare": ["results.json.aside"],
    "profile": ["speeds.json.aside"],
}
TEACHER = [
    "step-30",
    "checkpoint-40.weights",
    "checkpoint-60.optimizer",
    "checkpoint-80.manifest",
    "checkpoint-100.aside",
    "checkpoint-120.renamed",
    "step-135",
    *MODEL,
]
FIRST = [  # one of each kind of boundary, in the order in which few kills take them
    "teacher.checkpoint-100.aside",
    "distilled.model.aside",
    "sample.part-00000.renamed",
    "eval_teacher.part-00000#2",
    "lessons.part-00000",
    "course.stage.json.aside",
    "start.finishing",
    "verify.finished",
    "teacher.model.renamed",
    "teacher.checkpoint-40.weights",
    "teacher.checkpoint-60.optimizer",
    "teacher.checkpoint-80.manifest",
    "teacher.checkpoint-120.renamed",
    "results.results.json.aside",
    "speeds.speeds.json.aside",
    "newborn.model.weights",
    "killed.recipe.json.aside",
    "killed.report.html.aside",
]


# -- where to kill ------------------------------------------------------------------------------


def choose(kills: int, rng: random.Random, stages: dict[str, str]) -> list[str]:
    """So many moments in the order in which a run passes them."""
    num_random = kills // 8 + 1
    groups = {name: _points(name, verb) for name, verb in stages.items()}
    order = ["killed.recipe.json.aside", *(p for g in groups.values() for x in g for p in x)]
    order.append("killed.report.html.aside")
    chosen = FIRST[: kills - num_random]
    left = {name: [[p for p in x if p not in chosen] for x in g] for name, g in groups.items()}
    while len(chosen) < kills - num_random:
        taken = Counter(_stage_of(point) for point in chosen)
        name = min((n for n in left if any(left[n])), key=lambda n: taken[n])
        in_group = [sum(point in chosen for point in group) for group in groups[name]]
        part = min((i for i in (1, 2, 0) if left[name][i]), key=lambda i: in_group[i])
        chosen.append(left[name][part].pop(rng.randrange(len(left[name][part]))))
    moments = sorted(chosen, key=order.index)
    for _ in range(num_random):  # never last: something must be left to be killed
        moments.insert(rng.randrange(len(moments)), RANDOM)
    return moments


def _points(name: str, verb: str) -> tuple[list[str], list[str], list[str]]:
    """A stage's fail points: beginning, in the middle, finishing."""
    middle = TEACHER if name == "teacher" else MIDDLE[verb]
    begin, inside, end = ([f"{name}.{point}" for point in x] for x in (BEGIN, middle, END))
    file_in = {"compare": "results", "profile": "speeds"}.get(verb)
    if file_in:  # is named after its folder
        inside = [point.replace(f"{name}.", f"{file_in}.") for point in inside]
    return begin, inside, end


def _stage_of(point: str) -> str:
    """A file outside of tables and models is named after the folder that it lies in."""
    name = point.partition(".")[0]
    return {"killed": "the run", "results": "compare", "speeds": "profile"}.get(name, name)


# -- running and killing ------------------------------------------------------------------------


@dataclass
class Attempts:
    """Starts the same run again and again."""

    folder: Path
    rng: random.Random

    def start(self, point: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "limbeck", "run", str(RECIPE), "--size", "ci", "--quiet"]
        return subprocess.Popen(
            [*command, "machine.threads=1", "--run", str(self.folder)],
            env={**os.environ, "LIMBECK_KILL_AT": point, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def finish(self) -> None:
        """Runs to the end, or raises with what was said."""
        self._end(self.start(), 0)

    def kill_at(self, point: str) -> None:
        self._end(self.start(point), -signal.SIGKILL)

    def kill_soon(self, longest_s: float, before: str) -> bool:
        """Kills at a random moment; False when the fail point `before` was reached first."""
        sessions = self.folder / "sessions.jsonl"
        seen = len(store.read_jsonl(sessions))
        process = self.start(before)
        while process.poll() is None and len(store.read_jsonl(sessions)) == seen:
            time.sleep(0.01)
        time.sleep(self.rng.uniform(0, longest_s))
        by_us = process.poll() is None
        process.kill()
        self._end(process, -signal.SIGKILL)
        return by_us

    def _end(self, process: subprocess.Popen[str], expected: int) -> None:
        said = process.communicate()[1]
        if process.returncode != expected:
            raise SystemExit(f"ended with {process.returncode}, not {expected}:\n{said}")


# -- how much is done again ---------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """The pieces of the reference run, and what each cost in CPU seconds."""

    verbs: dict[str, str]
    parts: dict[str, float]  # stage/table
    steps: dict[str, float]  # stage: one step
    whole: dict[str, float]  # stage, of those that do not resume
    total: float


def work_of(reference: Path) -> Work:
    recipe = store.read_json(reference / "recipe.json")
    verbs = {name: stage["stage"] for name, stage in recipe["stages"].items()}
    work = Work(verbs, {}, {}, {}, 0.0)
    total = 0.0
    for stage, verb in verbs.items():
        rows = store.read_jsonl(reference / stage / "ledger.jsonl")
        for row in (row for row in rows if row["work"] != "around it"):
            total += row["cpu_seconds"]
            if verb == "sft":
                steps = len(store.read_jsonl(reference / stage / "metrics.jsonl"))
                work.steps[stage] = work.steps.get(stage, 0.0) + row["cpu_seconds"] / steps
            elif row["work"].endswith(" part"):
                work.parts[f"{stage}/{row['work'].removesuffix(' part')}"] = row["cpu_seconds"]
            else:
                work.whole[stage] = work.whole.get(stage, 0.0) + row["cpu_seconds"]
    return Work(verbs, work.parts, work.steps, work.whole, total)


@dataclass(frozen=True)
class Seen:
    """What lay in the run folder after a kill."""

    files: dict[str, int]  # when each stage's manifest and each table's part was written
    begun: set[str]  # stages with anything of their own, tables with a part aside
    steps: dict[str, Counter[int]]  # stage: how often each step was made
    held: dict[str, int]  # stage: steps that a checkpoint or the model holds
    open: str | None  # the stage that was begun and not finished


def look(folder: Path, work: Work) -> Seen:
    files, begun, steps, held = {}, set(), {}, {}
    for path in folder.glob("*/stage.json"):
        files[path.parent.name] = path.stat().st_mtime_ns
    for path in folder.glob("*/*/part-00000*.parquet"):  # at this size a table has one part
        files[str(path.parent.relative_to(folder))] = path.stat().st_mtime_ns
    for path in folder.glob("*/*/.part-*.tmp"):
        begun.add(str(path.parent.relative_to(folder)))
    for path in folder.glob("*/*"):
        if path.is_dir():
            begun.add(path.parent.name)
    for stage in work.steps:
        rows = store.read_jsonl(folder / stage / "metrics.jsonl")
        steps[stage] = Counter(row["step"] for row in rows)
        checkpoints = (folder / stage / "checkpoints").glob("step-*")
        held[stage] = max((int(path.name[5:]) for path in checkpoints), default=0)
        if (folder / stage / "model").exists():
            held[stage] = max(steps[stage], default=0)
    started = (path.parent for path in folder.glob("*/started.json"))
    unfinished = [path.name for path in started if not (path / "stage.json").exists()]
    return Seen(files, begun, steps, held, unfinished[0] if unfinished else None)


def again(before: Seen, after: Seen, work: Work, at_random: bool) -> tuple[float, float]:
    """Shares of the run's work: made again after a kill, and of this what was not in flight."""
    flying = beyond = 0.0
    for stage, price in work.steps.items():
        for step, times in before.steps[stage].items():
            cost = price * (after.steps[stage][step] - times)
            flying += cost if step > before.held[stage] else 0
            beyond += cost if step <= before.held[stage] else 0
    for table, price in work.parts.items():
        if table in before.files:
            beyond += price * (before.files[table] != after.files.get(table))
        elif table.partition("/")[0] == before.open:
            flying += price * (at_random or table in before.begun)
    for stage, price in work.whole.items():
        if stage in before.files:
            beyond += price * (before.files[stage] != after.files.get(stage))
        elif stage == before.open:
            flying += price * (at_random or stage in before.begun)
    return (flying + beyond) / work.total, beyond / work.total


# -- what came out ------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, Any]:
    """Everything that a kill must not change, by name."""
    files = [*folder.glob("*/model/*"), *folder.glob("*/results/*")]
    found: dict[str, Any] = {str(p.relative_to(folder)): store.hash_file(p) for p in files}
    found |= {name: table.to_pylist() for name, table in _tables(folder)}
    for path in folder.glob("*/metrics.jsonl"):
        found[f"{path.parent.name} steps"] = {row["step"]: row for row in store.read_jsonl(path)}
    for path in folder.glob("*/stage.json"):
        manifest = store.read_sealed(path)
        manifest |= {"wall_seconds": 0, "finished": "", "files": _steady(manifest["files"])}
        found[f"{path.parent.name} manifest"] = manifest
    left_over = [*folder.rglob(".*"), *folder.glob("*/checkpoints")]
    return {**found, "left over": sorted(str(p.relative_to(folder)) for p in left_over)}


def _tables(folder: Path) -> Iterator[tuple[str, Any]]:
    for path in sorted({part.parent for part in folder.glob("*/*/part-*.parquet")}):
        yield str(path.relative_to(folder)), tables.read_table(path)


def _steady(files: dict[str, str]) -> dict[str, str]:
    """Which files a stage promises, and hashes of those that hold neither times nor costs."""
    told = (".jsonl", ".txt", "started.json", "speeds.json")
    return {name: "" if name.endswith(told) else file for name, file in files.items()}


def lost_and_doubled(reference: Path, folder: Path) -> tuple[int, int]:
    """Rows, by their ids, over every table."""
    lost = doubled = 0
    now = dict(_tables(folder))
    for name, table in _tables(reference):
        keys = IDS.get(name.partition("/")[2], ["id"])
        wanted = Counter(map(tuple, (row.values() for row in table.select(keys).to_pylist())))
        rows = now[name].select(keys).to_pylist() if name in now else []
        there = Counter(map(tuple, (row.values() for row in rows)))
        lost += (wanted - there).total()
        doubled += (there - wanted).total()
    return lost, doubled


def forgotten_costs(reference: Path, folder: Path) -> list[str]:
    """Stages whose ledger names fewer tokens than an uninterrupted run: interruptions only add."""
    found = []
    for path in sorted(reference.glob("*/ledger.jsonl")):
        stage = path.parent.name
        was, is_now = (ledger.total(f / stage / "ledger.jsonl") for f in (reference, folder))
        if any(is_now[key] < was[key] for key in ("tokens_in", "tokens_out", "flops")):
            found.append(stage)
    return found


# -- the whole of it ----------------------------------------------------------------------------


def torture(place: Path, kills: int, seed: int) -> bool:
    """Prints a line per kill and the JSON line; whether all is well."""
    rng = random.Random(seed)
    reference, killed = place / "reference", Attempts(place / "killed", rng)
    begun = time.monotonic()
    Attempts(reference, rng).finish()
    work = work_of(reference)
    print(f"reference: {time.monotonic() - begun:.0f} s, of these {work.total:.1f} CPU s of work")
    moments = choose(kills, rng, work.verbs)
    print(f"{'':>3} {'stage':<18} {'point':<34} {'again':>7} {'beyond':>7}")

    num = tries = 0
    beyond_all = again_all = 0.0
    before, where = look(killed.folder, work), ""
    while moments or where:
        point = moments.pop(0) if moments else ""
        if point == RANDOM:
            named = next(m for m in moments if m != RANDOM)
            if killed.kill_soon(LONGEST_DELAY_S / 2**tries, named):
                tries = 0
            else:  # the fail point came first; the random moment is still to come
                moments[moments.index(named)] = RANDOM
                point, tries = named, tries + 1
        elif point:
            killed.kill_at(point)
        else:
            killed.finish()
        after = look(killed.folder, work)
        if where:
            share, beyond = again(before, after, work, where == RANDOM)
            again_all, beyond_all = again_all + share, beyond_all + beyond
            stage = _stage(where, before, work)
            print(f"{num:>3} {stage:<18} {where:<34} {share:>7.1%} {beyond:>7.1%}", flush=True)
        before, where, num = after, point, num + bool(point)
    print(f"{'':>3} {'together':<53} {again_all:>7.1%} {beyond_all:>7.1%}")
    print(f"{time.monotonic() - begun:.0f} s")

    was, is_now = content(reference), content(killed.folder)
    other = sorted(name for name in was.keys() | is_now.keys() if was.get(name) != is_now.get(name))
    for name in other:
        print(f"not the same: {name}")
    forgotten = forgotten_costs(reference, killed.folder)
    for name in forgotten:
        print(f"its ledger has forgotten tokens: {name}")
    lost, doubled = lost_and_doubled(reference, killed.folder)
    told = {"kills": num, "lost": lost, "doubled": doubled, "identical": not other}
    print(json.dumps(told), flush=True)
    wrong = lost or doubled or other or forgotten
    return not wrong and num == kills and beyond_all <= MOST_BEYOND


def _stage(where: str, seen: Seen, work: Work) -> str:
    """The stage that a kill fell into."""
    if where == RANDOM:
        done = [name for name in work.verbs if name in seen.files]
        return seen.open or (f"after {done[-1]}" if done else "before the first")
    return _stage_of(where)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=90, help="how often [90]")
    parser.add_argument("--seed", type=int, default=0, help="chooses the moments [0]")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="limbeck-kills-") as place:
        sys.exit(0 if torture(Path(place), chosen.kills, chosen.seed) else 1)


if __name__ == "__main__":
    main()
