"""sample: k traces per problem from an engine, whoever it is."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveInt

from limbeck import ledger, tables
from limbeck.config import Extent, ProblemsPath
from limbeck.engines.sampling import SamplingConfig, requests_for, write_missing
from limbeck.folder import StageFolder
from limbeck.plugins import EngineChoice
from limbeck.types import Generator

WRITES = {"traces": "traces"}
RESUMES = True
EXTENDS = True  # more problems or samples buy the difference only


class Config(SamplingConfig):
    problems: ProblemsPath
    """What to ask."""
    engine: EngineChoice
    """Who answers: a file of `limbeck/engines/`, with its knobs."""
    num_samples: Extent[PositiveInt] = 1
    """Traces per problem."""
    seed: int = 0
    """Every trace's own seed is derived from it."""


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `traces`, those that are missing; finished parts are kept."""
    problems = tables.read_lessons(config.problems)
    engine: Generator = config.engine()
    requests = requests_for(problems, config.num_samples, config.seed, out)
    write_missing(engine, requests, config.sampling(), out.path / "traces", out)
    columns = ["finish", "prompt_tokens", "completion_tokens"]
    traces = tables.read_table(out.path / "traces", columns)
    finishes = traces["finish"].value_counts().to_pylist()
    finish = {item["values"]: item["counts"] for item in finishes}
    failed = finish.get("error", 0)
    told = ", ".join(f"{num:,} {end}" for end, num in finish.items())
    tokens = sum(traces["completion_tokens"].to_pylist())
    all_tokens = tokens + sum(traces["prompt_tokens"].to_pylist())
    out.log(f"{traces.num_rows:,} texts: {told}; {tokens:,} tokens")
    return {
        "accounts": out.balance(len(requests), traces.num_rows - failed, failed=failed),
        "finish": finish,
        "model": engine.name,
        "flops": ledger.forward_flops(engine.num_parameters or 0, all_tokens),
        "paid_tokens": all_tokens if engine.costs_money else 0,
    }
