"""MBPP: small Python functions from a sentence and three tests.

Austin et al. 2021, https://arxiv.org/abs/2108.07732.
"""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.config import FilePath
from limbeck.problems import public, source_name
from limbeck.problems.protocol import Protocol
from limbeck.problems.rows import Columns, problem_from_row
from limbeck.types import Problem

PROMPT = (
    "{question}\n\nThe function has to pass these tests:\n\n```python\n{tests}\n```\n\n"
    "Give it, and whatever it needs, in one block of Python."
)
PROTOCOL = Protocol(
    num_samples=16,
    num_problems=974,
    differs=(
        "The hub's test split has 500 problems (tasks 11 to 510), that of the sanitized version"
        " 257; a file of the authors has all splits, 974 and 427.",
        "The three tests are shown, or nobody could know the function's name; they are also what"
        " is judged by.",
        "The authors show 3 worked examples; here there are none.",
        "Left out, since their own solutions do not pass here, are 5 of 974 and 4 of 427: their"
        " tests look at more than a plain value that a function returns, which a program could"
        " forge.",
    ),
)


def read(
    *,
    dataset: str = "google-research-datasets/mbpp",
    sanitized: bool = False,
    revision: str | None = None,
    path: FilePath | None = None,
    prompt: str = PROMPT,
) -> Iterator[Problem]:
    """Columns `text` (sanitized: `prompt`), `code` and `test_list`.

    Of a file every row is read, whichever split it is of.
    """
    config, source = "sanitized" if sanitized else "full", source_name(path or dataset)
    rows = public.read_table(path=path, dataset=dataset, config=config, revision=revision)
    for where, row in rows:
        columns = Columns(
            question="text" if "text" in row else "prompt",
            answer="code",
            tests="test_list",
            verifier="code",
            prompt=prompt,
            source=source,
        )
        yield problem_from_row(row, where, columns)
