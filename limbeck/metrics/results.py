"""From score rows, one a problem, to result rows: a value, its interval and what it cost.

A metric is a share, 0 to 1, the more the better; but those of `NATS` are nats per token, the fewer
the better, where a problem counts by its tokens; `rating` is on the scale of contests; and rewards
that know no bounds have their own unit, the more the better.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from limbeck.metrics import elo
from limbeck.metrics.counts import pass_at_k
from limbeck.metrics.intervals import interval, mean_interval

NATS = ("nll", "kl")
RATING = "rating"
SHARES = (  # and pass_at_k, cons_at_k
    "pass_at_1",
    "greedy",
    "f1",
    "correct",
    "format",
    "language",
    "prompt_strict",
    "prompt_loose",
    "instruction_strict",
    "instruction_loose",
)
RERUN = 1.959964 * math.sqrt(2)  # standard errors, 95 %: both runs have theirs


def unit_of(metric: str) -> str | None:
    """The unit of a metric that is no share: "nats", "rating", or "reward" of one unknown here."""
    if metric in NATS:
        return "nats"
    if metric == RATING:
        return "rating"
    return None if metric in SHARES or re.fullmatch(r"(pass|cons)_at_\d+", metric) else "reward"


def value_of(row: Mapping[str, Any]) -> float:
    """A score row's own: the share of its samples that are right, if it says nothing else."""
    value = row.get("value")
    return row["num_correct"] / row["num_samples"] if value is None else value


def weight_of(row: Mapping[str, Any]) -> float:
    """What a score row counts among others; of a rating, the difficulty of its problem."""
    return 1.0 if row.get("weight") is None else row["weight"]


def noise_of(row: Mapping[str, Any]) -> float | None:
    """The variance of a score row's value by the chance of sampling, on this very problem.

    That of as many samples drawn again, each right as often as these were, n / (n - 1) times: so
    that of pass@1 is without bias. None where one cannot know it: of a single sample, and of what
    does not follow from the number of right ones.
    """
    pass_at = re.fullmatch(r"pass_at_(\d+)", row["metric"])
    if pass_at is None or row["num_samples"] < 2:
        return None
    return _noise(row["num_samples"], row["num_correct"], int(pass_at[1]))


@cache
def _noise(num_samples: int, num_correct: int, k: int) -> float:
    if num_correct in (0, num_samples):
        return 0.0
    share, counts = num_correct / num_samples, np.arange(num_samples + 1)
    logs = np.cumsum([0.0, *np.log((num_samples - counts[:-1]) / counts[1:])])  # of the binomials
    chances = np.exp(logs + counts * math.log(share) + counts[::-1] * math.log1p(-share))
    values = np.array([pass_at_k(num_samples, count, k) for count in range(num_samples + 1)])
    mean = chances @ values
    return float(chances @ (values - mean) ** 2) * num_samples / (num_samples - 1)


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
    """The value of a group of score rows, one a problem, with its 95 % interval and what it cost.

    `rerun` is by how much it would move, in 95 % of cases, if the same model were sampled again on
    these very problems; None where one cannot know. `failed`, `truncated`, `unparsed` and
    `timed_out` are shares of the answers, None where an old table does not tell; `cost` is FLOPs
    per answer, prompt included. What is no share says its `unit`.
    """
    answers = sum(row["num_samples"] for row in scores)
    return {
        **_value(scores),
        "rerun": _rerun(scores),
        "num_problems": len(scores),
        "num_samples": max(row["num_samples"] for row in scores),
        "tokens_per_answer": sum(row["completion_tokens"] for row in scores) / answers,
        "failed": _share(scores, "num_failed", answers),
        "truncated": _share(scores, "num_truncated", answers),
        "unparsed": _share(scores, "num_unparsed", answers),
        "timed_out": _share(scores, "num_timeout", answers),
        "cost": sum(row["flops"] for row in scores) / answers,
    }


def _value(scores: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """{value, low, high}, and a `unit` where it is no share.

    A rating also has its `percentile` among contestants, where that is known, and `at_end`, where
    it is none of the scale.
    """
    metric = scores[0]["metric"]
    unit = unit_of(metric)
    values, weights = [*map(value_of, scores)], [*map(weight_of, scores)]
    low: float | None
    high: float | None
    if unit == "rating":
        found = elo.rating(weights, values)
        place = elo.among_contestants(found.value)
        more = {"percentile": place} if place is not None else {}
        more |= {"at_end": True} if found.at_end else {}
        return {"value": found.value, "low": found.low, "high": found.high, "unit": unit, **more}
    if unit:
        value, low, high = mean_interval(values, weights)
        return {"value": value, "low": low, "high": high, "unit": unit}
    value = float(np.average(values, weights=weights))
    low, high = interval(values, weights=weights)
    return {"value": value, "low": low, "high": high}


def _rerun(scores: Sequence[Mapping[str, Any]]) -> float | None:
    noises = [noise_of(row) for row in scores]
    known = [noise for noise in noises if noise is not None]
    return RERUN * math.sqrt(sum(known)) / len(scores) if len(known) == len(scores) else None


def _share(scores: Sequence[Mapping[str, Any]], column: str, answers: int) -> float | None:
    """Of the answers; None where a table does not tell."""
    counts = [row.get(column) for row in scores]
    known = [count for count in counts if count is not None]
    return sum(known) / answers if len(known) == len(scores) else None
