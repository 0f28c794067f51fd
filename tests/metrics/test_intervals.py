"""Intervals against statsmodels and scipy, and their coverage by enumeration and simulation."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from limbeck.metrics import bootstrap, interval, mean_interval

RATES = (0.02, 0.05, 0.1, 0.3, 0.5, 0.7, 0.9, 0.95, 0.98)
PROBLEMS = (30, 60, 100, 200, 500)
EVALUATIONS = 2000  # of a simulated cell: good to a point

Draw = Callable[[np.random.Generator, float, tuple[int, int]], np.ndarray]
SPREADS: dict[str, Draw] = {
    "alike": lambda rng, rate, shape: np.full(shape, rate),
    "hard to easy": lambda rng, rate, shape: rng.beta(2 * rate, 2 - 2 * rate, shape),
    "always or never": lambda rng, rate, shape: rng.beta(rate / 10, (1 - rate) / 10, shape),
}

ONE_SAMPLE_MISSES = {  # of (problems, rate), and their mirrors: exact coverage
    (30, 0.02): 0.9783,
    (30, 0.1): 0.9742,
    (30, 0.3): 0.9298,
    (60, 0.05): 0.9703,
}
"""The cells with one sample a problem outside of 93 to 97 %. The number of solved problems is
binomial there, and the coverage of any interval that is not drawn by lot leaps as the rate passes
from one number to the next (Brown, Cai and DasGupta 2001): at 30 problems and a rate of 0.02, no
set of consecutive numbers has a chance between 0.879 and 0.978."""


@pytest.mark.parametrize(
    ("num", "correct"), [(1, 0), (1, 1), (10, 0), (10, 10), (10, 3), (500, 77)]
)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_one_sample_a_problem_gives_the_plain_wilson_interval(num, correct, level):
    means = np.arange(num) < correct
    expected = proportion_confint(correct, num, alpha=1 - level, method="wilson")
    assert interval(means, level) == pytest.approx(expected, abs=1e-12)


@cache
def ends(problems: int) -> np.ndarray:
    """The intervals of one sample a problem, by how many are solved."""
    return np.array([interval(np.arange(problems) < count) for count in range(problems + 1)])


def exact(problems: int, rate: float) -> float:
    """The coverage with one sample a problem."""
    low, high = ends(problems).T
    chances = stats.binom.pmf(np.arange(problems + 1), problems, rate)
    return float(chances[(low <= rate) & (rate <= high)].sum())


def test_coverage_of_one_sample_a_problem_is_right_but_where_it_leaps():
    cells = {(problems, rate): exact(problems, rate) for problems in PROBLEMS for rate in RATES}
    missed = {cell: found for cell, found in cells.items() if not 0.93 <= found <= 0.97}
    mirrored = {(num, round(1 - rate, 2)): of for (num, rate), of in ONE_SAMPLE_MISSES.items()}
    assert missed == pytest.approx(ONE_SAMPLE_MISSES | mirrored, abs=1e-4)
    assert min(cells.values()) > 0.929
    for problems, rate in cells:
        reach = min(0.02, rate / 2, (1 - rate) / 2)
        near = np.linspace(rate - reach, rate + reach, 101)
        assert 0.945 < np.mean([exact(problems, of) for of in near]) < 0.961


def test_no_interval_could_do_at_30_problems_what_none_does():
    chances = stats.binom.pmf(np.arange(31), 30, 0.02)
    sums = np.concatenate([[0.0], np.cumsum(chances)])
    assert not np.any(
        (sums[None, :] - sums[:, None] > 0.88) & (sums[None, :] - sums[:, None] < 0.978)
    )


@pytest.mark.parametrize("spread", SPREADS)
def test_coverage_is_right_over_the_grid(spread):
    """A part of the grid of bench/coverage.py, whose result docs/evaluation.md tells."""
    found = []
    for rate, problems, samples in product((0.02, 0.1, 0.5), (30, 100, 500), (4, 64)):
        rng = np.random.default_rng([int(100 * rate), problems, samples])
        rates = SPREADS[spread](rng, rate, (EVALUATIONS, problems))
        hits = [
            low <= rate <= high
            for low, high in map(interval, rng.binomial(samples, rates) / samples)
        ]
        found.append(float(np.mean(hits)))
        assert 0.93 - 0.017 < found[-1] < 0.97 + 0.011, (rate, problems, samples)
    assert 0.94 < np.mean(found) < 0.96


def test_the_whole_grid_is_missed_only_for_known_reasons():
    """Of what `bench/coverage.py` has measured, all 23 of 550 cells outside of 93 to 97 %."""
    told = json.loads((Path(__file__).parents[2] / "bench/results/coverage.json").read_text())
    reasons = Counter(map(why, told["missed"]))
    assert told["num_cells"] == 550
    assert reasons == {"leaps": 7, "skewed": 4, "unseen": 12}


def why(cell: dict[str, Any]) -> str:
    """Coverage leaps from rate to rate around; rare problems were not met, in more than 5 % of
    evaluations; or the few easy problems of many hard ones decide the mean, and are underrated."""
    if cell["problems"] <= 60 and cell["samples"] <= 4 and 0.92 < cell["coverage"] < 0.98:
        assert 0.93 < cell["nearby"] < 0.97
        return "leaps"
    if cell["spread"] == "two kinds":
        assert cell["unseen"] > 0.05 and cell["coverage"] > 1 - cell["unseen"] - 0.06
        return "unseen"
    assert (cell["spread"], cell["samples"]) == ("logistic 2", 64)
    assert cell["rate"] <= 0.05 and cell["problems"] <= 100 and cell["coverage"] > 0.92
    return "skewed"


def test_who_has_not_met_the_rare_problems_cannot_know_of_them():
    """Half of 2 % is of one problem in a hundred, which is easy: most evaluations have none."""
    rng = np.random.default_rng(0)
    easy = rng.random((EVALUATIONS, 30)) < 0.0102
    means = rng.binomial(64, np.where(easy, 0.99, 0.01)) / 64
    covered = np.array([low <= 0.02 <= high for low, high in map(interval, means)])
    assert easy.any(1).mean() < 0.3 and covered[~easy.any(1)].mean() < 0.3
    assert covered[easy.any(1)].mean() > 0.8


def test_right_and_wrong_change_places():
    rng = np.random.default_rng(0)
    for problems, samples in product((1, 7, 60), (1, 4, 64)):
        means = rng.binomial(samples, rng.random(problems)) / samples
        low, high = interval(means)
        assert interval(1 - means) == pytest.approx((1 - high, 1 - low), abs=1e-9)
        assert 0 <= low <= means.mean() <= high <= 1


@pytest.mark.parametrize("samples", [1, 64])
def test_all_wrong_is_no_proof_of_never(samples):
    """Where a bootstrap has no width: as if each problem had been asked once."""
    graded = np.zeros((30, samples))
    assert bootstrap(graded, np.mean, num_resamples=50) == (0, 0)
    assert interval(graded.mean(1)) == pytest.approx((0, 0.1135), abs=1e-4)
    assert interval(1 - graded.mean(1)) == pytest.approx((0.8865, 1), abs=1e-4)


@pytest.mark.parametrize(("problems", "samples"), [(100, 16), (300, 64)])
def test_it_is_the_bootstrap_over_problems_and_samples_in_the_middle(problems, samples):
    """Which takes the chance of the samples twice: see the docstring."""
    rng = np.random.default_rng(problems)
    graded = rng.random((problems, samples)) < rng.beta(1, 1, (problems, 1))
    low, high = interval(graded.mean(1))
    from_below, from_above = bootstrap(graded, np.mean, seed=1)
    twice = np.sqrt(1 + 2 / (samples + 2))
    assert (from_above - from_below) / (high - low) == pytest.approx(twice, abs=0.05)
    assert (from_below + from_above) / 2 == pytest.approx((low + high) / 2, abs=0.004)


def test_samples_of_one_problem_are_not_so_many_problems():
    apart = interval(np.full(50, 0.5) + np.tile([0.01, -0.01], 25))
    bimodal = interval(np.tile([0.0, 1.0], 25))
    assert apart[1] - apart[0] < 0.02 < 0.2 < bimodal[1] - bimodal[0]


def test_weights_of_one_change_nothing_and_heavy_problems_are_few():
    means = np.random.default_rng(0).random(40)
    assert interval(means, weights=np.ones(40)) == interval(means)
    assert interval(means, weights=np.full(40, 7.0)) == pytest.approx(interval(means))
    low, high = interval(means, weights=[1000.0, 1000.0] + [1.0] * 38)
    assert high - low > 2 * np.subtract(*interval(means)[::-1])


def test_shares_of_instructions_cover_as_often_as_they_say():
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(EVALUATIONS):
        counts = rng.integers(1, 4, 80)
        followed = rng.binomial(counts, rng.beta(4, 1, 80)) / counts
        low, high = interval(followed, weights=counts)
        hits += low <= 0.8 <= high
    assert 0.93 < hits / EVALUATIONS < 0.97


def test_a_mean_of_tokens_covers_as_often_as_it_says():
    """Nats per token of problems whose length and level differ, and go together."""
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(2000):
        tokens = rng.integers(1, 12, 80).astype(float)
        nats = rng.gamma(4.0, 1.0, 80) + 4 / tokens
        _, low, high = mean_interval(nats, tokens)
        hits += low <= 4 + 4 * 80 / (80 * 6) <= high  # E[t * (4 + 4 / t)] / E[t]
    assert 0.92 < hits / 2000 < 0.97


def test_a_mean_of_tokens_is_that_of_all_tokens():
    mean, low, high = mean_interval([1.0, 3.0, 2.0], [1.0, 3.0, 2.0])
    assert mean == pytest.approx((1 + 9 + 4) / 6) and low < mean < high
    assert mean_interval([1.5], [4.0]) == (1.5, None, None)
    plain = stats.ttest_1samp([0.2, 0.9, 1.4, 3.0, 2.0, 1.1], 0).confidence_interval(0.95)
    alike = mean_interval([0.2, 0.9, 1.4, 3.0, 2.0, 1.1], [5.0] * 6)
    assert alike[1:] == pytest.approx((plain.low, plain.high), rel=1e-2)  # Student's, expanded
