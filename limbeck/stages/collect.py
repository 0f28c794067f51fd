"""collect: problems from a source, each proved gradable, split by content."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import chain
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from limbeck import tables
from limbeck.config import Extent, StageConfig, written
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.plugins import Source, VerifierChoice
from limbeck.problems import heldout_fraction
from limbeck.types import Problem
from limbeck.verifiers.judging import gradable

WRITES = {"problems": "problems", "heldout": "problems"}
EXTENDS = True  # the same source goes on: a larger set begins with the smaller one
PATIENCE = 20_000  # candidates in a row that bring nothing new: the source has run dry


class Config(StageConfig):
    source: Source
    """Where the problems come from: a file of `limbeck/problems/`, with its knobs."""
    more: list[Source] = []
    """Further sources, read one after another when the first has run dry."""
    num: Extent[Annotated[int, Field(ge=0)]]
    """How many problems to collect for training (`./collect/problems`)."""
    num_heldout: Extent[Annotated[int, Field(ge=0)]] = 0
    """How many problems to hold out (`./collect/heldout`)."""
    heldout_share: Annotated[float, Field(ge=0, le=1)] = 0.0
    """The share of all conceivable problems that is reserved for holding out, chosen by content:
    the same numbers in the same template always fall on the same side, whatever seed or stage."""
    verifier: VerifierChoice | None = None
    """Judges the answers instead of the verifier that the source names."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if not self.num and not self.num_heldout:
            raise ValueError("num and num_heldout are both 0; ask for some problems")
        if self.num_heldout and not self.heldout_share:
            raise ValueError("num_heldout has no share to draw from; set heldout_share")
        if self.num and self.heldout_share == 1:
            raise ValueError("heldout_share 1 leaves nothing to train on; lower it")
        return self


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `problems` and `heldout`, in the source's order."""
    wanted = {"problems": config.num, "heldout": config.num_heldout}
    found: dict[str, list[Problem]] = {split: [] for split in wanted}
    refused: Counter[str] = Counter()
    seen: set[str] = set()
    num_read = idle = 0
    with out.account("collect"), out.progress(sum(wanted.values()), "problems") as advance:
        for problem in chain.from_iterable(source() for source in (config.source, *config.more)):
            held_out = heldout_fraction(problem) < config.heldout_share
            split = "heldout" if held_out else "problems"
            if config.verifier:
                problem = replace(problem, verifier=written(config.verifier))
            num_read, idle = num_read + 1, idle + 1
            if len(found[split]) >= wanted[split]:
                refused["enough of its split"] += 1
            elif problem.id in seen:
                refused["seen before"] += 1
            elif not (verdict := gradable(problem)).correct:
                refused[f"own answer is {verdict.reason}"] += 1
            else:
                found[split].append(replace(problem, split=split))
                advance(1)
                idle = 0
            seen.add(problem.id)
            if idle >= PATIENCE or all(len(found[s]) >= n for s, n in wanted.items()):
                break
        _write(found, wanted, refused, out)
    counts = {split: len(problems) for split, problems in found.items()}
    return {
        "accounts": out.balance(num_read, sum(counts.values()), rejected=refused.total()),
        "num": counts,
        "refused": dict(refused),
        "guess": {split: guess_shares(problems) for split, problems in found.items() if problems},
    }


def _write(
    found: dict[str, list[Problem]],
    wanted: dict[str, int],
    refused: Counter[str],
    out: StageFolder,
) -> None:
    for split, problems in found.items():
        if wanted[split] and not problems:
            why = ", ".join(f"{n} {reason}" for reason, n in refused.items())
            what = f"gave no {split} ({why or 'the source is empty'})"
            raise UserError(f"{out.name}.source", what, "check its knobs")
        if len(problems) < wanted[split]:
            out.log(f"the source ran dry: {len(problems):,} of {wanted[split]:,} {split}")
    for split, problems in found.items():
        tables.write_part(out.path / split, tables.to_table("problems", problems))
    out.log(" · ".join(f"{len(rows):,} {split}" for split, rows in found.items() if rows))


def guess_shares(problems: list[Problem]) -> dict[str, float]:
    """Per domain, what always answering with the commonest answer would score.

    Where no answer is the right one, as of instructions and programs, nobody can guess it.
    """
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for problem in problems:
        if problem.answer:
            answers[problem.domain][problem.answer] += 1
    return {
        domain: counts.most_common(1)[0][1] / counts.total() for domain, counts in answers.items()
    }
