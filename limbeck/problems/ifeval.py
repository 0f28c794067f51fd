"""IFEval: instructions that a program can check, such as "in at least 300 words, without commas".

Zhou et al. 2023, https://arxiv.org/abs/2311.07911.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from limbeck.config import FilePath
from limbeck.errors import UserError
from limbeck.problems import is_text, make_problem, public, source_name
from limbeck.problems.protocol import Protocol
from limbeck.types import Problem

PROTOCOL = Protocol(
    num_samples=16,
    num_problems=541,
    paper="ifeval",
    differs=(
        "There are four numbers: by prompt or by instruction, strict or loose; 'IFEval' alone is"
        " mostly strict by prompt, as pass@1 is here, and some report the mean of the four.",
        "The thinking is not judged: a checker that sees it finds commas and too many words.",
        "The authors ask once, greedily.",
        "Several checkers of language, sentences and words are about, which disagree in places.",
    ),
)


def read(
    *,
    dataset: str = "google/IFEval",
    revision: str | None = None,
    path: FilePath | None = None,
) -> Iterator[Problem]:
    """Columns `prompt`, `instruction_id_list` and `kwargs`; what is asked is the prompt alone.

    No answer is the right one. `meta["instructions"]` has `id` and `kwargs` of each; what is null
    in the hub's copy, where every instruction has the arguments of all, is left out.
    """
    source = source_name(path or dataset)
    rows = public.read_table(path=path, dataset=dataset, split="train", revision=revision)
    for where, row in rows:
        prompt, instructions = _checked(row, where)
        meta = {"source": source, "key": row.get("key"), "instructions": instructions}
        yield make_problem(prompt, "", verifier="ifeval", meta=meta)


def _checked(row: Mapping[str, Any], where: str) -> tuple[str, list[dict[str, Any]]]:
    """(prompt, instructions); UserError for a row of another layout."""
    try:
        prompt, named = row["prompt"], row["instruction_id_list"]
        told = [_told(kwargs) for kwargs in row["kwargs"]]
        if not prompt.strip() or not named or not is_text(prompt):
            raise ValueError("nothing is asked")
        pairs = zip(named, told, strict=True)
        return prompt, [{"id": str(name), "kwargs": kwargs} for name, kwargs in pairs]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"is no row of IFEval's layout ({type(error).__name__}: {error})"
        raise UserError(where, what, "give prompt, instruction_id_list and kwargs") from error


def _told(kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    return {name: value for name, value in (kwargs or {}).items() if value is not None}
