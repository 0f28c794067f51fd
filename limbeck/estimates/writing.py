"""What stages take that make, write, judge or sift texts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import isnan, nan
from typing import Any

from limbeck.config import Plugin
from limbeck.estimates.memory import WritingMemory
from limbeck.estimates.shapes import of_config
from limbeck.estimates.work import Amount, Effort, Given, Work, forward_flops, reading

PLAIN = ("worked", "readable", "gold")  # engines that are plain functions


def collect(config: Any, given: Given) -> Work:
    return Work(tables={"problems": Amount(config.num), "heldout": Amount(config.num_heldout)})


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
    return Work(model=of_config(fields, "the recipe"))


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
    return Work(unknown=_judged(config), tables={"verdicts": given.table(config.traces)})


def curate(config: Any, given: Given) -> Work:
    return Work(tables={"dataset": given.table(config.traces)})


def general(config: Any, given: Given) -> Work:
    dataset = Amount(config.num, given.mean_tokens, config.max_tokens)
    if config.engine is None:
        return Work(tables={"dataset": dataset})
    length = given.length(config.max_tokens)
    work = written(config.engine, config.num, length, given, config.max_tokens)
    return replace(work, tables={"dataset": dataset})


def mix(config: Any, given: Given) -> Work:
    taken = []
    for name, path in config.parts.items():
        part = given.table(path)
        rows = min(config.num[name], part.rows) if name in config.num else part.rows
        taken.append(replace(part, rows=rows))
    return Work(tables={"dataset": together(taken)})


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
    return Work(shape, data.total, (effort,), memory, spread=False, tables=tables)


def evaluate(config: Any, given: Given) -> Work:
    num = sum(given.table(path).rows for path in config.problems.values())
    num *= config.num_samples + config.greedy
    length = given.length(config.max_tokens)
    work = written(config.engine, num, length, given, config.max_tokens)
    return replace(work, unknown=work.unknown + _judged(config))


def prefer(config: Any, given: Given) -> Work:
    """A judge reads both answers of each pair, several times, and replies."""
    traces = given.table(config.traces)
    rows = given.table(config.problems).rows * config.num_pairs
    tables = {name: replace(traces, rows=rows) for name in ("pairs", "heldout")}
    if config.judge is None:
        return Work(tables=tables)
    length = given.length(config.judge_max_tokens)
    asked = rows * config.num_times
    work = written(config.judge, asked, length, given, config.judge_max_tokens, 2 * traces.tokens)
    return replace(work, tables=tables)


def nothing(config: Any, given: Given) -> Work:
    return Work()


def written(
    engine: Plugin, num: float, tokens: float, given: Given, longest: int, read: float = 0.0
) -> Work:
    """Work of an engine that writes `num` texts of `tokens` tokens, each after `read` others."""
    total = num * (tokens + read)
    if engine.name in PLAIN:
        return Work()
    if engine.name == "openai":
        return _asked(engine, num * read, num * tokens)
    if engine.name not in ("local", "vllm"):
        return Work(unknown=(f"what the engine {engine.name} computes",))
    shape = given.model(engine.knobs["model"])
    is_here = engine.name == "local"
    rows = engine.knobs["batch_rows"] if is_here else 1
    memory = WritingMemory(shape, engine.knobs["dtype"], rows, tokens if is_here else longest)
    effort = Effort("writing", forward_flops(shape, total), engine.knobs["dtype"])
    return Work(shape, total, (effort,), memory, spread=not is_here)


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
