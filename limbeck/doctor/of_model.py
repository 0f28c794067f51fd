"""What is found of a model's folder, by all checks of one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from limbeck.doctor import lengths, templates, tokenizers, weights
from limbeck.doctor.finding import Check, Finding, examined, refused
from limbeck.doctor.model import Model, open_model
from limbeck.doctor.setup import cached
from limbeck.errors import UserError
from limbeck.evaluation.subjects import output_in

FILES: tuple[Check, ...] = (
    weights.weights,
    weights.output_head,
    weights.number_format,
    weights.generation_settings,
    tokenizers.embedding_rows,
    tokenizers.text_comes_back,
    tokenizers.read_elsewhere,
    lengths.model_length,
)
TAKEN_FOR_GRANTED: tuple[Check, ...] = (
    templates.chat_template,
    templates.question,
    templates.end_of_turn,
)
"""By what comes behind them: the first that is broken ends the examination."""
TALK: tuple[Check, ...] = (
    templates.stopping,
    templates.control_tokens,
    templates.generation_prompt,
    templates.same_prompt,
    templates.beginning,
    templates.thinking_prefill,
    templates.kept_reasoning,
    templates.dated_prompt,
    tokenizers.padding,
)


def examine(name: str) -> Iterator[Finding]:
    """A folder, of a stage its output, or a Hub model in the cache of this machine."""
    place = (output_in(Path(name)) if Path(name).exists() else None) or cached(name)
    if place is None:
        told = f"{name} is not on this machine, and nothing is fetched"
        yield Finding("model", None, told, "fetch it (hf download), or check the path")
        return
    try:
        model = open_model(name, place)
    except UserError as error:
        yield from refused("model", error)
    else:
        yield from findings(model)


def findings(model: Model, *, is_asked: bool = True) -> Iterator[Finding]:
    """Of its files and, unless nobody speaks to it by its own template, of that."""
    for check in FILES:
        yield from examined(check, model)
    for check in TAKEN_FOR_GRANTED if is_asked else ():
        found = examined(check, model)
        yield from found
        if any(finding.ok is False for finding in found):
            return
    for check in TALK if is_asked else ():
        yield from examined(check, model)
