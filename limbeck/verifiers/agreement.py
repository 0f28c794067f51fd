"""How well verdicts agree with known labels: what a judge must be measured by before it is used."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from limbeck.types import Problem, Trace
from limbeck.verifiers.judging import Ask, begin, settle


@dataclass(frozen=True)
class Agreement:
    """Verdicts held against labels; what could not be judged agrees with none."""

    num_rows: int
    num_agreeing: int
    num_false_accepts: int
    num_false_rejects: int
    num_unjudged: int

    def __str__(self) -> str:
        share = self.num_agreeing / max(1, self.num_rows)
        return (
            f"{share:.1%} of {self.num_rows:,} agree; {self.num_false_accepts:,} false accepts, "
            f"{self.num_false_rejects:,} false rejects, {self.num_unjudged:,} not judged"
        )


def agreement(
    rows: Iterable[tuple[Problem, Trace, bool | None]],
    threads: int | Literal["auto"] = 1,
    ask: Ask | None = None,
) -> Agreement:
    """How the verifiers that the problems name agree with labels; rows without one are left out."""
    labelled = [row for row in rows if row[2] is not None]
    pairs = [(problem, trace) for problem, trace, _ in labelled]
    verdicts = settle(pairs, begin(pairs, threads), ask)
    said = [(v.correct, label) for v, (_, _, label) in zip(verdicts, labelled, strict=True)]
    return Agreement(
        num_rows=len(said),
        num_agreeing=sum(correct == label for correct, label in said),
        num_false_accepts=said.count((True, False)),
        num_false_rejects=said.count((False, True)),
        num_unjudged=sum(correct is None for correct, _ in said),
    )
