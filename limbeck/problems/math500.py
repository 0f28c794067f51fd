"""MATH-500: five hundred problems of MATH's test split, by subject.

Hendrycks et al. 2021, https://arxiv.org/abs/2103.03874; the choice is that of Lightman et al. 2023,
https://arxiv.org/abs/2305.20050.
"""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.config import FilePath
from limbeck.problems import public
from limbeck.problems.protocol import BOXED, Protocol
from limbeck.problems.rows import Columns
from limbeck.types import Problem

PROTOCOL = Protocol(
    num_samples=16,
    num_problems=500,
    paper="math500",
    differs=(
        "The grader decides: sets are equal in any order, `90` is `90^\\circ`, `10,\\!080` is"
        " `10080`; open and closed intervals differ, and so do x and 100x.",
        "A text that was cut off has no answer; graders that take its last number give it one.",
    ),
)


def read(
    *,
    dataset: str = "HuggingFaceH4/MATH-500",
    revision: str | None = None,
    path: FilePath | None = None,
    prompt: str = BOXED,
) -> Iterator[Problem]:
    """Columns `problem`, `answer` and `subject`."""
    columns = Columns(question="problem", verifier="math", prompt=prompt, domain="subject")
    return public.problems(columns, path=path, dataset=dataset, revision=revision)
