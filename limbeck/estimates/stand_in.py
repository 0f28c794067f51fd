"""A model that writes at its own speed what it will have learned to say, before it has learned it.

Until a training is over nobody knows how long its model's answers are. But they are like the texts
that it learns: so long, and, one hopes, right.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from limbeck import tables
from limbeck.chat import CLOSE, OPEN, split_think
from limbeck.config import Plugin
from limbeck.types import Problem, Request, Sampling, Trace


class StandIn:
    """The local engine `engine`, whose texts are as long as the `learned` ones, and are given out
    as the thinking of one of these with the right answer behind it."""

    def __init__(self, engine: Any, learned: Sequence[str]) -> None:
        self.engine, self.learned = engine, learned
        self.num_tokens = mean_tokens(engine.tokenizer, learned)
        engine.stops = []  # a model that has learned nothing ends anywhere

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine, name)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        """One trace a request, as the engine brings them."""
        cut = replace(sampling, max_tokens=min(self.num_tokens, sampling.max_tokens), stop=())
        problems = {request.id: request.problem for request in requests}
        for number, trace in enumerate(self.engine.generate(requests, cut)):
            text = self._text(problems[trace.id], number)
            yield replace(trace, text=text, finish="stop")

    def _text(self, problem: Problem, number: int) -> str:
        thought = split_think(self.learned[number % len(self.learned)]).thinking
        return problem.answer if thought is None else f"{OPEN}{thought}{CLOSE}{problem.answer}"


def mean_tokens(tokenizer: Any, texts: Sequence[str]) -> int:
    """Of a text and the token that ends it."""
    return round(fmean(len(tokenizer(text).input_ids) for text in texts)) + 1


@dataclass(frozen=True)
class Learned(Plugin):
    """An engine whose model will have learned these texts."""

    texts: list[str]

    def __call__(self, *args: Any) -> Any:
        return StandIn(super().__call__(*args), self.texts)


@dataclass
class Learners:
    """Models whose training was cut short, and the data set that each of them learns."""

    learned: dict[str, str] = field(default_factory=dict)

    def add(self, model: Path, config: Any, is_cut: bool) -> None:
        """Takes in a stage's model: of a training that `is_cut`, or one made of such a model."""
        before = getattr(config, "model", None)
        if trials := getattr(config, "trials", None):
            before = next(iter(trials.values())).model
        if is_cut:
            self.learned[str(model)] = config.data
        elif before in self.learned and not hasattr(config, "data"):
            self.learned[str(model)] = self.learned[before]

    def length(self, model: str, most: int) -> int:
        """Tokens of an answer: as long as what its model learns, or as it may be."""
        if model not in self.learned:
            return most
        from limbeck import models

        texts = texts_of(self.learned[model])
        return min(most, mean_tokens(models.load_tokenizer(model), texts))

    def standing_in(self, config: Any) -> Any:
        """The config, each engine writing what its model will have learned."""
        changed: dict[str, Any] = {}
        if hasattr(config, "engine"):
            changed["engine"] = self._learned(config.engine)
        if hasattr(config, "engines"):
            changed["engines"] = {n: self._learned(one) for n, one in config.engines.items()}
        return config.model_copy(update=changed)

    def _learned(self, engine: Plugin | None) -> Plugin | None:
        data = self.learned.get(engine.knobs.get("model", "")) if engine else None
        if engine is None or data is None:
            return engine
        return Learned(engine.name, engine.function, engine.knobs, texts_of(data))


def own_texts(config: Any) -> dict[str, Any]:
    """A student that learns from texts of its own writes them as long as those of its data."""
    asked = getattr(config, "on_policy", None)
    if asked is None:
        return {}
    from limbeck import models

    tokenizer = models.load_tokenizer(config.model)
    length = min(asked.max_tokens, mean_tokens(tokenizer, texts_of(config.data)))
    return {"on_policy": asked.model_copy(update={"max_tokens": length})}


def texts_of(dataset: str, most: int = 512) -> list[str]:
    """The answers of a data set, the first of them."""
    rows = tables.read_table(dataset, ["messages"])["messages"].to_pylist()[:most]
    return [messages[-1]["content"] for messages in rows]
