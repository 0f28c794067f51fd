"""What was made of what in a run: by the references of its recipe."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from limbeck.reporting.training import stage_of

if TYPE_CHECKING:
    from limbeck.runs import Run

HANDED_ON = ("adopt", "choose", "gate")  # verbs that make no model of their own
KINDS = {
    "sft": "sft",
    "distill": "distill",
    "grpo": "grpo",
    "prune": "pruned",
    "quantize": "quantized",
    "export": "exported",
    "create": "base",
}


def upstream(run: Run, stage: str, through_models: bool) -> list[str]:
    """A stage and all that it was made of, in the recipe's order.

    Unless asked for, this does not go on to the making of models that stages began with or asked:
    those of the trials of a choice or a gate, and a reward model, which were made for its sake, are
    its own.
    """
    stages = run.recipe["stages"]
    found: set[str] = set()
    left = [stage]
    while left:
        name = left.pop()
        if name in found or name not in stages:
            continue
        found.add(name)
        for reference in references(stages[name]):
            if through_models or not _is_model(run, name, reference):
                left.append(stage_of(reference))
    return [name for name in stages if name in found]


def references(settings: Any) -> Iterator[str]:
    """Every `./stage/output` in a stage's settings."""
    if isinstance(settings, str) and settings.startswith("./"):
        yield settings
    elif isinstance(settings, dict | list):
        for value in settings.values() if isinstance(settings, dict) else settings:
            yield from references(value)


def _is_model(run: Run, reader: str, reference: str) -> bool:
    """Whether a stage reads a model that was there before it."""
    stages, maker = run.recipe["stages"], stage_of(reference)
    if stages[reader]["stage"] == "gate" and reference == stages[reader]["model"]:
        return handed_on(run, reader) != reference
    if stages[reader]["stage"] in HANDED_ON or stages.get(maker, {}).get("stage") == "reward_model":
        return False
    verb = stages.get(maker, {}).get("stage", "")
    writes = importlib.import_module(f"limbeck.stages.{verb}").WRITES if verb else {}
    output = reference.removeprefix(f"./{maker}/")
    return writes.get(output) in ("model", "file")  # a file is a model for llama.cpp


def maker(run: Run, model: str) -> str:
    """The stage that made a model's weights; nothing for one from outside the run."""
    stages = run.recipe["stages"]
    while (stage := stage_of(model)) in stages:
        verb = stages[stage]["stage"]
        before = handed_on(run, stage) if verb in HANDED_ON else ""
        if not before or (verb == "adopt" and not stage_of(before)):
            return stage
        model = before
    return ""


def handed_on(run: Run, stage: str) -> str:
    """The model that a stage of `HANDED_ON` gives out as its own; nothing while nobody knows."""
    settings = run.recipe["stages"][stage]
    if settings["stage"] == "adopt":
        return str(settings["model"])
    chosen = {row["stage"]: row["summary"]["chosen"] for row in run.done(settings["stage"])}
    if stage not in chosen:
        return ""
    name = chosen[stage]
    return str(settings["model"] if name is None else settings["trials"][name]["model"])


def weights(run: Run, model: str) -> str:
    """What a model's weights go by: the stage that made them, or the name of one from outside."""
    return maker(run, model) or model


def kind(run: Run, model: str) -> str:
    """What a model is, by the verb that made it: `base` is one that begins here.

    What one from outside the run is, nobody here knows: `other`.
    """
    stage = maker(run, model)
    return KINDS.get(run.recipe["stages"][stage]["stage"], "other") if stage else "other"


def evaluations(run: Run) -> dict[tuple[str, str], list[str]]:
    """By name and split of the results' table the stages that evaluated; several are several seeds.

    Two comparisons may call evaluations of one model by one name.
    """
    named: list[tuple[str, list[str]]] = []
    for row in run.done("compare"):
        for name, scores in run.recipe["stages"][row["stage"]]["scores"].items():
            seeds = [scores] if isinstance(scores, str) else scores
            if all(stage_of(reference) for reference in seeds):  # and not of another run
                named.append((name, [stage_of(reference) for reference in seeds]))
    found: dict[tuple[str, str], list[str]] = {}
    for name, seeds in named or [(row["stage"], [row["stage"]]) for row in run.done("evaluate")]:
        for split in run.recipe["stages"][seeds[0]].get("problems", {}):
            found.setdefault((name, split), seeds)
    return found


def asked(run: Run, evaluation: str) -> tuple[str, dict[str, Any]]:
    """(the model that a stage evaluated, the knobs of its engine)."""
    settings = run.recipe["stages"].get(evaluation, {})
    engine = settings.get("engine", {})
    engine = engine if isinstance(engine, dict) else {"name": engine}
    return str(engine.get("model", engine.get("name", ""))), engine
