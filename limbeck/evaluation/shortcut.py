"""An evaluation by the benchmarks' own protocols as an ordinary recipe, and what came of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from limbeck import store
from limbeck.errors import UserError, UserErrors
from limbeck.evaluation import packages
from limbeck.evaluation.subjects import Subject
from limbeck.problems import protocol
from limbeck.problems.protocol import Protocol
from limbeck.runs import Run

PROMPT_ROOM = 8192  # tokens for a question, with worked examples, besides its answer
LONGEST_NAME = 40  # letters of a model's name within a stage's


@dataclass(frozen=True)
class Benchmark:
    """A benchmark by its public name, and the file that holds it, if it is one of one's own."""

    name: str
    path: str | None = None

    @classmethod
    def of(cls, word: str) -> Benchmark:
        """Of `math500` or `math500=/data/math500.jsonl`."""
        name, equals, path = word.strip().partition("=")
        if equals and not path:
            raise UserError(f"--on {word}", "names no file", f"write {name}=FILE, or {name}")
        protocol.of(name)  # objects to a benchmark that nobody knows
        if path and not Path(path).is_file():
            raise UserError(f"--on {word}", "there is no such file", "mend the path")
        return cls(name, path or None)

    @property
    def protocol(self) -> Protocol:
        return protocol.of(self.name)


@dataclass(frozen=True)
class Wishes:
    """Where an evaluation departs from the protocols; None leaves it to them."""

    num_samples: int | None = None
    num_problems: int | None = None
    max_tokens: int | None = None
    prompting: tuple[str, ...] = ()
    examples: str | None = None


def recipe(
    subjects: Sequence[Subject], benchmarks: Sequence[Benchmark], wishes: Wishes
) -> dict[str, Any]:
    """Collects each benchmark, evaluates each model on it in each way of prompting, and compares.

    UserErrors for packages that are missing here.
    """
    if not subjects or not benchmarks:
        raise UserError("limbeck evaluate", "lacks a model or --on", "write MODEL --on math500")
    engines, files = [s.engine["name"] for s in subjects], {b.name: b.path for b in benchmarks}
    if errors := [*packages.missing(engines, files)]:
        raise UserErrors(errors)
    ways: list[str | None] = [*dict.fromkeys(wishes.prompting)] or [None]
    stages: dict[str, Any] = {}
    for benchmark in benchmarks:
        if benchmark.name in stages:
            what, way_out = "is named twice", "give each of its files a command of its own"
            raise UserError(f"--on {benchmark.name}", what, way_out)
        stages[benchmark.name] = _collect(benchmark, wishes)
        scores = {}
        for subject in subjects:
            for way in ways:
                row = _row(subject, way)
                stage = f"{benchmark.name}-{_slug(row)}"
                if stage in stages:  # of `v1-0`, which is not `v1.0`
                    stage += f"-{store.digest(row)[:6]}"
                stages[stage] = _evaluate(subject, benchmark, wishes, way)
                scores[row] = f"./{stage}/scores"
        stages[f"compare-{benchmark.name}"] = {
            "stage": "compare",
            "scores": scores,
            "pairs": _pairs(subjects, ways),
            "metric": "greedy" if wishes.num_samples == 0 else "pass_at_1",
        }
    models, names = (", ".join(each.name for each in of) for of in (subjects, benchmarks))
    name = "-".join(["evaluate", *map(_place, subjects)])
    return {"name": name[:99], "title": f"{models} on {names}", "stages": stages}


def _place(subject: Subject) -> str:
    """A model as part of a folder's name; of a server with its address, for another server, or a
    folder here, may well have a model of the same name."""
    is_told = subject.address in subject.name
    return _slug(subject.name if is_told else f"{subject.name} {subject.address}")


def _row(subject: Subject, way: str | None) -> str:
    """What a model, asked in this way, is called in the table."""
    return f"{subject.name}, {way}" if way else subject.name


def _pairs(subjects: Sequence[Subject], ways: Sequence[str | None]) -> list[list[str]]:
    """Rows that differ in one thing: in how a model is asked, or in the model that is asked so;
    each is held against the first."""
    of_ways = [(model, way, model, ways[0]) for model in subjects for way in ways[1:]]
    of_models = [(model, way, subjects[0], way) for way in ways for model in subjects[1:]]
    return [[_row(a, way), _row(b, other)] for a, way, b, other in [*of_ways, *of_models]]


def _collect(benchmark: Benchmark, wishes: Wishes) -> dict[str, Any]:
    source = {"name": benchmark.name, **benchmark.protocol.knobs}
    if benchmark.path:
        source["path"] = benchmark.path
    num = wishes.num_problems or benchmark.protocol.num_problems
    return {"stage": "collect", "source": source, "num": num}


def _evaluate(
    subject: Subject, benchmark: Benchmark, wishes: Wishes, way: str | None
) -> dict[str, Any]:
    asked = benchmark.protocol
    num_samples = asked.num_samples if wishes.num_samples is None else wishes.num_samples
    stage = {
        "stage": "evaluate",
        "engine": _engine(subject, benchmark, wishes),
        "problems": {benchmark.name: f"./{benchmark.name}/problems"},
        "num_samples": num_samples,
        "pass_at": _counted(asked.pass_at, num_samples),
        "cons_at": _counted(asked.cons_at, num_samples),
        "temperature": asked.temperature,
        "top_p": asked.top_p,
        "max_tokens": max_tokens(subject, benchmark, wishes),
        "greedy": asked.greedy or not num_samples,
    }
    shown = {"examples": wishes.examples} if way == "few_shot_cot" and wishes.examples else {}
    return stage | ({"prompting": way, **shown} if way else {})


def _counted(ks: Sequence[int], num_samples: int) -> list[int]:
    """Those of which there are enough samples; all samples, where these are too few for any."""
    possible = [k for k in ks if k <= num_samples]
    return possible or ([num_samples] if ks and num_samples > 1 else [])


def _engine(subject: Subject, benchmark: Benchmark, wishes: Wishes) -> dict[str, Any]:
    """llama.cpp takes memory for a whole context at once, so it gets one that answers can fill."""
    filled = max_tokens(subject, benchmark, wishes) + PROMPT_ROOM
    if subject.engine["name"] != "llama_cpp" or filled >= (subject.longest or filled):
        return subject.engine
    return {**subject.engine, "context": filled}


def max_tokens(subject: Subject, benchmark: Benchmark, wishes: Wishes) -> int:
    """What an answer may have: as wished, or as in the paper, if the model has room for that."""
    wished = wishes.max_tokens or benchmark.protocol.max_tokens
    return min(wished, subject.longest or wished)


def cuts(
    subjects: Sequence[Subject], benchmarks: Sequence[Benchmark], wishes: Wishes
) -> Iterator[str]:
    """A line for each model whose context is shorter than a protocol's answers."""
    for subject in subjects:
        wished = max(wishes.max_tokens or each.protocol.max_tokens for each in benchmarks)
        if subject.longest and subject.longest < wished:
            yield (
                f"{subject.name} has room for {subject.longest:,} tokens, not {wished:,}: longer "
                "answers are truncated, and count as wrong"
            )


def _slug(name: str) -> str:
    """A name as part of a stage's or folder's."""
    slug = re.sub(r"[^\w-]+", "-", name).strip("-")
    if len(slug) <= LONGEST_NAME:
        return slug
    return f"{slug[: LONGEST_NAME - 7]}-{store.digest(name)[:6]}"


def text(run: Run, benchmarks: Sequence[Benchmark], ways: Sequence[str] = ()) -> str:
    """The table with its tests, and where others may have counted otherwise, which is told of the
    protocol and not of other ways of prompting."""
    lines = [run.results_text().rstrip()]
    asked = ", asked by its own prompt (--prompting asks otherwise)" if ways else ""
    for benchmark in benchmarks:
        lines += ["", f"{benchmark.name}{asked}: where its numbers can differ from others'"]
        lines += [f"  - {sentence}" for sentence in benchmark.protocol.differs]
    return "\n".join(lines)


def manifest(run: Run) -> str:
    """The file that pins what the numbers depend on; with a `*` where there are several."""
    found = sorted(run.path.glob("*/evaluation/manifest.json"))
    several = run.path / "*" / "evaluation" / "manifest.json"
    return str(found[0] if len(found) == 1 else several)
