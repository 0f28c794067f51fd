"""compare: the results table, paired tests between models on the same problems, and budgets;
what a training has made a model forget, and what the paper has published beside it.

A model that was trained with several seeds is one row: its samples of a problem are those of all
seeds together, and what each seed reached stands beside.

What a test claims is of more than the problems that were asked. Of single trainings it speaks as
they are: another seed might have turned out otherwise. Where one or both of a pair have several
seeds, it speaks of the method, and a difference must be clear over problems and over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, NonNegativeFloat, model_validator

from limbeck import ledger, metrics, published, store, tables
from limbeck.config import ModelPath, ScoresPath, StageConfig, TracesPath
from limbeck.errors import UserError
from limbeck.folder import StageFolder

WRITES = {"results": "results"}
EXTENDS = True
NEEDED = ("num_problems", "num_samples")
COSTS = ("prompt_tokens", "completion_tokens", "flops")

Row = dict[str, Any]


class Arm(StageConfig):
    """What an arm of a comparison has cost."""

    models: Annotated[list[ModelPath], Field(min_length=1)]
    """Its trainings, one after another."""
    traces: list[TracesPath] = []
    """What a teacher wrote for it. It has cost all that the stage which wrote it has cost: where
    the answers are those of a `grpo`, its training, too."""


class Config(StageConfig):
    scores: Annotated[
        dict[str, ScoresPath | Annotated[list[ScoresPath], Field(min_length=1)]],
        Field(min_length=1),
    ]
    """Evaluations by the name that they shall have in the table; several are those of as many
    seeds of one training."""
    pairs: list[list[str]] = []
    """Which two to test against each other, on the same problems: `[[distilled, start]]`."""
    metric: str | Annotated[list[str], Field(min_length=1)] = "pass_at_1"
    """What the tests compare, as the scores call it; several are tested one after another."""
    forgetting: list[list[str]] = []
    """What is to be held against what it was trained from, on abilities that it was not trained
    for: `[[distilled, start]]`."""
    forgetting_margin: NonNegativeFloat = 0.02
    """How much of a metric may be lost and still count as kept: two points."""
    beside: dict[str, str] = {}
    """What the paper calls a model, by its name in the table; public names are known."""
    budgets: dict[str, Arm] = {}
    """Arms whose cost is to be held side by side; a share is that of the first."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        names = ", ".join(self.scores)
        pairs = [("pairs", pair) for pair in self.pairs]
        for key, pair in [*pairs, *(("forgetting", pair) for pair in self.forgetting)]:
            if len(pair) != 2 or not {*pair} <= self.scores.keys():
                raise ValueError(f"{key}: {pair} is no pair of {names}; name two of them")
            nums = [len(_several(self.scores[name])) for name in pair]
            if nums[0] != nums[1] and 1 not in nums:
                what = f"{key}: {pair} have {nums[0]} and {nums[1]} seeds"
                raise ValueError(f"{what}; give both as many, or one of them one")
        if unknown := [name for name in self.beside if name not in self.scores]:
            raise ValueError(f"beside: {unknown[0]} is none of {names}; name one of them")
        return self


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `results/results.json`: results, families, tests, forgetting, published, budgets."""
    seeds = {
        name: [tables.read_table(path).to_pylist() for path in _several(paths)]
        for name, paths in config.scores.items()
    }
    scores = {name: pooled(runs, name) for name, runs in seeds.items()}
    chosen = config.metric if isinstance(config.metric, list) else [config.metric]
    measured = sorted({row["metric"] for rows in scores.values() for row in rows})
    if unknown := [metric for metric in chosen if metric not in measured]:
        what = f"nothing was measured that is called {unknown[0]}"
        raise UserError("compare.metric", what, f"there is {', '.join(measured)}")

    def tested(pairs: list[list[str]]) -> list[Row]:
        each = [(metric, pair) for metric in chosen for pair in pairs]
        return [row for metric, pair in each for row in tests(scores, pair, metric, seeds)]

    with out.account("compare"):
        results = with_seeds(table(scores, ("split", "metric")), seeds)
        comparison = {
            "results": results,
            "families": table(scores, ("split", "metric", "domain")),
            "tests": tested(config.pairs),
            "forgetting": forgetting(tested(config.forgetting), config.forgetting_margin),
            "published": published.beside(results, config.beside),
            "budgets": budgets(config.budgets),
        }
        store.write_json(out.path / "results" / "results.json", comparison)
    return {}


def _several(paths: str | list[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else paths


def pooled(runs: list[list[Row]], name: str) -> list[dict[str, Any]]:
    """The score rows of several seeds as those of one model: counts add up, values are means.

    UserError where the seeds were asked different things.
    """
    if len(runs) == 1:
        return runs[0]
    keyed = [{(r["split"], r["metric"], r["problem_id"]): r for r in rows} for rows in runs]
    if any(other.keys() != keyed[0].keys() for other in keyed):
        what = f"the seeds of {name} answered other problems"
        raise UserError("compare.scores", what, "evaluate them alike")
    summed = [key for key in runs[0][0] if key.startswith("num_") or key in COSTS]
    return [
        {
            **first,
            **{column: _sum(rows[key].get(column) for rows in keyed) for column in summed},
            "value": sum(metrics.value_of(rows[key]) for rows in keyed) / len(keyed),
        }
        for key, first in keyed[0].items()
    ]


def _sum(counts: Iterable[float | None]) -> float | None:
    """None if one is: a table of before that does not tell."""
    known = [*counts]
    return None if None in known else sum(count for count in known if count is not None)


def with_seeds(
    results: list[dict[str, Any]], seeds: Mapping[str, list[list[Row]]]
) -> list[dict[str, Any]]:
    """The results, each with what every seed alone has reached, if there were several.

    Sampled again, each of them would move for itself, and their mean by less.
    """
    told = []
    for result in results:
        runs = seeds[result["name"]]
        if len(runs) > 1 and result["metric"] != "perplexity":
            alone = _alone(runs, result["split"], result["metric"])
            reruns = [row["rerun"] for row in alone if row["rerun"] is not None]
            rerun = math.hypot(*reruns) / len(runs) if len(reruns) == len(runs) else None
            result = {**result, "rerun": rerun, "seeds": [row["value"] for row in alone]}
        told.append(result)
    return told


def _alone(runs: list[list[Row]], split: str, metric: str) -> list[Row]:
    """The result of each seed alone."""
    asked = [[r for r in rows if (r["split"], r["metric"]) == (split, metric)] for rows in runs]
    return [metrics.result(rows) for rows in asked]


def budgets(arms: Mapping[str, Arm]) -> list[dict[str, Any]]:
    """What each arm has cost: FLOPs here, and tokens that were paid for.

    One rule for all: 2 FLOPs a parameter and token for what is read or written, 6 for what is
    trained on (4 where the weights are frozen). What a server wrote whose size nobody knows has
    no FLOPs; its tokens stand in a column of their own and are never made into FLOPs.
    """
    rows: list[dict[str, Any]] = []
    for name, arm in arms.items():
        own, theirs = sum(map(_flops, arm.models)), sum(map(_flops, arm.traces))
        rows.append(
            {
                "name": name,
                "flops": own,
                "flops_with_teacher": own + theirs,
                "teacher_flops": theirs,
                "paid_tokens": sum(map(_paid_tokens, arm.traces)),
            }
        )
    for row in rows:
        for column in ("flops", "flops_with_teacher"):
            row[f"share_of_{column}"] = row[column] / rows[0][column]
    return rows


def _flops(output: str) -> float:
    if (flops := ledger.flops_of(output)) is None:
        what = "is from no stage that tells its FLOPs"
        raise UserError(output, what, "count the stages that trained and sampled in this run")
    return flops


def _paid_tokens(traces: str) -> int:
    """Of answers that a training wrote, none: those are its own."""
    summary = store.read_sealed(Path(traces).parent / "stage.json")["summary"]
    return int(summary.get("paid_tokens", 0))


def table(scores: dict[str, list[Row]], by: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row per model and group of problems."""
    return [
        {"name": name, **row}
        for name, problems in scores.items()
        for row in metrics.summarise(problems, by)
    ]


def forgetting(tested: list[Row], margin: float) -> list[Row]:
    """What became of what a model could do before, by tests of after against before."""
    kept = ("split", "metric", "difference", "low", "high", "p", "unit")
    rows = []
    for row in tested:
        test = metrics.PairedTest(row["difference"], row["low"], row["high"], row["p"])
        found = metrics.change(test, margin, less_is_better=row.get("unit") == "nats")
        told = {key: row[key] for key in kept if key in row}
        rows.append({"after": row["a"], "before": row["b"], **told, "verdict": found})
    return rows


def tests(
    scores: dict[str, list[Row]],
    pair: list[str],
    metric: str,
    seeds: Mapping[str, list[list[Row]]],
) -> list[dict[str, Any]]:
    """A paired test per split, by problem; of nats per token, where a problem has its tokens.

    Where there are several seeds, a row has the difference that each of them makes in `seeds`; p
    and the interval are those over problems or over seeds, whichever tell less, and p over problems
    alone, which holds for these very trainings, is `p_of_these`. Where it tells nothing, `needed`
    says how many problems or samples would tell a difference of this size.
    """
    if metric == "rating":
        what = "ratings are not tested"
        raise UserError("compare.metric", what, "test pass_at_1, on which alone a rating rests")
    sides = [
        {(row["split"], row["problem_id"]): row for row in scores[name] if row["metric"] == metric}
        for name in pair
    ]
    if not all(sides):
        return []  # a teacher that was not held against itself, say
    if sides[0].keys() != sides[1].keys():
        raise UserError("compare.scores", f"{pair} answered other problems", "evaluate both alike")
    rows = []
    for split in dict.fromkeys(split for split, _ in sides[0]):
        same = [key for key in sides[0] if key[0] == split]
        a, b = ([side[key] for key in same] for side in sides)
        about = {"a": pair[0], "b": pair[1], "split": split, "metric": metric}
        by_seed = _by_seed([seeds[name] for name in pair], split, metric)
        rows.append(about | _test(a, b, metric, pair, by_seed))
    return rows


def _by_seed(sides: list[list[list[Row]]], split: str, metric: str) -> list[float]:
    """By how much a is ahead of b in each seed; nothing where both are single trainings.

    Seeds are matched in their order; what has but one is held against each of the other's.
    """
    means = [[row["value"] for row in _alone(runs, split, metric)] for runs in sides]
    num = max(map(len, means))
    a, b = (of * num if len(of) == 1 else of for of in means)
    return [left - right for left, right in zip(a, b, strict=True)] if num > 1 else []


def _test(
    a: list[Row], b: list[Row], metric: str, pair: list[str], by_seed: list[float]
) -> dict[str, Any]:
    """The paired test of score rows of the same problems in the same order, and of seeds."""
    unit, (left, right) = metrics.unit_of(metric), ([*map(metrics.value_of, s)] for s in (a, b))
    weights = [metrics.weight_of(row) for row in a]
    if weights != [metrics.weight_of(row) for row in b]:
        what = f"{pair} cut the same texts into other tokens, so nats per token do not compare"
        raise UserError("compare.metric", what, "test what they answer: greedy, f1 or pass_at_1")
    most = math.inf if unit else 1.0
    test = metrics.paired_test(left, right, weights=weights, most=most)
    more: Row = {"unit": unit} if unit else {}
    over_seeds = None
    if by_seed:
        more |= {"seeds": by_seed, "p_of_these": test.p}
        over_seeds = metrics.seeds_test(by_seed, most)
        wider = max(test, over_seeds, key=lambda found: found.high - found.low)
        test = replace(wider, difference=test.difference, p=max(test.p, over_seeds.p))
    verdict = metrics.verdict(test, less_is_better=unit == "nats")
    if verdict == "not distinguishable":
        only_seeds = over_seeds is not None and over_seeds.p >= 0.05  # more of them would tell
        more["needed"] = dict.fromkeys(NEEDED) if only_seeds else metrics.needed(a, b)
    return {
        "difference": test.difference,
        "low": test.low if math.isfinite(test.low) else None,  # of a single text nothing is known
        "high": test.high if math.isfinite(test.high) else None,
        "p": test.p,
        "verdict": verdict,
        **more,
    }
