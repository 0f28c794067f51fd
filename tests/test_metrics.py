"""Metrics against brute force, scipy, statsmodels and simulation."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from limbeck.metrics import (
    interval,
    mean_interval,
    paired_test,
    pass_at_k,
    seeds_test,
    verdict,
)


@pytest.mark.parametrize("num_samples", [1, 4, 7])
def test_pass_at_k_counts_all_draws(num_samples):
    for num_correct in range(num_samples + 1):
        graded = [i < num_correct for i in range(num_samples)]
        for k in range(1, num_samples + 1):
            draws = [any(draw) for draw in combinations(graded, k)]
            assert pass_at_k(num_samples, num_correct, k) == pytest.approx(np.mean(draws))


def test_pass_at_k_at_large_counts_and_wrong_ones():
    assert pass_at_k(10_000, 1, 5_000) == pytest.approx(0.5)
    for wrong in [(4, 5, 1), (4, 2, 5), (4, 2, 0), (4, -1, 1)]:
        with pytest.raises(ValueError, match="pass@"):
            pass_at_k(*wrong)


@pytest.mark.parametrize(
    ("num", "correct"), [(1, 0), (1, 1), (10, 0), (10, 10), (10, 3), (500, 77)]
)
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_one_sample_a_problem_gives_the_plain_wilson_interval(num, correct, level):
    means = np.arange(num) < correct
    expected = proportion_confint(correct, num, alpha=1 - level, method="wilson")
    assert interval(means, level) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("num", [2, 3, 4, 5, 12])
def test_seeds_are_tested_as_by_student(num):
    differences = np.random.default_rng(num).normal(0.05, 0.04, num)
    test, theirs = seeds_test(differences), stats.ttest_1samp(differences, 0)
    bounds = theirs.confidence_interval()
    assert test.p == pytest.approx(theirs.pvalue, rel=1e-6)
    assert test.high == pytest.approx(bounds.high, rel=0.02)
    assert seeds_test([0.1, -0.3], most=0.5).low == -0.5
    assert (seeds_test([0.2, 0.2]).p, seeds_test([0.0, 0.0]).p) == (0, 1)


def test_samples_of_one_problem_are_not_so_many_problems():
    apart = interval(np.full(50, 0.5) + np.tile([0.01, -0.01], 25))
    bimodal = interval(np.tile([0.0, 1.0], 25))
    assert apart[1] - apart[0] < 0.02 < 0.2 < bimodal[1] - bimodal[0]


@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 3.0), (4.0, 1.0)])
@pytest.mark.parametrize("num_samples", [1, 8])
def test_interval_covers_as_often_as_it_says(alpha, beta, num_samples):
    rng = np.random.default_rng(0)
    truth, covered = alpha / (alpha + beta), 0
    for _ in range(1000):
        rates = rng.beta(alpha, beta, 60)
        low, high = interval(rng.binomial(num_samples, rates) / num_samples)
        covered += low <= truth <= high
    assert 0.92 <= covered / 1000 <= 0.98


@pytest.mark.parametrize("num", [5, 10])
def test_few_problems_are_tested_exactly(num):
    rng = np.random.default_rng(num)
    a, b = rng.integers(0, 5, num) / 4, rng.integers(0, 5, num) / 4
    expected = stats.permutation_test(
        (a, b), lambda x, y: np.mean(x - y), permutation_type="samples", n_resamples=np.inf
    )
    test = paired_test(a, b)
    assert test.p == pytest.approx(expected.pvalue)
    assert test.difference == pytest.approx(expected.statistic)


def test_many_problems_agree_with_student():
    rng = np.random.default_rng(1)
    a = rng.random(200)
    b = np.clip(a + rng.normal(-0.03, 0.2, 200), 0, 1)
    test, student = paired_test(a, b), stats.ttest_rel(a, b)
    low, high = student.confidence_interval(0.95)
    assert (test.low, test.high) == pytest.approx((low, high), abs=1e-6)
    assert test.p == pytest.approx(student.pvalue, abs=0.015)
    assert test == paired_test(a, b)
    mirrored = paired_test(b, a)
    assert (mirrored.difference, mirrored.p) == (-test.difference, test.p)


@pytest.mark.parametrize(("num", "tolerance"), [(4, 2e-2), (8, 1e-3), (30, 1e-5)])
def test_student_interval_of_few_problems(num, tolerance):
    a, b = np.random.default_rng(num).random((2, num))
    low, high = stats.ttest_rel(a, b).confidence_interval(0.95)
    test = paired_test(a, b)
    assert (test.high - test.low) / (high - low) == pytest.approx(1, abs=tolerance)


def test_equal_models_are_called_different_one_time_in_twenty():
    rng = np.random.default_rng(2)
    called = 0
    for seed in range(300):
        rates = rng.random(30)
        a, b = (rng.binomial(4, rates) / 4 for _ in range(2))
        called += paired_test(a, b, seed=seed, num_permutations=500).p < 0.05
    assert called / 300 < 0.09


def test_verdicts():
    better = np.full(20, 0.8) + np.linspace(0, 0.1, 20)
    assert verdict(paired_test(better, better - 0.3)) == "a better"
    assert verdict(paired_test(better - 0.3, better)) == "b better"
    assert verdict(paired_test(better, better)) == "not distinguishable"
    assert paired_test(better, better).p == 1
    assert verdict(paired_test([1.0], [0.0])) == "not distinguishable"


def test_means_must_be_paired():
    with pytest.raises(ValueError, match="one shape"):
        paired_test([1.0, 0.0], [1.0])
    with pytest.raises(ValueError, match="one shape"):
        paired_test([], [])


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


def test_weights_of_one_change_nothing_and_others_count():
    rng = np.random.default_rng(5)
    a, b = rng.random(60), rng.random(60)
    plain, weighted = paired_test(a, b), paired_test(a, b, weights=np.ones(60))
    assert plain == weighted
    tokens = rng.integers(1, 30, 60).astype(float)
    test = paired_test(3 * a, 3 * b, weights=tokens)
    assert test.difference == pytest.approx((tokens * 3 * (a - b)).sum() / tokens.sum())
    far = paired_test([9.0, 8.0, 9.5], [1.0, 2.0, 1.5], weights=[1.0, 1.0, 1.0])
    assert far.high > 1  # nats have no bounds


def test_less_may_be_better():
    near = paired_test(np.full(20, 0.4), np.linspace(0.5, 0.9, 20))
    assert (verdict(near), verdict(near, less_is_better=True)) == ("b better", "a better")
    same = paired_test([0.1, 0.2], [0.2, 0.1])
    assert verdict(same, less_is_better=True) == "not distinguishable"
