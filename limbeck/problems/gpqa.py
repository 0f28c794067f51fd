"""GPQA Diamond: questions for experts with four options, which search engines do not answer.

Rein et al. 2023, https://arxiv.org/abs/2311.12022. Its authors ask that nobody publish the
questions where a crawler could read them. So its problems are `sealed`: see `limbeck/sealed.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

from limbeck.config import FilePath
from limbeck.errors import UserError
from limbeck.problems import public, source_name
from limbeck.problems.protocol import LETTER, Protocol
from limbeck.problems.rows import Columns, problem_from_row
from limbeck.sealed import MARK
from limbeck.types import Problem

RIGHT, WRONG = "Correct Answer", [f"Incorrect Answer {number}" for number in (1, 2, 3)]
PROTOCOL = Protocol(
    num_samples=64,
    num_problems=198,
    paper="gpqa",
    differs=(
        "The order of the options: here that of hashes of question and option, the same for"
        " everybody and every sample; simple-evals draws one, others draw anew for each sample.",
        "Others ask 4 times, which leaves 2 to 3 points to chance.",
        "The prompt is not the paper's word for word; both want a last line with the letter.",
        "Open-R1 measures 1 to 2.4 points more or less than the paper for the same models.",
    ),
)


def read(
    *,
    dataset: str = "Idavidrein/gpqa",
    revision: str | None = None,
    path: FilePath | None = None,
    prompt: str = LETTER,
) -> Iterator[Problem]:
    """Columns `Question`, `Correct Answer`, `Incorrect Answer 1` to `3`, `High-level domain`.

    On the hub it is given out against a signature: give one, and set HF_TOKEN. Or unpack the
    authors' archive, and name its `gpqa_diamond.csv`.
    """
    columns = Columns(
        question="Question",
        choices="options",
        verifier="choice",
        prompt=prompt,
        domain="High-level domain",
        source=source_name(path or dataset),
    )
    rows = public.read_table(
        path=path, dataset=dataset, config="gpqa_diamond", split="train", revision=revision
    )
    for where, row in rows:
        options = _options(row, where)
        answered = {"options": options, "answer": options.index(row[RIGHT])}
        problem = problem_from_row({"High-level domain": "", **row, **answered}, where, columns)
        problem.meta[MARK] = True
        yield problem


def _options(row: Mapping[str, Any], where: str) -> list[str]:
    """The four options, in an order that nobody chose and that does not tell which is right."""
    found = [row.get(column) for column in (RIGHT, *WRONG)]
    if not all(isinstance(option, str) and option.strip() for option in found):
        raise UserError(where, "lacks an option", f"give {', '.join((RIGHT, *WRONG))}")

    def place(option: str) -> bytes:
        return hashlib.sha256(f"{row.get('Question')}\n{option}".encode()).digest()

    return sorted(map(str, found), key=place)
