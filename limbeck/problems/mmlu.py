"""MMLU: questions with four options on 57 subjects.

Hendrycks et al. 2021, https://arxiv.org/abs/2009.03300.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from limbeck.config import FilePath
from limbeck.problems import public, source_name
from limbeck.problems.protocol import LETTER, Protocol
from limbeck.problems.rows import Columns, problem_from_row
from limbeck.types import Problem

DIGITS = ("0", "1", "2", "3")
PROTOCOL = Protocol(
    num_samples=4,
    num_problems=14_042,
    paper="mmlu",
    differs=(
        "The answer is written and read; many figures compare the probabilities of four letters.",
        "The mean is that of questions; some report the mean of the 57 subjects' means.",
        "Others show 5 examples of the subject; here, as in the paper, there are none.",
        "Of questions that stand twice in the set, one counts.",
    ),
)


def read(
    *,
    dataset: str = "cais/mmlu",
    revision: str | None = None,
    path: FilePath | None = None,
    prompt: str = LETTER,
) -> Iterator[Problem]:
    """Columns `question`, `choices`, `answer` (from 0) and `subject`, or `type`.

    In the order of hashes: the set is sorted by subject, and its first hundred are algebra.
    """
    source = source_name(path or dataset)
    columns = Columns(
        choices="choices", verifier="choice", prompt=prompt, domain="subject", source=source
    )
    rows = public.read_table(path=path, dataset=dataset, config="all", revision=revision)
    told = ((where, {"subject": row.get("type"), **row, **_answer(row)}) for where, row in rows)
    return public.in_hash_order(problem_from_row(row, where, columns) for where, row in told)


def _answer(row: Mapping[str, Any]) -> dict[str, Any]:
    """Digits are the right option's number, though an option may read like them, as in a `.csv`."""
    answer = row.get("answer")
    return {"answer": int(answer)} if isinstance(answer, str) and answer in DIGITS else {}
