"""What a report says of trainings and of the models that came of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from limbeck import ledger, store

if TYPE_CHECKING:
    from limbeck.runs import Run

Row = dict[str, Any]
PARTS = {"soft": "teacher", "hard": "answers"}  # of a mixed loss, by what they come from


def models(run: Run) -> list[Row]:
    """What each student learned from, and what that took."""
    return [
        {"name": row["stage"]}
        | {
            key: value
            for key, value in row["summary"].items()
            if key not in ("accounts", "refused")
        }
        | {key: cost[key] for key in ("cpu_seconds", "flops")}
        | {"trained_on": settings["problems" if row["verb"] == "grpo" else "data"]}
        for row in _trained(run, "sft", "distill", "grpo")
        for settings in [run.recipe["stages"][row["stage"]]]
        for cost in [ledger.total(run.path / row["stage"] / "ledger.jsonl")]
    ]


def _trained(run: Run, *verbs: str) -> list[Row]:
    """The finished stages of these verbs, in the recipe's order."""
    return [row for row in run.stages() if row["verb"] in verbs and row["state"] == "done"]


def curves(run: Run) -> list[Row]:
    """Of each training the loss, the held-out one, and the parts of a mixed one, over its steps."""
    curves = []
    for row in _trained(run, "sft", "distill"):
        metrics = store.read_jsonl(run.path / row["stage"] / "metrics.jsonl")

        def over_steps(key: str, metrics: list[Row] = metrics) -> list[tuple[int, float]]:
            points = {m["step"]: m[key] for m in metrics if key in m}  # the last word counts
            return sorted(points.items())

        curve = {"name": row["stage"], "points": over_steps("loss")}
        curve["heldout"] = over_steps("heldout_loss")
        parts = {PARTS[key]: over_steps(key) for key in PARTS}
        mixed = {name: points for name, points in parts.items() if any(y for _, y in points)}
        curves.append(curve | ({"parts": mixed} if len(mixed) > 1 else {}))
    return curves


def scales(run: Run) -> list[Row]:
    """How large the parts of each mixed loss were, at the first look and at the last."""
    return [
        {"name": row["stage"], "step": look["step"], "part": PARTS.get(part, part), **found}
        for row in run.done("distill")
        for look in row["summary"].get("loss_scales", ())
        for part, found in look.items()
        if part != "step" and len(look) > 2
    ]


def distributions(run: Run) -> list[Row]:
    """What was kept of teachers' distributions."""
    return [{"name": row["stage"], **row["summary"]} for row in run.done("score")]


def _named(run: Run) -> dict[str, str]:
    """What compare stages call the stages whose scores they hold side by side."""
    return {
        stage_of(reference): name
        for row in run.done("compare")
        for name, seeds in run.recipe["stages"][row["stage"]]["scores"].items()
        for reference in ([seeds] if isinstance(seeds, str) else seeds)
    }


def sizes(run: Run) -> list[Row]:
    """How large and how fast each model is whose likelihoods were measured."""
    names = _named(run)
    return [
        {"name": names.get(row["stage"], row["stage"]), **row["summary"]}
        for row in run.done("likelihood")
    ]


def sweep(run: Run, results: list[Row]) -> list[Row]:
    """The KL and NLL of students that differ in temperature and alpha, if both take values."""
    stages, names = run.recipe["stages"], _named(run)
    found = []
    for row in run.done("likelihood"):
        student = stages.get(stage_of(stages[row["stage"]]["model"]), {})
        if student.get("stage") == "distill" and row["stage"] in names:
            knobs = {"temperature": student.get("temperature", 2.0)}
            knobs["alpha"] = student.get("alpha", 0.5)
            found += [
                {**result, **knobs}
                for result in results
                if result["name"] == names[row["stage"]] and result["metric"] in ("kl", "nll")
            ]
    values = [{row[knob] for row in found} for knob in ("temperature", "alpha")]
    return found if min(map(len, values)) > 1 else []


def trials(run: Run) -> list[Row]:
    """Every trial of every choice: how it did, what it cost, and what set it apart.

    `settings` are those in which the trainings of a choice differ, or how fast they write where
    that chooses; `chosen` is whether it was.
    """
    stages = run.recipe["stages"]
    found = []
    for row in run.done("choose"):
        models = {n: trial["model"] for n, trial in stages[row["stage"]]["trials"].items()}
        entries = {name: stages.get(stage_of(model), {}) for name, model in models.items()}
        keys = dict.fromkeys(key for entry in entries.values() for key in entry)
        apart = [k for k in keys if len({str(e.get(k)) for e in entries.values()}) > 1]
        found += [
            {
                "stage": row["stage"],
                "model": stage_of(models[told["name"]]) or models[told["name"]],
                "settings": _speed(told) or {k: entries[told["name"]].get(k) for k in apart},
                "chosen": told["name"] == row["summary"]["chosen"],
                **told,
            }
            for told in row["summary"]["trials"]
        ]
    return found


def _speed(trial: Row) -> Row:
    return {k: round(v) for k, v in trial.items() if k == "tokens_per_second"}


def chosen(run: Run) -> dict[str, str]:
    """Of each choice the stage that trained what it chose."""
    stages = run.recipe["stages"]
    return {
        name: stage_of(stages[name]["trials"][row["summary"]["chosen"]]["model"])
        for row in run.done("choose")
        for name in [row["stage"]]
    }


def stage_of(reference: str | list[str]) -> str:
    """The stage that `./stage/output` names, the first of several, or nothing."""
    if isinstance(reference, list):
        return stage_of(reference[0])
    return reference[2:].partition("/")[0] if reference.startswith("./") else ""
