"""HumanEval: Python functions from their signatures and docstrings.

Chen et al. 2021, https://arxiv.org/abs/2107.03374.
"""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.config import FilePath
from limbeck.problems import public
from limbeck.problems.protocol import Protocol
from limbeck.problems.rows import Columns
from limbeck.types import Problem

PROMPT = (
    "Complete this Python function. Give the whole function, and whatever it needs, in one block"
    " of Python.\n\n```python\n{question}\n```"
)
PROTOCOL = Protocol(
    num_samples=16,
    num_problems=164,
    differs=(
        "What is asked is an instruction around the signature; its authors had base models go on"
        " writing behind it, and cut at the next function.",
        "The program is the last block of Python, set behind the given signature: a body alone"
        " will do, and imports that the signature has need not be repeated.",
        "Each problem has 4 seconds; the authors gave 3.",
        "The tests are the authors' own; HumanEval+ has 80 times as many.",
    ),
)


def read(
    *,
    dataset: str = "openai/openai_humaneval",
    revision: str | None = None,
    path: FilePath | None = None,
    prompt: str = PROMPT,
) -> Iterator[Problem]:
    """Columns `prompt`, `canonical_solution`, `test` and `entry_point`."""
    columns = Columns(
        question="prompt",
        answer="canonical_solution",
        tests="test",
        verifier="code",
        prompt=prompt,
    )
    return public.problems(columns, path=path, dataset=dataset, revision=revision)
