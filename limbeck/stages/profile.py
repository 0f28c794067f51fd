"""profile: what models cost those they serve: bytes, memory, seconds to an answer, tokens a second.

Every round loads each in its turn, asks it the same and lets it go, so that a busy minute of the
machine falls on all alike, and a machine that holds the largest holds them all.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Self

from pydantic import Field, PositiveInt, model_validator

from limbeck import guard, ledger, memory, store, tables
from limbeck.config import Plugin, ProblemsPath, StageConfig
from limbeck.engines.sampling import bill, requests_for
from limbeck.errors import UserError
from limbeck.folder import StageFolder
from limbeck.plugins import EngineChoice
from limbeck.types import Generator, Request, Sampling, Trace

WRITES = {"speeds": "speeds"}
GEMM_S = 0.2
SPEEDS = {"batch 1": "tokens_per_second_1", "load": "tokens_per_second_load"}

Row = dict[str, Any]


class Config(StageConfig):
    engines: Annotated[dict[str, EngineChoice], Field(min_length=1)]
    """The models by name, each with the engine that serves it."""
    problems: ProblemsPath
    """What they are asked, greedily, as far as the two numbers below go."""
    num_latency: PositiveInt = 8
    """Problems that are asked one after another: at batch 1."""
    num_load: PositiveInt = 64
    """Problems that are asked all at once."""
    max_tokens: PositiveInt = 256
    """An answer that has not ended by then is truncated, and its seconds are not a whole one's."""
    num_rounds: PositiveInt = 6
    """A median lies between the least and the most of six rounds in 97 cases of 100."""
    ratios: list[list[str]] = []
    """Pairs of engines, [int8, bfloat16]: how many times as fast the first writes."""

    @model_validator(mode="after")
    def _are_pairs(self) -> Self:
        for pair in self.ratios:
            if len({*pair}) != 2 or len(pair) != 2 or not {*pair} <= self.engines.keys():
                names = ", ".join(self.engines)
                raise ValueError(f"ratios: {pair} is no pair of {names}; name two of them")
        return self


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `speeds/speeds.json`: in `artifacts` a row per model, each number the median of the
    rounds, and in `ratios` what `compared` gives."""
    problems = tables.read_problems(config.problems)[: max(config.num_latency, config.num_load)]
    if not problems:
        raise UserError(config.problems, "holds no problems", "name a table that has some")
    if len(problems) < config.num_load:
        out.log(f"there are {len(problems):,} problems: at load means so many at once")
    requests = requests_for(problems, 1, 0, out)
    rounds: dict[str, list[Row]] = {name: [] for name in config.engines}
    gemm = []
    with out.progress((config.num_rounds + 1) * len(rounds), "measurements") as advance:
        for number in range(config.num_rounds + 1):
            gemm += _gemm_gflops()
            for name, engine in config.engines.items():
                found = measure(name, engine, requests, config, out)
                if number:  # the first is for what is imported, compiled and read from disk
                    rounds[name].append(found)
                advance(1)
    artifacts = [
        about(name, engine) | together(rounds[name]) for name, engine in config.engines.items()
    ]
    machine = {
        "device": out.machine.device,
        "threads": out.machine.threads,
        "price_per_hour": out.machine.rent().price_per_hour,  # of all devices
        "gemm_gflops": median(gemm) if gemm else None,
    }
    ratios = [row for a, b in config.ratios for row in compared(a, b, rounds[a], rounds[b])]
    speeds = {"artifacts": artifacts, "num_rounds": config.num_rounds, "machine": machine}
    speeds["ratios"] = ratios
    store.write_json(out.path / "speeds" / "speeds.json", speeds)
    for row in artifacts:
        alone, load = row["answer_s"]["median"], row["tokens_per_second_load"]["median"]
        out.log(f"{row['name']:<20} {alone:8.3f} s an answer alone, {load:10,.0f} tokens/s at load")
    for row in ratios:
        told = f"{row['ratio']:.2f} ({row['low']:.2f} to {row['high']:.2f})"
        out.log(f"{row['a']} writes {told} times as fast as {row['b']} at {row['at']}")
    return {"models": {row["name"]: row["num_parameters"] for row in artifacts}}


Timed = tuple[float, list[Trace]]
"""Seconds until the last has ended, and the answers."""


def measure(
    name: str, choice: Plugin, requests: Sequence[Request], config: Config, out: StageFolder
) -> Row:
    """Loads a model, has it answer, and lets it go. UserError where it cannot answer."""
    gc.collect()
    _free_gpus()
    memory.give_back()
    with out.account(name) as row:
        held = ledger.held_memory_mib(), ledger.held_device_memory_mib()
        begun = time.perf_counter()
        engine: Generator = choice()
        load_s = time.perf_counter() - begun
        firsts, whole, load = ask(engine, requests, config, row)
        num_parameters = engine.num_parameters
        elsewhere = getattr(engine, "peak_memory_mib", lambda: None)()  # in a process of its own
        getattr(engine, "close", lambda: None)()  # a server that was started for it
        del engine
    traces = [trace for _, some in (*whole, load) for trace in some]
    if failed := next((trace for trace in traces if trace.finish == "error"), None):
        what = f"has no answer to problem {failed.problem_id}"
        raise UserError(f"profile.engines.{name}", what, "ask what fits into its context")
    peaks = row["peak_memory_mib"], row["peak_device_memory_mib"]
    own: list[float | None] = [
        None if before is None or choice.name != "local" else round(max(0.0, peak - before), 1)
        for peak, before in zip(peaks, held, strict=True)
    ]  # others may lie in a process that is not ours
    return {
        "num_parameters": num_parameters,
        "load_s": load_s,
        "memory_mib": own[0] if elsewhere is None else round(elsewhere, 1),
        "device_memory_mib": own[1],
        **paces(firsts, whole, load),
    }


def ask(
    engine: Generator, requests: Sequence[Request], config: Config, row: Row
) -> tuple[list[Timed], list[Timed], Timed]:
    """Alone up to the first token, alone as a whole, and many at once; its account is filled in.

    A text goes before that is not timed.
    """
    drawn, cut = Sampling(0.0, max_tokens=config.max_tokens), Sampling(0.0, max_tokens=1)
    alone = requests[: config.num_latency]
    warm = answer(engine, alone[:1], drawn)
    firsts = [answer(engine, [request], cut) for request in alone]
    whole = [answer(engine, [request], drawn) for request in alone]
    load = answer(engine, requests[: config.num_load], drawn)
    traces = [trace for _, some in (warm, *firsts, *whole, load) for trace in some]
    row["tokens_in"] = sum(trace.prompt_tokens for trace in traces)
    row["tokens_out"] = sum(trace.completion_tokens for trace in traces)
    tokens = row["tokens_in"] + row["tokens_out"]
    row["flops"] = ledger.forward_flops(engine.num_parameters or 0, tokens)
    row |= bill(engine, row["tokens_in"], row["tokens_out"])
    return firsts, whole, load


def answer(engine: Generator, requests: Sequence[Request], sampling: Sampling) -> Timed:
    """Has texts written that are asked for at once."""
    begun = time.perf_counter()
    traces = [*engine.generate(requests, sampling)]
    return time.perf_counter() - begun, traces


def paces(firsts: Sequence[Timed], whole: Sequence[Timed], load: Timed) -> Row:
    """What answers took: cut off behind their first token, whole, and many at once.

    A further token takes what is left of the whole ones; None where all end with their first.
    """
    first_s, alone_s = (sum(seconds for seconds, _ in some) for some in (firsts, whole))
    alone = [trace for _, traces in whole for trace in traces]
    tokens = sum(trace.completion_tokens for trace in alone)
    further = tokens - len(alone)
    return {
        "first_token_s": first_s / len(firsts),
        "token_s": max(0.0, alone_s - first_s) / further if further > 0 else None,
        "answer_s": alone_s / len(alone),
        "tokens_per_second_1": tokens / alone_s,
        "tokens_per_second_load": sum(trace.completion_tokens for trace in load[1]) / load[0],
        "tokens_per_answer": tokens / len(alone),
        "truncated": sum(trace.finish == "length" for trace in alone) / len(alone),
    }


def together(rounds: Sequence[Row]) -> Row:
    """The median of each number, between its least and its most; what never differs as it is."""
    found: Row = {}
    for key, first in rounds[0].items():
        values = [row[key] for row in rounds]
        if key in ("num_parameters", "tokens_per_answer", "truncated"):
            found[key] = first
        elif None in values:
            found[key] = None
        else:
            found[key] = {"median": median(values), "low": min(values), "high": max(values)}
    return found


def compared(a: str, b: str, ours: Sequence[Row], theirs: Sequence[Row]) -> list[Row]:
    """`{a, b, at, ratio, low, high}` at batch 1 and at load: a's tokens a second over b's.

    The ratio is taken within each round, so that a busy minute falls on both; of the rounds the
    median, between the least and the most.
    """
    found = []
    for at, key in SPEEDS.items():
        ratios = [one[key] / other[key] for one, other in zip(ours, theirs, strict=True)]
        middle = {"ratio": median(ratios), "low": min(ratios), "high": max(ratios)}
        found.append({"a": a, "b": b, "at": at, **middle})
    return found


def about(name: str, engine: Plugin) -> Row:
    """Which model it is, and the bytes of its weights on disk; None where they are not here."""
    model = str(engine.knobs.get("model", engine.name))
    return {"name": name, "engine": engine.name, "num_bytes": _num_bytes(model)}


def _num_bytes(model: str) -> int | None:
    if Path(model).is_file():  # a GGUF file
        return Path(model).stat().st_size
    try:
        from limbeck import models
    except ImportError:  # without torch nobody has loaded it here
        return None
    folder = models.folder_of(model)
    return guard.num_bytes(folder) if folder else None


def _gemm_gflops() -> list[float]:
    try:
        return [ledger.gemm_gflops(GEMM_S)]
    except ImportError:
        return []


def _free_gpus() -> None:
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
