"""choose: of several trainings the one that did best on a validation split.

What was tried stands in the summary, the best and the others alike: a winner of many trials says
less than its score, and who compares arms gives each as many.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

from limbeck import ledger, metrics, tables
from limbeck.config import ModelPath, ScoresPath, StageConfig
from limbeck.errors import UserError
from limbeck.folder import StageFolder

WRITES = {"model": "model"}


class Trial(StageConfig):
    """One of the trainings, and how it did."""

    model: ModelPath
    scores: ScoresPath
    """What an `evaluate` on problems says of it that the final evaluation does not ask."""


class Config(StageConfig):
    trials: Annotated[dict[str, Trial], Field(min_length=1)]
    """By the names that they shall have in the list."""
    metric: str = "pass_at_1"
    """The highest mean wins; of equals the first."""

    @field_validator("metric")
    @classmethod
    def _is_better_the_higher(cls, metric: str) -> str:
        if metrics.unit_of(metric) == "nats":
            raise ValueError(f"{metric} is better the lower it is; choose by pass_at_1 or greedy")
        return metric


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `model`, that of the best trial."""
    told, asked = [], []
    with out.account("choose"):
        for name, trial in config.trials.items():
            rows = tables.read_table(trial.scores).to_pylist()
            rows = [row for row in rows if row["metric"] == config.metric]
            if not rows:
                what = f"holds no {config.metric} of trial {name}"
                raise UserError(trial.scores, what, "evaluate it so, or choose by another metric")
            flops = ledger.flops_of(trial.model)
            about = {"name": name, "metric": config.metric, "flops": flops}
            told.append(about | metrics.result(rows))
            asked.append({(row["split"], row["problem_id"]) for row in rows})
        if any(problems != asked[0] for problems in asked):
            what = "the trials answered different problems"
            raise UserError("choose.trials", what, "evaluate them alike")
        best = max(told, key=lambda row: row["value"])
        _copy(Path(config.trials[best["name"]].model), out.path / "model")
    for row in told:
        chosen = ", chosen" if row is best else ""
        out.log(f"{row['name']:<20} {_said(row)}{chosen}")
    return {"chosen": best["name"], "flops": best["flops"], "trials": told}


def _said(row: dict[str, Any]) -> str:
    """A trial's mean, and its interval where it has one."""
    form = ".2f" if "unit" in row else ".1%"
    if row["low"] is None or row["high"] is None:
        return f"{row['value']:{form}}"
    return f"{row['value']:{form}}  ({row['low']:{form}} to {row['high']:{form}})"


def _copy(model: Path, to: Path) -> None:
    """The same files under another name where the disk can do that, else copies of them."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:
            shutil.copy2(source, target)

    if not model.is_dir():
        raise UserError(str(model), "is no folder to take it from", "choose among trainings")
    shutil.rmtree(to, ignore_errors=True)
    shutil.copytree(model, to, copy_function=link)
