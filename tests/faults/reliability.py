"""Runs every fault that Limbeck promises to survive and writes what came of it, nothing else.

`python -m tests.faults.reliability` makes `docs/reliability.md`: a table by class with cases, seeds
and results. It takes half an hour; the same faults, fewer of each, are in the tests.
"""

from __future__ import annotations

import argparse
import ast
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from limbeck import runner

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reliability.md"
SEED = 20261121
KILLS_SEED = 0

# Which class of reliability.md a file of tests is about; one that is not named here is of no class.
CLASSES = {
    "test_runner": "A",
    "test_kills": "A",
    "test_signals": "A",
    "test_journal": "A",
    "test_rot": "B",
    "test_disk": "B",
    "test_teacher": "C",
    "test_numbers": "F",
    "test_hostile_files": "G",
    "test_guard": "G",
    "test_server": "H",
    "test_mistakes": "I",
    "test_report": "I",
    "test_escapes": "I",
    "test_secrets": "I",
    "test_fuzz": "fuzz",
}
BESIDE = ("tests/test_journal.py", "tests/test_runner.py", "tests/test_report.py")


@dataclass
class Row:
    """One line of the table; `wrong` says what went wrong, and must stay empty."""

    letter: str
    fault: str
    cases: int
    seed: str
    result: str
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


# -- class B ------------------------------------------------------------------------------------


def rot(folder: Path, flips: int) -> Iterator[Row]:
    """Bit flips in every kind of file, and whole files that are missing, cut, empty, swapped."""
    from tests.faults import test_rot

    finished = test_rot.run(folder / "run")
    for kind, make in test_rot.KINDS.items():
        case = make(finished, _new(folder / kind))
        found = test_rot.flip(case, flips, SEED)
        told = f"{found.detected:,} detected and named, {found.harmless:,} harmless"
        yield Row("B", f"one bit flipped: {kind}", flips, str(SEED), told, found.wrong)
    for kind in ("parts of finished stages", "parts of unfinished stages", "checkpoints", "models"):
        case = test_rot.KINDS[kind](finished, _new(folder / f"whole {kind}"))
        damages = list(test_rot.every_damage(case))
        harmless = sum(found.harmless for _, found in damages)
        wrong = [f"{what}: {said}" for what, found in damages for said in found.wrong]
        told = f"{len(damages) - harmless - len(wrong):,} detected and named, {harmless:,} harmless"
        fault = f"a file missing, cut in half, empty or swapped: {kind}"
        yield Row("B", fault, len(damages), "all", told, wrong)


def disk(folder: Path, points: int) -> Iterator[Row]:
    """A disk that fills in every stage: half of the points by file size, half on a tmpfs."""
    from tests.faults import test_disk

    known = test_disk.undisturbed(_new(folder / "known"))
    for stage in test_disk.STAGES:
        scratch = _new(folder / stage)
        try:
            mounted = test_disk.fill_disk(stage, known, scratch, points // 2)
        except PermissionError:  # not root
            mounted = test_disk.Result()
        limited = test_disk.limit_files(stage, known, scratch, points - mounted.filled)
        wrong, cases = mounted.wrong + limited.wrong, mounted.filled + limited.filled
        ways = f"{mounted.filled} on a full tmpfs, {limited.filled} by RLIMIT_FSIZE"
        told = f"one line, nothing lost, the rerun identical: {cases - len(wrong)} ({ways})"
        yield Row("B", f"the disk fills: {stage}", cases, "evenly", told, wrong)


# -- class F ------------------------------------------------------------------------------------


def numbers(folder: Path) -> Iterator[Row]:
    """Every point of test_numbers, by what is broken."""
    from tests.faults import test_numbers

    world = test_numbers.make_world(_new(folder / "world"))
    cases, wrong = Counter[str](), dict[str, list[str]]()
    for index, point in enumerate(test_numbers.POINTS):
        said = test_numbers.break_at(world, point, folder / f"{index}")
        cases[point.kind] += 1
        wrong.setdefault(point.kind, []).extend(f"{point}: {what}" for what in said)
    for kind, num in cases.items():
        where = "the engine's logits" if kind == "logits" else kind
        told = f"{num - len(wrong[kind])} stopped within the step, saved nothing, resumed identical"
        yield Row("F", f"not finite: {where}", num, "all", told, wrong[kind])


# -- what others run ----------------------------------------------------------------------------


def harness(letter: str, fault: str, module: str, num: int, options: list[str]) -> Iterator[Row]:
    """A program of `tests/faults` that kills and compares: its own last line, `num` cases."""
    command = [sys.executable, "-m", f"tests.faults.{module}", "--seed", str(KILLS_SEED), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    told = lines[-1] if lines else "no output"
    wrong = [] if done.returncode == 0 else [f"ended with {done.returncode}", *lines[-8:-1]]
    wrong += done.stderr.splitlines()[-3:] if wrong else []
    yield Row(letter, fault, num, str(KILLS_SEED), f"`{told}`", wrong)


def kills(num: int) -> Iterator[Row]:
    """The quickstart, killed and resumed."""
    fault = "quickstart at ci size, SIGKILL"
    yield from harness("A", fault, "kill_quickstart", num, ["--kills", str(num)])


def teacher(num: int) -> Iterator[Row]:
    """A faulty server, asked by a run that is killed 20 times."""
    fault = f"a teacher with faults in 30 % of {num:,} requests, and 20 SIGKILLs"
    yield from harness("C", fault, "teacher", num, ["--requests", str(num), "--kills", "20"])


def tests(folder: Path) -> Iterator[Row]:
    """The tests of each class, counted from what pytest says."""
    for path in [
        *sorted((ROOT / "tests" / "faults").glob("test_*.py")),
        *map(ROOT.joinpath, BESIDE),
    ]:
        file = str(path.relative_to(ROOT))
        letter = CLASSES.get(path.stem, "")
        about = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        fault = f"`{file}`: {about}".rstrip(": ")
        report = folder / "junit.xml"
        command = [sys.executable, "-m", "pytest", "--tb=no", "-q", f"--junitxml={report}", file]
        subprocess.run(command, cwd=ROOT, capture_output=True)
        cases = ElementTree.parse(report).getroot().findall(".//testcase")
        ends = Counter(_end(case) for case in cases)
        told = ", ".join(f"{num} {end}" for end, num in ends.most_common())
        wrong = [f"{case.get('name')}: failed" for case in cases if _end(case) == "failed"]
        yield Row(letter, fault, len(cases), "in it", told, wrong)


def _end(case: ElementTree.Element) -> str:
    if case.find("skipped") is not None:
        return "skipped"
    bad = case.find("failure") is not None or case.find("error") is not None
    return "failed" if bad else "passed"


# -- the page -----------------------------------------------------------------------------------


def page(rows: list[Row], seconds: float) -> str:
    """The whole page as markdown."""
    versions = ", ".join(f"{name} {version}" for name, version in runner.versions().items())
    wrong = [f"- {row.letter}: {row.fault}: {what}" for row in rows for what in row.wrong]
    lines = [
        "# Reliability",
        "",
        "Which faults Limbeck was put through, and what came of them. `make reliability` ran them "
        "and wrote this page; nothing on it was typed by hand.",
        "",
        f"- {time.strftime('%Y-%m-%d')}, {seconds / 60:.0f} minutes, {_commit()}",
        f"- {platform.platform()}, {os.cpu_count()} cores",
        f"- {versions}",
        "",
        "Classes: **A** a process dies, **B** disks rot and fill, **C** a teacher or the line to "
        "it fails, **F** numbers that are not finite, **G** files of strangers, **H** who asks a "
        "server means harm, **I** users' mistakes, the report, keys.",
        "",
        "| class | fault | cases | seed | result | |",
        "|---|---|---:|---|---|---|",
        *(_line(row) for row in sorted(rows, key=lambda row: row.letter or "~")),
        "",
        f"{sum(row.cases for row in rows):,} cases, {len(wrong):,} went wrong.",
        *(["", "## What went wrong", "", *wrong] if wrong else []),
    ]
    return "\n".join(lines) + "\n"


def _line(row: Row) -> str:
    verdict = f"**{len(row.wrong)} wrong**" if row.wrong else "ok"
    cells = (row.letter, row.fault, f"{row.cases:,}", row.seed, row.result, verdict)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _commit() -> str:
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return f"commit {head.stdout.strip()}" + (" and changes" if changed.stdout.strip() else "")


def _new(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=60, help="of the quickstart [60]")
    parser.add_argument("--requests", type=int, default=10_000, help="to the teacher [10000]")
    parser.add_argument("--flips", type=int, default=1000, help="per kind of file [1000]")
    parser.add_argument("--points", type=int, default=20, help="of a full disk, per stage [20]")
    parser.add_argument("--only", default="", help="some of: kills,teacher,rot,disk,numbers,tests")
    parser.add_argument("--to", type=Path, default=PAGE, help="where to write the page")
    chosen = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    parts: dict[str, Callable[[Path], Iterator[Row]]] = {
        "kills": lambda _: kills(chosen.kills),
        "teacher": lambda _: teacher(chosen.requests),
        "rot": lambda folder: rot(folder, chosen.flips),
        "disk": lambda folder: disk(folder, chosen.points),
        "numbers": numbers,
        "tests": tests,
    }
    begun, rows = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="limbeck-reliability-") as place:
        for name in chosen.only.split(",") if chosen.only else parts:
            before = time.monotonic()
            for row in parts[name](_new(Path(place) / name)):
                row.seconds, before = time.monotonic() - before, time.monotonic()
                print(f"{row.seconds:6.1f} s {_line(row)}", flush=True)
                for what in row.wrong[:9]:
                    print(f"         {what}", flush=True)
                rows.append(row)
    chosen.to.write_text(page(rows, time.monotonic() - begun))
    print(f"\n{chosen.to}")
    sys.exit(1 if any(row.wrong for row in rows) else 0)


if __name__ == "__main__":
    main()
