"""Contest ratings by maximum likelihood: who solves what, on the scale of Codeforces.

A participant of rating r solves a problem of difficulty d with chance 1 / (1 + 10 ** ((d - r) /
400)); so a problem is as difficult as those are good who solve it every second time (Elo 1978;
https://codeforces.com/blog/entry/62865 on difficulties).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

SCALE = (0.0, 4000.0)  # Codeforces rates problems 800 to 3500; nobody has had more than 4009
BEYOND = (SCALE[0] - 10_000, SCALE[1] + 10_000)  # where every problem is solved, or none
DROP = 1.920729  # of the log-likelihood at the ends of a 95 % interval: 1.96 ** 2 / 2
ONE_SIDED = -math.log(0.05)  # the same where everything was solved, or nothing
CONTESTANTS = (  # rating, and the per cent of human contestants below it
    (717, 20.3),
    (759, 23.6),
    (1134, 58.7),
    (1444, 80.4),
    (1534, 84.5),
    (1687, 90.5),
    (1746, 92.1),
    (1820, 93.4),
    (2029, 96.3),
    (2061, 96.6),
)
"""As models were placed in arXiv 2501.12948 (v1, Table 4; v2, Table 3)."""


@dataclass(frozen=True)
class Rating:
    """A rating with its 95 % interval, within `SCALE`.

    The most likely rating may be none of the scale, and of who solves everything, or nothing, there
    is none: then the value is the scale's end, and `at_end` says so. What such a one tells is the
    other end of its interval, under which so much (or so little) is solved in 5 % of cases.
    """

    value: float
    low: float
    high: float
    at_end: bool = False


def rating(difficulties: ArrayLike, shares: ArrayLike) -> Rating:
    """The rating under which it is most likely to solve these problems so often.

    `difficulties` (P,) are the problems' ratings, `shares` (P,) of how many attempts solved each.
    A problem counts once, however often it was tried, so that the interval, of the profile
    likelihood, is over problems. ValueError unless there is a share of 0 to 1 for each problem.
    """
    problems, share = (np.asarray(of, dtype=np.float64) for of in (difficulties, shares))
    if problems.shape != share.shape or problems.ndim != 1 or not len(share):
        raise ValueError(f"ratings of {problems.shape} problems, shares of {share.shape}")
    if share.min() < 0 or share.max() > 1:
        raise ValueError("a share of attempts is 0 to 1")

    def excess(at: float) -> float:
        return float((1.0 / (1.0 + 10.0 ** ((problems - at) / 400.0)) - share).sum())

    def likelihood(at: float) -> float:
        odds = (at - problems) * math.log(10.0) / 400.0
        return float((share * odds - np.logaddexp(0.0, odds)).sum())

    best = _root(excess, *BEYOND)
    least = likelihood(best) - (ONE_SIDED if best in BEYOND else DROP)
    low = _root(lambda at: likelihood(at) - least, BEYOND[0], best)
    high = _root(lambda at: least - likelihood(at), best, BEYOND[1])
    value, low, high = (float(np.clip(at, *SCALE)) for at in (best, low, high))
    return Rating(value, low, high, at_end=value != best)


def difficulty(ratings: ArrayLike, solved: ArrayLike) -> Rating:
    """How difficult a problem is, by the ratings (N,) of those who tried it and who `solved` it.

    The same with the sides changed: a problem holds its own against those who do not solve it.
    """
    return rating(ratings, 1.0 - np.asarray(solved, dtype=np.float64))


def percentile(rating: float, participants: ArrayLike) -> float:
    """How many of the participants, by their ratings (N,), are below; of equals half, per cent."""
    ratings = np.asarray(participants, dtype=np.float64)
    return float(100 * np.mean((ratings < rating) + 0.5 * (ratings == rating)))


def among_contestants(rating: float) -> float | None:
    """The same against those of `CONTESTANTS`, between whose pairs it is a straight line.

    None beyond them, where nothing was published.
    """
    ratings, percentiles = zip(*CONTESTANTS, strict=True)
    if not ratings[0] <= rating <= ratings[-1]:
        return None
    return float(np.interp(rating, ratings, percentiles))


def _root(rising: Callable[[float], float], low: float, high: float) -> float:
    """Where a rising function passes zero, by halving; an end, where it does not in between."""
    if rising(low) >= 0:
        return low
    if rising(high) <= 0:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if rising(middle) >= 0 else (middle, high)
    return (low + high) / 2
