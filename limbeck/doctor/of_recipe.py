"""What is found of a recipe: of each model that it names and has at hand, and of how all is put."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from limbeck.doctor import (
    compression,
    contamination,
    disk,
    lengths,
    of_model,
    settings,
    tokenizers,
    versions,
)
from limbeck.doctor.finding import Check, Finding, Said, broken, examined, listed, refused
from limbeck.doctor.setup import Setup

ELSEWHERE = ("stopping",)  # what harms nobody in a recipe, whose engines go by the template


def known_mistakes(setup: Setup) -> Iterator[Said]:
    """What plug-ins object to before anything runs: keys, files, commands."""
    for error in setup.plan[1]:
        yield broken(f"{error.where}: {error.what}", error.way_out)


CHECKS: tuple[Check, ...] = (
    known_mistakes,
    versions.packages,
    versions.vllm_server,
    tokenizers.teachers_tokens,
    tokenizers.hidden_widths,
    lengths.context,
    lengths.trace_lengths,
    lengths.truncated,
    lengths.stretched_context,
    settings.sampling,
    settings.scored_temperatures,
    settings.stop_strings,
    settings.answer_room,
    settings.format_reward,
    settings.reward_lengths,
    settings.served_template,
    compression.kept_zeros,
    compression.quantized_last,
    compression.group_sizes,
    compression.readable_by_llama,
    compression.own_scores,
    compression.enough_problems,
    contamination.same_problems,
    contamination.same_benchmark,
    contamination.shared_questions,
    disk.free_disk,
)


def examine(setup: Setup) -> Iterator[Finding]:
    """Its models first, then the whole."""
    yield from _models(setup)
    for check in CHECKS:
        yield from examined(check, setup)


def _models(setup: Setup) -> Iterator[Finding]:
    """Those that are on this machine."""
    well: dict[str, list[str]] = {}
    for path in setup.models():
        model = setup.model(path)
        if error := setup.refused.get(path):
            yield from refused("model", error)
        for finding in of_model.findings(model, is_asked=setup.is_asked(path)) if model else ():
            if finding.ok:
                well.setdefault(finding.name, []).append(path)
            else:
                ok = None if finding.name in ELSEWHERE else finding.ok
                yield Finding(finding.name, ok, f"{path}: {finding.told}", finding.way_out)
    yield from _well(well)
    if far := [path for path in setup.models() if setup.is_far(path)]:
        told = f"not on this machine, so not looked at: {', '.join(far)}"
        yield Finding("models", None, told, "fetch them (hf download), and ask again")


def _well(checks: Mapping[str, Sequence[str]]) -> Iterator[Finding]:
    """What is well with several models is said once, and of those that the recipe makes in one
    line; `checks` are the paths by what was looked at."""
    own: dict[str, int] = {}
    for name, paths in checks.items():
        for path in paths:
            if path.startswith("./"):
                own[path] = own.get(path, 0) + 1
        if given := [path for path in paths if not path.startswith("./")]:
            yield Finding(name, True, f"as it should be: {listed(given)}", "")
    if own:
        told = f"{sum(own.values())} checks of models that the recipe makes are as they should be"
        yield Finding("models", True, f"{told}: {listed([*own])}", "")
