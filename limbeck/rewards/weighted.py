"""Several rewards as one: each with its weight, and where it is asked at all."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Sequence
from itertools import chain, count
from numbers import Real
from typing import Any, Self

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

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        try:
            inspect.signature(self.reward.function).bind(*range(3), **self.reward.knobs)
        except TypeError as error:
            what = f"reward {self.reward.name!r} cannot be asked of an answer ({error})"
            way_out = "let its parameters be problem, trace, verdict, and knobs behind a *"
            raise ValueError(f"{what}; {way_out}") from None
        return self

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

    `problems`, `traces` and `verdicts` are of one length. UserError where a reward, or the sum, is
    no finite number: it is never averaged in.
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
    for trace, value in zip(traces, total, strict=True):
        if not math.isfinite(value):
            raise UserError("rewards", f"add up to {value} for trace {trace.id}", "weigh them less")
    return total, parts


def check_domains(
    chosen: Sequence[WeightedReward], problems: Sequence[Problem], where: str
) -> None:
    """UserError at `where` if a reward is only for domains of which there is no problem at all."""
    known = {problem.domain for problem in problems}
    for each in chosen:
        if each.domains is not None and known.isdisjoint(each.domains):
            what = f"no problem is of the domains {', '.join(map(repr, sorted(each.domains)))}"
            way_out = f"name some of these: {', '.join(map(repr, sorted(known)))}"
            raise UserError(where, what, way_out)


def names(chosen: Sequence[WeightedReward]) -> list[str]:
    """What the parts are called: by their rewards, the second of one name `length_2`."""
    told: list[str] = []
    for each in chosen:
        first = each.reward.name.rpartition(":")[2]
        further = (f"{first}_{number}" for number in count(2))
        told.append(next(name for name in chain([first], further) if name not in told))
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
    if not isinstance(values, Collection) or len(values) != len(rows):
        given = f"{len(values)} numbers" if isinstance(values, Collection) else repr(values)
        what = f"gave {given} for {len(rows)} answers"
        raise UserError(f"reward {name!r}", what, "let it give one for each, in their order")
    for value, (_, trace, _) in zip(values, rows, strict=True):
        if not isinstance(value, Real) or not math.isfinite(value):
            what = f"gave {value!r} for trace {trace.id}"
            raise UserError(f"reward {name!r}", what, "let it give a finite number")
    return [float(value) for value in values]
