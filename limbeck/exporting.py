"""`limbeck export`: a run of that stage alone, whose output is put into place once it is done.

The run lies hidden beside the place. What was killed goes on with the same command; what was
refused leaves nothing but files that are proved, with which a mended command goes on.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from limbeck import planner, processes, recipe, runner, store
from limbeck.errors import UserError, UserErrors
from limbeck.export import lineage

STAGE = "export"
OUTPUT = {"hf": "model", "gguf": "gguf"}


def beside(folder: Path | None, model: str, to: str) -> Path:
    """Where an export goes by default: beside the run that the model is of, or beside itself."""
    if folder is None:
        return Path(f"{model.partition('@')[0].rpartition('/')[2]}-{to}")
    whole = folder.resolve()
    stage = whole.parent
    if (stage / "stage.json").exists():
        return stage.parent.with_name(f"{stage.parent.name}-{stage.name}-{to}")
    return whole.with_name(f"{whole.name}-{to}")


def export(settings: dict[str, Any], place: Path, command: str = "") -> list[Path]:
    """Runs the stage with these settings, and gives the files that it has put into `place`.

    UserError for a place that is taken, and for whatever the stage refuses.
    """
    place = Path(os.path.normpath(place))
    _refuse_taken(place)
    about = [os.path.realpath(settings["model"]), settings["to"], settings.get("dtype")]
    aside = place.with_name(f".{place.name}.{store.digest(about)[:8]}.export")
    told = {"scores": scores_of(settings["model"]), **settings}
    loaded = recipe.load({"name": STAGE, "stages": {STAGE: told}})
    try:
        is_stale = aside.exists() and planner.plan(loaded, aside)[0].state == "stale"
        runner.run(loaded, aside, redo=(STAGE,) if is_stale else (), command=command)
    except (UserError, UserErrors):
        _tidy(aside)
        raise
    if not processes.leads():
        return []
    made = aside / STAGE / OUTPUT[settings["to"]]
    store.verify(made)
    _refuse_taken(place)  # which another may have done meanwhile
    made.rename(place)
    shutil.rmtree(aside)
    return sorted(place.iterdir())


def scores_of(model: str) -> dict[str, str]:
    """What a run says of an output of one of its stages as it is now: scores by what a card calls
    the model by, the stage's name; where several evaluated it, with whose they are."""
    stage = lineage.stage_of(Path(model).resolve())
    if stage is None:
        return {}
    run, output = stage.parent, f"./{Path(model).resolve().relative_to(stage.parent)}"
    held = planner.content(run, output)
    found = []
    for manifest in sorted(run.glob("*/stage.json")):
        told = store.read_sealed(manifest)
        is_asked = told["verb"] == "evaluate" and _asked(told["config"]) == output
        if is_asked and told["inputs"].get(output) == held:
            found.append((told["stage"], str(manifest.parent / "scores")))
    if store.read_sealed(stage / "stage.json")["verb"] == "gate":
        found.append(("gate", str(stage / "scores")))
    if len(found) == 1:
        return {stage.name: found[0][1]}
    return {f"{stage.name} ({by})": scores for by, scores in found}


def _asked(config: dict[str, Any]) -> str:
    """The model that an evaluation asked."""
    engine = config["engine"]
    return str(engine.get("model", "")) if isinstance(engine, dict) else ""


def _refuse_taken(place: Path) -> None:
    if place.exists() or place.is_symlink():
        raise UserError(str(place), "is there already", "choose another folder with --out")


def _tidy(aside: Path) -> None:
    """Takes away a run that was refused, unless another process is at it, a stranger's folder has
    its name, or files of it are proved."""
    if not aside.is_dir() or any(aside.glob(f"{STAGE}/gguf/*.gguf")):
        return
    names = {path.name for path in aside.iterdir()}
    if names - {*runner.OURS, "recipe.json", STAGE}:
        return
    with suppress(UserError), store.locked(aside):
        shutil.rmtree(aside)
