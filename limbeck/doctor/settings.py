"""What a recipe's own settings foretell: answers that are cut, equal, or can earn nothing."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from limbeck.chat import CLOSE, OPEN
from limbeck.config import Plugin
from limbeck.doctor.finding import Said, broken, fine, worth_knowing
from limbeck.doctor.setup import Setup
from limbeck.recipe import Stage
from limbeck.train.config import TrainingConfig

REASONS = re.compile(r"(?i)(?<![a-z0-9])(r1|r1-zero|reasoner|qwq|thinking|magistral|o[134])\b")
MARKUP = (OPEN, CLOSE, "<answer>", "</answer>", "\\boxed{")


def asked_model(stage: Stage) -> str | None:
    """The model that writes this stage's texts, as the recipe names it."""
    engine = getattr(stage.config, "engine", None)
    if isinstance(engine, Plugin):
        model = engine.knobs.get("model")
        return model if isinstance(model, str) else None
    return stage.config.model if stage.verb == "grpo" else None  # type: ignore[attr-defined]


def writing(setup: Setup) -> Iterator[tuple[Stage, Any, str]]:
    """(stage, its config, the model that is asked) of each stage in which a model writes."""
    for stage in setup.recipe.stages:
        model = asked_model(stage)
        if model is not None and hasattr(stage.config, "max_tokens"):
            yield stage, stage.config, model


def sampling(setup: Setup) -> Iterator[Said]:
    """Several answers to one question are of use only where they differ."""
    equal = [
        (stage, config.num_samples)
        for stage, config, _ in writing(setup)
        if getattr(config, "temperature", 1) == 0 and getattr(config, "num_samples", 1) > 1
    ]
    for stage, num in equal:
        told = f"{stage.name} draws {num} samples at temperature 0: all of a question are the same"
        rl = ", and none is better than another" if stage.verb == "grpo" else ""
        yield broken(told + rl, f"raise {stage.name}.temperature to 0.6, or draw one sample")
    if not equal:
        yield fine("where a question is asked several times, answers can differ")


def scored_temperatures(setup: Setup) -> Iterator[Said]:
    """A student learns what a teacher said at one of the temperatures that were scored."""
    for stage in setup.recipe.stages:
        config: Any = stage.config
        scored = setup.stage_of(getattr(config, "distributions", None) or "")
        kept = getattr(scored.config, "temperatures", None) if scored else None
        if scored is None or kept is None:
            continue
        there = ", ".join(f"{each:g}" for each in kept)
        if config.temperature in kept:
            yield fine(
                f"{stage.name} learns at {config.temperature:g}, {scored.name} keeps {there}"
            )
            continue
        told = f"{stage.name} learns at {config.temperature:g}, but {scored.name} keeps {there}"
        way_out = f"set {scored.name}.temperatures: [{config.temperature:g}]"
        yield broken(told, f"{way_out}, or {stage.name}.temperature: {kept[0]:g}")


def stop_strings(setup: Setup) -> Iterator[Said]:
    """A stop string ends a text wherever it stands, in the thinking too."""
    for stage, config, _ in writing(setup):
        for stop in config.stop if hasattr(config, "stop") else ():
            told = f"{stage.name} stops at {stop!r}"
            way_out = f"drop it from {stage.name}.stop: answers end by themselves"
            if not stop.strip() or any(stop in part for part in MARKUP):
                yield broken(f"{told}, which stands in the middle of every thinking", way_out)
            else:
                yield worth_knowing(f"{told}, in the middle of a thinking too", way_out)


def answer_room(setup: Setup) -> Iterator[Said]:
    """A model that reasons needs thousands of tokens before it says anything."""
    mean = setup.recipe.machine.mean_tokens
    for stage, config, model in writing(setup):
        engine = getattr(config, "engine", None)
        longer = engine.knobs.get("longer_max_tokens") if isinstance(engine, Plugin) else None
        room = max(config.max_tokens, longer or 0)
        if not model.startswith("./") and REASONS.search(model) and room < mean:
            told = (
                f"{stage.name} gives {model} {room:,} tokens, its answers have {mean:,} on average"
            )
            way_out = f"set {stage.name}.max_tokens: 32768"
            yield broken(f"{told} (machine.mean_tokens): most would be cut", way_out)


def format_reward(setup: Setup) -> Iterator[Said]:
    """Tags that nobody asks for are never written, and a reward for them is 0 for ever."""
    for stage in setup.recipe.stages:
        rewards = [each.reward for each in getattr(stage.config, "rewards", ()) if _is_rl(stage)]
        wants_tags = any(r.name == "format" and r.knobs.get("answer_tags") for r in rewards)
        if not wants_tags or _speaks_of_tags(setup, stage):
            continue
        told = f"{stage.name} rewards <answer> tags, which neither template nor questions ask for"
        way_out = f"set {stage.name}.template: r1_zero, or drop answer_tags"
        yield broken(f"{told}: it would stay 0", way_out)


def _is_rl(stage: Stage) -> bool:
    return stage.verb == "grpo"


def _speaks_of_tags(setup: Setup, stage: Stage) -> bool:
    """Whether the student is asked for the tags, or may have learned them before."""
    config: Any = stage.config
    earlier = [*setup.chain(config.model)]
    if any(isinstance(each.config, TrainingConfig) for each in earlier):
        return True
    if any(getattr(each.config, "template", None) == "r1_zero" for each in [stage, *earlier]):
        return True
    prompts = [_prompts(setup.stage_of(path)) for path in setup.sources(stage)]
    model = setup.model(setup.root(config.model))
    template = str(model.tokenizer.chat_template) if model else ""
    return "<answer>" in template or any("<answer>" in prompt for prompt in prompts)


def _prompts(stage: Stage | None) -> str:
    """What a source writes around its questions."""
    config: Any = stage.config if stage else None
    sources = [config.source, *getattr(config, "more", ())] if config else []
    return " ".join(str(source.knobs.get("prompt", "")) for source in sources)


def reward_lengths(setup: Setup) -> Iterator[Said]:
    """What a reward says of long answers must be reached before they are cut."""
    for stage in setup.recipe.stages:
        for each in getattr(stage.config, "rewards", ()) if _is_rl(stage) else ():
            most, limit = each.reward.knobs.get("max_tokens"), stage.config.max_tokens  # type: ignore[attr-defined]
            if most is not None and most > limit:
                told = (
                    f"{stage.name} cuts answers at {limit:,} tokens, its reward {each.reward.name}"
                )
                way_out = f"let the reward's max_tokens be {limit}"
                yield broken(f"{told} reckons with {most:,}, which none can have", way_out)


def served_template(setup: Setup) -> Iterator[Said]:
    """A model is asked by the template that it was last trained with."""
    for stage, _, model in writing(setup):
        given: Stage | None = None
        for each in setup.chain(model):
            if isinstance(each.config, TrainingConfig) and given is not None:
                told = f"{stage.name} asks {model} by the template that {given.name} gave it"
                way_out = f"let {given.name} come before {each.name}"
                yield broken(f"{told}, {each.name} trained it with another", way_out)
            if isinstance(each.config, TrainingConfig):
                break
            given = each if getattr(each.config, "template", None) else given
