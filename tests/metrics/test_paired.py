"""Paired tests against scipy and by simulation: how often they err, and what they find."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from limbeck.metrics import change, interval, needed, paired_test, seeds_test, verdict


@pytest.mark.parametrize("num", [2, 3, 4, 5, 12])
def test_seeds_are_tested_as_by_student(num):
    differences = np.random.default_rng(num).normal(0.05, 0.04, num)
    test, theirs = seeds_test(differences), stats.ttest_1samp(differences, 0)
    bounds = theirs.confidence_interval()
    assert test.p == pytest.approx(theirs.pvalue, rel=1e-6)
    assert test.high == pytest.approx(bounds.high, rel=0.02)
    assert seeds_test([0.1, -0.3], most=0.5).low == -0.5
    assert (seeds_test([0.2, 0.2]).p, seeds_test([0.0, 0.0]).p) == (0, 1)


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


def answered(rng: np.random.Generator, num: int, ahead: float, samples: int) -> np.ndarray:
    """Shares (2, num) of two models, the first `ahead` on average, and better at other problems."""
    ability = rng.normal(0.5, 0.15, num) + np.array([[ahead / 2], [-ahead / 2]])
    ability = ability + rng.normal(0, 0.05, (2, num))
    return rng.binomial(samples, np.clip(ability, 0, 1)) / samples


def found(num: int, ahead: float, samples: int, times: int) -> float:
    """How often two models are told apart at 5 %."""
    rng = np.random.default_rng([num, samples])
    pairs = [answered(rng, num, ahead, samples) for _ in range(times)]
    ps = [paired_test(a, b, seed=n, num_permutations=399).p for n, (a, b) in enumerate(pairs)]
    return float(np.mean([p <= 0.05 for p in ps]))


@pytest.mark.parametrize(
    ("num", "samples", "least"), [(12, 1, 0.005), (40, 1, 0.02), (40, 8, 0.03), (200, 4, 0.038)]
)
def test_equal_models_are_called_different_one_time_in_twenty(num, samples, least):
    """Or less often: where few answers differ, or all by the same steps, p leaps past 5 %."""
    assert least < found(num, 0.0, samples, 2000) < 0.062


def test_unlike_models_are_told_apart_as_often_as_theory_says():
    """In 80 % of cases where it is 2.8 standard errors, or a little less: see above."""
    rng = np.random.default_rng(9)
    error = answered(rng, 20_000, 0.05, 16)
    size = 2.8016 * (error[0] - error[1]).std() / np.sqrt(100)
    assert 0.73 < found(100, float(size), 16, 1000) < 0.84


def rows(shares: np.ndarray, samples: int, metric: str = "pass_at_1") -> list[dict[str, Any]]:
    return [
        {
            "metric": metric,
            "num_samples": samples,
            "num_correct": round(share * samples),
            "value": share,
        }
        for share in shares
    ]


def pilots(num: int, ahead: float, samples: int) -> list[dict[str, int | None]]:
    """What is needed by evaluations that happen to see the difference as large as it is."""
    rng, told = np.random.default_rng(0), []
    for _ in range(41):
        a, b = answered(rng, num, ahead, samples)
        a_rows, b_rows = rows(a, samples), rows(b, samples)
        for row in b_rows:
            row["value"] += (a - b).mean() - ahead
        told.append(needed(a_rows, b_rows))
    return told


def test_as_many_problems_as_are_needed_find_the_difference_in_four_cases_of_five():
    nums = [told["num_problems"] for told in pilots(300, 0.03, 4)]
    assert 0.76 < found(int(np.median(nums)), 0.03, 4, 800) < 0.85
    assert max(nums) < 1.4 * min(nums)


def test_as_many_samples_as_are_needed_find_the_difference_in_four_cases_of_five():
    """Guessed with less certainty: what problems differ in is a difference of two variances."""
    nums = [told["num_samples"] for told in pilots(300, 0.03, 8)]
    assert 0.74 < found(300, 0.03, int(np.median([num or 999 for num in nums])), 800) < 0.86


def test_where_problems_differ_too_much_no_samples_help():
    rng = np.random.default_rng(0)
    a, b = np.round(rng.random((2, 60)) * 64) / 64
    told = needed(rows(a, 64), rows(b, 64))
    assert told["num_samples"] is None and told["num_problems"] > 60
    greedy = needed(rows(np.eye(20)[0], 1, "greedy"), rows(np.zeros(20), 1, "greedy"))
    assert greedy["num_samples"] is None and greedy["num_problems"] > 20
    alike = needed(rows(a, 64), rows(a, 64))
    assert alike == {"num_problems": None, "num_samples": None}
    clear = needed(rows(np.array([0.5, 0.5, 0.625]), 64), rows(np.zeros(3), 64))
    assert clear["num_problems"] == 6, "five of a kind are not enough for p < 0.05"


def test_what_is_needed_goes_with_the_square_of_what_is_sought():
    """(1.960 + 0.842)^2 * 0.1^2 * 100 / 99 / 0.02^2 + 1.960^2 / 2 = 200.1."""
    differences, nothing = np.tile([0.12, -0.08], 50), np.zeros(100)
    near, far = (needed(rows(differences + by, 1), rows(nothing, 1)) for by in (0.0, 0.02))
    assert (near["num_problems"], far["num_problems"]) == (201, 101)


def test_an_ability_is_lost_gained_or_kept():
    before = np.linspace(0.2, 0.8, 400)
    noise = np.random.default_rng(0).normal(0, 0.05, 400)
    noise -= noise.mean()
    told = [change(paired_test(before + by + noise, before), 0.02) for by in (-0.05, 0.05, 0.001)]
    assert told == ["lost", "gained", "kept"]
    unsure = paired_test(before[:20] + 6 * noise[:20], before[:20])
    assert change(unsure, 0.02) == "not distinguishable"
    nats = paired_test(before + 0.05 + noise, before, weights=np.ones(400))
    assert change(nats, 0.02, less_is_better=True) == "lost"
    same = paired_test(before + 0.001 + noise, before, weights=np.ones(400))
    assert change(same, 0.02, less_is_better=True) == "kept"
    assert change(same, 0.001, less_is_better=True) == "not distinguishable"


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


def test_weights_of_one_change_nothing_and_others_count():
    rng = np.random.default_rng(5)
    a, b = rng.random(60), rng.random(60)
    plain, weighted = paired_test(a, b), paired_test(a, b, weights=np.ones(60))
    assert plain == weighted
    tokens = rng.integers(1, 30, 60).astype(float)
    test = paired_test(3 * a, 3 * b, weights=tokens)
    assert test.difference == pytest.approx((tokens * 3 * (a - b)).sum() / tokens.sum())
    far = paired_test([9.0, 8.0, 9.5], [1.0, 2.0, 1.5], most=math.inf)
    assert far.high > 1  # nats have no bounds
    shares = paired_test([0.5, 1.0, 0.0], [0.0, 0.0, 1.0], weights=[1.0, 3.0, 3.0])
    assert (shares.low, shares.high) == (-1, 1)  # those of instructions, say, have


@pytest.mark.parametrize(("num", "found"), [(3, "not distinguishable"), (500, "kept")])
def test_problems_all_alike_do_not_vouch_for_all(num, found):
    """As Wilson's interval of none of `num`: three that nothing became of are not enough."""
    nothing, all_of_it = paired_test(np.zeros(num), np.zeros(num)), paired_test([1] * 8, [0] * 8)
    assert nothing.high == -nothing.low == pytest.approx(interval(np.zeros(num))[1], rel=1e-6)
    assert change(nothing, 0.02) == found
    assert -1 < all_of_it.low < all_of_it.high == 1


def test_less_may_be_better():
    near = paired_test(np.full(20, 0.4), np.linspace(0.5, 0.9, 20))
    assert (verdict(near), verdict(near, less_is_better=True)) == ("b better", "a better")
    same = paired_test([0.1, 0.2], [0.2, 0.1])
    assert verdict(same, less_is_better=True) == "not distinguishable"
