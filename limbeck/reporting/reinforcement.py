"""What a report says of reinforcement learning: its curves, its faults, what there was to gain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limbeck import store
from limbeck.reporting.training import chosen
from limbeck.train.diagnosis import diagnose
from limbeck.train.story import flat

if TYPE_CHECKING:
    from limbeck.runs import Run

Row = dict[str, Any]
Points = list[tuple[int, float]]
Rates = dict[str, dict[str, float]]  # how often a model is right, by split and by way of asking


def learning(run: Run) -> list[Row]:
    """Of each grpo stage its `curves`, `findings` and the `gain` that was within reach."""
    found, rates = [], evaluated(run)
    for row in run.done("grpo"):
        metrics = store.read_jsonl(run.path / row["stage"] / "metrics.jsonl")
        findings = [finding._asdict() for finding in diagnose(metrics)]
        told = {"name": row["stage"], "findings": findings, "curves": curves(metrics)}
        base = run.recipe["stages"][row["stage"]]["model"]
        before, after = rates.get(base, {}), rates.get(f"./{row['stage']}/model", {})
        found.append(told | {"gain": gain(before, after)})
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


def gain(before: Rates, after: Rates) -> list[Row]:
    """Per split how often the base is right, at best, and how often its policy is.

    The best is its greedy answer, or one among k samples: what lies within reach of whoever learns
    from his own samples. From the evaluations of both models, where there are any.
    """
    rows = []
    for split, metrics in before.items():
        if "pass_at_1" not in metrics or len(metrics) < 2:
            continue
        reach = max(value for name, value in metrics.items() if name != "pass_at_1")
        row = {"split": split, **metrics, "reach": reach - metrics["pass_at_1"]}
        now = after.get(split, {})
        rows.append(row | {"after": now} if now else row)
    return rows


def evaluated(run: Run) -> dict[str, Rates]:
    """Of each model that was evaluated; what a choice took goes by the name of its training."""
    models = {f"./{choice}/model": f"./{stage}/model" for choice, stage in chosen(run).items()}
    found: dict[str, Rates] = {}
    for row in run.done("evaluate"):
        engine = run.recipe["stages"][row["stage"]]["engine"]
        model = engine.get("model", "") if isinstance(engine, dict) else ""
        rates = found.setdefault(models.get(model, model), {})
        for result in row["summary"]["results"]:
            metric = result["metric"]
            if metric == "greedy" or metric.startswith("pass_at_"):
                rates.setdefault(result["split"], {}).setdefault(metric, result["value"])
    return found
