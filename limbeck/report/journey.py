"""The run in a few figures, and what one has to know who reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from limbeck.report import formats, sentences
from limbeck.report.words import KEPT

if TYPE_CHECKING:
    from limbeck.report.contents import Report

FEW = 0.2  # right answers of the best model, below which the page says how to read the rest


def journey(report: Report) -> list[tuple[str, str]]:
    """The run in at most five figures, each with what it counts."""
    steps: list[tuple[str, str]] = []
    if report.funnel:
        funnel = report.funnel[0]
        steps.append((formats.count(funnel["sampled"]), _written(funnel)))
        steps.append((formats.count(funnel["kept"]), _kept(funnel)))
    student = report.tests[0]["a"] if report.tests else None
    model = next((row for row in report.models if row["name"] == student), None)
    if model and model.get("num_parameters"):
        tokens = (
            f", trained on {formats.si(model.get('loss_tokens'))} tokens"
            if model.get("loss_tokens")
            else ""
        )
        steps.append((formats.si(model["num_parameters"]), f"parameters in {student}{tokens}"))
    if sentences.shares(report.results):
        split, metric = sentences.main_split(sentences.shares(report.results))
        rows = [r for r in report.results if (r["split"], r["metric"]) == (split, metric)]
        row = next((row for row in rows if row["name"] == student), None)
        if row:
            asked = "held-out problems" if sentences.is_heldout(split) else f"{split} problems"
            who = "it" if model and model.get("loss_tokens") else row["name"]
            steps.append((f"{100 * row['value']:.0f} %", f"of {asked} solved by {who}"))
    if report.machine.get("cpu_seconds"):
        cores = report.machine.get("cores")
        where = f" on {cores} core{'' if cores == 1 else 's'}" if cores else ""
        steps.append(
            (formats.seconds(report.machine["cpu_seconds"]), f"of processor time{where}, in all")
        )
    return steps


def _written(funnel: Mapping[str, Any]) -> str:
    authors = ", ".join(funnel.get("authors", ()))
    return f"answers written by {authors}" if authors else "answers sampled"


def _kept(funnel: Mapping[str, Any]) -> str:
    """What the kept ones are, by the filters that they have passed."""
    if "funnel" not in funnel:
        return "of them kept"
    names = [step["filter"] for step in funnel["funnel"]]
    words = [*dict.fromkeys(KEPT.get(name, name) for name in names)]
    if not words:
        return "of them kept: no filter was set"
    *others, last = words
    return f"of them kept: {', '.join(others)}{' and ' if others else ''}{last}"


def notes(report: Report) -> Iterator[str]:
    """What a reader has to know who looks at answers of models that are too small to give many."""
    solved = sentences.solved(report.results)
    best = max((row["value"] for row in solved), default=1.0)
    if best < FEW and len(solved) < len(report.results):
        yield (
            f"Models of this size answer few questions right, the best one {100 * best:.1f} %; what"
            " tells them apart is how close they are to the teacher (KL) and how likely they find"
            " the known answers (NLL), not how many answers they hit."
        )
