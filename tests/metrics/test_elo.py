"""Ratings against scipy, hand-computed values and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize, stats

from limbeck.metrics import elo

DIFFICULTIES = np.array([800, 1200, 1400, 1700, 1900, 2300, 2600, 3000.0])


def chances(rating: float, difficulties: np.ndarray) -> np.ndarray:
    return 1 / (1 + 10 ** ((difficulties - rating) / 400))


def test_half_solved_is_as_good_as_its_problem():
    assert elo.rating([1500], [0.5]).value == pytest.approx(1500)
    assert elo.rating([1500], [10 / 11]).value == pytest.approx(1900)
    assert elo.rating([1200, 1600], [0.9, 0.1]).value == pytest.approx(1400)


@pytest.mark.parametrize("seed", range(4))
def test_the_rating_and_its_interval_are_those_of_the_likelihood(seed):
    share = np.random.default_rng(seed).binomial(16, chances(1800, DIFFICULTIES)) / 16

    def surprise(rating: float) -> float:
        p = chances(rating, DIFFICULTIES)
        return -float((share * np.log(p) + (1 - share) * np.log(1 - p)).sum())

    best = optimize.minimize_scalar(surprise, bounds=(0, 4000), options={"xatol": 1e-6})
    drop = stats.chi2.ppf(0.95, 1) / 2
    ends = [
        optimize.brentq(lambda at: surprise(at) - best.fun - drop, *between)
        for between in ((0, best.x), (best.x, 4000))
    ]
    found = elo.rating(DIFFICULTIES, share)
    assert found.value == pytest.approx(best.x, abs=0.01)
    assert (found.low, found.high) == pytest.approx(ends, abs=0.1)
    assert not found.at_end


def test_intervals_hold_the_rating_as_often_as_they_say():
    rng = np.random.default_rng(0)
    difficulties, hits = rng.uniform(800, 3000, 60), 0
    for _ in range(600):
        found = elo.rating(difficulties, rng.random(60) < chances(2029, difficulties))
        hits += found.low <= 2029 <= found.high
    assert 0.93 < hits / 600 < 0.975


def test_everything_or_nothing_has_one_bound():
    every, none = elo.rating([1500, 1500], [1, 1]), elo.rating([1500, 1500], [0, 0])
    assert every.at_end and (every.value, every.high) == (4000, 4000)
    assert chances(every.low, np.array([1500]))[0] ** 2 == pytest.approx(0.05)
    assert none.at_end and (none.value, none.low) == (0, 0)
    assert (1 - chances(none.high, np.array([1500]))[0]) ** 2 == pytest.approx(0.05)
    beyond = elo.rating([3900, 3900], [1.0, 0.8])
    assert beyond.at_end and beyond.value == 4000 > beyond.low


def test_a_problem_is_as_difficult_as_those_who_solve_it_half_the_time():
    for num, hand in ((5, 2000), (7, 1852), (9, 1618)):  # https://codeforces.com/blog/entry/46525
        of_ten = elo.difficulty([2000] * 10, np.arange(10) < num)
        assert int(of_ten.value + 1e-6) == hand
    rng = np.random.default_rng(0)
    ratings = rng.normal(1500, 350, 20_000)
    solved = rng.random(20_000) < 1 / (1 + 10 ** ((1900 - ratings) / 400))
    found = elo.difficulty(ratings, solved)
    assert found.low < 1900 < found.high and found.high - found.low < 40
    assert elo.difficulty([1500, 1700], [False, False]).value == 4000


def test_percentile():
    participants = [1000, 1200, 1200, 1600]
    assert elo.percentile(1200, participants) == 50
    assert elo.percentile(1700, participants) == 100
    assert elo.percentile(1100, participants) == 25


def test_models_are_placed_as_the_paper_places_them():
    assert elo.among_contestants(2029) == 96.3
    assert elo.among_contestants((1134 + 1444) / 2) == pytest.approx((58.7 + 80.4) / 2)
    assert elo.among_contestants(700) is None and elo.among_contestants(2100) is None
    assert [*elo.CONTESTANTS] == sorted(elo.CONTESTANTS, key=lambda pair: pair[1])


def test_shares_must_fit():
    with pytest.raises(ValueError, match="ratings of"):
        elo.rating([1500], [0.5, 0.5])
    with pytest.raises(ValueError, match="0 to 1"):
        elo.rating([1500], [2])
