"""A recipe rehearsed: each of its stages done small, with its own code, to learn what it takes.

Runs in a process of its own, as `limbeck run` would: `python -m limbeck.estimates.rehearsal FILE`
reads a recipe from standard input and adds a line of JSON to FILE for each stage. What is short is
done whole. Of what is not there are three takes: the first pays for what is loaded once; the
difference of the other two tells what a row, or a token, takes. What costs money, asks the network
or is too large for this machine is left out, and so is what reads of it.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from limbeck import ledger, planner, progress, runner, store, tables
from limbeck import recipe as recipes
from limbeck.config import Plugin, map_references
from limbeck.estimates import small
from limbeck.estimates.measured import LACKING
from limbeck.estimates.shapes import of_model
from limbeck.estimates.small import TINY, USUAL, Size
from limbeck.estimates.stand_in import Learners, own_texts
from limbeck.estimates.work import PLAIN
from limbeck.folder import Machine, StageFolder
from limbeck.recipe import Stage

MADE_HERE = ("reasoning_gym", "table")
MOST_FLOPS = 1e11  # of one take: some seconds of a laptop
LEAST_TOKENS = 1000  # that are read or written of any model
MOST_SECONDS = 60.0  # of the whole rehearsal: whatever comes behind them is left out
BEGUN: dict[str, Any] = {
    "identity": {"source of": {}},
    "machine": {},
    "versions": {},
}  # what a runner would write


class LeftOut(Exception):
    """Why a stage is not rehearsed."""


@dataclass
class Take:
    """What one take of a stage took: CPU-seconds and seconds on the clock; `changed` fields of its
    config, and what it `read`."""

    changed: dict[str, Any]
    read: small.Inputs
    cpu: float = 0.0
    wall: float = 0.0


@dataclass
class Rehearsal:
    """The stages so far: `learners` are models whose training was cut short, `whole` the stages of
    which nothing was cut, `warm` the verbs that have been done before, without and with a model."""

    folder: Path
    machine: Machine
    learners: Learners = field(default_factory=Learners)
    warm: set[tuple[str, bool]] = field(default_factory=set)
    whole: set[str] = field(default_factory=set)

    def stage(self, stage: Stage) -> dict[str, Any]:
        """What three takes of a stage took, its memory, and what came out of the last."""
        takes = {}
        for name, size in self._sizes(stage):
            config, changed, tokens = self._small(stage, name, size)
            take = Take(changed, small.read(config, tokens))
            out = StageFolder(self.folder / name / stage.name, stage.name, name, self.machine)
            out.path.mkdir(parents=True)
            store.write_sealed(out.path / "started.json", BEGUN)
            with out.account("around it"):
                stage.module.run(self.learners.standing_in(config), out)
            spent = ledger.total(out.path / "ledger.jsonl")
            take.cpu, take.wall = spent["cpu_seconds"], spent["wall_seconds"]
            takes[name] = asdict(take)
            self.warm.add((stage.verb, bool(small.models(config))))
        kinds = stage.module.WRITES
        made = {name: _num_rows(out.path / name) for name in kinds}
        return {
            "takes": takes,
            "memory_mib": spent["peak_memory_mib"],
            "length": small.mean_length(out.path, [n for n in kinds if kinds[n] == "traces"]),
            "made": {name: num for name, num in made.items() if num is not None},
        }

    def pass_on(self, stage: Stage) -> None:
        """Gives what reads of a stage that failed what that stage read, nothing of it dropped."""
        config = map_references(stage.config, self._inside)
        out = StageFolder(self.folder / "usual" / stage.name, stage.name, "", self.machine)
        if getattr(config, "keep", None):
            shutil.rmtree(out.path, ignore_errors=True)
            stage.module.run(config.model_copy(update={"keep": []}), out)
        read: dict[str, str] = {}
        map_references(config, lambda kind, path, key: read.setdefault(kind, path))
        for name, kind in stage.module.WRITES.items():
            if kind in small.TABLES and kind in read and not (out.path / name).exists():
                shutil.copytree(read[kind], out.path / name)

    def _sizes(self, stage: Stage) -> list[tuple[str, Size]]:
        """The takes of a stage: one where that is all of it."""
        if self._is_whole(stage) or stage.verb == "profile":
            return [("usual", USUAL)]
        is_warm = (stage.verb, bool(small.models(stage.config))) in self.warm
        cold = [] if is_warm else [("cold", TINY)]
        return [*cold, ("tiny", TINY), ("usual", USUAL)]

    def _is_whole(self, stage: Stage) -> bool:
        """Whether the usual take does all of a stage, and nothing that it reads was cut."""
        config, changed, tokens = self._small(stage, "usual", USUAL)
        full = map_references(stage.config, self._inside)
        is_same = all(value == getattr(full, name) for name, value in changed.items())
        read = small.read(config, tokens) == small.read(full, tokens)
        if is_same and read and self._reads_whole(stage):
            self.whole.add(stage.name)
        return stage.name in self.whole

    def _reads_whole(self, stage: Stage) -> bool:
        earlier: list[bool] = []

        def visit(kind: str, path: str, key: str) -> str:
            if path.startswith("./") and kind in small.TABLES:
                earlier.append(path[2:].partition("/")[0] in self.whole)
            return path

        map_references(stage.config, visit)
        return all(earlier)

    def _small(self, stage: Stage, take: str, size: Size) -> tuple[Any, dict[str, Any], Any]:
        """(config, the fields that were changed, tokens of a row of what it learns)."""
        config = map_references(stage.config, self._inside)
        _refuse_foreign(config)
        changed, tokens = small.counts(config, size), {}
        if stage.verb in ("sft", "distill"):
            tokens["data"] = self._tokens(config.data, config.model)
            num_rows = tables.num_rows(config.data)
            parameters = self._parameters(config.model, tokens["data"] * config.batch_size * 3)
            changed |= small.lessons(config, num_rows, tokens["data"], parameters, size)
            changed |= own_texts(config)
        elif stage.verb == "grpo":
            length = self.learners.length(config.model, config.max_tokens)
            num = config.num_samples * config.questions_per_step
            self._parameters(config.model, 5 * length * num)
            changed |= small.rounds(config, length, size)
        elif getattr(config, "calibration", None):
            tokens["calibration"] = self._tokens(config.calibration, config.model)
            changed["num_texts"] = small.num_texts(config, tokens["calibration"], size)
            self._parameters(config.model, 2 * changed["num_texts"] * tokens["calibration"])
        else:
            most, asked = getattr(config, "max_tokens", 0), small.models(config)
            length = max((self.learners.length(model, most) for model in asked), default=most)
            num = small.num_problems(config, stage.verb, size, length)
            config = small.few(config, num, self.folder / "read" / take / stage.name)
            for model in asked:
                self._parameters(model, num * length)
        if take == "usual":
            is_cut = stage.verb in ("sft", "distill") and "num_epochs" in changed
            self.learners.add(self.folder / take / stage.name / "model", config, is_cut)
        told = {name: value for name, value in changed.items() if name != "on_policy"}
        return config.model_copy(update=changed), told, tokens

    def _inside(self, kind: str, path: str, key: str) -> str:
        """A reference as a path, to what the last take of its stage made. LeftOut for what is not
        there, and for models that are large, or that somebody would have to fetch."""
        place = self.folder / "usual" / path[2:] if path.startswith("./") else Path(path)
        if not place.exists():
            lacks = LACKING if path.startswith("./") else " is not on this machine"
            raise LeftOut(f"{path}{lacks}")
        if kind == "model":
            self._parameters(str(place), LEAST_TOKENS)
        return str(place)

    def _parameters(self, model: str, tokens: float) -> float:
        """Of a model, where so many tokens are not too much for it here."""
        num = of_model(model).num_parameters
        if not 2 * num * tokens <= MOST_FLOPS:
            raise LeftOut("its model is large, or nobody knows how large")
        return num

    def _tokens(self, data: str, model: str) -> float:
        """Mean tokens of the texts of a data set, prompts included."""
        from limbeck import models
        from limbeck.train.examples import read_lessons

        return _mean(read_lessons(data, models.load_tokenizer(model), 10**9).lengths)


def _refuse_foreign(config: Any) -> None:
    """LeftOut for what asks others: servers, judges, sources that are not on this machine."""
    engines = [getattr(config, name, None) for name in ("engine", "judge")]
    for engine in [*engines, *getattr(config, "engines", {}).values()]:
        if isinstance(engine, Plugin) and engine.name not in (*PLAIN, "local"):
            raise LeftOut(f"it asks the engine {engine.name}")
    for source in [getattr(config, "source", None), *getattr(config, "more", [])]:
        is_here = source is None or source.name in MADE_HERE or source.knobs.get("path")
        if not is_here:
            raise LeftOut(f"its source {source.name} is not on this machine")


def _mean(numbers: list[int]) -> float:
    return sum(numbers) / len(numbers)


def _num_rows(table: Path) -> int | None:
    if not tables.parts(table):
        return None
    return tables.num_rows(table)


def _gpus() -> dict[str, Any]:
    """What this machine computes with, if not with its processor: nothing is rehearsed on it."""
    import torch

    return {"gpu": torch.cuda.get_device_name(), "num": torch.cuda.device_count()}


def main(to: Path) -> None:
    """Rehearses the recipe that standard input tells of; begins with what starting takes."""
    asked = json.load(sys.stdin)
    progress.quiet = True
    loaded = recipes.load(asked["recipe"], asked["overrides"], asked["size"])
    machine = runner.settle(loaded.machine)
    if machine.device == "cuda":
        return store.append_json(to, _gpus())
    planner.plan(loaded, to.parent / "nowhere")  # as a run does, which imports what plug-ins need
    start = time.process_time()
    speed = ledger.gemm_gflops()
    store.append_json(to, {"gflops": speed, "threads": machine.threads, "start": start})
    with TemporaryDirectory(prefix="limbeck-plan-") as folder:
        rehearsal = Rehearsal(Path(folder), machine)
        for stage in loaded.stages:
            try:
                if time.process_time() > MOST_SECONDS:
                    raise LeftOut("the rehearsal took too long")
                found = rehearsal.stage(stage)
            except LeftOut as reason:
                found = {"left_out": str(reason)}
            except Exception as error:  # a stage may dislike to be so small: others may not
                found = {"left_out": f"{type(error).__name__}: {error}"}
                with suppress(Exception):
                    rehearsal.pass_on(stage)
            store.append_json(to, {"stage": stage.name, **found})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
