"""What a run is about, by its stages: how a model learned, and whether it was asked to think."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from limbeck import tables
from limbeck.reporting import lineage
from limbeck.reporting.training import stage_of

if TYPE_CHECKING:
    from limbeck.runs import Run

Row = dict[str, Any]
THOUGHT = r"(?s)<think>\s*[^\s<].*</think>"  # an empty one is none
MOST = 0.5  # of a table's texts: a model that knows nothing hits on the tags by chance


def learned(run: Run, smaller: list[Row]) -> str:
    """How models learned, but for those that were made smaller and only recovered.

    `rewards`, `distribution` of a teacher, texts that another model wrote, `teacher`, or the model
    that learns from them, `itself`; the known `answers`; other `texts`; or nothing.
    """
    if run.done("grpo"):
        return "rewards"
    recovered = {row["name"] for row in smaller if row["how"]}
    if any(row["stage"] not in recovered for row in run.done("distill")):
        return "distribution"
    trained = [row["stage"] for row in run.done("sft") if row["stage"] not in recovered]
    ways = {_taught_by(run, stage) for stage in trained}
    return next((way for way in ("teacher", "itself", "answers", "texts") if way in ways), "")


def _taught_by(run: Run, training: str) -> str:
    settings = run.recipe["stages"][training]
    data = settings["data"]
    references = [stage_of(one) for one in ([data] if isinstance(data, str) else data)]
    samples = [sample for stage in references for sample in _samples(run, stage)]
    wrote = {author for sample in samples if (author := _author(run, sample)) != "gold"}
    if wrote:
        own = lineage.weights(run, str(settings["model"]))
        return "itself" if wrote == {own} else "teacher"
    return "answers" if samples else "texts"


def authors(run: Run, curation: str) -> list[str]:
    """Who wrote what was curated: the stages that made these models, or names from outside."""
    made_of = _samples(run, stage_of(run.recipe["stages"][curation]["traces"]))
    return list(dict.fromkeys(_author(run, sample) for sample in made_of))


def _samples(run: Run, stage: str) -> list[str]:
    """The stages whose samples are in what a stage wrote."""
    stages = run.recipe["stages"]
    found = lineage.upstream(run, stage, through_models=False)
    return [name for name in found if stages[name]["stage"] == "sample"]


def _author(run: Run, sample: str) -> str:
    return lineage.weights(run, lineage.asked(run, sample)[0])


def thinks(run: Run) -> bool:
    """Whether models of the run think before they answer, when they are sampled or evaluated."""
    tables_of = {"sample": ("traces",), "evaluate": ("greedy", "pass_at_1")}
    places = [
        run.path / row["stage"] / name
        for verb, names in tables_of.items()
        for row in run.done(verb)
        for name in names
    ]
    return any(tables.parts(place) and _is_thought(place) for place in places)


def _is_thought(table: Path) -> bool:
    """By its first rows."""
    texts = next((batch["text"] for batch in tables.iter_batches(table, ["text"])), None)
    if texts is None or len(texts) == 0:
        return False
    thought = pc.sum(pc.match_substring_regex(texts, THOUGHT)).as_py() or 0
    return bool(thought > MOST * len(texts))
