"""The frontier: how often each model of a run is right, beside what it costs those it serves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from limbeck import guard, store, tables
from limbeck.reporting.lineage import asked, evaluations, kind, weights
from limbeck.reporting.training import stage_of

if TYPE_CHECKING:
    from limbeck.runs import Run

Row = dict[str, Any]
METRICS = ("pass_at_1", "greedy")  # the first of which there is any
ENDS = ("low", "high")
HOUR = 3600.0


def frontier(run: Run) -> list[Row]:
    """A row for each evaluated model and split; what nobody has measured is None.

    `latency_s` is that of an answer alone, as long as the evaluation's are; `seconds_per_correct`
    at load, and so is what money a right answer costs: the rent for so long, or what a server is
    paid for its tokens. `between` has the least and the most that was measured of a price, and
    `num_at_once` is how many answers were written side by side at load.
    """
    return _rows(run, run.results(), evaluations(run))


def evaluated(run: Run) -> list[Row]:
    """The same of each finished evaluation, by the name of its stage, whoever compared it."""
    results = [
        {"name": row["stage"], **result}
        for row in run.done("evaluate")
        for result in row["summary"]["results"]
    ]
    return _rows(run, results, {(r["name"], r["split"]): [r["name"]] for r in results})


def _rows(run: Run, results: list[Row], stages: dict[tuple[str, str], list[str]]) -> list[Row]:
    """Of results and, by name and split, the stages that evaluated them."""
    speeds = _Speeds(run)
    sizes = {row["stage"]: row["summary"].get("num_parameters") for row in run.done("evaluate")}
    found: dict[tuple[str, str], Row] = {}
    results = [row for row in results if (row["name"], row["split"]) in stages]
    for result in sorted(results, key=lambda row: row["metric"] != METRICS[0]):
        place = result["name"], result["split"]
        asked_by = stages[place]
        if result["metric"] in METRICS and place not in found:
            row = _row(run, result, asked_by, speeds)
            found[place] = row | {"num_parameters": row["num_parameters"] or sizes.get(asked_by[0])}
    order = dict.fromkeys((result["name"], result["split"]) for result in results)
    return [found[place] for place in order if place in found]


def _row(run: Run, result: Row, stages: list[str], speeds: _Speeds) -> Row:
    """One model on one split, which these stages evaluated."""
    model, engine = asked(run, stages[0])
    measured = speeds.of(result["name"], model)
    tokens, right = result["tokens_per_answer"], result["value"]
    at_load = _median(measured, "tokens_per_second_load")
    seconds = tokens / at_load if at_load else None
    if engine.get("prices"):
        money: float | None = _paid(run, result, stages, engine["prices"])
    else:
        money = _rent(measured, seconds)
    return {
        **{key: result[key] for key in ("name", "split", "metric", "value", "low", "high")},
        "kind": kind(run, model),
        "num_parameters": measured.get("num_parameters"),
        "num_bytes": measured.get("num_bytes") or _num_bytes(run, model),
        "peak_memory_mib": _memory(measured),
        "latency_s": _latency(measured, tokens),
        "between": _between(measured, tokens),
        "num_at_once": measured.get("num_at_once"),
        "tokens_per_second_1": _median(measured, "tokens_per_second_1"),
        "tokens_per_second_load": at_load,
        "tokens_per_answer": tokens,
        "flops_per_correct": _over(result["cost"] or None, right),
        "seconds_per_correct": _over(seconds, right),
        "money_per_correct": _over(money, right),
        "stages": [*stages, *measured.get("stages", ())],
    }


def ratios(run: Run) -> list[Row]:
    """How many times as fast one engine writes as another: `{stage, a, b, at, ratio, low, high}`,
    a's tokens a second over b's `at` "batch 1" or "load", of the pairs that a `profile` was told.
    """
    measured = {row["stage"]: _read(run, row["stage"]) for row in run.done("profile")}
    return [
        {"stage": stage, **row} for stage, speeds in measured.items() for row in speeds["ratios"]
    ]


def _read(run: Run, stage: str) -> Row:
    """What a `profile` wrote; one of before there were ratios has none."""
    place = run.path / stage / "speeds" / "speeds.json"
    store.verify(place)
    return {"ratios": [], **store.read_json(place)}


class _Speeds:
    """What the run's `profile` stages found, by model and by the name that they gave it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.by_name: dict[str, Row] = {}
        self.by_model: dict[str, Row] = {}
        for row in run.done("profile"):
            speeds = _read(run, row["stage"])
            settings = run.recipe["stages"][row["stage"]]
            engines = settings["engines"]
            about = {"machine": speeds["machine"], "num_at_once": settings.get("num_load")}
            for artifact in speeds["artifacts"]:
                engine = engines[artifact["name"]]
                model = engine.get("model", "") if isinstance(engine, dict) else engine
                found = {**artifact, **about, "stages": [row["stage"]]}
                self.by_name[artifact["name"]] = found | {"model": weights(self.run, model)}
                self.by_model[weights(self.run, model)] = found

    def of(self, name: str, model: str) -> Row:
        """Nothing where it was not measured; two engines of one model are told apart by name."""
        key = weights(self.run, model)
        named = self.by_name.get(name, {})
        return named if named.get("model") == key else self.by_model.get(key, {})


def _num_bytes(run: Run, model: str) -> int | None:
    """Of the weights of a model that lies in a folder of its own, in the run or beside it."""
    folder = run.path / model if stage_of(model) else Path(model)
    return guard.num_bytes(folder)


def _median(speeds: Row, key: str, end: str = "median") -> float | None:
    """What was measured: the median of the rounds, or their `low` or `high` end."""
    found = speeds.get(key)
    return found[end] if found else None


def _memory(speeds: Row, end: str = "median") -> float | None:
    """Of the GPU where it lies on one."""
    return _median(speeds, "device_memory_mib", end) or _median(speeds, "memory_mib", end)


def _latency(speeds: Row, tokens: float, end: str = "median") -> float | None:
    """Of an answer of so many tokens, by the first's and each further one's seconds."""
    first, further = _median(speeds, "first_token_s", end), _median(speeds, "token_s", end)
    if first is None or further is None:
        return _median(speeds, "answer_s", end)
    return first + further * max(0.0, tokens - 1)


def _between(speeds: Row, tokens: float) -> dict[str, list[float]]:
    """(low, high) by price, where there is one."""
    found = {
        "peak_memory_mib": [_memory(speeds, end) for end in ENDS],
        "latency_s": [_latency(speeds, tokens, end) for end in ENDS],
    }
    return {key: [e for e in ends if e is not None] for key, ends in found.items() if all(ends)}


def _rent(speeds: Row, seconds: float | None) -> float | None:
    """What an answer takes of the machine at load; None of one whose price nobody knows."""
    if seconds is None or speeds["engine"] == "openai":
        return None
    price: float | None = speeds["machine"]["price_per_hour"]
    return None if price is None else price * seconds / HOUR


def _paid(run: Run, result: Row, stages: list[str], prices: Row) -> float:
    """What an answer costs, by the prices of a million tokens."""
    read = written = num = 0
    columns = ["split", "metric", "num_samples", "prompt_tokens", "completion_tokens"]
    for stage in stages:
        scores = tables.read_table(run.path / stage / "scores", columns)
        for key in ("split", "metric"):
            scores = scores.filter(pc.equal(scores[key], result[key]))
        read += pc.sum(scores["prompt_tokens"]).as_py()
        written += pc.sum(scores["completion_tokens"]).as_py()
        num += pc.sum(scores["num_samples"]).as_py()
    return float((read * prices["input"] + written * prices["output"]) / 1e6 / num)


def _over(amount: float | None, right: float) -> float | None:
    """What a right answer takes; None where there is none."""
    return None if amount is None or right <= 0 else amount / right
