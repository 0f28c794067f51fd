"""MMLU-Pro: harder questions with up to ten options, fourteen categories.

Wang et al. 2024, https://arxiv.org/abs/2406.01574.
"""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.config import FilePath
from limbeck.problems import public
from limbeck.problems.protocol import LETTER, Protocol
from limbeck.problems.rows import Columns
from limbeck.types import Problem

PROTOCOL = Protocol(
    num_samples=4,
    num_problems=12_032,
    paper="mmlu_pro",
    differs=(
        "An answer without a letter is wrong; the authors' script draws one by chance, which is"
        " worth up to a tenth of the answers that do not parse.",
        "The authors show 5 worked examples of the category; here there are none.",
        "Earlier versions of the set have 12,187 questions.",
    ),
)


def read(
    *,
    dataset: str = "TIGER-Lab/MMLU-Pro",
    revision: str | None = None,
    path: FilePath | None = None,
    prompt: str = LETTER,
) -> Iterator[Problem]:
    """Columns `question`, `options`, `answer` (a letter from A to J) and `category`.

    In the order of hashes: the set is sorted by category.
    """
    columns = Columns(choices="options", verifier="choice", prompt=prompt, domain="category")
    found = public.problems(columns, path=path, dataset=dataset, revision=revision)
    return public.in_hash_order(found)
