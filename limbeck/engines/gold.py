"""The gold answers as an engine: it writes what the problem says is right, to be learned as it is.

With it a data set of questions and answers goes the way of every other: sample, verify, curate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from limbeck.types import Generator, Problem, Request, Sampling, Trace


def connect() -> Generator:
    """The engine; it has no knobs."""
    return GoldAnswers()


class GoldAnswers:
    """Writes the same text for every sample of a problem, whatever the sampling."""

    name: str = "gold"
    num_parameters: int | None = None
    costs_money: bool = False

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[Trace]:
        """One trace a request, in order."""
        for request in requests:
            problem: Problem = request.problem
            yield Trace(
                id=request.id,
                problem_id=problem.id,
                index=request.index,
                text=problem.answer,
                finish="stop",
                model=self.name,
            )
