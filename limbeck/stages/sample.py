"""sample: k traces per problem from an engine, whoever it is."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, PositiveInt

from limbeck import tables
from limbeck.config import Extent, ProblemsPath, StageConfig
from limbeck.engines.sampling import requests_for, write_missing
from limbeck.folder import StageFolder
from limbeck.plugins import EngineChoice
from limbeck.types import Generator, Sampling

WRITES = {"traces": "traces"}
RESUMES = True
EXTENDS = True  # more problems or samples buy the difference only


class Config(StageConfig):
    problems: ProblemsPath
    """What to ask."""
    engine: EngineChoice
    """Who answers: a file of `limbeck/engines/`, with its knobs."""
    num_samples: Extent[PositiveInt] = 1
    """Traces per problem."""
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    """0 is greedy."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Draws from the smallest set of tokens that holds this share of the probability."""
    max_tokens: PositiveInt = 1024
    """A trace that has not ended by then is truncated, and says so."""
    seed: int = 0
    """Every trace's own seed is derived from it."""


def run(config: Config, out: StageFolder) -> dict[str, Any]:
    """Writes `traces`, those that are missing; finished parts are kept."""
    problems = tables.read_problems(config.problems)
    engine: Generator = config.engine()
    sampling = Sampling(config.temperature, config.top_p, config.max_tokens)
    requests = requests_for(problems, config.num_samples, config.seed, out)
    write_missing(engine, requests, sampling, out.path / "traces", out)
    traces = tables.read_table(out.path / "traces", ["finish", "completion_tokens"])
    finishes = traces["finish"].value_counts().to_pylist()
    finish = {item["values"]: item["counts"] for item in finishes}
    failed = finish.get("error", 0)
    return {
        "accounts": out.balance(len(requests), traces.num_rows - failed, failed=failed),
        "finish": finish,
        "model": engine.name,
    }
