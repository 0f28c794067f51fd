"""Intervals of a mean over problems, by the spread between the problems."""

from __future__ import annotations

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limbeck.metrics import student


def interval(
    problem_means: ArrayLike, level: float = 0.95, weights: ArrayLike | None = None
) -> tuple[float, float]:
    """(low, high) around the mean p over problems of `problem_means` (P,), each in [0, 1].

    As in Wilson's score interval (1927) these are the rates q from which p is no more than t
    standard errors away, each with the error that it would itself make likely:

        |p - q| <= t sqrt(p (1 - p) / n) (q (1 - q) / (p (1 - p))) ** (n / (n + P))

    n is how many yes-or-no answers would be as certain, p (1 - p) over the variance of the mean.
    With one sample a problem it is P, and this is Wilson's interval; so it is where all problems
    have one mean, all wrong for instance. With more samples the power grows from 1/2 towards 1. It
    is that at which the variance of rates with a Beta distribution is seen to go with their mean:
    by 2 (1 - 2p) / (f + 2), where f = n / P - 1 is their concentration. t is the normal quantile,
    times the ratio of Student's with P - 1 and n - 1 degrees of freedom, since of yes or no the
    spread follows from the mean and else is estimated (Korn and Graubard 1998). Problems with
    `weights` (P,) count as (sum of w)^2 / sum of w^2 (Kish 1965).

    Simulated, a level of 0.95 covers 0.93 to 0.97; docs/evaluation.md says where it does not.
    """
    means = np.asarray(problem_means, dtype=np.float64)
    weight = np.ones_like(means) if weights is None else np.asarray(weights, dtype=np.float64)
    p = float((weight * means).sum() / weight.sum())
    num = float(weight.sum() ** 2 / (weight**2).sum())
    error = float(np.mean((weight / weight.mean() * (means - p)) ** 2)) / len(means)
    spread = p * (1 - p)
    n = spread / error if error * len(means) > 1e-12 else num  # else it is rounding
    q = 0.5 + level / 2
    widened = student.quantile(q, num - 1) / student.quantile(q, n - 1)
    power = max(0.5, n / (n + num))
    reach = NormalDist().inv_cdf(q) * max(1.0, widened) * spread ** (0.5 - power) / math.sqrt(n)

    def is_near(rate: float) -> bool:
        return abs(rate - p) <= reach * (rate * (1 - rate)) ** power

    return _last(is_near, p, 0.0), _last(is_near, p, 1.0)


def _last(is_near: Callable[[float], bool], begin: float, end: float) -> float:
    """The rate nearest to `end` that is near, by halving; between are no gaps."""
    for _ in range(48):
        middle = (begin + end) / 2
        begin, end = (middle, end) if is_near(middle) else (begin, middle)
    return (begin + end) / 2


def mean_interval(
    values: ArrayLike, weights: ArrayLike
) -> tuple[float, float | None, float | None]:
    """(mean, low, high) of values without bounds (P,), each counted by its weight (P,), 95 %.

    A mean of weighted values is a ratio of two sums; its standard error is the usual one of ratios
    (Cochran 1977, 6.3), and the interval Student's. Of a single value there is none.
    """
    value, weight = (np.asarray(of, dtype=np.float64) for of in (values, weights))
    mean = float((weight * value).sum() / weight.sum())
    errors = weight / weight.mean() * (value - mean)
    if len(value) == 1:
        return mean, None, None
    half = student.quantile(0.975, len(value) - 1) * student.standard_error(errors)
    return mean, mean - half, mean + half


def bootstrap(
    samples: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], float],
    level: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """(low, high) of any statistic of graded samples (P, k), by resampling (Efron 1979).

    Problems are drawn with return, and of each that was drawn its samples again with return. What
    differs between problems has the chance of their samples in it already, and this adds it once
    more (Davison and Hinkley 1997, 3.8): by little where problems differ much or samples are many,
    by a factor of sqrt(2) where all problems are alike. Near 0 and 1 it covers too little, and
    where all samples are right it has no width; of a mean, `interval` is the better one.
    """
    graded = np.asarray(samples, dtype=np.float64)
    num, k = graded.shape
    rng = np.random.default_rng(seed)
    found = [
        statistic(graded[rng.integers(num, size=(num, 1)), rng.integers(k, size=(num, k))])
        for _ in range(num_resamples)
    ]
    low, high = np.quantile(found, [0.5 - level / 2, 0.5 + level / 2])
    return float(low), float(high)
