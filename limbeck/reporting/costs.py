"""What a unit came to: an accepted trace, a point of accuracy, a right answer.

A stage counts whole wherever it was needed, if it served others, too; `stages` names all that a
number adds up.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from limbeck import ledger, store
from limbeck.reporting.frontier import frontier
from limbeck.reporting.lineage import asked, evaluations, maker, upstream, weights
from limbeck.reporting.training import stage_of

if TYPE_CHECKING:
    from limbeck.runs import Run

Row = dict[str, Any]
SPENT = ("cpu_seconds", "device_seconds", "tokens_in", "tokens_out", "flops", "joules", "money")
FIGURES = (
    ("cpu_seconds", "CPU s"),
    ("device_seconds", "device s"),
    ("tokens", "tokens"),
    ("seconds", "s"),
    ("flops", "FLOPs"),
    ("joules", "J"),
    ("money", "of money"),
)
OWN = "its own making"
TRAINING = ("sft", "distill", "grpo")


def costs(run: Run) -> dict[str, list[Row]]:
    """Rows by kind; what a ledger does not tell is None."""
    found = frontier(run)
    return {
        "per_accepted_trace": list(per_accepted_trace(run)),
        "per_point": list(per_point(run, found)),
        "per_correct_answer": [per_correct_answer(row) for row in found],
    }


def per_accepted_trace(run: Run) -> Iterator[Row]:
    """Per curation all that its traces took, the dropped ones among them, over those kept."""
    for row in run.done("curate"):
        num = row["summary"]["kept"]
        for about in _spent(run, [row["stage"]], num):
            yield {"name": row["stage"], "num_accepted": num, **about}


def per_point(run: Run, models: Sequence[Row]) -> Iterator[Row]:
    """Per trained model what its training and data took, over the points that it gained by them.

    Of several seeds the mean. None where nothing was clearly gained: the paired test does not tell
    it from chance or, without one, the intervals of the two scores overlap.
    """
    stages, tests = evaluations(run), run.compared()["tests"]
    found = {(row["name"], row["split"], row["metric"]): row for row in models}
    for (name, split, metric), row in found.items():
        start = _start(run, stages, name, split)
        began = found.get((start or "", split, metric))
        if began is None:
            continue
        points = 100 * (row["value"] - began["value"])
        told = {"name": name, "split": split, "metric": metric, "start": start, "points": points}
        told |= _tested(told, tests)
        is_clear = told["low"] > 0 if "low" in told else row["low"] > began["high"]
        trained = [stage_of(asked(run, stage)[0]) for stage in stages[name, split]]
        for about in _spent(run, trained, is_clear * points * len(trained)):
            yield {**told, "is_clear": is_clear, **about}


def per_correct_answer(row: Row) -> Row:
    """Of one model while it serves: what its answers take, over the share that is right."""
    tokens, right = row["tokens_per_answer"], row["value"]
    return {
        **{key: row[key] for key in ("name", "split", "metric")},
        "tokens_per_answer": tokens,
        "tokens": tokens / right if right > 0 else None,
        "flops": row["flops_per_correct"],
        "seconds": row["seconds_per_correct"],
        "money": row["money_per_correct"],
        "num_at_once": row["num_at_once"],
        "stages": row["stages"],
    }


def _spent(run: Run, roots: Sequence[str], num: float) -> Iterator[Row]:
    """What each of `num` units took: alone, and with the models behind them if there are any."""
    before: list[str] = []
    for through_models in (False, True):
        found = [upstream(run, root, through_models) for root in roots]
        names = [name for name in run.recipe["stages"] if any(name in of for of in found)]
        if names == before:
            return
        counted = _counted(run, names, before) if through_models else OWN
        before = names
        rows = [row for of in found for name in of for row in _ledger(run, name)]
        total = ledger.summed(rows)
        each = {key: None if total[key] is None or not num else total[key] / num for key in SPENT}
        yield {"counted": counted, **each, "stages": names}


def _counted(run: Run, names: Sequence[str], before: Sequence[str]) -> str:
    """What is counted on top: the trained models that stages began with or asked."""
    stages = run.recipe["stages"]
    behind = [name for name in names if name not in before]
    trained = [name for name in behind if stages[name]["stage"] in TRAINING]
    return f"with the making of {', '.join(trained or behind)}"


def _ledger(run: Run, stage: str) -> list[Row]:
    return store.read_jsonl(run.path / stage / "ledger.jsonl")


def _start(run: Run, stages: dict[tuple[str, str], list[str]], name: str, split: str) -> str | None:
    """The name in the table of what a trained model began as, where it was asked the same way."""
    way = _way(run, stages[name, split])
    model, _ = asked(run, stages[name, split][0])
    settings = run.recipe["stages"].get(maker(run, model), {})
    if settings.get("stage") not in ("sft", "distill", "grpo"):
        return None
    began = weights(run, settings["model"])
    others = (
        (other, asked(run, seeds[0])[0])
        for (other, where), seeds in stages.items()
        if other != name and where == split and _way(run, seeds) == way
    )
    return next((other for other, model in others if weights(run, model) == began), None)


def _way(run: Run, evaluation: Sequence[str]) -> Any:
    """The prompting, whose worth is not that of a training."""
    return run.recipe["stages"][evaluation[0]].get("prompting")


def _tested(told: Row, tests: Sequence[Row]) -> Row:
    """Between how many points the gain lies, by the paired test, if there was one."""
    pair = {"a": told["name"], "b": told["start"], "split": told["split"]}
    pair |= {"metric": told["metric"]}
    for test in tests:
        if pair.items() <= test.items():
            return {"low": 100 * test["low"], "high": 100 * test["high"]}
    return {}


# -- for a terminal -----------------------------------------------------------------------------


def in_words(found: dict[str, list[Row]]) -> Iterator[str]:
    """A line for each unit of which anything is known, without the models behind it."""
    for name, unit, row in _units(found):
        if not row.get("is_clear", True):
            yield f"{name:<20} {unit}"
        elif figures := _figures(row):
            yield f"{name:<20} {unit}: {figures}"


def _units(found: dict[str, list[Row]]) -> Iterator[tuple[str, str, Row]]:
    """Whose, what of, and the row that says what it took."""
    for row in _own(found["per_accepted_trace"]):
        yield row["name"], "a kept trace", row
    for row in _own(found["per_point"]):
        ends = f", {row['low']:.1f} to {row['high']:.1f}" if "low" in row else ""
        won = "a point of accuracy" if row["is_clear"] else "no clear gain"
        told = f"({row['points']:.1f} over {row['start']}{ends})"
        yield row["name"], f"{won} on {row['split']} {told}", row
    for row in found["per_correct_answer"]:
        yield row["name"], f"a right answer on {row['split']}", row


def _own(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["counted"] == OWN]


def _figures(row: Row) -> str:
    told = ((key, row.get(key), unit) for key, unit in FIGURES)
    return ", ".join(f"{amount(value, key)} {unit}" for key, value, unit in told if value)


def amount(value: float, key: str) -> str:
    """A number in about three digits, as long ones are read: 0.00942, 12.5, 48,210, 1.2e+12."""
    form = ".1e" if key == "flops" else ",.0f" if value >= 1000 or key == "tokens" else ".3g"
    return f"{value:{form}}"
