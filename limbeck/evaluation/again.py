"""An evaluation once more, from its manifest: is every number what it was?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from limbeck import pins, runner, store
from limbeck import recipe as recipes
from limbeck.config import explain, map_references
from limbeck.errors import UserError, UserErrors
from limbeck.stages import evaluate

WAY_OUT = "give RUN/STAGE/evaluation/manifest.json"
Pins = dict[str, Any]
M = TypeVar("M", bound=BaseModel)


class Manifest(BaseModel):
    """What a repeat goes by, of all that stage `evaluate` has written."""

    stage: str
    config: Pins
    inputs: dict[str, Pins]
    machine: Pins
    sources: Pins
    versions: Pins
    answers: dict[str, str]
    results: list[Pins]


@dataclass(frozen=True)
class Repeated:
    """What became of the numbers: how many there are, which are others, and what was other."""

    num_numbers: int
    changes: list[str]
    surroundings: list[str]


def again(manifest: Path, run_dir: Path | None = None, command: str = "") -> Repeated:
    """Evaluates anew what the manifest pins, on as many threads and the same kind of device.

    UserError, before anything is asked, where model, problems or another input are not those that
    it pins. Problems that are gone are collected from their source.
    """
    made = read(manifest)
    home = manifest.absolute().parent.parent.parent
    name = f"again-{made.stage}"
    run_dir = run_dir or Path("runs") / f"{home.name}-{name}"
    config = _valid(evaluate.Config, made.config, f"{manifest}: config")
    config, collected = _found(made, config, home)
    recipe = {
        "name": name,
        "machine": {key: made.machine.get(key, "auto") for key in ("device", "threads")},
        "stages": collected,
    }
    if collected:
        runner.run(recipes.load(recipe), run_dir, command=command)
    _check(made, config, run_dir)
    recipe["stages"] = {**collected, made.stage: {"stage": "evaluate", **pins.complete(config)}}
    is_done = (run_dir / made.stage / "stage.json").exists()
    redo = (made.stage,) if is_done else ()
    runner.run(recipes.load(recipe), run_dir, redo, command=command)
    now = read(run_dir / made.stage / "evaluation" / "manifest.json")
    surroundings = [(made.machine, now.machine), (made.versions, now.versions)]
    surroundings.append((made.sources, now.sources))
    return Repeated(
        num_numbers=sum(isinstance(n, int | float) for row in made.results for n in row.values()),
        changes=[*pins.changes(_numbers(made), _numbers(now))],
        surroundings=[line for pair in surroundings for line in pins.changes(*pair)],
    )


def read(path: Path) -> Manifest:
    """A manifest as stage `evaluate` wrote it; UserError for any other file."""
    if not path.is_file():
        raise UserError(str(path), "no such file", WAY_OUT)
    store.verify(path)
    made = store.read_json(path, WAY_OUT)
    if not isinstance(made, dict) or made.get("kind") != pins.KIND:
        raise UserError(str(path), "is no manifest of an evaluation", WAY_OUT)
    return _valid(Manifest, made, str(path))


def _valid(model: type[M], value: Pins, where: str) -> M:
    """UserErrors at `where`: the manifest was changed by hand, or is of another version."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        mistakes = [
            (".".join(map(str, key)), *what.partition("; ")) for key, what in explain(error, model)
        ]
    raise UserErrors(
        [UserError(f"{where}: {key}", what, out or WAY_OUT) for key, what, _, out in mistakes]
    )


def _found(
    made: Manifest, config: evaluate.Config, home: Path
) -> tuple[evaluate.Config, dict[str, Any]]:
    """The stage's config with inputs where they are, and the stages that collect what is gone."""
    collected: dict[str, Any] = {}

    def visit(kind: str, path: str, key: str) -> str:
        if not path.startswith("./"):
            return path
        place, source = home / path[2:], made.inputs.get(key, {}).get("source")
        if place.exists():
            return str(place)
        if not isinstance(source, dict) or source.get("stage") != "collect":
            raise UserError(f"{key}: {place}", "is not there any more", "restore it")
        collected[path[2:].partition("/")[0]] = source
        return path

    return map_references(config, visit), collected


def _check(made: Manifest, config: evaluate.Config, run_dir: Path) -> None:
    """UserError that names what differs from what is pinned."""

    def visit(kind: str, path: str, key: str) -> str:
        return str(run_dir / path[2:]) if path.startswith("./") else path

    now = pins.of_inputs(map_references(config, visit))
    for key, found in now.items():
        if "hub" in found and "hub" not in made.inputs.get(key, {}):
            way_out = "mend the path, or fetch it from the hub with `hf download`"
            raise UserError(f"{key}: {found['hub']}", "is not on this machine", way_out)
    for key, what in pins.strangers(made.inputs, now):
        way_out = "restore what was evaluated, or evaluate this by a recipe of its own"
        raise UserError(f"{key}: {what}", "not as the manifest has it", way_out)


def _numbers(made: Manifest) -> dict[str, Any]:
    """The results by split and metric, and the hashes of the texts."""
    results = {f"{row.get('split')} {row.get('metric')}": row for row in made.results}
    return {**results, **{f"texts of {name}": text for name, text in made.answers.items()}}


def words(repeated: Repeated) -> Iterator[str]:
    """What there is to say, a line each."""
    yield from repeated.surroundings
    if repeated.changes:
        yield from repeated.changes
        yield f"not identical: {len(repeated.changes)} differ"
    else:
        yield f"identical: all {repeated.num_numbers} numbers, and every text"
