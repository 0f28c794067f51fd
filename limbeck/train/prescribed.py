"""What a paper prescribes beside its objective's formula: how to average, and which advantage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Average = Literal["output", "token", "length"]
Advantage = Literal["z_score", "mean_only", "leave_one_out", "batch_std"]
F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class Prescribed:
    """What stands beside a formula; without a paper's word it is as in R1.

    `average`: "output" is the mean of each output's own mean, so that its tokens weigh 1 / |o|;
    "token" the mean over all tokens; "length" the sum over an output's tokens divided by the most
    tokens that one may have, and by the number of outputs.
    """

    average: Average = "output"
    advantage: Advantage = "z_score"


def prescribes(*, average: Average, advantage: Advantage) -> Callable[[F], F]:
    """Marks an objective with what its paper prescribes."""

    def mark(objective: F) -> F:
        objective.prescribed = Prescribed(average, advantage)  # type: ignore[attr-defined]
        return objective

    return mark


def prescribed(objective: Callable[..., Any]) -> Prescribed:
    """What an objective's paper prescribes; R1's ways for one that says nothing."""
    return getattr(objective, "prescribed", Prescribed())
