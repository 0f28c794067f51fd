"""What graded samples tell: pass@k, intervals that know of problems, paired tests.

Throughout, P is the number of problems, and a problem's mean is the share of its samples that are
correct. Problems are what was drawn at random, so all uncertainty is over problems: sixteen samples
of one problem are not sixteen problems (Miller 2024, https://arxiv.org/abs/2411.00640).

A metric is a share, 0 to 1, the more the better; but those of `NATS` are nats per token, the fewer
the better, where a problem counts by its tokens, and rewards that know no bounds have their own
unit, the more the better.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

NATS = ("nll", "kl")
SHARES = ("pass_at_1", "greedy", "f1", "correct", "format", "language")  # and pass_at_k


def unit_of(metric: str) -> str | None:
    """The unit of a metric that is no share: "nats", or "reward" of one that nobody else knows."""
    if metric in NATS:
        return "nats"
    return None if metric in SHARES or re.fullmatch(r"pass_at_\d+", metric) else "reward"


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """The chance that k of a problem's samples, drawn without return, hold a correct one.

    1 - C(n - c, k) / C(n, k), unbiased (Chen et al. 2021, https://arxiv.org/abs/2107.03374), as a
    product that does not overflow. Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= num_correct <= num_samples and 1 <= k <= num_samples):
        raise ValueError(f"pass@{k} of {num_correct} correct among {num_samples}")
    if num_samples - num_correct < k:
        return 1.0
    left = np.arange(num_samples - num_correct + 1, num_samples + 1)  # (c,)
    return float(1.0 - np.prod(1.0 - k / left))


def interval(problem_means: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """(low, high) around the mean over problems of `problem_means` (P,), each in [0, 1].

    Wilson's score interval (1927) with the number of independent yes-or-no samples that would be
    as certain as these: n = p (1 - p) / var(mean), where var(mean) is the variance between the
    problems over P. One sample a problem gives n = P, the plain interval; so does no variance at
    all. Simulated, a level of 0.95 covers 0.92 to 0.97 from 40 problems on, 0.87 to 0.98 with 10.
    """
    means = np.asarray(problem_means, dtype=np.float64)
    p, num = float(means.mean()), len(means)
    variance = float(means.var())
    n = num * p * (1 - p) / variance if variance > 1e-12 else float(num)  # else it is rounding
    z = NormalDist().inv_cdf(0.5 + level / 2)
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, float(middle - half)), min(1.0, float(middle + half))


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
    half = _student_quantile(0.975, len(value) - 1) * _standard_error(errors)
    return mean, mean - half, mean + half


def value_of(row: Mapping[str, Any]) -> float:
    """A score row's own: the share of its samples that are right, if it says nothing else."""
    value = row.get("value")
    return row["num_correct"] / row["num_samples"] if value is None else value


def weight_of(row: Mapping[str, Any]) -> float:
    """What a score row counts among others."""
    return 1.0 if row.get("weight") is None else row["weight"]


def summarise(scores: Sequence[Mapping[str, Any]], by: Sequence[str]) -> list[dict[str, Any]]:
    """A result for each group of score rows that share what `by` names, the metric among it.

    Behind negative log-likelihood stands what follows from it, perplexity: exp(nats per token).
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in scores:
        groups.setdefault(tuple(row[key] for key in by), []).append(row)
    rows = []
    for group, members in groups.items():
        about, told = dict(zip(by, group, strict=True)), result(members)
        rows.append({**about, **told})
        if about["metric"] == "nll":
            rows.append({**about, "metric": "perplexity", **told, "unit": "perplexity"})
            for key in ("value", "low", "high"):
                rows[-1][key] = None if told[key] is None else math.exp(told[key])
    return rows


def result(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The mean of a group of score rows, one a problem, with its 95 % interval and what it cost.

    `cost` is FLOPs per answer, prompt included. What is no share says its `unit`.
    """
    means = [value_of(row) for row in scores]
    low: float | None
    high: float | None
    unit = unit_of(scores[0]["metric"])
    if unit:
        mean, low, high = mean_interval(means, [weight_of(row) for row in scores])
    else:
        mean, (low, high) = sum(means) / len(means), interval(means)
    answers = sum(row["num_samples"] for row in scores)
    return {
        "value": mean,
        "low": low,
        "high": high,
        "num_problems": len(scores),
        "num_samples": max(row["num_samples"] for row in scores),
        "tokens_per_answer": sum(row["completion_tokens"] for row in scores) / answers,
        "failed": sum(row["num_failed"] for row in scores) / answers,
        "truncated": sum(row["num_truncated"] for row in scores) / answers,
        "cost": sum(row["flops"] for row in scores) / answers,
        **({"unit": unit} if unit else {}),
    }


@dataclass(frozen=True)
class PairedTest:
    """Two models on the same problems: the mean of a - b, its 95 % interval, and p (two-sided)."""

    difference: float
    low: float
    high: float
    p: float


def paired_test(
    a: ArrayLike,
    b: ArrayLike,
    seed: int = 0,
    num_permutations: int = 10_000,
    weights: ArrayLike | None = None,
) -> PairedTest:
    """Compares the problem means `a` (P,) and `b` (P,), same problems in the same order.

    They are shares unless they have `weights` (P,), by which their differences then count. p is
    that of the sign-flip permutation test: were the models alike, each problem's difference could
    as well have had the other sign (Fisher 1935). All signs are tried where these are at most
    `num_permutations`; else as many are drawn, and p = (extreme + 1) / (drawn + 1). The interval is
    Student's. Raises ValueError if the lengths differ.
    """
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)  # (P,)
    if np.shape(a) != np.shape(b) or differences.ndim != 1 or not len(differences):
        raise ValueError(f"paired means need one shape (P,), not {np.shape(a)} and {np.shape(b)}")
    most = 1.0
    if weights is not None:
        weight = np.asarray(weights, dtype=np.float64)
        differences, most = differences * weight / weight.mean(), float("inf")
    mean = float(differences.mean())
    half = _student_quantile(0.975, len(differences) - 1) * _standard_error(differences)
    p = _sign_flip_p(differences[differences != 0], seed, num_permutations)
    return PairedTest(mean, max(-most, mean - half), min(most, mean + half), p)


def seeds_test(differences: ArrayLike, most: float = math.inf) -> PairedTest:
    """The same of what each seed of a training differs by (S,), S > 1: Student's interval and p.

    Seeds are few, and tell what is much more than their spread: of three a mean of 2.5 times that.
    The interval ends at -`most` and `most`.
    """
    each = np.asarray(differences, dtype=np.float64)
    mean, error, freedom = float(each.mean()), _standard_error(each), len(each) - 1
    half = _student_quantile(0.975, freedom) * error
    p = _student_p(mean, error, freedom)
    return PairedTest(mean, max(-most, mean - half), min(most, mean + half), p)


def verdict(test: PairedTest, level: float = 0.05, less_is_better: bool = False) -> str:
    """'a better', 'b better' or 'not distinguishable' at `level`."""
    if test.p >= level:
        return "not distinguishable"
    return "a better" if (test.difference < 0) == less_is_better else "b better"


def _sign_flip_p(differences: NDArray[np.float64], seed: int, num_permutations: int) -> float:
    """`differences` without zeros, whose sign does not matter."""
    size = len(differences)
    observed = abs(differences.sum()) * (1 - 1e-12)  # ties are extreme, whatever their rounding
    if 2**size <= num_permutations:
        signs = np.array(list(product((-1.0, 1.0), repeat=size))).reshape(2**size, size)
        return float(np.mean(np.abs(signs @ differences) >= observed))
    rng = np.random.default_rng(seed)
    extreme = 0
    for start in range(0, num_permutations, 512):  # 512 at a time bounds the memory
        rows = min(512, num_permutations - start)
        signs = rng.integers(0, 2, (rows, size), dtype=np.int8) * 2.0 - 1.0
        extreme += int(np.count_nonzero(np.abs(signs @ differences) >= observed))
    return (extreme + 1) / (num_permutations + 1)


def _standard_error(differences: NDArray[np.float64]) -> float:
    """Of their mean; without bounds for a single one, of which nothing is known."""
    size = len(differences)
    return float(differences.std(ddof=1) / np.sqrt(size)) if size > 1 else float("inf")


def _student_p(mean: float, error: float, freedom: int) -> float:
    """Two-sided, of t = mean / error: finite sums (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(abs(mean), error * math.sqrt(freedom))
    odd, square = freedom % 2, math.cos(angle) ** 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for number in range(1, freedom // 2 + 1):
        total += term
        term *= square * (2 * number - 1 + odd) / (2 * number + odd)
    within = total * math.sin(angle)
    return max(0.0, 1 - (2 / math.pi * (angle + within) if odd else within))


def _student_quantile(q: float, freedom: int) -> float:
    """Student's t by its expansion about the normal (Abramowitz & Stegun 26.7.5).

    Good to 1 % from 3 degrees of freedom on, to 0.01 % from 10 on; exact for 1 and 2.
    """
    if freedom <= 1:
        return float(np.tan(np.pi * (q - 0.5)))
    if freedom == 2:
        return float((2 * q - 1) * np.sqrt(0.5 / (q * (1 - q))))
    z = NormalDist().inv_cdf(q)
    v = freedom
    return float(
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * v**4)
    )
