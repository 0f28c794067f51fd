"""compare: the results table, paired tests between models on the same problems, and budgets.

A model that was trained with several seeds is one row: its samples of a problem are those of all
seeds together, and what each seed reached stands beside.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from limbeck import ledger, metrics, store, tables
from limbeck.config import ModelPath, ScoresPath, StageConfig, TracesPath
from limbeck.errors import UserError
from limbeck.folder import StageFolder

WRITES = {"results": "results"}
EXTENDS = True
COSTS = ("prompt_tokens", "completion_tokens", "flops")


class Arm(StageConfig):
    """What an arm of a comparison has cost."""

    models: Annotated[list[ModelPath], Field(min_length=1)]
    """Its trainings, one after another."""
    traces: list[TracesPath] = []
    """What a teacher wrote for it."""


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
    budgets: dict[str, Arm] = {}
    """Arms whose cost is to be held side by side; a share is that of the first."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for pair in self.pairs:
            if len(pair) != 2 or not {*pair} <= self.scores.keys():
                names = ", ".join(self.scores)
                raise ValueError(f"pairs: {pair} is no pair of {names}; name two of them")
        return self


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `results/results.json` with results, families, tests and budgets."""
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
    with out.account("compare"):
        comparison = {
            "results": with_seeds(table(scores, ("split", "metric")), seeds),
            "families": table(scores, ("split", "metric", "domain")),
            "tests": [
                row
                for metric in chosen
                for pair in config.pairs
                for row in tests(scores, pair, metric)
            ],
            "budgets": budgets(config.budgets),
        }
        store.write_json(out.path / "results" / "results.json", comparison)
    return {}


def _several(paths: str | list[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else paths


def pooled(runs: list[list[dict[str, Any]]], name: str) -> list[dict[str, Any]]:
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
            **{column: sum(rows[key][column] for rows in keyed) for column in summed},
            "value": sum(metrics.value_of(rows[key]) for rows in keyed) / len(keyed),
        }
        for key, first in keyed[0].items()
    ]


def with_seeds(
    results: list[dict[str, Any]], seeds: Mapping[str, list[list[dict[str, Any]]]]
) -> list[dict[str, Any]]:
    """The results, each with what every seed alone has reached, if there were several."""
    told = []
    for result in results:
        runs = seeds[result["name"]]
        if len(runs) > 1 and result["metric"] != "perplexity":
            same = ("split", "metric")
            alone = [
                [row for row in rows if all(row[k] == result[k] for k in same)] for rows in runs
            ]
            result = {**result, "seeds": [metrics.result(rows)["value"] for rows in alone]}
        told.append(result)
    return told


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
    return int(store.read_sealed(Path(traces).parent / "stage.json")["summary"]["paid_tokens"])


def table(scores: dict[str, list[dict[str, Any]]], by: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row per model and group of problems."""
    return [
        {"name": name, **row}
        for name, problems in scores.items()
        for row in metrics.summarise(problems, by)
    ]


def tests(
    scores: dict[str, list[dict[str, Any]]], pair: list[str], metric: str
) -> list[dict[str, Any]]:
    """A paired test per split, by problem; of nats per token, where a problem has its tokens."""
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
        rows.append(about | _test(a, b, metric, pair))
    return rows


def _test(
    a: list[dict[str, Any]], b: list[dict[str, Any]], metric: str, pair: list[str]
) -> dict[str, Any]:
    """The paired test of score rows of the same problems in the same order."""
    unit, (left, right) = metrics.unit_of(metric), ([*map(metrics.value_of, s)] for s in (a, b))
    weights = [metrics.weight_of(row) for row in a]
    if weights != [metrics.weight_of(row) for row in b]:
        what = f"{pair} cut the same texts into other tokens, so nats per token do not compare"
        raise UserError("compare.metric", what, "test what they answer: greedy, f1 or pass_at_1")
    test = metrics.paired_test(left, right, weights=weights if unit else None)
    return {
        "difference": test.difference,
        "low": test.low,
        "high": test.high,
        "p": test.p,
        "verdict": metrics.verdict(test, less_is_better=unit == "nats"),
        **({"unit": unit} if unit else {}),
    }
