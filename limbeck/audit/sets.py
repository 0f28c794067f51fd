"""The labelled sets: where each lies, who reads it, which verifiers are tried on it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from limbeck.audit import code_sets, hostile, labelled
from limbeck.audit.labelled import Labelled
from limbeck.config import suggest
from limbeck.errors import UserError


@dataclass(frozen=True)
class LabelledSet:
    """A set, the file that it is read from, and the verifiers that are tried on it.

    No verifier means that each problem names its own. `checked` labels were settled by hand, or by
    two graders that agree, and count for the target; the others are their authors' own. The
    `peers` judge mathematics alone.
    """

    name: str
    path: str
    read: Callable[[Path], Iterable[Labelled]]
    verifiers: tuple[str, ...] = ("math",)
    checked: bool = False
    peers: bool = True
    hostile: bool = False


def _traces(name: str) -> LabelledSet:
    path = f"reasoning_traces/{name}.jsonl.gz"
    return LabelledSet(name, path, labelled.reasoning_traces(name), checked=True)


def _code(name: str, path: str, read: Callable[[Path], Iterable[Labelled]]) -> LabelledSet:
    return LabelledSet(name, path, read, ("code",), peers=False)


def _hostile(name: str, read: Callable[[Path], Iterable[Labelled]]) -> LabelledSet:
    path = str(hostile.FOLDER / f"{name.removeprefix('hostile_')}.jsonl")
    return LabelledSet(name, path, read, (), peers=False, hostile=True)


SETS = (
    LabelledSet(
        "math500_gpt_answers",
        "verifier_pairs/math500_gpt_answers.jsonl",
        labelled.math500_gpt_answers,
        checked=True,
    ),
    LabelledSet(
        "model_answers",
        "verifier_pairs/model_answers.jsonl",
        labelled.model_answers,
        checked=True,
    ),
    _traces("sky_t1_aime24"),
    _traces("qwen25_math500"),
    _traces("qwen25_14b_olympiadbench_half"),
    _traces("r1_distill_math"),
    LabelledSet("pairs", "verifier_pairs/pairs.jsonl", labelled.pairs),
    LabelledSet(
        "gsm8k", "gsm8k/model_solutions.jsonl.gz", labelled.gsm8k, verifiers=("number", "math")
    ),
    LabelledSet(
        "mmlu_pro_outputs",
        "mmlu_pro_outputs/outputs.jsonl.gz",
        labelled.mmlu_pro_outputs,
        verifiers=("choice",),
        peers=False,
    ),
    _code("humaneval", "humaneval/codegen16b_completions.jsonl.gz", code_sets.humaneval),
    _code("mbpp", "mbpp/mbpp.jsonl", code_sets.mbpp),
    _code("p3", "p3/puzzles.jsonl.gz", code_sets.p3),
    _hostile("hostile_answers", hostile.answers),
    _hostile("hostile_programs", hostile.programs),
)


def choose(data: Path, names: list[str] | None) -> list[LabelledSet]:
    """The sets of these names, or all that the folder has; UserError where one is not to be had."""
    known = {chosen.name: chosen for chosen in SETS}
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise UserError(
            "sets", f"no set is called {unknown[0]!r}", suggest(unknown[0], list(known))
        )
    there = [chosen for chosen in SETS if (data / chosen.path).exists()]
    if not any(not chosen.hostile for chosen in there) and names is None:
        raise UserError(
            str(data),
            "has none of the labelled sets",
            "name the folder that does with --data, or set LIMBECK_TEST_DATA",
        )
    missing = [name for name in names or () if known[name] not in there]
    if missing:
        raise UserError(str(data), f"has no {known[missing[0]].path}", "name another with --data")
    return [chosen for chosen in there if names is None or chosen.name in names]
