"""Tests of two models on the same problems."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from limbeck.metrics import student

UNSEEN = NormalDist().inv_cdf(0.975) ** 2
"""Where n problems are alike, a share UNSEEN / (n + UNSEEN) of all may be others (Wilson 1927)."""


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
    most: float = 1.0,
) -> PairedTest:
    """Compares the problem means `a` (P,) and `b` (P,), same problems in the same order.

    Their differences count by `weights` (P,), if there are any, and are -`most` to `most`. p is
    that of the sign-flip permutation test: were the models alike, each problem's difference could
    as well have had the other sign (Fisher 1935). All signs are tried where these are at most
    `num_permutations`; else as many are drawn, and p = (extreme + 1) / (drawn + 1). The interval is
    Student's; where all differ by the same, it allows for as many others as Wilson's interval does
    of which none was seen. Raises ValueError if the lengths differ.
    """
    differences = differences_of(a, b, weights)
    mean, num = float(differences.mean()), len(differences)
    p = _sign_flip_p(differences[differences != 0], seed, num_permutations)
    if math.isfinite(most) and num > 1 and np.ptp(differences) < 1e-12:
        unseen = UNSEEN / (num + UNSEEN)
        return PairedTest(mean, mean - unseen * (most + mean), mean + unseen * (most - mean), p)
    half = student.quantile(0.975, num - 1) * student.standard_error(differences)
    return PairedTest(mean, max(-most, mean - half), min(most, mean + half), p)


def differences_of(
    a: ArrayLike, b: ArrayLike, weights: ArrayLike | None = None
) -> NDArray[np.float64]:
    """a - b of each problem (P,), times what it weighs among them; ValueError unless they pair."""
    differences = np.asarray(a, dtype=np.float64) - np.asarray(b, dtype=np.float64)
    if np.shape(a) != np.shape(b) or differences.ndim != 1 or not len(differences):
        raise ValueError(f"paired means need one shape (P,), not {np.shape(a)} and {np.shape(b)}")
    if weights is None:
        return differences
    weight = np.asarray(weights, dtype=np.float64)
    return differences * weight / weight.mean()


def seeds_test(differences: ArrayLike, most: float = math.inf) -> PairedTest:
    """The same of what each seed of a training differs by (S,), S > 1: Student's interval and p.

    Seeds are few, and tell what is much more than their spread: of three a mean of 2.5 times that.
    The interval ends at -`most` and `most`.
    """
    each = np.asarray(differences, dtype=np.float64)
    mean, error, freedom = float(each.mean()), student.standard_error(each), len(each) - 1
    half = student.quantile(0.975, freedom) * error
    p = student.p_value(mean, error, freedom)
    return PairedTest(mean, max(-most, mean - half), min(most, mean + half), p)


def verdict(test: PairedTest, level: float = 0.05, less_is_better: bool = False) -> str:
    """'a better', 'b better' or 'not distinguishable' at `level`."""
    if test.p >= level:
        return "not distinguishable"
    return "a better" if (test.difference < 0) == less_is_better else "b better"


def change(test: PairedTest, margin: float, less_is_better: bool = False) -> str:
    """What became of an ability, of after (a) and before (b): 'lost', 'gained' or 'kept'.

    Kept is what did not change for certain and has not lost more than `margin` within the 95 %
    interval; else 'not distinguishable'.
    """
    found = verdict(test, less_is_better=less_is_better)
    if found != "not distinguishable":
        return "gained" if found == "a better" else "lost"
    most_lost = test.high if less_is_better else -test.low
    return "kept" if most_lost < margin else found


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
