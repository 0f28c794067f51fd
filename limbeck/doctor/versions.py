"""Packages and servers: what is needed is installed, in a version that is known to work."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from limbeck.config import Plugin
from limbeck.doctor.finding import Said, broken, fine, worth_knowing
from limbeck.doctor.setup import Setup
from limbeck.evaluation.packages import EXTRAS, OF_VERDICTS
from limbeck.plugins import plugins
from limbeck.recipe import Stage

EXTRAS_OF_VERBS = dict.fromkeys(
    ("adopt", "create", "distill", "grpo", "likelihood", "reward_model", "sft"), "local"
)
EXTRAS_OF_PLUGINS = {
    "limbeck.engines.llama_cpp": "gguf",
    "limbeck.engines.local": "local",
    "limbeck.engines.openai": "openai",
    "limbeck.engines.vllm": "openai",
    "limbeck.problems.reasoning_gym": "gym",
    "limbeck.verifiers.ifeval": "ifeval",
    "limbeck.verifiers.math": "math",
    "limbeck.verifiers.reasoning_gym": "gym",
}
EXTRAS_OF_PLUGINS |= {  # benchmarks, by what their verifiers ask
    f"limbeck.problems.{name}": EXTRAS[package]
    for name, wanted in OF_VERDICTS.items()
    for package in wanted
}
EXTRAS_OF_FILTERS = {"near_duplicates": "curate", "one_language": "curate"}
OLDEST_VLLM = (0, 32)
EXTRA = re.compile(r"extra == ['\"]([\w-]+)")
QUANTIZED = ("int8", "nf4")


def installed_versions() -> Iterator[Said]:
    """Of whatever is installed here: none that Limbeck is known not to work with."""
    named = {match[1] for text in _declared() if (match := EXTRA.search(text))}
    chosen = sorted(named - {"test", "bench"})
    yield from _examined({extra: set() for extra in chosen}, missing_is_wrong=False)


def packages(setup: Setup) -> Iterator[Said]:
    """What the recipe needs is there."""
    needed: dict[str, set[str]] = {}
    for stage in setup.recipe.stages:
        for extra in _extras_of(stage):
            needed.setdefault(extra, set()).add(stage.name)
    yield from _examined(needed, missing_is_wrong=True)


def _extras_of(stage: Stage) -> Iterator[str]:
    """The extras, as in `pip install 'limbeck[extra]'`, that a stage needs."""
    config: Any = stage.config
    if stage.verb in EXTRAS_OF_VERBS:
        yield EXTRAS_OF_VERBS[stage.verb]
    for plugin in plugins(config):
        yield from _extras_of_plugin(plugin)
    if lora := getattr(config, "lora", None):
        yield "lora"
    if getattr(config, "optimizer", "") == "adamw_8bit" or (lora and lora.base in QUANTIZED):
        yield "quantized"


def _extras_of_plugin(plugin: Plugin) -> Iterator[str]:
    module, knobs = plugin.function.__module__, plugin.knobs
    if module in EXTRAS_OF_PLUGINS:
        yield EXTRAS_OF_PLUGINS[module]
    if isinstance(knobs.get("dataset"), str) and not knobs.get("path"):
        yield "hub"
    if module.startswith("limbeck.filters.") and plugin.name in EXTRAS_OF_FILTERS:
        yield EXTRAS_OF_FILTERS[plugin.name]
    verifier = knobs.get("verifier")
    name = verifier.get("name") if isinstance(verifier, dict) else verifier
    if f"limbeck.verifiers.{name}" in EXTRAS_OF_PLUGINS:
        yield EXTRAS_OF_PLUGINS[f"limbeck.verifiers.{name}"]


def _examined(extras: dict[str, set[str]], *, missing_is_wrong: bool) -> Iterator[Said]:
    """The requirements of some extras, with the stages that want them, against what is here."""
    good: set[str] = set()
    for extra, stages in extras.items():
        way_out = f"pip install 'limbeck[{extra}]'"
        wanted = f", which {', '.join(sorted(stages)[:3])} needs" if stages else ""
        for requirement in _requirements(extra):
            there = version_of(requirement.name)
            if there is None and missing_is_wrong:
                yield broken(f"{requirement.name} is not installed{wanted}", way_out)
            elif there is not None and not requirement.specifier.contains(there, prereleases=True):
                told = f"{requirement.name} is {there}, Limbeck knows {requirement.specifier}"
                yield broken(told, way_out)
            elif there is not None:
                good.add(f"{requirement.name} {there}")
    if good:
        yield fine(", ".join(sorted(good)))


def _requirements(extra: str) -> Iterator[Any]:
    from packaging.requirements import Requirement

    for text in _declared():
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and marker.evaluate({"extra": extra}) and not marker.evaluate({"extra": ""}):
            yield requirement


def _declared() -> list[str]:
    """What Limbeck says that it needs; nothing where it runs without having been installed."""
    try:
        return metadata.requires("limbeck") or []
    except metadata.PackageNotFoundError:
        return []


def version_of(package: str) -> str | None:
    """The version that is installed; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def vllm_server(setup: Setup) -> Iterator[Said]:
    """A server that a recipe starts, by the environment that its command lies in."""
    commands = {
        tuple(plugin.knobs["start"])
        for stage in setup.recipe.stages
        for plugin in plugins(stage.config)
        if plugin.name == "vllm" and plugin.knobs.get("start")
    }
    for command in sorted(commands):
        program = shutil.which(command[0])
        found = _vllm_beside(Path(program)) if program else None
        if program and found is None:
            yield worth_knowing(f"nobody knows which vLLM {command[0]} is", "take 0.32 or 0.33")
        elif found and tuple(map(int, re.findall(r"\d+", found)[:2])) < OLDEST_VLLM:
            told = f"{command[0]} is vLLM {found}, older ones than 0.32 have known holes"
            yield broken(told, "pip install 'vllm>=0.32' in its environment")
        elif found:
            yield fine(f"{command[0]} is vLLM {found}")


def _vllm_beside(program: Path) -> str | None:
    """Its version, by the packages of the environment that a command lies in."""
    home = program.parent.parent
    for folder in home.glob("lib/python3*/site-packages/vllm-*.dist-info"):
        return folder.name.removeprefix("vllm-").removesuffix(".dist-info")
    return None
