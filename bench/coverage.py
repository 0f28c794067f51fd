"""How often intervals of 95 % hold the truth: `limbeck.metrics.interval` over a grid.

Problems are drawn from seven kinds of benchmarks, samples from the problems. With one sample each
all kinds are one, and coverage is exact, by enumeration. Elsewhere a cell is as many simulated
evaluations as `--evaluations` says; 4,000 are good to 0.7 points. Rates above one half mirror those
below: right and wrong change places, and the interval with them.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from measure import finish, one_thread
from numpy.typing import NDArray

from limbeck import metrics

RATES = (0.02, 0.05, 0.1, 0.3, 0.5)  # and 0.7, 0.9, 0.95 and 0.98
PROBLEMS = (30, 60, 100, 200, 500)
SAMPLES = (4, 16, 64)
LOW, HIGH = 0.93, 0.97
RARELY = 0.01  # how often a problem of two kinds surprises
Rates = NDArray[np.float64]
Draw = Callable[[np.random.Generator, float, tuple[int, int]], Rates]


def alike(rng: np.random.Generator, rate: float, shape: tuple[int, int]) -> Rates:
    """All problems are equally difficult."""
    return np.full(shape, rate)


def beta(concentration: float) -> Draw:
    """From rather alike (10) over all rates (2) to nearly always or nearly never solved (0.1)."""

    def draw(rng: np.random.Generator, rate: float, shape: tuple[int, int]) -> Rates:
        return rng.beta(rate * concentration, (1 - rate) * concentration, shape)

    return draw


def logistic(rng: np.random.Generator, rate: float, shape: tuple[int, int]) -> Rates:
    """Logits are normal with a deviation of 2, as item response theory has it."""
    at = np.linspace(-8, 8, 801)
    density = np.exp(-at * at / 2) / np.exp(-at * at / 2).sum()
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        above = density @ (1 / (1 + np.exp(-middle - 2 * at))) > rate
        low, high = (low, middle) if above else (middle, high)
    return 1 / (1 + np.exp(-low - 2 * rng.standard_normal(shape)))


def two_kinds(rng: np.random.Generator, rate: float, shape: tuple[int, int]) -> Rates:
    """Problems that are solved in 99 % of cases, and others that are in 1 %."""
    return np.where(rng.random(shape) < share_of_easy(rate), 1 - RARELY, RARELY)


def share_of_easy(rate: float) -> float:
    return (rate - RARELY) / (1 - 2 * RARELY)


SPREADS: dict[str, Draw] = {
    "alike": alike,
    "beta 10": beta(10),
    "beta 2": beta(2),
    "beta 0.5": beta(0.5),
    "beta 0.1": beta(0.1),
    "logistic 2": logistic,
    "two kinds": two_kinds,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--evaluations", type=int, default=4000, help="of a cell, simulated")
    parser.add_argument("--to", type=Path, help="a file that keeps the last line")
    args = parser.parse_args()
    one_thread()
    cells = [*one_sample()]
    for name in SPREADS:
        for samples, problems, rate in product(SAMPLES, PROBLEMS, RATES):
            found = covered(name, rate, problems, samples, args.evaluations)
            cells.append(cell(name, samples, problems, rate, found))
        print(f"{name}: done", flush=True)
    cases = [case(name, [c for c in cells if c["spread"] == name]) for name in ("any", *SPREADS)]
    cases += [resampled(rate, max(1, args.evaluations // 10)) for rate in (0.02, 0.1, 0.5)]
    missed = [around(found, args.evaluations) for found in cells if not found["met"]]
    finish("coverage", cases, ["limbeck", "numpy"], args.to, num_cells=len(cells), missed=missed)


def cell(spread: str, samples: int, problems: int, rate: float, coverage: float) -> dict[str, Any]:
    """One of the grid; of two kinds with the chance that none of the rarer kind was drawn."""
    found = {
        "spread": spread,
        "samples": samples,
        "problems": problems,
        "rate": rate,
        "coverage": round(coverage, 4),
        "met": LOW <= coverage <= HIGH,
    }
    if spread == "two kinds":
        found["unseen"] = round((1 - share_of_easy(rate)) ** problems, 4)
    return found


def one_sample() -> Iterator[dict[str, Any]]:
    """Exactly, over all numbers of solved problems; beside it the mean over rates nearby, and what
    the best set of consecutive numbers would reach at this one rate."""
    for problems in PROBLEMS:
        ends = np.array([solved(count, problems) for count in range(problems + 1)])
        for rate in RATES:
            chances = binomial(problems, rate)
            sums = np.concatenate([[0.0], np.cumsum(chances)])
            sets = (sums[None, :] - sums[:, None]).ravel()
            found = cell("any", 1, problems, rate, exact(ends, problems, rate))
            exactly = [exact(ends, problems, near) for near in nearby(rate, 101)]
            found["nearby"] = round(float(np.mean(exactly)), 4)
            found["attainable"] = round(float(sets[np.argmin(np.abs(sets - 0.95))]), 4)
            yield found


def nearby(rate: float, num: int) -> NDArray[np.float64]:
    """Rates around one: within 0.02, and within half of it."""
    reach = min(0.02, rate / 2)
    return np.linspace(rate - reach, rate + reach, num)


def around(found: dict[str, Any], evaluations: int) -> dict[str, Any]:
    """A cell that missed, with the mean coverage over rates nearby: whether it leaps there."""
    if "nearby" in found:
        return found
    name, problems, samples = (found[key] for key in ("spread", "problems", "samples"))
    each = [covered(name, r, problems, samples, evaluations) for r in nearby(found["rate"], 21)]
    return found | {"nearby": round(float(np.mean(each)), 4)}


def solved(count: int, problems: int) -> tuple[float, float]:
    return metrics.interval(np.arange(problems) < count)


def exact(ends: NDArray[np.float64], problems: int, rate: float) -> float:
    """The coverage at a rate, by the interval of each number of solved problems."""
    return float(binomial(problems, rate) @ ((ends[:, 0] <= rate) & (rate <= ends[:, 1])))


def binomial(num: int, rate: float) -> NDArray[np.float64]:
    return np.array([math.comb(num, k) * rate**k * (1 - rate) ** (num - k) for k in range(num + 1)])


def covered(spread: str, rate: float, problems: int, samples: int, evaluations: int) -> float:
    """The share of simulated evaluations whose interval holds the true rate."""
    rng = np.random.default_rng([int(1000 * rate), problems, samples])
    rates = SPREADS[spread](rng, rate, (evaluations, problems))
    means = rng.binomial(samples, rates) / samples
    intervals = map(metrics.interval, means)
    return float(np.mean([low <= rate <= high for low, high in intervals]))


def case(name: str, cells: list[dict[str, Any]]) -> dict[str, Any]:
    """A line of the table: in how many cells of a kind coverage is 93 to 97 %."""
    coverages = [found["coverage"] for found in cells]
    return {
        "case": "one sample" if name == "any" else name,
        "value": round(sum(found["met"] for found in cells) / len(cells), 4),
        "unit": "of cells in 93-97 %",
        "target": 1.0,
        "met": all(found["met"] for found in cells),
        "cells": len(cells),
        "lowest": min(coverages),
        "mean": round(sum(coverages) / len(coverages), 4),
        "highest": max(coverages),
    }


def resampled(rate: float, evaluations: int) -> dict[str, Any]:
    """For comparison: the bootstrap over problems and samples, of 30 problems and 16 samples."""
    rng = np.random.default_rng(0)
    hits = 0
    for seed in range(evaluations):
        rates = SPREADS["beta 2"](rng, rate, (30, 1))
        graded = rng.random((30, 16)) < rates
        low, high = metrics.bootstrap(graded, np.mean, num_resamples=500, seed=seed)
        hits += low <= rate <= high
    error = NormalDist().inv_cdf(0.975) * math.sqrt(0.05 * 0.95 / evaluations)
    name, value = f"bootstrap at {rate:g}", round(hits / evaluations, 4)
    met = LOW <= value <= HIGH
    told = {"case": name, "value": value, "unit": "covered", "target": None, "met": met}
    return {**told, "give_or_take": round(error, 4)}


if __name__ == "__main__":
    main()
