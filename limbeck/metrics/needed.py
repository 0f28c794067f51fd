"""What it would take to tell two models apart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import NormalDist
from typing import Any

from limbeck.metrics.paired import differences_of
from limbeck.metrics.results import noise_of, value_of, weight_of

NORMAL = NormalDist()
LEVEL = NORMAL.inv_cdf(0.975)  # 5 %, two-sided
POWER = NORMAL.inv_cdf(0.8)
FEWEST = 6  # problems: with five, all on one side, the permutation test says p = 0.06


def needed(a: Sequence[Mapping[str, Any]], b: Sequence[Mapping[str, Any]]) -> dict[str, int | None]:
    """What would find a difference as large as the observed one in 80 % of cases, at 5 %.

    `a` and `b` are score rows of the same problems in the same order. Either `num_problems` like
    these with as many samples each, or `num_samples` of each of these problems; None where no
    number would do, or where one cannot know. A problem's difference varies by what problems differ
    in and by the chance of sampling; only the second shrinks with the samples. The usual formula,
    (z + z')^2 variance / difference^2, and z^2 / 2 more for Student (Guenther 1981).
    """
    weights = [weight_of(row) for row in a]
    differences = differences_of([*map(value_of, a)], [*map(value_of, b)], weights)
    num, mean = len(differences), float(differences.mean())
    if not mean or num < 2:
        return {"num_problems": None, "num_samples": None}
    variance = float(differences.var(ddof=1))
    enough = (mean / (LEVEL + POWER)) ** 2  # the squared error that tells a difference of this size
    problems = max(FEWEST, num + 1, math.ceil(variance / enough + LEVEL**2 / 2))
    return {"num_problems": problems, "num_samples": _samples(a, b, variance, enough)}


def _samples(
    a: Sequence[Mapping[str, Any]],
    b: Sequence[Mapping[str, Any]],
    variance: float,
    enough: float,
) -> int | None:
    """How many samples of these problems make the squared error small `enough`."""
    noises = [(noise_of(row), row["num_samples"]) for row in (*a, *b)]
    known = [(noise, samples) for noise, samples in noises if noise is not None]
    if a[0]["metric"] != "pass_at_1" or len(known) < len(noises) or len(a) < FEWEST:
        return None
    now = sum(noise for noise, _ in known) / len(a)
    of_one = sum(noise * samples for noise, samples in known) / len(a)
    between = max(0.0, variance - now)
    left = enough * (len(a) - LEVEL**2 / 2) - between
    return math.ceil(of_one / left) if left > 0 and of_one else None
