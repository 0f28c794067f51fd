"""How often the verifiers lie: false accepts and false rejects on answers whose worth is known.

Beside them stands what math-verify and TRL say of the same rows.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from limbeck.audit import peers
from limbeck.audit.labelled import Labelled, is_disputed
from limbeck.audit.result import Audit, Miss, Row
from limbeck.audit.sets import LabelledSet, choose
from limbeck.engines.asking import JudgeConfig, ask_directly
from limbeck.errors import UserError
from limbeck.plugins import Kind
from limbeck.progress import progress
from limbeck.recipe_file import read_yaml
from limbeck.types import Problem, Trace, Verdict
from limbeck.verifiers.agreement import agreement
from limbeck.verifiers.judging import judge, mistake

NUM_THREADS = 2
Advance = Callable[..., None]
T = TypeVar("T")


def folder(data: Path | None) -> Path:
    """The folder of labelled sets: the one that is named, else $LIMBECK_TEST_DATA."""
    named = data or os.environ.get("LIMBECK_TEST_DATA")
    if named and Path(named).is_dir():
        return Path(named)
    what = "is no folder" if named else "no folder of labelled sets is named"
    raise UserError(str(named or "audit"), what, "name one with --data, or set LIMBECK_TEST_DATA")


def run(data: Path, *, sets: list[str] | None = None) -> Audit:
    """Judges the labelled sets in a folder, all of them or those named.

    UserError where there is no such set.
    """
    audit = Audit([], [])
    chosen = [(found, list(found.read(data))) for found in choose(data, sets)]
    total = sum(
        len(cases) * (len(found.verifiers or "1") + len(_asked(found))) for found, cases in chosen
    )
    with progress("audit", total, "verdicts") as advance:
        for found, cases in chosen:
            accepted = {
                peer: _each(cases, partial(peers.accepts, peer), advance) for peer in _asked(found)
            }
            for verifier in found.verifiers or (None,):
                verdicts = _each(cases, partial(_verdict, verifier), advance)
                _count(audit, found, verifier, cases, verdicts, accepted)
    return audit


def judged(data: Path, engine: str, sets: list[str]) -> Iterator[str]:
    """How a model agrees with the labels of each set as their judge: a line for each.

    `engine` is written as in a recipe: a name, or `{name: openai, model: …}`.
    """
    connected = _engine(engine)
    sampling = JudgeConfig().sampling_of_judge()
    for found in choose(data, sets):
        rows = [(replace(p, verifier="judge"), t, label) for p, t, label in found.read(data)]
        ask = partial(ask_directly, connected, sampling=sampling)
        yield f"{found.name}: {agreement(rows, NUM_THREADS, ask)}"


def _engine(written: str) -> Any:
    try:
        plugin = Kind("engine", "limbeck.engines", "connect").parse(read_yaml(written, "judge")[0])
    except ValueError as error:
        raise UserError("judge", *mistake(error)) from None
    return plugin()


def _asked(found: LabelledSet) -> list[str]:
    return peers.installed() if found.peers else []


def _each(
    cases: list[Labelled], function: Callable[[Problem, Trace], T], advance: Advance
) -> list[T]:
    """What a function says of every case, several at once; Ctrl-C ends it soon."""
    answers = []
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        try:
            for answer in pool.map(lambda case: function(case[0], case[1]), cases):
                answers.append(answer)
                advance(1)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return answers


def _verdict(verifier: str | None, problem: Problem, trace: Trace) -> Verdict:
    return judge(replace(problem, verifier=verifier) if verifier else problem, trace)


def _count(
    audit: Audit,
    found: LabelledSet,
    verifier: str | None,
    cases: list[Labelled],
    verdicts: Iterable[Verdict],
    accepted: dict[str, list[bool | None]],
) -> None:
    """Adds a verifier's rows on a set, one for each family of the hostile set, and its misses."""
    rows: dict[tuple[str, str], Row] = {}
    for number, (case, verdict) in enumerate(zip(cases, verdicts, strict=True)):
        problem, trace, label = case
        name = verifier or _name(problem)
        family = problem.domain if found.hostile else ""
        fresh = Row(name, found.name, family, found.checked, found.hostile)
        row = rows.setdefault((name, family), fresh)
        if label is None:
            row.unlabelled += 1
            continue
        disputed = found.peers and is_disputed(problem, trace, label)
        if (verdict.correct is True) is not label:
            seen = (problem.answer, verdict.extracted, label, verdict.reason)
            audit.misses.append(Miss(found.name, name, trace.id, *seen, disputed))
        said = {"ours": verdict.correct, **{peer: told[number] for peer, told in accepted.items()}}
        for who, answer in said.items():
            score = row.ours if who == "ours" else row.peers[who]
            score.add(answer, label)
            if disputed:
                row.disputed[who].add(answer, label)
    audit.counts.extend(rows.values())


def _name(problem: Problem) -> str:
    return problem.verifier if isinstance(problem.verifier, str) else problem.verifier["name"]
