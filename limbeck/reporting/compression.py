"""Models that were made smaller: how, and what they are worth beside what they were made from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from limbeck import guard, store
from limbeck.reporting import lineage
from limbeck.reporting.frontier import evaluated, frontier
from limbeck.stages import export, gate

if TYPE_CHECKING:
    from limbeck.runs import Run

Row = dict[str, Any]
TRAINED = ("sft", "distill", "grpo")  # what may recover a model that was made smaller
SIZES = ("num_parameters", "num_bytes", "sparsity", "bits_per_weight")
MEASURED = (
    *("split", "metric", "value", "low", "high", "tokens_per_answer"),
    *("latency_s", "tokens_per_second_1", "tokens_per_second_load", "num_at_once"),
)


def compression(run: Run) -> list[Row]:
    """A row for each model that was made smaller, or recovered since, below what it was made from.

    `how`, by which `verb`, and `made_of`, the name of that row; what the results have it `called`;
    sizes, by what its stage says; what was measured on the run's first split, and how many times as
    `longer` than that one's its answers are. An export has a row for each of its files.
    """
    measured = _measured(run)
    found: dict[str, Row] = {}
    for row in run.stages():
        settings, verb = run.recipe["stages"][row["stage"]], row["verb"]
        if row["state"] != "done" or verb not in ("prune", "quantize", "export", *TRAINED):
            continue
        origin = lineage.weights(run, str(settings.get("model", "")))
        if verb in TRAINED and not found.get(origin, {}).get("how"):
            continue
        before = found.setdefault(origin, _row(origin, {}, measured.get((origin, ""), {})))
        for kind, told in _sizes(run, row, settings, _stays(settings, before, found)):
            name = " ".join(filter(None, (row["stage"], kind)))
            one = measured.get((row["stage"], ""), {})  # of a folder with one file, or a model
            found[name] = _row(name, told, measured.get((row["stage"], kind), one))
            found[name] |= {"verb": verb, "how": _how(settings, kind), "made_of": origin}
            found[name]["longer"] = _ratio(found[name], before, "tokens_per_answer")
    roots = [row for row in found.values() if not row["made_of"]]
    return [row for root in roots for row in _with_children(root, found)]


def _with_children(row: Row, found: Mapping[str, Row]) -> Iterator[Row]:
    """A row, and below it what was made from it."""
    yield row
    for child in found.values():
        if child["made_of"] == row["name"]:
            yield from _with_children(child, found)


def _stays(settings: Row, before: Row, found: Mapping[str, Row]) -> Row:
    """What a stage leaves as it was in the model that it reads: zeros, unless it trains them away,
    whole units that are gone, and bits, if it passes the weights on."""
    origin = found.get(before["made_of"], {}).get("num_parameters")
    is_smaller = origin is not None and (before["num_parameters"] or origin) < origin
    keeps = settings["stage"] not in TRAINED or settings.get("keep_zeros") or is_smaller
    stays = {"sparsity": before["sparsity"] if keeps else None}
    if settings["stage"] == "export" and settings["to"] == "hf":
        stays["bits_per_weight"] = before["bits_per_weight"]
    return stays


def _row(name: str, told: Row, measured: Row) -> Row:
    row = {key: measured.get(key) for key in (*SIZES, *MEASURED)}
    row |= {key: value for key, value in told.items() if value is not None}
    about = {"name": name, "called": measured.get("name"), "verb": "", "how": "", "made_of": ""}
    return about | {"longer": None, **row}


def _sizes(run: Run, row: Row, settings: Row, stays: Row) -> Iterator[tuple[str, Row]]:
    """(type of a GGUF file, or nothing; what is known of its size)."""
    own = {key: row["summary"].get(key) for key in SIZES}
    told = stays | {key: value for key, value in own.items() if value is not None}
    place = run.path / row["stage"]
    if row["verb"] != "export":
        yield "", told
    elif settings["to"] == "hf":
        yield "", told | {"num_bytes": guard.num_bytes(place / "model")}
    else:
        for kind in settings.get("quant", export.Config.model_fields["quant"].default):
            file = place / "gguf" / f"{kind}.gguf"
            yield kind, told | {"num_bytes": file.stat().st_size if file.exists() else None}


def _measured(run: Run) -> dict[tuple[str, str], Row]:
    """A row as the frontier's of each model on the problems of its first split: by what made its
    weights, and of a GGUF file its type. Those that are compared go before those that only a gate
    or a choice has read."""
    asked_by = lineage.evaluations(run)
    rows = [(asked_by[row["name"], row["split"]][0], row) for row in frontier(run)]
    rows += [(row["name"], row) for row in evaluated(run)]
    found: dict[tuple[str, str], Row] = {}
    for stage, row in rows:
        model, engine = lineage.asked(run, stage)
        kind = Path(model).stem if model.endswith(".gguf") else str(engine.get("quant") or "")
        if _problems(run, stage, row) == _problems(run, *rows[0]):
            found.setdefault((lineage.weights(run, model), kind), row)
    return found


def _problems(run: Run, stage: str, row: Row) -> str:
    """What a split of an evaluation was asked from."""
    return str(run.recipe["stages"][stage]["problems"][row["split"]])


def _how(settings: Row, kind: str) -> str:
    """'wanda 50 %', 'gptq int4 in groups of 32', 'recovered by distill', 'GGUF q8_0'."""
    verb, method = settings["stage"], settings.get("method", "")
    method = method["name"] if isinstance(method, dict) else method
    if verb == "prune":
        share = settings.get("pattern") or f"{100 * settings['sparsity']:g} %"
        return f"{method} {share}"
    if verb == "quantize":
        group, activations = settings.get("group_size"), settings.get("activations")
        told = f"{method} {settings['weights']}" + (f" in groups of {group}" if group else "")
        return told + (f", {activations} activations" if activations else "")
    if verb == "export":
        return f"GGUF {kind}" if kind else "exported"
    return f"recovered by {verb}"


def _ratio(row: Row, other: Row, key: str) -> float | None:
    return row[key] / other[key] if row[key] and other[key] else None


def gates(run: Run) -> list[Row]:
    """Every trial of every gate: the model, how it did, and whether it was taken."""
    found = []
    for row in run.done("gate"):
        settings, summary = run.recipe["stages"][row["stage"]], row["summary"]
        most = settings.get("max_drop", gate.Config.model_fields["max_drop"].default)
        for trial in summary["trials"]:
            model = lineage.weights(run, settings["trials"][trial["name"]]["model"])
            about = {"stage": row["stage"], "model": model, "max_drop": most}
            about |= {"before": lineage.weights(run, settings["model"])}
            found.append({**trial, **about, "chosen": trial["name"] == summary["chosen"]})
    return found


def scans(run: Run) -> list[Row]:
    """What pruning's scans found: stage, levels, the `dense` loss, and of each block its rises."""
    found = []
    for row in run.done("prune"):
        place = run.path / row["stage"] / "scan" / "scan.json"
        if place.exists():
            store.verify(place)
            found.append({"stage": row["stage"], **store.read_json(place)})
    return found
