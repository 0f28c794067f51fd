"""What stages take that make, write, judge or sift texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import isnan, nan
from typing import Any

from limbeck.config import Plugin
from limbeck.estimates.amounts import Amount
from limbeck.estimates.memory import WritingMemory
from limbeck.estimates.shapes import of_config
from limbeck.estimates.work import PLAIN, Effort, Given, Work, forward_flops, reading

TURNS_AT_LOAD = 2  # answers one by one, in whose time many are written at once


def collect(config: Any, given: Given) -> Work:
    tables = {"problems": Amount(config.num), "heldout": Amount(config.num_heldout)}
    return Work(rows=config.num + config.num_heldout, tables=tables)


def create(config: Any, given: Given) -> Work:
    heads = config.num_attention_heads
    fields = {name: getattr(config, name) for name in type(config).model_fields}
    fields |= {
        "model_type": config.architecture,
        "num_key_value_heads": config.num_key_value_heads or heads,
        "intermediate_size": config.intermediate_size or 3 * config.hidden_size,
        "n_embd": config.hidden_size,
        "n_layer": config.num_hidden_layers,
        "n_inner": config.intermediate_size or 3 * config.hidden_size,
        "n_positions": config.max_position_embeddings,
    }
    if config.tokenizer:
        fields["vocab_size"] = given.model(config.tokenizer).vocabulary
    rows = given.table(config.texts).rows if config.texts else 0.0
    return Work(rows=rows, model=of_config(fields, "the recipe"))


def adopt(config: Any, given: Given) -> Work:
    return Work(model=given.model(config.model))


def sample(config: Any, given: Given) -> Work:
    rows = given.table(config.problems).rows * config.num_samples
    length = given.length(config.max_tokens)
    work = written(config.engine, rows, length, given, config.max_tokens)
    return replace(work, tables={"traces": Amount(rows, length, config.max_tokens)})


def rewrite(config: Any, given: Given) -> Work:
    traces = given.table(config.traces)
    length = given.length(config.max_tokens)
    work = written(config.engine, traces.rows, length, given, config.max_tokens, traces.tokens)
    return replace(work, tables={"traces": Amount(traces.rows, length, config.max_tokens)})


def verify(config: Any, given: Given) -> Work:
    traces = given.table(config.traces)
    return Work(rows=traces.rows, unknown=_judged(config), tables={"verdicts": traces})


def curate(config: Any, given: Given) -> Work:
    traces = given.table(config.traces)
    return Work(rows=traces.rows, tables={"dataset": traces, "decisions": traces})


def general(config: Any, given: Given) -> Work:
    dataset = Amount(config.num, given.mean_tokens, config.max_tokens)
    if config.engine is None:
        return Work(rows=config.num, tables={"dataset": dataset})
    length = given.length(config.max_tokens)
    work = written(config.engine, config.num, length, given, config.max_tokens)
    return replace(work, tables={"dataset": dataset})


def mix(config: Any, given: Given) -> Work:
    taken = []
    for name, path in config.parts.items():
        part = given.table(path)
        rows = min(config.num[name], part.rows) if name in config.num else part.rows
        taken.append(replace(part, rows=rows))
    mixed = together(taken)
    return Work(rows=mixed.rows, tables={"dataset": mixed})


def together(parts: Iterable[Amount]) -> Amount:
    """Several tables as one; what is unknown of one is unknown of all."""
    parts = [part for part in parts if part.rows != 0]
    rows = sum(part.rows for part in parts)
    lengths = [part.longest for part in parts]
    longest = nan if not parts or any(map(isnan, lengths)) else max(lengths)
    return Amount(rows, sum(part.total for part in parts) / rows if rows else nan, longest)


def score(config: Any, given: Given) -> Work:
    data = given.table(config.data)
    tables = {"distributions": data}
    if config.teacher is None:
        return Work(unknown=("what the engine computes",), tables=tables)
    shape = given.model(config.teacher)
    effort = reading(shape, data.total, config.dtype)
    memory = WritingMemory(shape, config.dtype, 1, config.max_length)
    return Work(shape, data.total, data.rows, 1, (effort,), memory, spread=False, tables=tables)


def evaluate(config: Any, given: Given) -> Work:
    asked = sum(given.table(path).rows for path in config.problems.values())
    num = asked * (config.num_samples + config.greedy)
    length = given.length(config.max_tokens)
    work = written(config.engine, num, length, given, config.max_tokens)
    metrics = bool(config.num_samples) + config.greedy
    scores = {"scores": Amount(asked * metrics)}
    return replace(work, unknown=work.unknown + _judged(config), tables=scores)


def likelihood(config: Any, given: Given) -> Work:
    """Gold answers are read by the model, and by its teacher: twice where that is asked."""
    asked = together(given.table(path) for path in config.problems.values())
    shape = given.model(config.model)
    tables = {"scores": Amount(asked.rows * (2 if config.teacher else 1))}
    memory = WritingMemory(shape, config.dtype, 1, config.micro_batch_tokens)
    if isnan(asked.tokens):  # of problems that a stage makes nobody knows
        unknown = ("how long the gold answers are",)
        return Work(rows=asked.rows, memory=memory, spread=False, unknown=unknown, tables=tables)
    readers = [shape, *([shape, given.model(config.teacher)] if config.teacher else [])]
    efforts = tuple(reading(each, asked.total, config.dtype) for each in readers)
    about: dict[str, Any] = {"efforts": efforts, "memory": memory, "tables": tables}
    return Work(shape, asked.total, asked.rows, 1, spread=False, **about)


def profile(config: Any, given: Given) -> Work:
    """Each model answers in each round, and once before them, one by one and at load."""
    length = given.length(config.max_tokens)
    num_rounds = config.num_rounds + 1
    num = num_rounds * (1 + config.num_latency + config.num_load)
    works = [
        written(engine, num, length, given, config.max_tokens) for engine in config.engines.values()
    ]
    largest = max(works, key=lambda work: work.memory.bytes_per_device(1) if work.memory else 0.0)
    turns = num_rounds * (1 + config.num_latency + TURNS_AT_LOAD) * len(works)
    return replace(
        largest,
        tokens=0.0,
        efforts=tuple(effort for work in works for effort in work.efforts),
        rows=turns,
        batch_rows=1,
        paid=sum(work.paid for work in works),
        unknown=tuple(dict.fromkeys(what for work in works for what in work.unknown)),
    )


def compare(config: Any, given: Given) -> Work:
    paths = [[one] if isinstance(one, str) else one for one in config.scores.values()]
    return Work(rows=sum(given.table(path).rows for several in paths for path in several))


def prefer(config: Any, given: Given) -> Work:
    """A judge reads both answers of each pair, several times, and replies."""
    traces = given.table(config.traces)
    rows = given.table(config.problems).rows * config.num_pairs
    tables = {name: replace(traces, rows=rows) for name in ("pairs", "heldout")}
    if config.judge is None:
        return Work(rows=traces.rows, tables=tables)
    length = given.length(config.judge_max_tokens)
    asked = rows * config.num_times
    work = written(config.judge, asked, length, given, config.judge_max_tokens, 2 * traces.tokens)
    return replace(work, tables=tables)


def written(
    engine: Plugin, num: float, tokens: float, given: Given, longest: int, read: float = 0.0
) -> Work:
    """Work of an engine that writes `num` texts of `tokens` tokens, each after `read` others."""
    total = num * (tokens + read)
    if engine.name in PLAIN:
        return Work(rows=num)
    if engine.name == "openai":
        return _asked(engine, num * read, num * tokens)
    if engine.name not in ("local", "llama_cpp", "vllm"):
        return Work(unknown=(f"what the engine {engine.name} computes",))
    shape = given.model(engine.knobs["model"])
    is_here, dtype = engine.name != "vllm", engine.knobs.get("dtype", "float16")
    rows, length = (engine.knobs["batch_rows"], tokens) if is_here else (1, longest)
    memory = WritingMemory(shape, dtype, rows, length, packed=engine.name != "local")
    effort = Effort("writing", forward_flops(shape, total), dtype)
    return Work(shape, total, num, rows if is_here else num, (effort,), memory, spread=not is_here)


def _asked(engine: Plugin, tokens_in: float, tokens_out: float) -> Work:
    """A server computes elsewhere, and is paid by the token."""
    prices = engine.knobs.get("prices")
    if prices is None:
        unknown = (f"what {engine.knobs['model']} is paid (give its engine prices)",)
        return Work(tokens=tokens_in + tokens_out, paid=nan, unknown=unknown)
    paid = tokens_in / 1e6 * prices["input"] + tokens_out / 1e6 * prices["output"]
    return Work(tokens=tokens_in + tokens_out, paid=paid)


def _judged(config: Any) -> tuple[str, ...]:
    """Only what no rule can judge is asked."""
    return ("what the judge is asked",) if getattr(config, "judge", None) else ()
