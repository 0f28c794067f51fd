"""Whether what is learned holds what is asked in the end: by table, by name, and by question."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache, partial
from itertools import islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from limbeck import tables
from limbeck.config import Plugin
from limbeck.doctor.finding import Said, broken, fine, worth_knowing
from limbeck.doctor.setup import Setup
from limbeck.errors import UserError
from limbeck.filters.contamination import Evaluation
from limbeck.plugins import plugins
from limbeck.problems import collision_key, heldout_fraction, make_problem
from limbeck.recipe import Stage
from limbeck.types import Problem

LEARNS = ("sft", "distill", "grpo", "reward_model", "prune", "quantize")
EXAMINES = ("evaluate", "likelihood")
NEAR = ("reasoning_gym", "file")  # sources that are read here, at once; so is any `path`
NUM_DRAWN = 256
NUM_READ = 20_000  # rows of a table that is there
RARE = 0.01  # of an examination: as many of GSM8K's are like a lesson's
RUN = 10  # words, as the filter `decontaminated` takes them


def same_problems(setup: Setup) -> Iterator[Said]:
    """No table is both learned and examined."""
    learned, examined = _sides(setup)
    for path in sorted({*learned} & examined):
        told = f"{', '.join(learned[path])} learn from {path}, which evaluation asks, too"
        yield broken(
            told, "hold problems out (collect.heldout_share) and evaluate on ./collect/heldout"
        )
    if examined and not {*learned} & examined:
        yield fine("no table is learned and examined")


def _sides(setup: Setup) -> tuple[dict[str, list[str]], set[str]]:
    """(what is learned, and by which stages; what is examined)."""
    learned: dict[str, list[str]] = {}
    examined: set[str] = set()
    for stage in setup.recipe.stages:
        if stage.verb in LEARNS:
            for path in setup.sources(stage):
                learned.setdefault(path, []).append(stage.name)
        elif stage.verb in EXAMINES:
            examined |= setup.sources(stage)
    return learned, examined


def _across(setup: Setup) -> Iterator[tuple[str, str]]:
    """(learned, examined) tables of which nothing promises that they are apart."""
    learned, examined = _sides(setup)
    for one, other in product(sorted(learned), sorted(examined)):
        if one != other and not _are_apart(setup, one, other):
            yield one, other


def _are_apart(setup: Setup, learned: str, examined: str) -> bool:
    """By content: what one collects is below the share that the other leaves out."""
    one, other = setup.stage_of(learned), setup.stage_of(examined)
    shares = [
        getattr(stage.config, "heldout_share", 0.0) if stage else 0.0 for stage in (one, other)
    ]
    sides = [path.rpartition("/")[2] for path in (learned, examined)]
    if sides == ["problems", "heldout"]:
        return shares[0] >= shares[1] > 0
    return sides == ["heldout", "problems"] and shares[1] >= shares[0] > 0


class PublicSet(NamedTuple):
    """A part of a public data set: `MATH-500` of whatever owner is `math500`."""

    name: str
    config: str
    split: str

    def meets(self, other: PublicSet) -> bool:
        configs = {self.config, other.config} - {""}
        return self.name == other.name and self.split == other.split and len(configs) < 2


def same_benchmark(setup: Setup) -> Iterator[Said]:
    """No public set is on both sides with the same part."""
    for learned, examined in _across(setup):
        for one, other in product(_public(setup, learned), _public(setup, examined)):
            if one.meets(other):
                told = f"{learned} learns from {one.name} ({one.split}), which {examined} examines"
                yield broken(told, "train on another split or set, or evaluate on another")


def _public(setup: Setup, path: str) -> Iterator[PublicSet]:
    """The public sets that a table is read from; a benchmark reads what is there to test."""
    for source in _sources(setup.stage_of(path)):
        knobs = source.knobs
        if isinstance(knobs.get("dataset"), str) and not knobs.get("path"):
            name = re.sub(r"[^a-z0-9]", "", knobs["dataset"].rpartition("/")[2].lower())
            yield PublicSet(name, knobs.get("config") or "", knobs.get("split") or "test")


def _sources(stage: Stage | None) -> list[Plugin]:
    config: Any = stage.config if stage else None
    return [config.source, *getattr(config, "more", ())] if config else []


def shared_questions(setup: Setup) -> Iterator[Said]:
    """Reads the tables that are there, draws from sources that are near, and compares questions."""
    problems = cache(partial(_problems, setup))
    compared = 0
    for learned, examined in _across(setup):
        if _is_decontaminated(setup, learned, examined):
            continue
        if not (asked := problems(examined)) or not (lessons := problems(learned)):
            continue
        compared += 1
        if both := _in_both(lessons, asked):
            told = f"{len(both):,} of {len(lessons):,} questions of {learned} are in {examined}"
            told = f"{told}: {both[0].question[:60]!r} for one"
            way_out = "reserve a share of both (collect.heldout_share), or keep: [decontaminated]"
            is_rare = len(both) < RARE * len(asked)
            yield worth_knowing(told, way_out) if is_rare else broken(told, way_out)
    if compared:
        yield fine(f"compared {compared} pairs of tables")


def _is_decontaminated(setup: Setup, learned: str, examined: str) -> bool:
    """Whether every stage that filters what is learned of a table drops what the other holds."""
    filters = [
        [plugin for plugin in plugins(stage.config) if plugin.name == "decontaminated"]
        for stage in setup.recipe.stages
        if stage.verb in ("curate", "general") and learned in {*setup.sources(stage), *_own(stage)}
    ]
    return bool(filters) and all(
        any(examined in each.knobs["problems"] for each in found) for found in filters
    )


def _own(stage: Stage) -> list[str]:
    return [f"./{stage.name}/dataset"]


def _problems(setup: Setup, path: str) -> list[Problem]:
    """What is there, or the first that would come; nothing where that is far, or takes long."""
    place, stage = setup.place(path), setup.stage_of(path)
    if place is not None:
        return _questions(place)
    if stage is None or stage.verb != "collect":
        return []
    config: Any = stage.config
    is_heldout = path.endswith("/heldout")
    wanted = min(NUM_DRAWN, config.num_heldout if is_heldout else config.num)
    found: list[Problem] = []
    for source in _sources(stage):
        if source.name in NEAR or source.knobs.get("path"):
            some = _drawn(source, max(NUM_DRAWN, wanted))
            found += [p for p in some if (heldout_fraction(p) < config.heldout_share) == is_heldout]
    return found[:wanted]


def _questions(place: Path) -> list[Problem]:
    """Those of a table of problems, or of a data set's conversations."""
    table = tables.read_table(place).slice(0, NUM_READ)
    if "verifier" in table.column_names:
        return tables.problems_of(table, place)
    talks = table["messages"].to_pylist() if "messages" in table.column_names else []
    asked = [turn["content"] for talk in talks for turn in talk if turn["role"] == "user"]
    return [make_problem(question, "", verifier="exact") for question in asked]


def _drawn(source: Plugin, num: int) -> list[Problem]:
    try:
        return list(islice(source(), num))
    except (UserError, ImportError):  # another check says what is missing
        return []


def _in_both(learned: list[Problem], examined: list[Problem]) -> list[Problem]:
    """Look-alikes by their key; of what people wrote, also those with a run of words in common."""
    keys = {collision_key(problem) for problem in examined}
    found = [problem for problem in learned if collision_key(problem) in keys]
    written = [p for p in learned if "template" not in p.meta and collision_key(p) not in keys]
    asked = [p for p in examined if "template" not in p.meta]
    return found + (_with_same_words(written, asked) if written and asked else [])


def _with_same_words(learned: list[Problem], examined: list[Problem]) -> list[Problem]:
    import pyarrow as pa

    with TemporaryDirectory() as folder:
        plain = [replace(problem, meta={}) for problem in examined]
        path = tables.write_part(Path(folder) / "problems", tables.to_table("problems", plain))
        held = Evaluation([str(path.parent)], RUN)
    hits = held.hits_of_questions(pa.array([problem.question for problem in learned]))
    return [problem for problem, hit in zip(learned, hits.tolist(), strict=True) if hit >= 0]
