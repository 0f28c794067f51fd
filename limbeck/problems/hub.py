"""Problems from the Hugging Face hub, streamed: nothing is downloaded that is not read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from limbeck.errors import UserError
from limbeck.plugins import VerifierName
from limbeck.problems import source_name
from limbeck.problems.rows import Columns, problem_from_row
from limbeck.types import Problem


def read(
    *,
    dataset: str,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
    question: str = "question",
    answer: str = "answer",
    answer_after: str | None = None,
    verifier: VerifierName = "number",
    prompt: str = "{question}",
    domain: str | None = None,
    choices: str | None = None,
    tests: str | None = None,
    source: str | None = None,
    licence: str | None = None,
) -> Iterator[Problem]:
    """One problem a row, in the data set's order; `Columns` says what the knobs mean.

    `revision` pins a commit: without it the data set may change under you. A folder on this machine
    will do as `dataset`. `source` is the data set's name if nothing else is said. Raises UserError
    if it cannot be opened.
    """
    columns = Columns(
        question=question,
        answer=answer,
        answer_after=answer_after,
        verifier=verifier,
        prompt=prompt,
        domain=domain,
        choices=choices,
        tests=tests,
        source=source or source_name(dataset),
        licence=licence,
    )
    for where, row in rows(dataset=dataset, config=config, split=split, revision=revision):
        yield problem_from_row(row, where, columns)


def rows(
    *,
    dataset: str,
    config: str | None = None,
    split: str = "train",
    revision: str | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) for each row; `where` counts from 1."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        way_out = "pip install 'limbeck[hub]'"
        raise UserError(dataset, "needs the package datasets", way_out) from error
    where, line = "/".join(part for part in (dataset, config, split) if part), 0
    try:
        found = load_dataset(dataset, config, split=split, revision=revision, streaming=True)
        for line, row in enumerate(found, 1):
            yield f"{where}:{line}", row
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        where = f"{where}:{line + 1}" if line else where
        way_out = "mend its name, or download it and give path=FILE"
        raise UserError(where, reason, way_out) from error
