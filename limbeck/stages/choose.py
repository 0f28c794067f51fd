"""choose: of several trials the one that did best on a validation split, or that writes fastest.

What was tried stands in the summary, the best and the others alike: a winner of many trials says
less than its score, and who compares arms gives each as many. By speed, scores are told and do not
count: the trials are what a `gate` has let through, or versions of one model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from limbeck import ledger, metrics, scoring, store
from limbeck.config import ModelPath, Reference, ScoresPath, StageConfig
from limbeck.errors import UserError
from limbeck.folder import StageFolder

WRITES = {"model": "model"}


class Trial(StageConfig):
    """One of the models, and how it did."""

    model: ModelPath
    scores: ScoresPath
    """What an `evaluate` on problems says of it that the final evaluation does not ask."""


class Config(StageConfig):
    trials: Annotated[dict[str, Trial], Field(min_length=1)]
    """By the names that they shall have in the list."""
    metric: str = "pass_at_1"
    """The highest mean wins; of equals the first."""
    by_speed: Annotated[str, Reference("speeds")] | None = None
    """A `profile` of engines that go by the trials' names: the most tokens a second win instead."""
    at: Literal["batch 1", "load"] = "load"
    """Speed with one answer at a time, or with many side by side."""

    @field_validator("metric")
    @classmethod
    def _is_better_the_higher(cls, metric: str) -> str:
        if metrics.unit_of(metric) == "nats":
            raise ValueError(f"{metric} is better the lower it is; choose by pass_at_1 or greedy")
        return metric


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `model`, that of the best trial."""
    told, asked = [], []
    speeds = _speeds(config)
    with out.account("choose"):
        for name, trial in config.trials.items():
            rows = scoring.read_scores(trial.scores, config.metric)
            flops = ledger.flops_of(trial.model)
            about = {"name": name, "metric": config.metric, "flops": flops}
            if speeds:
                about["tokens_per_second"] = speeds[name]
            told.append(about | metrics.result(rows))
            asked.append([*map(scoring.problem_of, rows)])
        if any(problems != asked[0] for problems in asked):
            what = "the trials answered different problems"
            raise UserError("choose.trials", what, "evaluate them alike")
        best = max(told, key=lambda row: row["tokens_per_second" if speeds else "value"])
        store.copy_folder(Path(config.trials[best["name"]].model), out.path / "model")
    for row in told:
        chosen = ", chosen" if row is best else ""
        out.log(f"{row['name']:<20} {_said(row)}{chosen}")
    return {"chosen": best["name"], "flops": best["flops"], "trials": told}


def _speeds(config: Config) -> dict[str, float]:
    """Tokens a second by trial; nothing where they do not choose."""
    if config.by_speed is None:
        return {}
    place = Path(config.by_speed) / "speeds.json"
    store.verify(place)
    key = {"batch 1": "tokens_per_second_1", "load": "tokens_per_second_load"}[config.at]
    measured = store.read_json(place)["artifacts"]
    found = {row["name"]: float(row[key]["median"]) for row in measured}
    if missing := [name for name in config.trials if name not in found]:
        what = f"measures {', '.join(found)}, but no {missing[0]}"
        raise UserError(config.by_speed, what, "call engines and trials by the same names")
    return found


def _said(row: dict[str, Any]) -> str:
    """A trial's mean, its interval where it has one, and its speed where that chooses."""
    form = ".2f" if "unit" in row else ".1%"
    told = f"{row['value']:{form}}"
    if row["low"] is not None and row["high"] is not None:
        told += f"  ({row['low']:{form}} to {row['high']:{form}})"
    if "tokens_per_second" in row:
        told += f"  {row['tokens_per_second']:,.0f} tokens/s"
    return told
