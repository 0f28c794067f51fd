"""What an evaluation's numbers depend on, pinned: enough to ask again, and to see what differs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from limbeck import store, tables
from limbeck.config import Plugin, map_references
from limbeck.types import Problem, Trace

KIND = "limbeck evaluation"
SEEDS = "first 64 bits of sha256 of [seed, stage, problem, sample]"
TOLD = ("source", "hub")  # where an input came from, which is not what it is
Pins = dict[str, Any]
C = TypeVar("C", bound=BaseModel)


def complete(value: Any) -> Any:
    """A config as plain JSON with every knob, defaults too: these may be others one day."""
    if isinstance(value, Plugin):
        return {"name": value.name, **{name: complete(knob) for name, knob in value.knobs.items()}}
    if isinstance(value, BaseModel):
        return {name: complete(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, dict):
        return {name: complete(item) for name, item in value.items()}
    return [complete(item) for item in value] if isinstance(value, list) else value


def within(config: C, run_dir: Path) -> C:
    """The config with paths into its run as a recipe writes them: `./stage/output`."""

    def visit(kind: str, path: str, key: str) -> str:
        place = Path(path)
        return f"./{place.relative_to(run_dir)}" if place.is_relative_to(run_dir) else path

    return map_references(config, visit)


def of_inputs(config: BaseModel) -> dict[str, Pins]:
    """By its key in the recipe, what each path or name that a config gives stands for."""
    found: dict[str, Pins] = {}

    def visit(kind: str, path: str, key: str) -> str:
        found[key] = {"kind": kind, **_of_input(kind, path)}
        return path

    map_references(config, visit)
    return found


def _of_input(kind: str, path: str) -> Pins:
    if kind == "model":
        return _of_model(path)
    if kind == "problems":
        problems = tables.read_problems(path)
        return {"num": len(problems), "sha256": of_problems(problems), "source": _source(path)}
    place = Path(path)
    if place.is_dir():
        return {"sha256": store.digest(store.hash_tree(place))}
    return {"sha256": store.hash_file(place)}


def _of_model(source: str) -> Pins:
    """Hashes of a model's parts, and of the chat template in use; of one that only a server has
    nothing but the name."""
    from limbeck import models

    folder = models.folder_of(source)
    if folder is None:
        return {"hub": source}
    template = models.load_tokenizer(folder).get_chat_template()
    return {
        "weights": _of_files(folder, "*.safetensors"),
        "config": _of_files(folder, "config.json", "generation_config.json"),
        "tokenizer": _of_files(folder, "*token*", "vocab*", "merges.txt", "*.model"),
        "chat_template": store.digest(template),
    }


def _of_files(folder: Path, *patterns: str) -> str | None:
    """sha256 over the files of these names; None where there are none."""
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return store.digest({f.name: store.hash_file(f) for f in sorted(files)}) if files else None


def of_problems(problems: Iterable[Problem]) -> str:
    """sha256 over what is asked and what is right, in order, whatever file it lies in."""
    return store.digest([asdict(problem) for problem in problems])


def _source(path: str) -> Pins | None:
    """How the problems were come by, where a stage of the run has collected them."""
    manifest = Path(path).parent / "stage.json"
    if not manifest.exists():
        return None
    made = store.read_sealed(manifest)
    return {"stage": made["verb"], **made["config"]}


def of_answers(answers: Mapping[str, Iterable[Trace]]) -> dict[str, str]:
    """Of each metric's answers a sha256 over the texts, whatever their order."""
    return {
        metric: store.digest(sorted([t.problem_id, t.index, t.text, t.finish] for t in traces))
        for metric, traces in answers.items()
    }


def strangers(then: Mapping[str, Pins], now: Mapping[str, Pins]) -> Iterator[tuple[str, str]]:
    """(key, what of it is not what it was) for each input that differs."""
    for key, pins in then.items():
        found = now.get(key, {})
        names = [name for name in pins if name not in TOLD and pins[name] != found.get(name)]
        if names:
            told = {"sha256": "content", "num": "number"}
            yield key, ", ".join(told.get(name, name).replace("_", " ") for name in names)


def changes(then: Any, now: Any, where: str = "") -> Iterator[str]:
    """'math500 pass_at_1 value: was 0.5, is 0.4' for each leaf of JSON values that differs."""
    if isinstance(then, dict) and isinstance(now, dict):
        for name in dict.fromkeys([*then, *now]):
            yield from changes(then.get(name), now.get(name), f"{where} {name}".strip())
    elif then != now:
        yield f"{where}: was {then}, is {now}"
