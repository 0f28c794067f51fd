"""Contexts against answers and traces: what does not fit is cut or left out, and says little."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from limbeck import chat, outside, tables
from limbeck.doctor.finding import Said, broken, fine, listed, worth_knowing
from limbeck.doctor.model import Model
from limbeck.doctor.settings import asked_model, writing
from limbeck.doctor.setup import Setup, rows_of
from limbeck.recipe import Stage
from limbeck.types import Message

NUM_LOOKED_AT = 256  # rows of a data set
MUCH, SOME = 0.5, 0.1  # shares that are broken, and worth knowing
UNSET = 1 << 40  # what a tokenizer says that knows no longest text


def model_length(model: Model) -> Iterator[Said]:
    """Programs that cut texts by the tokenizer's word need it to be the model's."""
    said, context = model.settings.get("model_max_length"), model.context
    if not isinstance(said, int | float) or context is None or said > UNSET:
        return
    if said < context:
        told = f"tokenizer_config.json says {said:,.0f} tokens, the model reads {context:,}"
        yield worth_knowing(
            f"{told}: other programs cut there", f"set model_max_length to {context}"
        )
    else:
        yield fine(f"{context:,} tokens")


def context(setup: Setup) -> Iterator[Said]:
    """A model's context holds what it is asked to write."""
    fitting = []
    for stage, config, model in writing(setup):
        room = setup.context(model)
        if room is None:
            continue
        if config.max_tokens > room:
            told = (
                f"{stage.name} asks for up to {config.max_tokens:,} tokens, {model} has a context"
            )
            way_out = f"lower {stage.name}.max_tokens, or stretch the context (sft.context)"
            yield broken(f"{told} of {room:,}: answers are cut where it ends", way_out)
        else:
            fitting.append(stage.name)
    if fitting:
        yield fine(f"holds the longest answers of {listed(fitting)}")


def trace_lengths(setup: Setup) -> Iterator[Said]:
    """Rows that are longer than a student reads are left out, those of hard problems first."""
    for stage in setup.recipe.stages:
        if stage.verb not in ("sft", "distill"):
            continue
        config: Any = stage.config
        own = config.context or setup.context(config.model)
        limit = min(config.max_length, own) if own else config.max_length
        if (share := _share_too_long(setup, config, limit)) is not None:
            yield _told_share(stage, share, limit)
            continue
        lengths = [_longest(setup, sample) for sample in _samples(setup, stage)]
        longest = [length for length in lengths if length is not None]
        if longest and max(longest) > limit:
            told = (
                f"{stage.name} reads {limit:,} tokens a row, its traces may have {max(longest):,}"
            )
            way_out = f"set {stage.name}.context and max_length to {max(longest)}"
            yield broken(f"{told}: the longer ones are left out", way_out)


def _told_share(stage: Stage, share: float, limit: int) -> Said:
    told = f"{stage.name}: {share:.0%} of its rows are longer than {limit:,} tokens"
    way_out = f"raise {stage.name}.context and max_length, or sample shorter answers"
    if share >= SOME:
        return broken(f"{told}, and left out", way_out)
    return worth_knowing(f"{told}, and left out", way_out) if share else fine(told)


def _share_too_long(setup: Setup, config: Any, limit: int) -> float | None:
    """By the first rows of a data set and the student's tokenizer; None where one is missing."""
    place, model = setup.place(config.data), setup.model(config.model)
    if place is None or model is None or not model.tokenizer.chat_template:
        return None
    rows = tables.read_table(place, ["messages"]).slice(0, NUM_LOOKED_AT)["messages"].to_pylist()
    talks = [[Message(m["role"], m["content"]) for m in r] for r in rows if outside.is_lesson(r)]
    encoded = chat.encode_examples(model.tokenizer, [(t[:-1], t[-1].content) for t in talks])
    return sum(len(ids) > limit for ids, _ in encoded) / max(1, len(encoded))


def _samples(setup: Setup, stage: Stage) -> Iterator[Stage]:
    """The stages that wrote the texts which a stage learns."""
    new, seen = [stage], set[str]()
    while new:
        for path in rows_of(new.pop().config):
            origin = setup.stage_of(path)
            if origin is None or origin.name in seen:
                continue
            seen.add(origin.name)
            if origin.verb == "sample":
                yield origin
            else:
                new.append(origin)


def _longest(setup: Setup, sample: Stage) -> int | None:
    """Of its texts: what it asks for, or what its model can write; None where no model is asked."""
    model = asked_model(sample)
    if model is None:
        return None
    asked: int = sample.config.max_tokens  # type: ignore[attr-defined]
    return min(asked, setup.context(model) or asked)


def truncated(setup: Setup) -> Iterator[Said]:
    """Of texts that are there already: how many were cut."""
    for stage in setup.recipe.stages:
        place = setup.place(f"./{stage.name}/traces") if stage.verb == "sample" else None
        if place is None or asked_model(stage) is None:
            continue
        ends = tables.read_table(place, ["finish"])["finish"].to_pylist()
        share = ends.count("length") / max(1, len(ends))
        told = f"{stage.name}: {share:.0%} of {len(ends):,} texts were cut at max_tokens"
        way_out = f"raise {stage.name}.max_tokens"
        if share >= MUCH:
            yield broken(f"{told}, the harder problems first", way_out)
        else:
            yield worth_knowing(told, way_out) if share >= SOME else fine(told)


def stretched_context(setup: Setup) -> Iterator[Said]:
    """Only rotary positions can be stretched, and they want a larger base."""
    for stage in setup.recipe.stages:
        wanted = getattr(stage.config, "context", None) if stage.verb != "create" else None
        model = setup.model(stage.config.model) if wanted else None  # type: ignore[attr-defined]
        if not wanted or model is None or model.context is None or wanted <= model.context:
            continue
        told = f"{stage.name} stretches {model.name} from {model.context:,} tokens to {wanted:,}"
        if not any(key.startswith("rope") for key in model.config):
            yield broken(f"{told}, but it has learned its positions", "drop context")
        elif stage.config.rope_theta is None:  # type: ignore[attr-defined]
            way_out = "set rope_theta, 300000 say (Open-R1 for Qwen2.5-Math)"
            yield worth_knowing(f"{told} and leaves its rotary base as it is", way_out)
