"""The opening words of a report: what the run did, what was made smaller, and what that lost."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from limbeck.report import formats, sentences
from limbeck.report.words import LEARNED, LET_THROUGH, SMALLER

Row = Mapping[str, Any]
STEPS = {  # of making a model smaller, by verb and in this order
    "prune": "pruned",
    "sft": "trained again",
    "distill": "trained again",
    "grpo": "trained again",
    "quantize": "quantized",
    "export": "exported",
}


def intro(learned: str, thinks: bool, smaller: Sequence[Row] = (), gated: bool = False) -> str:
    """What the run is about: how a model `learned`, a key of `LEARNED`, which steps made it
    smaller, and what the page says of that."""
    told, closing = LEARNED[learned, thinks]
    verbs = {row["verb"] for row in smaller if row["how"]}
    steps = list(dict.fromkeys(step for verb, step in STEPS.items() if verb in verbs))
    if not steps:
        return f"{told} {closing}"
    first = f"{told} Then models were" if learned else "Models were"
    gates = f" {LET_THROUGH}" if gated else ""
    close = SMALLER.format("reasons" if thinks else "answers")
    return f"{first} {_listed(steps)}.{gates} {close}"


def _listed(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def headline(
    results: Sequence[Row],
    tests: Sequence[Row],
    smaller: Sequence[Row] = (),
    gates: Sequence[Row] = (),
) -> str:
    """The run in a sentence or two: what the first test compares, unless these are a model and what
    was made of it, and what was made smaller."""
    lost = _through_gates(smaller, gates) if gates else " ".join(_ways(smaller))
    if not lost:
        return sentences.headline(results, tests)
    family = {_called(row) for row in smaller}
    names = {test[side] for test in tests[:1] for side in ("a", "b")}
    return lost if names <= family else f"{sentences.headline(results, tests)} {lost}"


def _called(row: Row) -> str:
    """By the name that the scores have, where it has one."""
    return str(row.get("called") or row["name"])


# -- what gates let through ---------------------------------------------------------------------


def _through_gates(rows: Sequence[Row], gates: Sequence[Row]) -> str:
    """Of each gate the model that went on, how much smaller it is, and what it lost."""
    found = {row["name"]: row for row in rows}
    told = []
    for stage in dict.fromkeys(gate["stage"] for gate in gates):
        here = [gate for gate in gates if gate["stage"] == stage]
        passed = next((gate for gate in here if gate["chosen"]), None)
        told.append(_went_on(passed, found) if passed else _kept(here[0]))
    return f"Made smaller: {'; '.join(told)}."


def _went_on(gate: Row, found: Mapping[str, Row]) -> str:
    a, b = gate["model"], gate["before"]
    less = _less(found.get(a, {}), found.get(b, {}))
    difference, _, between = sentences.difference(gate["test"]).partition(" ")
    return f"`{a}` {less} `{b}`, at {difference} points {between}"


def _kept(gate: Row) -> str:
    most = sentences.points(gate["max_drop"])
    return f"of `{gate['before']}` nothing, as nothing was shown to lose no more than {most}"


def _less(row: Row, before: Row) -> str:
    """How much smaller: in bytes, else in parameters, else in weights that are zero."""
    for key, unit in (("num_bytes", "bytes"), ("num_parameters", "parameters")):
        was, now = before.get(key), row.get(key)
        if was and now and now < was:
            return f"has {100 * (1 - now / was):.0f} % fewer {unit} than"
    sparsity = row.get("sparsity")
    return f"with {100 * sparsity:.0f} % zeros in place of" if sparsity else "in place of"


# -- without gates ------------------------------------------------------------------------------


def _ways(rows: Sequence[Row]) -> Iterator[str]:
    """Of each model what was made of it, step by step, from the worst to the best."""
    family: list[Row] = []
    for row in [*rows, {"how": ""}]:  # each stands above what was made of it
        if not row["how"] and len(family) > 1 and formats.is_number(family[0].get("value")):
            yield _family(family[0], family[1:])
        family = [*family, row] if row["how"] else [row]


def _family(root: Row, rows: Sequence[Row]) -> str:
    split = root["split"]
    asked = "held-out problems" if sentences.is_heldout(split) else f"`{split}` problems"
    told = [f"`{_called(root)}` solves {formats.percent(root)} of {asked}"]
    for step in dict.fromkeys(STEPS.values()):
        of_step = [row for row in rows if STEPS[row["verb"]] == step]
        if of_step:
            scored = [row for row in of_step if row["metric"] == root["metric"]]
            told.append(f"{step}{_amount(step, of_step, root)}{_worth(scored)}")
    return f"{'; '.join(told)}."


def _amount(step: str, rows: Sequence[Row], root: Row) -> str:
    """By how much: zeros or what is gone by pruning, else bytes."""
    if step == "pruned":
        return _between([row["sparsity"] for row in rows], "% zeros or gone")
    if step == "trained again" or not root["num_bytes"]:
        return ""
    sizes = [1 - row["num_bytes"] / root["num_bytes"] for row in rows if row["num_bytes"]]
    return _between([share for share in sizes if share > 0], "% fewer bytes")


def _between(shares: Sequence[float | None], unit: str) -> str:
    known = [f"{100 * share:.0f}" for share in sorted(s for s in shares if s is not None)]
    ends = list(dict.fromkeys([*known[:1], *known[-1:]]))
    return f" ({' to '.join(ends)} {unit})" if ends else ""


def _worth(rows: Sequence[Row]) -> str:
    """The score of the worst and of the best."""
    order = sorted(rows, key=lambda row: row["value"])
    ends = {_called(row): row for row in [*order[:1], *order[-1:]]}
    told = [f"{formats.percent(row['value'])} (`{name}`)" for name, row in ends.items()]
    return f", {' to '.join(told)}" if told else ""
