"""A model that judges: asked each question once, ever, and what it may be told in a recipe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field, PositiveInt

from limbeck import store, tables
from limbeck.config import StageConfig
from limbeck.engines.sampling import requests_for, write_missing
from limbeck.folder import StageFolder
from limbeck.plugins import EngineChoice
from limbeck.types import Generator, Problem, Request, Sampling, Trace

TOP_P = 0.95  # as DeepSeek-R1 is sampled
JUDGEMENTS = "judgements"


class JudgeConfig(StageConfig):
    """A model for what only a model can judge, as a stage's knobs."""

    judge: EngineChoice | None = None
    """Who judges where the verifier is `judge`: a file of `limbeck/engines/`, with its knobs."""
    judge_temperature: Annotated[float, Field(ge=0, le=100)] = 0.6
    """How its replies are drawn; 0 is greedy."""
    judge_max_tokens: PositiveInt = 8192
    """A judge that has not come to a verdict by then has none."""

    def asker(self, out: StageFolder) -> Asker | None:
        """What asks the judge; None where there is none."""
        if self.judge is None:
            return None
        return Asker(self.judge, self.sampling_of_judge(), out)

    def sampling_of_judge(self) -> Sampling:
        """How its replies are drawn."""
        return Sampling(self.judge_temperature, TOP_P, self.judge_max_tokens)


@dataclass
class Asker:
    """Asks an engine what has not been asked yet; replies are traces in `judgements`."""

    connect: Callable[[], Generator]
    sampling: Sampling
    out: StageFolder
    engine: Generator | None = field(default=None, init=False)

    def __call__(self, questions: Sequence[Problem]) -> dict[str, str]:
        """The replies by question; the engine is connected when it is first needed."""
        is_first = self.engine is None
        self.engine = self.engine or self.connect()
        table = self.out.path / JUDGEMENTS
        requests = requests_for(questions, 1, 0, self.out, JUDGEMENTS)
        write_missing(self.engine, requests, self.sampling, table, self.out, is_first=is_first)
        wanted = {question.id for question in questions}
        columns = ["problem_id", "text", "finish"]
        rows = (row for batch in tables.iter_batches(table, columns) for row in batch.to_pylist())
        return {
            row["problem_id"]: row["text"]
            for row in rows
            if row["problem_id"] in wanted and row["finish"] == "stop"
        }


def ask_directly(
    engine: Generator, questions: Sequence[Problem], sampling: Sampling
) -> dict[str, str]:
    """The replies by question, kept nowhere: for a measurement beside any run."""
    requests = [Request(q.id, q, 0, store.seed_of("judge", q.id)) for q in questions]
    traces: Iterable[Trace] = engine.generate(requests, sampling)
    return {trace.problem_id: trace.text for trace in traces if trace.finish == "stop"}
