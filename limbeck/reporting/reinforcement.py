"""What a report says of reinforcement learning: its curves, its faults, what there was to gain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limbeck import store
from limbeck.reporting.training import trained_by
from limbeck.train.diagnosis import diagnose
from limbeck.train.story import flat

if TYPE_CHECKING:
    from limbeck.runs import Run

Row = dict[str, Any]
Points = list[tuple[int, float]]


def learning(run: Run) -> list[Row]:
    """Of each grpo stage its `curves`, `findings` and the `gain` that was within reach."""
    found = []
    for row in run.done("grpo"):
        metrics = store.read_jsonl(run.path / row["stage"] / "metrics.jsonl")
        findings = [finding._asdict() for finding in diagnose(metrics)]
        told = {"name": row["stage"], "findings": findings, "curves": curves(metrics)}
        found.append(told | {"gain": gain(run, row["stage"])})
    return found


def curves(metrics: list[Row]) -> dict[str, Points]:
    """Every number of `metrics.jsonl` over its steps, those of an inner mapping as `reasons.wrong`.

    What a round says of its answers, and how far engine and trainer are apart, is told once, at
    the round's first step.
    """
    steps = {row["step"]: flat(row) for row in metrics}  # of one told twice, the last word
    found: dict[str, Points] = {}
    for step, row in sorted(steps.items()):
        before = steps.get(step - 1, {})
        is_first = row.get("round") != before.get("round")
        for name in row.keys() - {"step", "round"}:
            of_round = row[name] == before.get(name) or name.startswith("mismatch_")
            if is_first or not of_round:
                found.setdefault(name, []).append((step, row[name]))
    return {name: found[name] for name in sorted(found)}


def gain(run: Run, stage: str) -> list[Row]:
    """Per split how often the base is right, at best, and how often its policy is.

    The best is its greedy answer, or one among k samples: what lies within reach of whoever learns
    from his own samples. From the evaluations of both models, where there are any.
    """
    base = run.recipe["stages"][stage]["model"]
    before, after = _evaluated(run, base), _evaluated(run, f"./{stage}/model")
    rows = []
    for split, metrics in before.items():
        if "pass_at_1" not in metrics or len(metrics) < 2:
            continue
        reach = max(value for name, value in metrics.items() if name != "pass_at_1")
        row = {"split": split, **metrics, "reach": reach - metrics["pass_at_1"]}
        now = after.get(split, {})
        rows.append(row | {"after": now} if now else row)
    return rows


def _evaluated(run: Run, model: str) -> dict[str, dict[str, float]]:
    """How often a model is right, by split and by way of asking."""
    found: dict[str, dict[str, float]] = {}
    for row in run.done("evaluate"):
        engine = run.recipe["stages"][row["stage"]]["engine"]
        asked = engine.get("model", "") if isinstance(engine, dict) else ""
        if asked == model or (trained_by(run, asked) or asked) == trained_by(run, model):
            for result in row["summary"]["results"]:
                metric = result["metric"]
                if metric == "greedy" or metric.startswith("pass_at_"):
                    found.setdefault(result["split"], {}).setdefault(metric, result["value"])
    return found
