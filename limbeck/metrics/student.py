"""Student's t, without a library for it."""

from __future__ import annotations

import math
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


def standard_error(differences: NDArray[np.float64]) -> float:
    """Of their mean; without bounds for a single one, of which nothing is known."""
    size = len(differences)
    return float(differences.std(ddof=1) / np.sqrt(size)) if size > 1 else float("inf")


def p_value(mean: float, error: float, freedom: int) -> float:
    """Two-sided, of t = mean / error: finite sums (Abramowitz & Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan2(abs(mean), error * math.sqrt(freedom))
    odd, square = freedom % 2, math.cos(angle) ** 2
    term, total = math.cos(angle) if odd else 1.0, 0.0
    for number in range(1, freedom // 2 + 1):
        total += term
        term *= square * (2 * number - 1 + odd) / (2 * number + odd)
    within = total * math.sin(angle)
    return max(0.0, 1 - (2 / math.pi * (angle + within) if odd else within))


def quantile(q: float, freedom: float) -> float:
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
