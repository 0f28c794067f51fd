"""compare: the results table, and paired tests between models on the same problems."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from limbeck import metrics, store, tables
from limbeck.config import ScoresPath, StageConfig
from limbeck.errors import UserError
from limbeck.folder import StageFolder

Metric = Literal["pass_at_1", "greedy", "f1", "nll", "kl"]

WRITES = {"results": "results"}
EXTENDS = True


class Config(StageConfig):
    scores: Annotated[dict[str, ScoresPath], Field(min_length=1)]
    """Evaluations by the name that they shall have in the table."""
    pairs: list[list[str]] = []
    """Which two to test against each other, on the same problems: `[[distilled, start]]`."""
    metric: Metric | list[Metric] = "pass_at_1"
    """What the tests compare; several are tested one after another."""

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
    chosen = config.metric if isinstance(config.metric, list) else [config.metric]
    with out.account("compare"):
        comparison = {
            "results": table(scores, ("split", "metric")),
            "families": table(scores, ("split", "metric", "domain")),
            "tests": [
                row
                for metric in chosen
                for pair in config.pairs
                for row in tests(scores, pair, metric)
            ],
        }
        store.write_json(out.path / "results" / "results.json", comparison)
    return {}


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
    in_nats, (left, right) = metric in metrics.NATS, ([*map(metrics.value_of, s)] for s in (a, b))
    weights = [metrics.weight_of(row) for row in a]
    if weights != [metrics.weight_of(row) for row in b]:
        what = f"{pair} cut the same texts into other tokens, so nats per token do not compare"
        raise UserError("compare.metric", what, "test what they answer: greedy, f1 or pass_at_1")
    test = metrics.paired_test(left, right, weights=weights if in_nats else None)
    return {
        "difference": test.difference,
        "low": test.low,
        "high": test.high,
        "p": test.p,
        "verdict": metrics.verdict(test, less_is_better=in_nats),
        **({"unit": "nats"} if in_nats else {}),
    }
