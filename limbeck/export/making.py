"""How a model was made, of which data and for how much, for its card."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from limbeck.export import lineage
from limbeck.export.lineage import CHOOSES, Made
from limbeck.export.markdown import plain, table

UNKNOWN = "not stated"
HOUR = 3600.0
TOLD = {  # of the settings of stages that make a model smaller
    "sparsity": "sparsity {}",
    "pattern": "pattern {}",
    "weights": "{} weights",
    "group_size": "groups of {}",
    "activations": "{} activations",
}
SMALLER = ("prune", "quantize")
COSTS: dict[str, tuple[Callable[[Mapping[str, Any]], float], str]] = {
    # what it is of a ledger's sums, and how it is written
    "CPU hours": (lambda cost: (cost["cpu_seconds"] or 0.0) / HOUR, ".3f"),
    "accelerator hours": (lambda cost: (cost["device_seconds"] or 0.0) / HOUR, ".3f"),
    "tokens": (lambda cost: cost["tokens_in"] + cost["tokens_out"], ",.0f"),
    "FLOPs": (lambda cost: cost["flops"], ".1e"),
    "money": (lambda cost: cost["money"] or 0.0, ",.2f"),
}


@dataclass(frozen=True)
class Source:
    """Rows of one data set that come from one set of questions or texts, its licence if known, and
    the stages that read the data set."""

    name: str
    rows: int
    licence: str | None
    dataset: str = ""
    readers: list[str] = field(default_factory=list)


def steps(made: Sequence[Made]) -> str:
    """A line for each stage."""
    return "\n".join(f"- {plain(_step(stage))}" for stage in made) or "Nobody said."


def _step(stage: Made) -> str:
    """`curate` (a stage of that verb) and what it says of itself, in a line."""
    told = [
        f"{value:,} {name.removeprefix('num_').replace('_', ' ')}"
        for name, value in stage.summary.items()
        if isinstance(value, int) and not isinstance(value, bool) and value
    ]
    accounts = stage.summary.get("accounts")
    if isinstance(accounts, dict) and accounts.get("inputs"):
        told.insert(0, f"{accounts['ok']:,} of {accounts['inputs']:,}")
    named = [text for key, text in lineage.named(stage.taken) if text.startswith("./")]
    of = f", from {', '.join(dict.fromkeys(named))}" if named else ""
    verb = "" if stage.verb == stage.name else f" ({stage.verb})"
    told = [*_how(stage), *told]
    return f"**{stage.name}**{verb}{of}" + (f": {', '.join(told)}" if told else "")


def _how(stage: Made) -> list[str]:
    """The way in which a model was made smaller, or which of several was taken."""
    if stage.verb in CHOOSES:
        chosen, trials = stage.summary["chosen"], len(stage.config["trials"])
        took = "none, but what they were made from," if chosen is None else chosen
        return [f"took {took} of {trials} trials"]
    if stage.verb not in SMALLER:
        return []
    method = stage.config["method"]
    knobs = dict(method) if isinstance(method, dict) else {"name": method}
    ways = [str(knobs.pop("name")), *(f"{key} {value}".lower() for key, value in knobs.items())]
    said = {key: stage.config.get(key) for key in TOLD}
    return [" with ".join(ways[:2]), *ways[2:]] + [
        TOLD[key].format(value) for key, value in said.items() if value is not None
    ]


def data(sources: Sequence[Source]) -> list[str]:
    """The data sets that it, or who taught it, learned from."""
    if not sources:
        return ["## Data", f"What it learned from is {UNKNOWN}."]
    heads = ["data set", "rows", "source", "licence", "read by"]
    rows = [
        (of.dataset or UNKNOWN, f"{of.rows:,}", of.name, of.licence or UNKNOWN, _listed(of.readers))
        for of in sources
    ]
    words = (
        "Each data set is counted once and whole, however often its rows were read, and by "
        "however many stages. These may have made a teacher or a tokenizer: see above."
    )
    return ["## Data", table(heads, rows), words]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or UNKNOWN


def costs(made: Sequence[Made], tried: lineage.Tried) -> list[str]:
    """What its stages took, each and together, and apart what was tried and not taken; a column
    that nobody has anything to say in is left out."""
    each = [(stage.name, stage.cost()) for stage in made]
    told = [
        (head, [_amount(head, value(cost)) for _, cost in each], _amount(head, total))
        for head, (value, _) in COSTS.items()
        if (total := sum(value(cost) for _, cost in each))
    ]
    if not told:
        return ["## What it cost", *_search(tried)] if tried.stages else []
    rows = [(name, *(cells[i] for _, cells, _ in told)) for i, (name, _) in enumerate(each)]
    rows.append(("**all**", *(total for _, _, total in told)))
    words = [] if any(head == "money" for head, _, _ in told) else [f"In money: {UNKNOWN}."]
    heads = ["stage", *(head for head, _, _ in told)]
    return ["## What it cost", table(heads, rows), *_search(tried), *words]


def _search(tried: lineage.Tried) -> list[str]:
    """What choosing took: the models that were not taken, and all that was measured for it."""
    if not tried.stages:
        return []
    sums = [stage.cost() for stage in tried.stages]
    amounts = {head: sum(value(cost) for cost in sums) for head, (value, _) in COSTS.items()}
    told = [f"{_amount(head, total)} {head}" for head, total in amounts.items() if total]
    num = len(tried.models)
    models = f"{num:,} {'model' if num == 1 else 'models'}"
    names = f" ({plain(', '.join(tried.models))})" if tried.models else ""
    return [
        f"Tried and not taken: {models}{names}. To make them, and to measure what was chosen from, "
        f"took {', '.join(told) or 'nothing that was counted'} besides."
    ]


def _amount(head: str, value: Any) -> str:
    return f"{value:{COSTS[head][1]}}" if value else "0"
