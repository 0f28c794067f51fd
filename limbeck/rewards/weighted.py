"""Several rewards as one: each with its weight, and where it is asked at all."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

from pydantic import GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from limbeck.config import StageConfig
from limbeck.errors import UserError
from limbeck.plugins import RewardChoice
from limbeck.types import Problem, Trace, Verdict

Parts = dict[str, list[float | None]]
"""By reward, what each answer got of it, unweighted; None where it was not asked."""


class WeightedReward(StageConfig):
    """A reward and what it counts; a mere name, or `{name: …, knobs}`, counts 1."""

    reward: RewardChoice
    weight: float = 1.0
    """What it is multiplied by before all are added up."""
    domains: list[str] | None = None
    """Asked only for problems of these domains; by default for all."""

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        is_short = isinstance(value, str) or (isinstance(value, dict) and "name" in value)
        return {"reward": value} if is_short else value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        long = handler.resolve_ref_schema(handler(core))
        return {"anyOf": [long["properties"]["reward"], long]}


def score(
    chosen: Sequence[WeightedReward],
    problems: Sequence[Problem],
    traces: Sequence[Trace],
    verdicts: Sequence[Verdict],
) -> tuple[list[float], Parts]:
    """(the weighted sum for each answer, what it is made of).

    `problems`, `traces` and `verdicts` are of one length. UserError where a reward is no finite
    number: it is never averaged in.
    """
    total, parts = [0.0] * len(traces), Parts()
    for each, name in zip(chosen, names(chosen), strict=True):
        asked = [i for i, problem in enumerate(problems) if _is_for(each, problem)]
        rows = [(problems[i], traces[i], verdicts[i]) for i in asked]
        part: list[float | None] = [None] * len(traces)
        for i, value in zip(asked, _values(each, name, rows), strict=True):
            part[i] = value
            total[i] += each.weight * value
        parts[name] = part
    return total, parts


def names(chosen: Sequence[WeightedReward]) -> list[str]:
    """What the parts are called: by their rewards, the second of one name `length_2`."""
    told: list[str] = []
    for each in chosen:
        name = each.reward.name.rpartition(":")[2]
        again = sum(other.reward.name == each.reward.name for other in chosen[: len(told)])
        told.append(f"{name}_{again + 1}" if again else name)
    return told


def _is_for(each: WeightedReward, problem: Problem) -> bool:
    return each.domains is None or problem.domain in each.domains


def _values(
    each: WeightedReward, name: str, rows: Sequence[tuple[Problem, Trace, Verdict]]
) -> list[float]:
    """What one reward gives, each a finite number."""
    first = next(iter(inspect.signature(each.reward.function).parameters))
    if first == "problems":
        columns = [list(column) for column in zip(*rows, strict=True)]
        values = each.reward(*columns) if rows else []
    else:
        values = [each.reward(*row) for row in rows]
    if len(values) != len(rows):
        what = f"gave {len(values)} numbers for {len(rows)} answers"
        raise UserError(f"reward {name!r}", what, "let it give one for each, in their order")
    for value, (_, trace, _) in zip(values, rows, strict=True):
        if not isinstance(value, Real) or not math.isfinite(value):
            what = f"gave {value!r} for trace {trace.id}"
            raise UserError(f"reward {name!r}", what, "let it give a finite number")
    return [float(value) for value in values]
