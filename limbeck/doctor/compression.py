"""What becomes of pruned and quantized models, and whether a gate can tell how they did."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from limbeck import metrics, tables
from limbeck.doctor.finding import Said, broken, fine, worth_knowing
from limbeck.doctor.settings import asked_model
from limbeck.doctor.setup import Setup
from limbeck.errors import UserError
from limbeck.metrics.needed import LEVEL, POWER
from limbeck.metrics.paired import UNSEEN
from limbeck.recipe import Stage
from limbeck.train.config import TrainingConfig

CHANGES = ("prune", "quantize")  # and whoever trains
RIGHT = 0.8  # of the answers of a model that is worth making smaller


def kept_zeros(setup: Setup) -> Iterator[Said]:
    """Weights that were set to zero stay so where a training is told to leave them."""
    for stage in setup.recipe.stages:
        config: Any = stage.config
        if not isinstance(config, TrainingConfig) or config.keep_zeros:
            continue
        if pruned := _zeros_of(setup, config.model):
            told = f"{stage.name} trains {config.model}, in which {pruned.name} set weights to zero"
            yield broken(f"{told}: they would not stay so", f"set {stage.name}.keep_zeros: true")


def _zeros_of(setup: Setup, model: str) -> Stage | None:
    """The stage whose zeros a model holds, if any."""
    for stage in setup.chain(model):
        config: Any = stage.config
        if stage.verb == "prune" and not config.takes_units:
            return stage
        if isinstance(config, TrainingConfig) and not config.keep_zeros:
            return None
    return None


def quantized_last(setup: Setup) -> Iterator[Said]:
    """Whoever changes the weights of a quantized model writes others, which are not."""
    for stage in setup.recipe.stages:
        if stage.verb not in CHANGES and not isinstance(stage.config, TrainingConfig):
            continue
        model: str = stage.config.model  # type: ignore[attr-defined]
        earlier = next((each for each in setup.chain(model) if each.verb == "quantize"), None)
        if earlier is not None:
            told = f"{stage.name} changes {model}, whose weights {earlier.name} rounded"
            yield broken(f"{told}: they would be so no longer", f"let {earlier.name} come last")


def group_sizes(setup: Setup) -> Iterator[Said]:
    """Groups come out even in matrices of so many inputs."""
    for stage in setup.recipe.stages:
        size = getattr(stage.config, "group_size", None) if stage.verb == "quantize" else None
        if not size:
            continue
        model: str = stage.config.model  # type: ignore[attr-defined]
        inputs = _inputs(setup, model)
        if uneven := sorted({num for num in inputs if num % size}):
            told = f"{stage.name} groups weights by {size}, which does not divide"
            fits = math.gcd(*inputs)
            even = max((n for n in range(1, size + 1) if fits % n == 0), default=1)
            way_out = f"set {stage.name}.group_size: {even if even >= 8 else 'null'}"
            yield broken(f"{told} {' and '.join(map(str, uneven))} inputs of {model}", way_out)
        elif inputs:
            yield fine(f"{stage.name}: {size} divides {' and '.join(map(str, sorted(inputs)))}")


def _inputs(setup: Setup, path: str) -> set[int]:
    """How many inputs the matrices of a model have; nothing where nobody here knows."""
    model = setup.model(path)
    for stage in setup.chain(path) if model is None else ():
        config: Any = stage.config
        if stage.verb == "prune" and config.method.name == "width":
            return set()
        if stage.verb == "create":
            hidden = config.hidden_size
            return {hidden, config.intermediate_size or 3 * hidden}
    model = model or setup.model(setup.root(path))
    names = ("hidden_size", "intermediate_size")
    return {model.config[name] for name in names if name in model.config} if model else set()


def readable_by_llama(setup: Setup) -> Iterator[Said]:
    """llama.cpp has the tokenizer of what becomes a GGUF file."""
    from limbeck.export import vocabulary

    for stage in setup.recipe.stages:
        if stage.verb != "export" or stage.config.to != "gguf":  # type: ignore[attr-defined]
            continue
        path: str = stage.config.model  # type: ignore[attr-defined]
        model = setup.model(path) or setup.model(setup.root(path))
        if model is None:
            continue
        try:
            vocabulary.read(model.tokenizer, model.rows or model.num_tokens)
        except UserError as error:
            told = f"{stage.name} writes {path} for llama.cpp: its tokenizer {error.what}"
            yield broken(told, error.way_out)
        else:
            yield fine(f"{stage.name}: llama.cpp has the tokenizer of {path}")


def own_scores(setup: Setup) -> Iterator[Said]:
    """A model is judged by scores of its own."""
    for stage in setup.recipe.stages:
        for model, scores in _judged(stage):
            origin = setup.stage_of(scores)
            asked = asked_model(origin) if origin and origin.verb == "evaluate" else None
            if asked not in (None, model):
                told = f"{stage.name} judges {model} by {scores}, which is of {asked}"
                yield broken(told, f"evaluate {model}, and give its scores")


def _judged(stage: Stage) -> Iterator[tuple[str, str]]:
    """(model, scores) of all that a stage decides between."""
    config: Any = stage.config
    if stage.verb == "gate":
        yield config.model, config.before
    for trial in config.trials.values() if stage.verb in ("choose", "gate") else ():
        yield trial.model, trial.scores


def enough_problems(setup: Setup) -> Iterator[Said]:
    """A gate can tell whether a model has lost as much as it may."""
    for stage in setup.recipe.stages:
        config: Any = stage.config
        origin = setup.stage_of(config.before) if stage.verb == "gate" else None
        num = _num_problems(setup, origin) if origin and origin.verb == "evaluate" else None
        if not num or metrics.unit_of(config.metric):
            continue
        samples = origin.config.num_samples if config.metric == "pass_at_1" else 1  # type: ignore[union-attr]
        error = math.sqrt(2 * RIGHT * (1 - RIGHT) / max(samples, 1) / num)
        told = f"{stage.name} allows a drop of {config.max_drop:.1%}, with {num:,} problems"
        if -metrics.paired_test([0.0] * num, [0.0] * num).low > config.max_drop:
            few = math.ceil(UNSEEN * (1 / config.max_drop - 1))
            way_out = f"ask {few:,} problems or more, or raise {stage.name}.max_drop"
            yield broken(f"{told} not even a model that answers alike would pass", way_out)
        elif (LEVEL + POWER) * error > config.max_drop:
            told = f"{told} of {samples} answers many that lost nothing will not pass"
            yield worth_knowing(told, "ask more problems, or more samples of each")
        else:
            yield fine(f"{told} of {samples} answers that can be told")


def _num_problems(setup: Setup, evaluation: Stage) -> int | None:
    """How many an evaluation asks; None where nobody knows yet."""
    nums = [_num_rows(setup, path) for path in evaluation.config.problems.values()]  # type: ignore[attr-defined]
    return None if None in nums else sum(num for num in nums if num)


def _num_rows(setup: Setup, path: str) -> int | None:
    """Those that are there, or that are asked for."""
    place, stage = setup.place(path), setup.stage_of(path)
    if place is not None:
        return len(tables.read_table(place, ["id"]))
    config: Any = stage.config if stage and stage.verb == "collect" else None
    return config and (config.num_heldout if path.endswith("/heldout") else config.num)
