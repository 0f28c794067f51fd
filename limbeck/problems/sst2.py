"""SST-2: is a sentence of a film review positive or negative?

Socher et al. 2013, https://aclanthology.org/D13-1170; the split is GLUE's.
"""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.config import FilePath
from limbeck.errors import UserError
from limbeck.problems import public, source_name
from limbeck.problems.protocol import Protocol
from limbeck.problems.rows import Columns, problem_from_row
from limbeck.types import Problem

WORDS = ["negative", "positive"]  # by label
PROMPT = (
    "Is the sentiment of this sentence positive or negative? Answer with one word.\n\n{question}"
)
PROTOCOL = Protocol(
    num_samples=1,
    num_problems=872,
    greedy=True,
    differs=(
        "The dev split is the test: the labels of GLUE's own test split are not given out.",
        "The word is written and read; classifiers with a head of their own always answer.",
        "Its sentences are written as tokens (`it 's a charming journey .`), and are shown so.",
    ),
)


def read(
    *,
    dataset: str = "stanfordnlp/sst2",
    split: str = "validation",
    revision: str | None = None,
    path: FilePath | None = None,
    prompt: str = PROMPT,
) -> Iterator[Problem]:
    """Columns `sentence` and `label` (0 negative, 1 positive), in the order of hashes."""
    rows = public.read_table(path=path, dataset=dataset, split=split, revision=revision)
    found = labelled(rows, "sentence", source_name(path or dataset), prompt)
    return public.in_hash_order(found)


def labelled(
    rows: Iterator[tuple[str, dict[str, object]]], text: str, source: str, prompt: str
) -> Iterator[Problem]:
    """Problems whose answer is the word for a label; UserError for a row without one."""
    columns = Columns(question=text, verifier="choice", prompt=prompt, source=source)
    for where, row in rows:
        label = str(row.get("label"))
        if label not in ("0", "1"):
            what = f"the label {label!r:.40} is none of 0 and 1"
            raise UserError(where, what, "take a split whose labels are given out")
        answered = {text: row.get(text), "answer": WORDS[int(label)]}
        problem = problem_from_row(answered, where, columns)
        problem.meta["choices"] = WORDS
        yield problem
