"""gate: the first of several smaller models that has kept the accuracy of what it was made from.

A trial passes where it is shown that it has not fallen by more than `max_drop`: on the same
problems the low end of the paired 95 % interval of trial - before is no further down. So a trial
that fell by more passes in 2.5 % of cases at most. One whose interval lies below that fell; of any
other nothing is shown, and it does not pass: more problems or samples would tell. With
`max_longer`, one whose answers are longer than that for certain, the low end of the paired interval
of the ratio of mean tokens, does not pass either.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeFloat, field_validator

from limbeck import ledger, metrics, scoring, store
from limbeck.config import ModelPath, ScoresPath, StageConfig
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.metrics.paired import UNSEEN

WRITES = {"model": "model", "scores": "scores"}
Row = dict[str, Any]


class Trial(StageConfig):
    """A smaller model, and how it did."""

    model: ModelPath
    scores: ScoresPath
    """What an `evaluate` says of it, on the problems of `before`."""


class Config(StageConfig):
    model: ModelPath
    """What the trials were made from, which is kept where none of them passes."""
    before: ScoresPath
    """How that did; problems of all its splits count alike."""
    trials: Annotated[dict[str, Trial], Field(min_length=1)]
    """The one that is wanted most, the smallest say, first."""
    max_drop: Annotated[float, Field(gt=0, le=1)] = 0.05
    """How much of the metric may be lost: five points."""
    max_longer: NonNegativeFloat | None = None
    """How much longer answers may be, 0.25 for a quarter; else they are only told."""
    otherwise: Literal["keep", "stop"] = "keep"
    """Where no trial passes: `model` goes on as it is, or the run stops."""
    metric: str = "pass_at_1"

    @field_validator("metric")
    @classmethod
    def _is_better_the_higher(cls, metric: str) -> str:
        if metrics.unit_of(metric) in ("nats", "rating"):
            raise ValueError(f"nobody tests {metric} here; take pass_at_1 or greedy")
        return metric


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `model` of the first trial that passes, its `scores`, and all that was found,
    `gate.json`."""
    with out.account("gate"):
        before = scoring.read_scores(config.before, config.metric)
        told = [_tried(config, name, before) for name in config.trials]
        passed = next((row for row in told if row["verdict"] == "passed"), None)
        chosen = passed["name"] if passed else None
        model, scores = config.model, config.before
        if chosen:
            model, scores = config.trials[chosen].model, config.trials[chosen].scores
        found = {"chosen": chosen, "before": metrics.result(before), "trials": told}
        store.write_json(out.path / "gate.json", found)
        for row in told:
            out.log(f"{row['name']:<20} {_said(row)}{', taken' if row is passed else ''}")
        if passed is None and config.otherwise == "stop":
            raise _stopped(config, out, told)
        store.copy_folder(Path(model), out.path / "model")
        store.copy_folder(Path(scores), out.path / "scores")
    if passed is None:
        out.log("none is shown to have kept it: what they were made from goes on as it is")
    return {**found, "flops": ledger.flops_of(model)}


def _tried(config: Config, name: str, before: Sequence[Row]) -> Row:
    """A trial's result, its tests against what it was made from, and the verdict."""
    trial = config.trials[name]
    rows = scoring.read_scores(trial.scores, config.metric)
    if [*map(scoring.problem_of, rows)] != [*map(scoring.problem_of, before)]:
        what = f"{name} answered other problems than what it was made from"
        raise UserError("gate.trials", what, "evaluate them alike")
    test = drop(rows, before, config.max_drop)
    length = longer(rows, before)
    is_longer = (
        config.max_longer is not None
        and length["low"] is not None
        and length["low"] > 1 + config.max_longer
    )
    verdict = "longer" if is_longer and test["verdict"] != "fell" else test["verdict"]
    about = {"name": name, "metric": config.metric, "flops": ledger.flops_of(trial.model)}
    return about | metrics.result(rows) | {"test": test, "length": length, "verdict": verdict}


def drop(trial: Sequence[Row], before: Sequence[Row], most: float) -> Row:
    """Whether score rows of the same problems in the same order have not fallen by more than
    `most`: {difference, low, high, verdict}, and what would settle it, where nothing is shown."""
    now, was = ([metrics.value_of(row) for row in rows] for rows in (trial, before))
    bound = math.inf if metrics.unit_of(trial[0]["metric"]) else 1.0
    test = metrics.paired_test(now, was, most=bound)
    ends = {"low": test.low, "high": test.high}  # of a single problem nothing is known
    found: Row = {"difference": test.difference}
    found |= {key: end if math.isfinite(end) else None for key, end in ends.items()}
    if test.low >= -most:
        return found | {"verdict": "passed"}
    if test.high < -most:
        return found | {"verdict": "fell"}
    return found | {"verdict": "not shown", "needed": _needed(trial, before, most)}


def _needed(trial: Sequence[Row], before: Sequence[Row], most: float) -> Row:
    """How many problems like these, or samples of each, would tell in 80 % of cases."""
    raised = [{**row, "value": metrics.value_of(row) + most} for row in trial]
    found: Row = metrics.needed(raised, before)  # what tells `most` tells these from equal ones
    drops = {round(metrics.value_of(a) - metrics.value_of(b), 12) for a, b in _pairs(trial, before)}
    if len(drops) == 1 and (left := most + min(drops)) > 0:  # all alike: what was not seen counts
        num = math.ceil(UNSEEN * ((1 + min(drops)) / left - 1))
        found = {"num_problems": num, "num_samples": None}
    return found


def _pairs(trial: Sequence[Row], before: Sequence[Row]) -> Iterator[tuple[Row, Row]]:
    return zip(trial, before, strict=True)


def longer(trial: Sequence[Row], before: Sequence[Row]) -> Row:
    """Mean tokens of an answer over those of before, {ratio, low, high}: 95 %, over problems."""
    lengths = [(_tokens(a), _tokens(b)) for a, b in _pairs(trial, before)]
    ratios, weights = [now / was for now, was in lengths], [was for _, was in lengths]
    ratio, low, high = metrics.mean_interval(ratios, weights)
    return {"ratio": ratio, "low": low, "high": high}


def _tokens(row: Row) -> float:
    """Of an answer; one at least, where none could be written."""
    return float(max(row["completion_tokens"] / row["num_samples"], 1.0))


def _said(row: Row) -> str:
    """A trial's value, its tests, and what follows."""
    value = f"{row['value']:.2f}" if "unit" in row else f"{row['value']:.1%}"
    length = row["length"]
    times = f"{length['ratio']:.2f} times as long{_between(length, '.2f')}"
    return f"{value}, {_change(row)}; answers {times}"


def _change(row: Row) -> str:
    """-2.9 points (-4.1 to -1.7), fell."""
    test, verdict = row["test"], row["verdict"]
    factor, unit = (1, "") if "unit" in row else (100, " points")
    in_units = {key: test[key] and factor * test[key] for key in ("difference", "low", "high")}
    change = f"{in_units['difference']:+.1f}{unit}{_between(in_units, '+.1f')}"
    told = _settled(test["needed"]) if verdict == "not shown" else ""
    return f"{change}, {verdict}{told}"


def _between(test: Row, form: str) -> str:
    if test["low"] is None or test["high"] is None:
        return ""
    return f" ({test['low']:{form}} to {test['high']:{form}})"


def _settled(needed: Row) -> str:
    """What would tell whether a trial has fallen."""
    ways = {"num_problems": "problems like these", "num_samples": "samples of each"}
    told = [f"{needed[key]:,} {what}" for key, what in ways.items() if needed.get(key)]
    return f" ({' or '.join(told)} would tell)" if told else ""


def _stopped(config: Config, out: StageFolder, told: Sequence[Row]) -> UserError:
    """Figures and ways out, in one line."""
    each = ", ".join(f"{row['name']} {_change(row)}" for row in told)
    what = f"no trial has kept {config.metric} within {config.max_drop:g} of before: {each}"
    way_out = "take less away, recover more, raise max_drop, or set otherwise: keep"
    return UserError(out.name, what, way_out)
