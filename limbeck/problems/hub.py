"""Problems from the Hugging Face hub, streamed: nothing is downloaded that is not read."""

from __future__ import annotations

from collections.abc import Iterator

from limbeck.errors import UserError
from limbeck.plugins import VerifierName
from limbeck.problems import problem_from_row
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
) -> Iterator[Problem]:
    """One problem a row, in the data set's order; `problem_from_row` says what the knobs mean.

    `revision` pins a commit: without it the data set may change under you. A folder on this machine
    will do as `dataset`. Raises UserError if it cannot be opened.
    """
    from datasets import load_dataset

    where = "/".join(part for part in (dataset, config, split) if part)
    try:
        rows = load_dataset(dataset, config, split=split, revision=revision, streaming=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(where, reason, "mend its name, or download it and use `file`") from error
    for line, row in enumerate(rows, 1):
        yield problem_from_row(
            row,
            f"{where}:{line}",
            question=question,
            answer=answer,
            answer_after=answer_after,
            verifier=verifier,
            prompt=prompt,
            domain=domain,
        )
