"""Result rows: values with what stands beside them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from limbeck.metrics import elo, noise_of, pass_at_k, result, summarise, unit_of


def score(num_correct: int, num_samples: int = 8, metric: str = "pass_at_1", **more: Any) -> dict:
    return {
        "metric": metric, "num_samples": num_samples, "num_correct": num_correct,
        "num_failed": 1, "num_truncated": 2, "num_unparsed": 3, "num_timeout": 1,
        "completion_tokens": 80, "flops": 16.0, "value": num_correct / num_samples,
        "weight": 1.0, **more,
    }  # fmt: skip


def test_a_result_says_what_became_of_the_answers():
    row = result([score(4), score(8)])
    assert row["value"] == 0.75 and 0 < row["low"] < 0.75 < row["high"] < 1
    assert [row[key] for key in ("failed", "truncated", "unparsed", "timed_out")] == [
        1 / 8, 2 / 8, 3 / 8, 1 / 8
    ]  # fmt: skip
    assert (row["tokens_per_answer"], row["cost"], row["num_problems"]) == (10, 2, 2)


def test_old_tables_do_not_tell_what_was_unparsed():
    old = {key: of for key, of in score(4).items() if key not in ("num_unparsed", "num_timeout")}
    assert result([old])["unparsed"] is None
    assert result([score(4), score(4) | {"num_timeout": None}])["timed_out"] is None


def test_metrics_have_units():
    shares = ["pass_at_1", "pass_at_64", "cons_at_64", "greedy", "instruction_loose"]
    assert [unit_of(metric) for metric in shares] == [None] * 5
    assert [unit_of(metric) for metric in ("nll", "rating", "my_own")] == [
        "nats",
        "rating",
        "reward",
    ]


def test_noise_is_that_of_a_binomial_without_bias():
    assert noise_of(score(2, 8)) == pytest.approx(0.25 * 0.75 / 7)
    assert (noise_of(score(0)), noise_of(score(8))) == (0, 0)
    assert noise_of(score(1, 1)) is None and noise_of(score(4, metric="greedy")) is None
    drawn = np.random.default_rng(0).binomial(8, 0.25, 20_000)
    values = [pass_at_k(8, count, 4) for count in drawn]
    assert noise_of(score(2, 8, "pass_at_4")) == pytest.approx(np.var(values) * 8 / 7, rel=0.03)
    assert noise_of(score(1500, 3000)) == pytest.approx(0.25 / 2999)


@pytest.mark.parametrize(
    ("metric", "num_samples"), [("pass_at_1", 4), ("pass_at_1", 16), ("pass_at_4", 16)]
)
def test_a_rerun_moves_by_less_than_it_says_in_95_of_100(metric, num_samples):
    rng, hits = np.random.default_rng(0), 0
    rates, k = rng.beta(1, 1, 60), int(metric[-1])
    for _ in range(400):
        runs = [
            result(
                [score(c, num_samples, metric, value=pass_at_k(num_samples, c, k)) for c in counts]
            )
            for counts in rng.binomial(num_samples, rates, (2, 60))
        ]
        hits += abs(runs[0]["value"] - runs[1]["value"]) <= runs[0]["rerun"]
        assert runs[0]["rerun"] < runs[0]["high"] - runs[0]["low"]
    assert 0.92 < hits / 400 < 0.975


def test_of_what_is_unknown_no_rerun_is_told():
    assert result([score(1, 1, "greedy")])["rerun"] is None
    assert result([score(1, 1), score(0, 1)])["rerun"] is None
    assert result([score(4, metric="cons_at_4")])["rerun"] is None


def test_instructions_count_one_by_one():
    rows = [score(0, 1, "instruction_strict", value=v, weight=w) for v, w in ((1, 1), (0.5, 2))]
    assert result(rows)["value"] == pytest.approx(2 / 3) and "unit" not in result(rows)


def test_a_rating_is_that_of_its_problems():
    rows = [score(n, 16, "rating", weight=float(d)) for n, d in ((15, 800), (9, 1500), (1, 2300))]
    found, expected = result(rows), elo.rating([800, 1500, 2300], [15 / 16, 9 / 16, 1 / 16])
    assert (found["value"], found["low"], found["high"]) == (
        expected.value, expected.low, expected.high
    )  # fmt: skip
    assert found["unit"] == "rating" and "at_end" not in found
    assert found["percentile"] == elo.among_contestants(found["value"])
    assert result([score(8, metric="rating", weight=1500.0)])["at_end"]


def test_perplexity_follows_from_nats():
    rows = [score(0, metric="nll", value=v, weight=3.0) for v in (1.0, 2.0)]
    nats, perplexity = summarise(rows, ("metric",))
    assert perplexity["value"] == pytest.approx(np.exp(1.5)) and nats["unit"] == "nats"
