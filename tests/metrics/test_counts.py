"""pass@k and cons@k against every draw."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limbeck.metrics import cons_at_k, pass_at_k


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


def voted(votes: list[int | None], correct: list[bool], k: int) -> float:
    """cons@k by going through every draw."""
    right = {
        of: np.mean([c for v, c in zip(votes, correct, strict=True) if v == of]) for of in votes
    }
    credits = []
    for draw in combinations(votes, k):
        counts = Counter(vote for vote in draw if vote is not None)
        tied = [vote for vote, count in counts.items() if count == max(counts.values())]
        credits.append(np.mean([right[vote] for vote in tied]) if tied else 0.0)
    return float(np.mean(credits))


@given(
    st.lists(st.tuples(st.sampled_from([None, 0, 1, 2, 3]), st.booleans()), min_size=1, max_size=8)
)
def test_cons_at_k_counts_all_draws(answers):
    votes, correct = (list(of) for of in zip(*answers, strict=True))
    for k in range(1, len(votes) + 1):
        assert cons_at_k(votes, correct, k) == pytest.approx(voted(votes, correct, k), abs=1e-12)


def test_cons_at_k_of_all_samples_is_who_wins():
    votes = [7] * 5 + [3] * 4 + [None] * 55
    assert cons_at_k(votes, [True] * 5 + [False] * 59, 64) == 1
    assert cons_at_k(votes, [False] * 5 + [True] * 4 + [False] * 55, 64) == 0


def test_a_tie_is_shared_and_silence_is_wrong():
    assert cons_at_k([0, 0, 1, 1, 2, None], [True] * 2 + [False] * 4, 6) == 0.5
    assert cons_at_k([0, 1, 2, 3], [True, False, False, True], 4) == 0.5
    assert cons_at_k([None, None], [False, False], 2) == 0
    assert cons_at_k([0, None, None], [True, False, False], 1) == pytest.approx(1 / 3)


def test_one_vote_is_pass_at_1_and_many_votes_help_the_majority():
    rng = np.random.default_rng(0)
    votes = [0] * 30 + rng.integers(1, 40, 34).tolist()
    correct = [vote == 0 for vote in votes]
    reached = [cons_at_k(votes, correct, k) for k in (1, 4, 16, 64)]
    assert reached[0] == pytest.approx(30 / 64) and reached == sorted(reached)
    assert reached[-1] == 1


def test_votes_without_verdicts_are_refused():
    for votes, correct, k in [([0], [True, False], 1), ([0], [True], 2), ([0], [True], 0)]:
        with pytest.raises(ValueError, match="cons@"):
            cons_at_k(votes, correct, k)
