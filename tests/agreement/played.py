"""Limbeck's server over recorded answers: `python -m tests.agreement.played TOKENIZER TABLE`.

The table has a column `asked`, the whole of a user's message, and the answer in `text`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from limbeck import serve
from limbeck.engines import replay
from limbeck.engines.pool import Draft
from limbeck.problems import make_problem
from limbeck.types import Request, Sampling
from tests.serve.echo import EchoEngine


class PlayedEngine(EchoEngine):
    """Says what was recorded, token by token; there is no model."""

    name = "played"
    context = 4096

    def __init__(self, folder: str, table: str) -> None:
        super().__init__(folder, step_s=0.0)
        self.recorded = replay.connect(path=table, problem="asked")

    def words(self, prompt: Sequence[int]) -> list[int]:
        asked = self.text(prompt).rpartition("<|user|>")[2].partition("<|assistant|>")[0].strip()
        request = Request("", make_problem(asked, "", verifier="number"), 0, seed=0)
        (trace,) = self.recorded.generate([request], Sampling())
        return self.tokenizer(trace.text, add_special_tokens=False)["input_ids"]


def main(folder: str, table: str) -> None:
    limits = serve.Limits(num_rows=8, num_waiting=64, time_s=60.0)
    serve.run(PlayedEngine(folder, table), Draft, serve.bind("127.0.0.1", 0), None, limits)


if __name__ == "__main__":
    main(*sys.argv[1:])
