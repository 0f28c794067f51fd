"""A reinforcement learning run as it is told by its metrics: round by round, early and late."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from statistics import fmean, median
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Story:
    """A training by rounds: what each said of itself, and the means over its steps."""

    rounds: list[dict[str, float]]
    """Numbers by name, those of an inner mapping as `reasons.wrong`."""
    looks: list[tuple[int, float]]
    """(step, pass@1) of every validation."""

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Story:
        """From `metrics.jsonl`, a row a step; of a step that is told twice the last word counts."""
        steps = {row["step"]: row for row in rows if "reward" in row}
        by_round: dict[int, list[dict[str, float]]] = {}
        for step, row in sorted(steps.items()):
            by_round.setdefault(row.get("round", step), []).append(flat(row))
        looks = {row["step"]: row["pass_at_1"] for row in rows if "pass_at_1" in row}
        return cls([_mean(steps) for steps in by_round.values()], sorted(looks.items()))

    def curve(self, name: str) -> list[float]:
        """A number's values over the rounds that have it; a reason that nothing had is 0."""
        if name.startswith("reasons."):
            return [found.get(name, 0.0) for found in self.rounds]
        return [found[name] for found in self.rounds if name in found]

    def early(self, name: str, default: float = 0.0) -> float:
        """Its mean over the first quarter of the rounds."""
        return _mean_of(self.curve(name)[: self._quarter], default)

    def late(self, name: str, default: float = 0.0) -> float:
        """Its mean over the last quarter of the rounds."""
        return _mean_of(self.curve(name)[-self._quarter :], default)

    def best(self, name: str) -> float:
        """Its highest mean over as many rounds in a row as a quarter has."""
        curve, size = self.curve(name), self._quarter
        windows = [curve[at : at + size] for at in range(len(curve) - size + 1)]
        return max((fmean(window) for window in windows), default=0.0)

    def noise(self, name: str) -> float:
        """The standard error of the difference between two quarters' means.

        From how far neighbours are apart, which no trend adds to: the median of their distances,
        which for normal values of deviation s is 0.954 s.
        """
        curve = self.curve(name)
        apart = [abs(after - before) for before, after in pairwise(curve)]
        return median(apart) / 0.954 * sqrt(2 / self._quarter) if apart else 0.0

    @property
    def _quarter(self) -> int:
        return max(1, len(self.rounds) // 4)


def flat(row: Row) -> dict[str, float]:
    """The numbers of a row by name, those of an inner mapping as `reasons.wrong`."""
    flat: dict[str, float] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{name}.{inner}": float(number) for inner, number in value.items()}
        elif isinstance(value, int | float):
            flat[name] = float(value)
    return flat


def _mean(steps: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means over the steps of a round.

    How far engine and trainer are apart, only the first step tells: later ones have moved on.
    """
    names = dict.fromkeys(name for step in steps for name in step)
    means = {name: fmean(step[name] for step in steps if name in step) for name in names}
    first = {name: value for name, value in steps[0].items() if name.startswith("mismatch_")}
    return means | first


def _mean_of(values: Sequence[float], default: float) -> float:
    return fmean(values) if values else default
