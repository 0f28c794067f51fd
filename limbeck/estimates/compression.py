"""What stages take that make a model smaller, and give it out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from limbeck.estimates.amounts import Amount
from limbeck.estimates.memory import WIDTH, CalibrationMemory, WritingMemory
from limbeck.estimates.shapes import Shape
from limbeck.estimates.work import Effort, Given, Work, forward_flops

BATCH_TOKENS = 8192  # of calibration texts in a layer at once
PROOF_TOKENS = 2048
SCALE = 16  # bits of a group's scale
GGUF_BITS = {  # a number with its share of its block's scale
    "f32": 32.0,
    "f16": 16.0,
    "bf16": 16.0,
    "q8_0": 8.5,
    "q5_1": 6.0,
    "q5_0": 5.5,
    "q4_1": 5.0,
    "q4_0": 4.5,
}


def prune(config: Any, given: Given) -> Work:
    """Depth and width make another model; zeros are weights like others. A scan runs the whole
    model on a fifth of the texts, once for each block and sparsity."""
    shape = given.model(config.model)
    passes = 1 if config.takes_units else 3 if config.budget == "global" else 2
    work = _calibrated(config, given, passes, config.needs_gram)
    if config.method.name == "depth":
        return replace(work, model=shape.shallower(config.share))
    if config.method.name == "width":
        return replace(work, model=shape.narrower(config.share))
    if config.scan:
        runs = len(config.scan) * shape.num_layers
        scanned = forward_flops(shape, work.tokens * (1 + 0.2 * runs))
        efforts = (*work.efforts, Effort("training", scanned, config.dtype, spread=False))
        memory = WritingMemory(shape, config.dtype, 1, config.max_batch_tokens)
        work = replace(work, efforts=efforts, memory=memory)
    return replace(work, model=shape)


def quantize(config: Any, given: Given) -> Work:
    """Texts go through each block as it was, and as it has become."""
    bits = 4 if config.weights == "int4" else 8
    scales = SCALE / config.group_size if config.group_size else 0.0
    work = _calibrated(config, given, 2, gram=True)
    return replace(work, model=replace(given.model(config.model), bits=bits + scales))


def export(config: Any, given: Given) -> Work:
    """Writes, and little else; the proof of a GGUF file reads a few prompts."""
    shape = given.model(config.model)
    memory = WritingMemory(shape, "float32", 1, PROOF_TOKENS)
    if config.to == "hf":
        return Work(memory=memory, spread=False, model=shape)
    written = sum(GGUF_BITS[name] / 8 * shape.num_parameters for name in config.quant)
    shapes = {name: replace(shape, bits=GGUF_BITS[name]) for name in config.quant}
    files = {f"gguf/{name}.gguf": one for name, one in shapes.items()}
    made = {"gguf": shapes[config.quant[0]], **files}
    return Work(memory=memory, spread=False, models=made, written=written)


def gate(config: Any, given: Given) -> Work:
    """Who passes nobody knows; the first is wanted most."""
    scores = given.table(config.before)
    first = next(iter(config.trials.values()))
    rows = scores.rows * (1 + len(config.trials))
    return Work(rows=rows, tables={"scores": scores}, model=given.model(first.model))


def _calibrated(config: Any, given: Given, passes: int, gram: bool) -> Work:
    """Texts go through block after block in `passes`; with `gram`, products of what comes in are
    summed, and one system is solved for each matrix."""
    shape, texts = given.model(config.model), _texts(config, given)
    dtype = config.dtype or "float32"  # that of its files, which nobody may have here
    flops = {dtype: passes * forward_flops(shape, texts.total)} if texts.rows else {}
    if texts.rows and gram:
        solved = gram_flops(shape, texts.total) + solving_flops(shape)
        flops["float32"] = flops.get("float32", 0.0) + solved
    efforts = tuple(Effort("training", num, name, spread=False) for name, num in flops.items())
    memory = CalibrationMemory(shape, min(BATCH_TOKENS, texts.total), gram)
    host = WIDTH[dtype] * (shape.num_parameters + texts.total * shape.hidden_size)
    return Work(shape, texts.total, texts.rows, 1, efforts, memory, host, False, model=shape)


def _texts(config: Any, given: Given) -> Amount:
    """Those that a method reads, none longer than `max_length`."""
    if config.calibration is None:
        return Amount(0.0, 0.0, 0.0)
    table = given.table(config.calibration)
    rows = min(config.num_texts, table.rows)
    return Amount(rows, min(config.max_length, table.tokens), config.max_length)


def gram_flops(shape: Shape, tokens: float) -> float:
    """Of sums of x x^T over tokens, in^2 each on one side of the diagonal: of what enters queries,
    keys and values, the output of attention, gate and up, and down."""
    return shape.num_layers * tokens * (3 * shape.hidden_size**2 + shape.intermediate_size**2)


def solving_flops(shape: Shape) -> float:
    """Of each matrix (out, in): two Cholesky factors and an inverse, 4/3 in^3, and column after
    column the correction of those behind it, out in^2 (2210.17323)."""
    hidden, inner, keys = shape.hidden_size, shape.intermediate_size, shape.key_width
    sides = [(hidden, hidden)] * 2 + [(keys, hidden)] * 2 + [(inner, hidden)] * 2
    sides.append((hidden, inner))
    return shape.num_layers * sum(4 / 3 * i**3 + o * i**2 for o, i in sides)
