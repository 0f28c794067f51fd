"""compare: the results table, and paired tests between models on the same problems."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from limbeck import metrics, store, tables
from limbeck.config import ScoresPath, StageConfig
from limbeck.errors import UserError
from limbeck.folder import StageFolder

WRITES = {"results": "results"}
EXTENDS = True


class Config(StageConfig):
    scores: Annotated[dict[str, ScoresPath], Field(min_length=1)]
    """Evaluations by the name that they shall have in the table."""
    pairs: list[list[str]] = []
    """Which two to test against each other, on the same problems: `[[distilled, start]]`."""
    metric: Literal["pass_at_1", "greedy"] = "pass_at_1"
    """What the tests compare."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for pair in self.pairs:
            if len(pair) != 2 or not {*pair} <= self.scores.keys():
                names = ", ".join(self.scores)
                raise ValueError(f"pairs: {pair} is no pair of {names}; name two of them")
        return self


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `results/results.json` with results, families and tests."""
    scores = {name: tables.read_table(path).to_pylist() for name, path in config.scores.items()}
    with out.account("compare"):
        comparison = {
            "results": table(scores, ("split", "metric")),
            "families": table(scores, ("split", "metric", "domain")),
            "tests": [row for pair in config.pairs for row in tests(scores, pair, config.metric)],
        }
        store.write_json(out.path / "results" / "results.json", comparison)
    return {}


def table(scores: dict[str, list[dict[str, Any]]], by: tuple[str, ...]) -> list[dict[str, Any]]:
    """One row per model and group of problems."""
    rows = []
    for name, problems in scores.items():
        groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
        for row in problems:
            groups.setdefault(tuple(row[key] for key in by), []).append(row)
        for group, members in groups.items():
            rows.append(
                {"name": name, **dict(zip(by, group, strict=True)), **metrics.result(members)}
            )
    return rows


def tests(
    scores: dict[str, list[dict[str, Any]]], pair: list[str], metric: str
) -> list[dict[str, Any]]:
    """A paired test per split, by problem."""
    rates = [
        {
            (row["split"], row["problem_id"]): row["num_correct"] / row["num_samples"]
            for row in scores[name]
            if row["metric"] == metric
        }
        for name in pair
    ]
    if rates[0].keys() != rates[1].keys():
        raise UserError("compare.scores", f"{pair} answered other problems", "evaluate both alike")
    rows = []
    for split in dict.fromkeys(split for split, _ in rates[0]):
        same = [key for key in rates[0] if key[0] == split]
        a, b = ([side[key] for key in same] for side in rates)
        test = metrics.paired_test(a, b)
        rows.append(
            {
                "a": pair[0],
                "b": pair[1],
                "split": split,
                "metric": metric,
                "difference": test.difference,
                "low": test.low,
                "high": test.high,
                "p": test.p,
                "verdict": metrics.verdict(test),
            }
        )
    return rows
