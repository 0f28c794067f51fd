"""GSM8K: word problems of grade school, whose answers are numbers.

Cobbe et al. 2021, https://arxiv.org/abs/2110.14168.
"""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.config import FilePath
from limbeck.problems import public
from limbeck.problems.protocol import BOXED, Protocol
from limbeck.problems.rows import Columns
from limbeck.types import Problem

PROTOCOL = Protocol(
    num_samples=8,
    num_problems=1319,
    differs=(
        "Others ask with 5 or 8 worked examples; here with none.",
        "Read is the box, else what follows `####`, else the last number of a finished answer;"
        " lm_eval's strict match wants `####`, its flexible one takes the last number of any text.",
        "Numbers are compared as values: `1,200.0` is `1200`.",
    ),
)


def read(
    *,
    dataset: str = "openai/gsm8k",
    revision: str | None = None,
    path: FilePath | None = None,
    prompt: str = BOXED,
) -> Iterator[Problem]:
    """Columns `question` and `answer`, the number behind `####`."""
    columns = Columns(answer_after="####", verifier="number", prompt=prompt)
    return public.problems(columns, path=path, dataset=dataset, config="main", revision=revision)
